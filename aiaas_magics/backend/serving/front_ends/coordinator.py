"""The front ends beside the first: processes that accept on the same listening socket and do as the first one does.

Owns their life, and changing all of them as one; the first front end is the process that the host talks to. What such a
process does inside belongs to `worker_process`, what follows from their answers to `two_phase`.

The socket is inherited, not bound again: connections wait in one queue, so that none is lost when one of them ends.
A front end takes connections when it has all that the first has, and from that moment on every change reaches it. One that ends,
or does not answer within a stated time, is started again; the others go on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, Self

import psutil

from aiaas_magics.backend.serving.front_ends.aggregate import told
from aiaas_magics.backend.serving.front_ends.call_channel import (
    Abort,
    Accept,
    Asked,
    Channel,
    Commit,
    Count,
    Drain,
    Follow,
    LoadedVersion,
    Picture,
    PicturedEndpoint,
    Prepare,
)
from aiaas_magics.backend.serving.front_ends.two_phase import Kind, Outcome, after_committing, after_preparing
from aiaas_magics.backend.serving.models.model_loader import Loader
from aiaas_magics.backend.serving.models.registry import Registry
from aiaas_magics.backend.serving.models.stats import EndpointStats
from aiaas_magics.backend.serving.models.transactions import Loading, Step
from aiaas_magics.backend.serving.process.control import (
    Change,
    Collect,
    CountsOf,
    FrontEndCounts,
    Hello,
    Load,
    Reply,
    Retire,
    Scale,
    StopProcess,
    Withdraw,
)
from aiaas_magics.backend.serving.process.state_directory import Started
from aiaas_magics.core import process_id
from aiaas_magics.core.errors import AiaasBug, AiaasError, BackendTooSlow, CannotStart

log = logging.getLogger(__name__)

ACKNOWLEDGE_S: Final = 5.0  # guess: a step that only assigns takes a millisecond; a process that is silent for so long is of no use
COLLECT_S: Final = 2.0  # guess: counting takes a millisecond, and Prometheus gives a scrape 10 s
LONG_S: Final = 300.0  # as the host's for a load: a SavedModel process imports TensorFlow; and for a drain
WATCH_S: Final = 5.0  # guess: how often one that says nothing is asked whether it lives
HUNG_S: Final = 10.0  # guess: no answer for so long is no busy moment
START_S: Final = 30.0  # as the host's
END_S: Final = 15.0  # a process's own drain takes 10 s at most, and a little
KILLED_S: Final = 5.0  # guess: after SIGKILL only the system has to do something
RESTART_WAITS_S: Final = (0.0, 0.5, 2.0, 5.0, 10.0)  # as the host's
STEADY_S: Final = 60.0  # as the host's: one that lived so long did not die of its start

Answering = Callable[[Asked], Awaitable[Reply]]
Key = tuple[str, int]  # an endpoint's name and a version's number


class FrontEnd:
    """One process beside the first, and the channel to it. To be ended by `end`."""

    def __init__(self, index: int, process: subprocess.Popen[bytes], channel: Channel) -> None:
        self.index, self._process, self._channel = index, process, channel
        self._reading = asyncio.create_task(channel.run(), name=f"aiaas-front-end-{index}")
        self.counted: tuple[CountsOf, ...] = ()  # as it said last
        self.started = Started(pid=process.pid, started=_start_mark(process.pid))

    def __str__(self) -> str:
        return f"front end {self.index} (process {self._process.pid})"

    @classmethod
    async def start(cls, index: int, command: Sequence[str], inherits: Collection[int], answer: Answering) -> Self:
        """Start `command`, which gets a `--channel` besides; `inherits` are the descriptors that it may use."""
        mine, its = socket.socketpair()
        with its:
            channel = await Channel.on(mine, answer)
            # Last of all, since nothing may come between a process and whoever ends it.
            try:
                process = subprocess.Popen(  # noqa: ASYNC220 - a spawn is over in a millisecond
                    [*command, "--beside", str(index), "--channel", str(its.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(*inherits, its.fileno()),
                )
            except BaseException:
                channel.close()
                raise
        return cls(index, process, channel)

    async def ask(self, call: Asked, *, answer_s: float) -> Reply:
        """As `Channel.ask`."""
        return await self._channel.ask(call, answer_s=answer_s)

    async def outcome(self, call: Asked, *, answer_s: float) -> Outcome:
        """How it answers, whatever that is."""
        try:
            await self.ask(call, answer_s=answer_s)
        except AiaasError as fault:
            return Outcome(Kind.REFUSED, fault)
        except TimeoutError:
            return Outcome(Kind.SILENT)
        except ConnectionError:
            return Outcome(Kind.LOST)
        return Outcome(Kind.AGREED)

    async def until_gone(self) -> None:
        """Returns when the process has ended.

        Raises:
            TimeoutError: it lives and does not answer.
        """
        while not self._channel.closed.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_S):
                    await self._channel.closed.wait()
                    return
            with contextlib.suppress(ConnectionError):
                await self.ask(Hello(), answer_s=HUNG_S)

    async def kill(self) -> None:
        """When this returns it answers nobody any more."""
        self._process.kill()
        await asyncio.to_thread(self._process.wait, KILLED_S)

    async def end(self) -> None:
        """End it, after what it is answering; at once where it has ended already."""
        try:
            with contextlib.suppress(AiaasError, ConnectionError):
                await self.ask(StopProcess(), answer_s=ACKNOWLEDGE_S)
            await asyncio.to_thread(self._process.wait, END_S)
        except (TimeoutError, subprocess.TimeoutExpired):
            log.warning("%s did not end by itself; killing it", self)
            await self.kill()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)


class FrontEnds:
    """All front ends of this process's port, seen from the first.

    Promises: when `carry_out` returns, what it changed holds for whatever request comes to any of them; when it raises, all are
    as they were. After `stop` no process started here is alive.

    Args:
        number: How many there are, the first among them.
        command: What starts another one.
        inherits: Descriptors for it: the listening socket's, and one that keeps the state folder locked.
        keep: Called with those that live when they have changed, so that a successor can end what a crash leaves behind.
        gone: Called with the index of one that takes no more connections.
    """

    def __init__(
        self,
        registry: Registry,
        loader: Loader,
        *,
        number: int,
        command: Sequence[str],
        inherits: Collection[int],
        keep: Callable[[Sequence[Started]], None],
        gone: Callable[[int], None],
    ) -> None:
        self._registry, self._loader = registry, loader
        self._command, self._inherits, self._keep, self._say_gone = command, inherits, keep, gone
        self._others = number - 1
        self._tasks: list[asyncio.Task[None]] = []
        self._living: set[FrontEnd] = set()
        self._members: list[FrontEnd] = []  # those that have all that this process has, and hear of every change
        self._numbers = itertools.count(1)
        self._gone: dict[Key, EndpointStats] = {}  # what those counted that have ended

    def start(self) -> None:
        """Begin to start the others; whoever asks meanwhile is answered by the first alone."""
        self._tasks = [asyncio.create_task(self._keep_up(index), name=f"keep front end {index}") for index in range(1, self._others + 1)]

    async def stop(self) -> None:
        """End the others, after what they are answering."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    # ----------------------------------------------------------------- changes

    async def carry_out(self, change: Change) -> Reply:
        """Make a change everywhere, in two phases: all prepare, and then, if none refused, all commit; then drain.

        Raises:
            AiaasError: it cannot be done; nothing was changed.
        """
        number, long_s = next(self._numbers), change_s(change)
        outcomes: dict[FrontEnd, Outcome] = {}
        step: Step | BaseException
        step, _ = await asyncio.gather(
            self._loader.prepare(change), self._prepare(outcomes, number, change, answer_s=long_s), return_exceptions=True
        )
        while any(member not in outcomes for member in self._members):  # some have joined since
            await self._prepare(outcomes, number, change, answer_s=long_s)
        # Nothing is waited for from here to where the commits are sent: whoever joins then does so with the change in it.
        decision = after_preparing(outcomes, lost=_lost_over(change) if isinstance(change, Load) else None)
        refused = step if isinstance(step, BaseException) else decision.refused
        try:
            if refused is not None:
                raise refused
            assert not isinstance(step, BaseException)
            step.commit()
        except BaseException:
            if not isinstance(step, BaseException):
                await step.abort()
            await self._outcomes(decision.prepared, Abort(number=number), answer_s=LONG_S)
            raise
        acknowledged = await self._outcomes(decision.prepared, Commit(number=number), answer_s=ACKNOWLEDGE_S)
        committed = after_committing(acknowledged)
        await self._end(committed.ended, f"did not follow a {type(change).__name__.lower()}")
        await asyncio.gather(step.drain(), self._outcomes(committed.prepared, Drain(number=number), answer_s=LONG_S))
        if isinstance(change, Retire):
            self._gone = {key: figures for key, figures in self._gone.items() if key[0] != change.name}
        return Reply(view=step.version.view() if isinstance(step, Loading) else None)

    async def _prepare(self, outcomes: dict[FrontEnd, Outcome], number: int, change: Change, *, answer_s: float) -> None:
        """Add the outcomes of members that were not asked yet. Who is silent is ended here, so that nobody waits for it again."""
        new = [member for member in self._members if member not in outcomes]
        outcomes |= (found := await self._outcomes(new, Prepare(number=number, change=change), answer_s=answer_s))
        await self._end(after_preparing(found).ended, f"did not answer within {answer_s:g} s")

    async def _outcomes(self, members: Iterable[FrontEnd], call: Asked, *, answer_s: float) -> Mapping[FrontEnd, Outcome]:
        """How each of them answers to the same call, which all are sent at once."""
        asked = {member: asyncio.ensure_future(member.outcome(call, answer_s=answer_s)) for member in members}
        return {member: await outcome for member, outcome in asked.items()}

    async def _end(self, members: Iterable[FrontEnd], why: str) -> None:
        for member in members:
            log.warning("%s %s; starting it again", member, why)
            self._leave(member)
            await member.kill()

    async def withdraw(self, name: str, *, withdrawn: bool) -> None:
        await self.carry_out(Withdraw(name=name, withdrawn=withdrawn))

    # ----------------------------------------------------------------- figures

    async def collect(self) -> tuple[FrontEndCounts, ...]:
        """What all have counted, those that have ended among them as far as they had said it.

        Raises:
            BackendTooSlow: one does not answer; a sum without it would be wrong.
        """
        members = list(self._members)
        answers = await asyncio.gather(*(member.ask(Count(), answer_s=COLLECT_S) for member in members), return_exceptions=True)
        for member, answer in zip(members, answers, strict=True):
            if isinstance(answer, Reply):
                member.counted = answer.told[0].counted
            elif not isinstance(answer, ConnectionError):
                raise BackendTooSlow(f"Front end {member.index} of {self._others + 1}", COLLECT_S) from answer
        return (told(self._registry), *(FrontEndCounts(pid=m.started.pid, counted=m.counted) for m in self._members), self._told_by_gone())

    def _told_by_gone(self) -> FrontEndCounts:
        """What is told once is told for ever: a counter that went back would be read as one that began anew."""
        here = {(name, version.number) for name in self._registry.names() for version in self._registry.versions(name)}
        self._gone = {key: figures for key, figures in self._gone.items() if key in here}
        counted = (CountsOf(name=name, version=number, counts=figures.counts()) for (name, number), figures in self._gone.items())
        return FrontEndCounts(pid=0, counted=tuple(counted))

    # ----------------------------------------------------------------- life and death

    async def _keep_up(self, index: int) -> None:
        """Start one, wait for its end and start it again, until this task is cancelled."""
        deaths = 0
        while True:
            began_s = time.monotonic()
            try:
                await self._one_life(index)
            except (AiaasError, OSError):
                log.warning("front end %d cannot serve", index, exc_info=True)
            deaths = 0 if time.monotonic() - began_s > STEADY_S else deaths + 1
            log.warning("front end %d has ended; starting it again", index)
            await asyncio.sleep(RESTART_WAITS_S[min(max(deaths - 1, 0), len(RESTART_WAITS_S) - 1)])

    async def _one_life(self, index: int) -> None:
        front_end = await FrontEnd.start(index, self._command, self._inherits, self._answer)
        try:
            self._living.add(front_end)
            self._keep([living.started for living in self._living])
            await front_end.ask(Hello(), answer_s=START_S)
            await self._bring_up(front_end)
            await front_end.until_gone()
        except TimeoutError:
            await front_end.kill()
            raise
        finally:
            self._leave(front_end)
            await front_end.end()
            self._say_gone(index)
            self._living.discard(front_end)
            self._keep([living.started for living in self._living])

    async def _bring_up(self, front_end: FrontEnd) -> None:
        """Give it all that this process has; then it takes connections."""
        followed: Picture | None = None
        while (picture := picture_of(self._registry)) != followed:
            await front_end.ask(Follow(picture=picture), answer_s=LONG_S)
            followed = picture
        # Nothing was waited for since they were compared: it has missed no change, and will miss none.
        self.join(front_end)
        await front_end.ask(Accept(), answer_s=START_S)
        log.info("%s serves, with %d endpoints", front_end, len(picture.endpoints))

    def join(self, front_end: FrontEnd) -> None:
        """One that has all that this process has, at this moment: it hears of every change from here on."""
        self._members.append(front_end)

    def _leave(self, front_end: FrontEnd) -> None:
        if front_end not in self._members:
            return
        self._members.remove(front_end)
        for one in front_end.counted:
            self._gone.setdefault((one.name, one.version), EndpointStats()).merge(one.counts)

    async def _answer(self, call: Asked) -> Reply:
        """What another front end asks for on behalf of whoever came to it."""
        match call:
            case Withdraw():
                return await self.carry_out(call)
            case Collect():
                return Reply(told=await self.collect())
        raise AiaasBug(f"a front end asked the first for {type(call).__name__}")


def change_s(change: Change) -> float:
    """How long a front end may take to prepare: what opens models takes long, everything else a moment."""
    return LONG_S if isinstance(change, Load | Scale) else ACKNOWLEDGE_S


def _lost_over(load: Load) -> CannotStart:
    return CannotStart("A front end", f"it ended while version {load.version} of {load.spec.name} was loaded", "log.txt")


def picture_of(registry: Registry) -> Picture:
    """What another front end has to have."""
    endpoints = []
    for name in registry.names():
        versions = tuple(
            LoadedVersion(number=number, spec=version.spec, artefact=str(version.files[0]), samples=str(version.files[1]))
            for number, version in registry.ready_versions(name).items()
        )
        if versions:
            endpoints.append(PicturedEndpoint(name=name, versions=versions, routing=registry.routing(name)))
    return Picture(endpoints=tuple(endpoints), withdrawn=tuple(sorted(registry.withdrawn)), expected=tuple(sorted(registry.expected)))


def _start_mark(pid: int) -> int:
    try:
        return process_id.start_mark(pid)
    except psutil.Error:
        return 0
