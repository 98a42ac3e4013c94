"""Errors of the user's own code in a worker: fix the cell.

Owns the class, its sentences, and as which other classes it can be caught.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from aiaas_magics.core.errors.error_root import AiaasError

if TYPE_CHECKING:
    from aiaas_magics.core.remote_error import ErrorReport


class CellError(AiaasError):
    """The user's own code is at fault."""


class RemoteTrainingError(CellError):
    """The user's code raised in a worker. `report` holds the frames; nothing was unpickled.

    It is also an instance of the class that was raised, so that `except ValueError` of a cell, or `except` with a class of
    its own, catches it as it catches what plain `fit` raises.
    """

    def __new__(cls, report: ErrorReport) -> Self:
        error_class = _remote_class(report.bases or (report.type,)) if cls is RemoteTrainingError else cls
        python_class: Any = next(base for base in error_class.__mro__ if base.__module__ == "builtins")
        error: Self = python_class.__new__(error_class, report)
        return error

    def __init__(self, report: ErrorReport) -> None:
        BaseException.__init__(self, report)  # not what the class that was raised begins with: its arguments are not known here
        self.report = report

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteTrainingError, (self.report,)

    def __str__(self) -> str:
        return (
            f"{self.report.type}: {self.report.message}\n"
            f"(raised on {self.report.where()}). {remote_move(self.report)}; the model in the kernel is unchanged."
        )


def remote_move(report: ErrorReport) -> str:
    """What to do about an error of the user's code in a worker, as a clause."""
    if (name := report.missing_variable) is not None:
        return f"Workers have the backend's environment: send the kernel's variable with --env {name}, after %env {name}=value"
    fix = "Fix the cell and run it again. If plain fit runs it as it is, the limit is ours"
    return f"{fix}: try --fused off and --workers 1, and report it to us"


# Those that a class of ours can be as well. Others want arguments (UnicodeDecodeError), end the kernel (SystemExit),
# or cannot be made together with a class of Python's (MemoryError).
_CAUGHT_AS: Final[Mapping[str, type[BaseException]]] = {
    cls.__name__: cls
    for cls in (
        *(ValueError, TypeError, RuntimeError, NotImplementedError, RecursionError, ArithmeticError, FloatingPointError, OverflowError),
        *(ZeroDivisionError, AssertionError, AttributeError, NameError, UnboundLocalError, LookupError, IndexError, KeyError),
        *(OSError, FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError, TimeoutError),
        *(ConnectionError, BrokenPipeError, ConnectionRefusedError, ConnectionResetError, ConnectionAbortedError),
        *(ImportError, ModuleNotFoundError, EOFError, BufferError, StopIteration, KeyboardInterrupt, Warning, UserWarning),
    )
}


def _remote_class(names: Sequence[str]) -> type[RemoteTrainingError]:
    """RemoteTrainingError, and the first of the classes `names` that it can be as well: Python's own, or `module.name` that is here."""
    for name in names:
        base = _CAUGHT_AS.get(name) or _class_of_the_kernel(name)
        if base is None:
            continue
        try:
            return _joined(base)  # type: ignore[arg-type] # a class has a hash
        except TypeError:  # cannot be made together with a class of Python's
            continue
    return RemoteTrainingError


def _class_of_the_kernel(name: str) -> type[Exception] | None:
    """An exception class that the kernel has in this very place; nothing is imported, nothing of the class is called."""
    module, _, attribute = name.rpartition(".")
    value = vars(sys.modules[module]).get(attribute) if module in sys.modules else None
    is_exception = isinstance(value, type) and issubclass(value, Exception) and not issubclass(value, AiaasError)
    return value if is_exception else None


@functools.lru_cache(maxsize=64)  # of classes of cells that were run again and again, the last ones; guess
def _joined(base: type[BaseException]) -> type[RemoteTrainingError]:
    return type(RemoteTrainingError.__name__, (RemoteTrainingError, base), {"__module__": __name__})
