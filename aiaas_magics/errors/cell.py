"""Errors of the user's own code in a worker: fix the cell.

Owns the class, its sentences, and as which of Python's own classes it can be caught.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Self

from aiaas_magics.errors.root import AiaasError

if TYPE_CHECKING:
    from aiaas_magics.spec import ErrorReport


class CellError(AiaasError):
    """The user's own code is at fault."""


class RemoteTrainingError(CellError):
    """The user's code raised in a worker. `report` holds the frames; nothing was unpickled.

    It is also an instance of the Python class that was raised, so that `except ValueError` of a cell catches it as it
    catches what plain `fit` raises.
    """

    def __new__(cls, report: ErrorReport) -> Self:
        caught_as = next((name for name in report.bases or (report.type,) if name in _CAUGHT_AS), "")
        both = _remote_class(caught_as) if cls is RemoteTrainingError else cls
        return super(RemoteTrainingError, both).__new__(both, report)  # type: ignore[return-value]

    def __init__(self, report: ErrorReport) -> None:
        super().__init__(report)
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


@functools.cache
def _remote_class(name: str) -> type[RemoteTrainingError]:
    """RemoteTrainingError, and Python's class of that name as well."""
    if not name:
        return RemoteTrainingError
    return type(RemoteTrainingError.__name__, (RemoteTrainingError, _CAUGHT_AS[name]), {"__module__": __name__})
