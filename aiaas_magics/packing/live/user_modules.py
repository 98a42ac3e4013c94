"""User modules: which modules are the user's own, and which of them a function will import.

Owns telling a helper module beside the notebook from an installed library. Sending such a
module by value belongs to `state_pickle`.
"""

from __future__ import annotations

import dis
import importlib
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

_NEVER = frozenset({"__main__", "__mp_main__", "aiaas_magics", "builtins"})
_LIBRARY_FOLDERS = frozenset({"site-packages", "dist-packages"})


def users_module(name: str | None) -> ModuleType | None:
    """The loaded module `name` if it is a file of the user's, not an installed library's."""
    module = sys.modules.get(name or "")
    if module is None or not name or name.partition(".")[0] in _NEVER:
        return None
    file = getattr(module, "__file__", None)
    return module if isinstance(file, str) and is_users_file(file) else None


@cache
def is_users_file(file: str) -> bool:
    """Whether a file, or the text of a cell under this name, is no part of Python or of an installed package."""
    path = Path(file).resolve()
    if _LIBRARY_FOLDERS & set(path.parts):
        return False
    return not any(path.is_relative_to(folder) for folder in _library_folders())


@cache
def _library_folders() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple(Path(sysconfig.get_path(name)).resolve() for name in names)


def modules_imported_by(function: FunctionType) -> Iterator[ModuleType]:
    """The user's modules that `function` imports in its body, where pickling a function does not see them."""
    for name in imported_names(function.__code__):
        top = name.partition(".")[0]
        if top in _NEVER or top in sys.stdlib_module_names:
            continue
        if name not in sys.modules and not _is_found_beside(name):
            continue
        try:
            importlib.import_module(name)
        except ImportError:  # then it fails in the worker as it would fail here
            continue
        module = users_module(name)
        if module is not None:
            yield module


def _is_found_beside(name: str) -> bool:
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None and spec.has_location and is_users_file(spec.origin)


def imported_names(code: CodeType) -> Iterator[str]:
    """What the import statements in `code` name."""
    for step in dis.get_instructions(code):
        if step.opname == "IMPORT_NAME":
            yield str(step.argval)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from imported_names(inner)
