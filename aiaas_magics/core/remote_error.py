"""Remote error: an exception of a worker, as data.

Owns the values. Making one of an exception belongs to `training.error_report`, raising it again to `errors`.
"""

from __future__ import annotations

from typing import Final

from aiaas_magics.core.value import Value


class Frame(Value, frozen=True, kw_only=True):
    """One line of a traceback. `source` is there where the worker still had it."""

    file: str
    line: int
    function: str
    source: str = ""
    user: bool = False  # the user's own code, not a library's


OS_FILES: Final = ("<frozen os>", "os.py")


class ErrorReport(Value, frozen=True, kw_only=True):
    """An exception as data; nothing on the client's side is ever unpickled."""

    type: str
    message: str
    frames: tuple[Frame, ...] = ()
    ranks: tuple[int, ...] = ()
    phase: str = ""
    traceback: str = ""  # as Python printed it, bounded
    kind: str = ""  # a class of `errors`, where the fault is the backend's and not the user's code's
    args: tuple[str, ...] = ()  # that class' arguments
    bases: tuple[str, ...] = ()  # the classes that the exception is one of, the nearest first: Python's own by name, others by module.name

    @property
    def missing_variable(self) -> str | None:
        """The environment variable that `os.environ[...]` did not have; None for any other error."""
        last = self.frames[-1] if self.frames else None
        in_os = last is not None and last.function == "__getitem__" and last.file.replace("\\", "/").rpartition("/")[2] in OS_FILES
        return self.message.strip("'\"") if in_os and self.type == "KeyError" else None

    def where(self) -> str:
        if not self.ranks:
            return "the backend"
        return ("worker " if len(self.ranks) == 1 else "workers ") + ", ".join(map(str, self.ranks))
