"""Cell sources: the text of cells whose code travels, which AutoGraph, `inspect.getsource` and tracebacks read in a worker.

Owns choosing the text in the kernel and putting it where Python looks for it. Only top-level
statements that hold code which travels are kept, at their own line numbers; the other lines of
a cell are empty, since nothing needs them and they may hold a secret.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType

from aiaas_magics.packing.live.user_modules import is_users_file


def sources_of(codes: Iterable[CodeType]) -> dict[str, str]:
    """The text of every file that one of `codes` stands in, by file name. A file without a text is left out."""
    first_lines: dict[str, set[int]] = {}
    for code in codes:
        if not is_users_file(code.co_filename):
            continue  # a worker has the packages
        first_lines.setdefault(code.co_filename, set()).add(code.co_firstlineno)
    texts = {file: "".join(_blanked(linecache.getlines(file), lines)) for file, lines in first_lines.items()}
    return {file: text for file, text in texts.items() if text.strip()}


def put_sources(sources: Mapping[str, str]) -> None:
    """Let Python find these texts under their file names. A file that exists here keeps its own."""
    for file, text in sources.items():
        if not linecache.getlines(file):
            # Without a time of change, `linecache.checkcache` leaves the entry alone.
            linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)


def _blanked(lines: list[str], first_lines: set[int]) -> list[str]:
    spans = list(_statements(lines) or _blocks(lines, first_lines))
    needed = [span for span in spans if any(line in span for line in first_lines)]
    return [line if any(number in span for span in needed) else "\n" for number, line in enumerate(lines, start=1)]


def _statements(lines: list[str]) -> list[range]:
    """The lines of each top-level statement; none where the text is not Python. Magics at the margin are passed over."""
    plain = ["\n" if line.startswith(("%", "!")) else line for line in lines]
    try:
        tree = ast.parse("".join(plain))
    except (SyntaxError, ValueError):
        return []
    return [range(_first_line(node), (node.end_lineno or node.lineno) + 1) for node in tree.body]


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _blocks(lines: list[str], first_lines: set[int]) -> Iterator[range]:
    """The lines of each code's own block, as `inspect.getsource` cuts it."""
    for first in first_lines:
        try:
            block = inspect.getblock(lines[first - 1 :])
        except (SyntaxError, IndentationError, tokenize.TokenError):
            block = []
        yield range(first, first + max(1, len(block)))
