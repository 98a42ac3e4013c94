"""Process health: whether an inference process still answers, and ending one that does not.

Owns the waits and the questions. What follows from an answer is decided by `supervisor`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from typing import Any, Final

import psutil

from aiaas_magics.backend.serving.process.control import Reply
from aiaas_magics.backend.serving.process.state_directory import RunningProcess, is_alive

WATCH_S: Final = 5.0  # guess: how often it is asked whether it lives
HUNG_S: Final = 10.0  # guess: no model computes in the loop that answers for longer than some milliseconds, so this is no busy moment


async def is_answered(asking: Coroutine[Any, Any, Reply]) -> bool:
    """Whether an answer comes within `HUNG_S`. Time in which this very process did not run is not the other's.

    Raises:
        OSError: the process is gone.
    """
    answer = asyncio.ensure_future(asking)
    began_s = time.monotonic()
    await asyncio.wait({answer}, timeout=HUNG_S)
    if not answer.done() and time.monotonic() - began_s > HUNG_S + WATCH_S:  # we were stopped ourselves
        await asyncio.wait({answer}, timeout=HUNG_S)
    if not answer.done():
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)
        return False
    answer.result()
    return True


async def is_closed(reader: asyncio.StreamReader) -> bool:
    """Whether the other side closes the connection within `WATCH_S`."""
    try:
        async with asyncio.timeout(WATCH_S):
            await reader.read()
    except TimeoutError:
        return False
    return True


def kill(running: RunningProcess) -> None:
    if lives(running):
        with contextlib.suppress(psutil.Error):
            psutil.Process(running.pid).kill()


def lives(running: RunningProcess) -> bool:
    """Whether it is alive; also where that cannot be read now: only a process that is gone is replaced."""
    try:
        return is_alive(running)
    except OSError:
        return True
