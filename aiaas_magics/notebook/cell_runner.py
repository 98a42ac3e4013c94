"""Cell runner: runs the body of a cell as if it stood alone.

Owns the file name and line numbers (those of the cell itself, the `%%` line included), the
namespace, and the value of the last expression. What happens to `fit` meanwhile belongs to
`capture`; how an exception is shown belongs to `tracebacks`.
"""

from __future__ import annotations

import ast
import inspect
import sys
from dataclasses import dataclass
from types import FrameType
from typing import Any

from IPython.core.error import UsageError

from aiaas_magics.notebook import tracebacks


class CellSyntaxError(Exception):
    """The body does not parse. IPython shows a `SyntaxError` with all frames of a magic; this one shows the line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """A compiled body: the statements, and the expression whose value is shown."""

    file: str
    statements: Any
    last: Any = None


def compile_body(shell: Any, magic: str, line: str, cell: str) -> Body:
    """`cell` under the file name of the cell that is running, line numbers as the user sees them.

    Raises:
        CellSyntaxError: shown with the line at fault.
        UsageError: for a top-level `await`, which no magic can carry.
    """
    raw = raw_cell(shell, magic, line, cell)
    above = raw[: len(raw) - len(cell)].count("\n")
    file = shell.compile.cache(raw, cell_number(shell), raw_code=raw)
    source = "\n" * (above + _blank_lines(cell)) + shell.transform_cell(cell)
    try:
        tree = shell.transform_ast(ast.parse(source, file))
        *statements, last = tree.body or [ast.Pass()]
        shown = isinstance(last, ast.Expr) and shell.ast_node_interactivity != "none"
        first_part = ast.Module(statements if shown else tree.body, tree.type_ignores)
        body = _compiled(shell, first_part, file, "exec")
        value = _compiled(shell, ast.Expression(last.value), file, "eval") if shown else None
    except SyntaxError as error:
        refused = CellSyntaxError(str(error))
        tracebacks.attach(refused, shell.SyntaxTB.structured_traceback(SyntaxError, error, []))
        raise refused from None
    return Body(file=file, statements=body, last=value)


def run_body(shell: Any, body: Body) -> Any:
    """Run it in the kernel's namespace; the value of its last expression, or None."""
    exec(body.statements, shell.user_global_ns, shell.user_ns)
    return None if body.last is None else eval(body.last, shell.user_global_ns, shell.user_ns)


def _compiled(shell: Any, tree: Any, file: str, mode: str) -> Any:
    flags = shell.compile.flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code = compile(tree, file, mode, flags, dont_inherit=True)
    if code.co_flags & inspect.CO_COROUTINE:
        raise UsageError("await is not supported in the body of a magic. Use --async, and await the job in the next cell.")
    return code


def raw_cell(shell: Any, magic: str, line: str, cell: str) -> str:
    """The running cell's whole text; composed where the front end does not tell it."""
    get_parent = getattr(shell, "get_parent", None)
    code = (get_parent() or {}).get("content", {}).get("code", "") if get_parent else ""
    history = getattr(shell.history_manager, "input_hist_raw", None)
    for text in (code, history[-1] if history else ""):
        if text.endswith(cell):
            return str(text)
        if text.endswith(cell.rstrip("\n")) and cell.strip():
            return text + cell[len(cell.rstrip("\n")) :]
    return f"%%{magic} {line}\n{cell}"


def cell_number(shell: Any) -> int:
    """The number of the cell that is running: its code's file is the nearest one that IPython knows.

    `shell.execution_count` is the next number already when history is stored.
    """
    frame: FrameType | None = sys._getframe()
    numbers = shell.compile._filename_map
    while frame is not None:
        if frame.f_code.co_filename in numbers:
            return int(numbers[frame.f_code.co_filename])
        frame = frame.f_back
    return max(1, int(shell.execution_count) - 1)


def _blank_lines(cell: str) -> int:
    """Leading blank lines, which IPython's transformer takes away."""
    lines = cell.splitlines()
    return next((index for index, text in enumerate(lines) if text.strip()), 0)
