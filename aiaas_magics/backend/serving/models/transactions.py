"""A change of an endpoint in one process, cut into the steps that several processes have to take together.

Owns what is done at each step. Making a version ready belongs to `model_loader`, which prepares; who takes which step when, over
all front ends, belongs to `coordinator`. Where there is one front end, `alone` takes all steps one after the other.

    prepared     whatever may fail, or takes long, is done; requests see nothing of it
    commit       requests see it, from one to the next; at once, without waiting
    abort        instead of it: all is as it was
    drain        what nobody uses any more is closed, after its last answer
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from aiaas_magics.backend.serving.models.autoscaling import scaled
from aiaas_magics.backend.serving.models.registry import Executor, NotServed, Registry, Version
from aiaas_magics.core.errors import InvalidSpec, UnknownName
from aiaas_magics.core.routing import Routing, Scaling

log = logging.getLogger(__name__)

WAITED_S: Final = 7.0  # guess: nearly every request is over by then, and a SavedModel's process is killed after 5 s
LEFT: Final[set[asyncio.Task[None]]] = set()  # what is being closed with nobody waiting; tasks are held by weak references otherwise


class Step(Protocol):
    """A prepared change; then `commit` and `drain`, or `abort`.

    Raises (commit):
        AiaasError: it cannot be done any more; `abort` is to follow.
    """

    def commit(self) -> None: ...
    async def abort(self) -> None: ...
    async def drain(self) -> None: ...


async def alone(step: Step) -> None:
    """All that follows the preparing, where nobody else has to follow."""
    try:
        step.commit()
    except BaseException:
        await step.abort()
        raise
    await step.drain()


@contextmanager
def known(registry: Registry, name: str) -> Iterator[None]:
    """What the registry does not serve, as the error that crosses to whoever asked."""
    try:
        yield
    except NotServed as error:
        raise UnknownName("endpoint", name, registry.names()) from error


async def ended(versions: Sequence[Version]) -> None:
    """Returns when all have answered what they were asked and are closed, or after `WAITED_S`; then they go on by themselves.

    Whoever changes another endpoint meanwhile waits for this one, so that it must not last as long as a request may.
    """
    await waited([version.drain_and_close() for version in versions])


async def waited(endings: Sequence[Coroutine[Any, Any, None]]) -> None:
    tasks = {asyncio.ensure_future(ending) for ending in endings}
    if not tasks:
        return
    done, left = await asyncio.wait(tasks, timeout=WAITED_S)
    if left:
        log.info("%d executors still answer after %g s and are closed later", len(left), WAITED_S)
    for task in left:
        LEFT.add(task)
        task.add_done_callback(_end_left)
    for task in done:
        task.result()


def _end_left(task: asyncio.Task[None]) -> None:
    LEFT.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a version was not closed well", exc_info=error)


@dataclass(slots=True, eq=False)
class Loading:
    """A version that is proved, and becomes ready."""

    registry: Registry
    version: Version

    def commit(self) -> None:
        try:
            self.registry.ready(self.version)
        except NotServed as error:
            raise InvalidSpec(f"{error}. Run the cell again.") from error

    async def abort(self) -> None:
        self.registry.failed(self.version, self.version.fault or "it could not be loaded everywhere")
        await self.version.drain_and_close()

    async def drain(self) -> None:
        """Nothing is given up."""


@dataclass(slots=True, eq=False)
class Flip:
    """Requests go another way; all versions that are named for it are ready."""

    registry: Registry
    name: str
    routing: Routing
    keeps: int = 0
    restores: bool = False
    dropped: Sequence[Version] = ()

    def __post_init__(self) -> None:
        with known(self.registry, self.name):
            self.registry.routable(self.name, self.routing)

    def commit(self) -> None:
        with known(self.registry, self.name):
            self.dropped = self.registry.route(self.name, self.routing, keeps=(self.keeps,))
            if self.restores:
                self.registry.restore(self.name)

    async def abort(self) -> None:
        """Nothing was done."""

    async def drain(self) -> None:
        await ended(self.dropped)


@dataclass(slots=True, eq=False)
class Rescaling:
    """Executors for each of some versions, opened and proved, that take the place of those they have.

    Args:
        free: Called once it is decided, either way.
    """

    opened: Sequence[tuple[Version, Executor, int]]  # with how many there are in it
    scaling: Scaling | None = None
    free: Callable[[], None] = lambda: None
    useless: list[Executor] = field(default_factory=list)

    def commit(self) -> None:
        for version, executor, replicas in self.opened:
            if version.executor is None:  # drained meanwhile
                self.useless.append(executor)
                continue
            self.useless.append(version.executor)
            version.executor, version.replicas = executor, replicas
            if self.scaling is not None:
                version.spec = scaled(version.spec, self.scaling)
        self.free()

    async def abort(self) -> None:
        self.useless = [executor for _, executor, _ in self.opened]
        self.free()
        await self.drain()

    async def drain(self) -> None:
        await waited([executor.close() for executor in self.useless])


@dataclass(slots=True, eq=False)
class Retiring:
    """An endpoint goes, with all versions of it."""

    registry: Registry
    name: str
    versions: Sequence[Version] = ()

    def __post_init__(self) -> None:
        self.registry.expected.discard(self.name)  # one that was to come back is not waited for any more
        with known(self.registry, self.name):
            self.registry.versions(self.name)

    def commit(self) -> None:
        with known(self.registry, self.name):
            self.registry.restore(self.name)  # the name may be given to another
            self.versions = self.registry.remove(self.name)

    async def abort(self) -> None:
        """Nothing was done."""

    async def drain(self) -> None:
        await ended(self.versions)


@dataclass(slots=True, eq=False)
class Withdrawing:
    """An endpoint answers no more, or again; nothing is loaded or closed."""

    registry: Registry
    name: str
    withdrawn: bool

    def __post_init__(self) -> None:
        with known(self.registry, self.name):
            self.registry.versions(self.name)

    def commit(self) -> None:
        with known(self.registry, self.name):
            (self.registry.withdraw if self.withdrawn else self.registry.restore)(self.name)

    async def abort(self) -> None:
        """Nothing was done."""

    async def drain(self) -> None:
        """Nothing is given up."""
