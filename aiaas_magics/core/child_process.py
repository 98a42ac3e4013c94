"""Child process: waiting until one that was just started is there, and its last words if it is not.

Owns the waiting and the reading of logs. What to start, and what "there" means, belongs to whoever starts it.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from aiaas_magics.core.plain_text import visible

T = TypeVar("T")

LOG_BYTES: Final = 2000  # guess: of the end of a log, enough for a traceback's last lines
LOOK_S: Final = 0.02
NO_LOG: Final = "it left no log"
SILENT: Final = "it said nothing"


class ChildEnded(Exception):
    """The process ended before it was there. The argument is its exit code."""

    @property
    def code(self) -> int:
        return int(self.args[0])


def until_there(look: Callable[[], T | None], child: subprocess.Popen[bytes], *, limit_s: float) -> T:
    """What `look` finds, as soon as it is not None. The process is left as it is when this raises.

    Raises:
        ChildEnded: `child` ended first.
        TimeoutError: neither came within `limit_s`.
    """
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if (result := look()) is not None:
            return result
        if (code := child.poll()) is not None:
            raise ChildEnded(code)
        time.sleep(LOOK_S)
    raise TimeoutError


def last_words(log: Path, *, characters: int = 500) -> str:
    """The end of a log, or a clause that says why there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - LOG_BYTES))
            text = file.read(LOG_BYTES).decode(errors="replace").strip()
    except OSError:
        return NO_LOG
    return text[-characters:] or SILENT


def last_line(log: Path, *, characters: int = 300) -> str:
    """The last line of a log, safe to print in a terminal."""
    return visible(last_words(log, characters=LOG_BYTES).splitlines()[-1][:characters])
