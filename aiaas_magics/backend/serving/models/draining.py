"""Draining: closes versions and executors after their last answer.

Owns how long a change of an endpoint waits for that, and what is closed later, with nobody waiting.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from typing import Any, Final

from aiaas_magics.backend.serving.models.registry import Version

log = logging.getLogger(__name__)

DRAIN_WAIT_S: Final = 7.0  # guess: nearly every request is over by then, and a SavedModel's process is killed after 5 s
CLOSING_LATER: Final[set[asyncio.Task[None]]] = set()  # tasks are held by weak references otherwise


async def drain(versions: Iterable[Version]) -> None:
    """Returns when all have answered their requests and are closed, or after `DRAIN_WAIT_S`; the rest are closed later.

    Whoever changes another endpoint meanwhile waits for this one, so that it must not last as long as a request may.
    """
    await close_all([version.drain_and_close() for version in versions])


async def close_all(closings: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all of them at once, for at most `DRAIN_WAIT_S`; what takes longer goes on by itself."""
    tasks = {asyncio.ensure_future(closing) for closing in closings}
    if not tasks:
        return
    done, pending = await asyncio.wait(tasks, timeout=DRAIN_WAIT_S)
    if pending:
        log.info("%d executors still answer after %g s and are closed later", len(pending), DRAIN_WAIT_S)
    for task in pending:
        CLOSING_LATER.add(task)
        task.add_done_callback(_on_closed_later)
    for task in done:
        task.result()


def _on_closed_later(task: asyncio.Task[None]) -> None:
    CLOSING_LATER.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a version was not closed well", exc_info=error)
