"""Conductor: feeds what happens to `jobs.machine` and carries out its actions. Decides nothing.

Owns the jobs in memory, one queue of what happened, the watching of attempts, and the order
in which things reach the disk and the readers: a job's entries and its record are written
together; an attempt's remains are gone before anybody can read that the job has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from aiaas_magics.backend.folders.small_files import NotPlainFile, says_no_room
from aiaas_magics.backend.jobs import placement
from aiaas_magics.backend.jobs.actions import Action, ClearAttempt, ClearJob, KeepResult, Record, StartAttempt, StopAttempt
from aiaas_magics.backend.jobs.machine import CANCEL_GRACE_S, handle
from aiaas_magics.backend.jobs.machine_events import (
    CancelAsked,
    CannotBePlaced,
    Event,
    Placed,
    ResultKept,
    ResultMissing,
    ServerEnds,
    StartFailed,
)
from aiaas_magics.backend.jobs.placement import DeviceRequest, Slots, UserTurn
from aiaas_magics.backend.server import attempt_order, job_files, user_turns
from aiaas_magics.backend.server.devices import Machine
from aiaas_magics.backend.server.sightings import inputs_of
from aiaas_magics.backend.server.storage.blob_store import BlobStore
from aiaas_magics.backend.server.storage.disk_trouble import Troubles
from aiaas_magics.backend.server.storage.quota import Room
from aiaas_magics.backend.server.storage.records import JobRecord, NewEntry, Store
from aiaas_magics.backend.server.storage.state_folder import StateFolder
from aiaas_magics.backend.workers.attempt import Attempt
from aiaas_magics.backend.workers.pool import WorkerPool
from aiaas_magics.core.accounts import NO_QUOTAS, Quotas
from aiaas_magics.core.clock import Clock
from aiaas_magics.core.errors import BlobDamaged, InvalidSpec, NotEnoughDevices, StoreNotWritable, UnknownName
from aiaas_magics.core.events import AnyEvent, AttemptStarted, Crashed, Entry, Notice, Phase, PhaseEntered, StateChanged
from aiaas_magics.core.remote_error import ErrorReport
from aiaas_magics.core.spec import CheckpointView, FitSpec, JobState, JobView

log = logging.getLogger(__name__)

LOOK_S: Final = 0.05
CANCEL_LOOK_S: Final = 0.5
SHUTDOWN_S: Final = 8.0
ENDING: Final = frozenset({JobState.STOPPING, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


@dataclass(slots=True)
class Live:
    """An attempt whose processes are, or may be, alive."""

    attempt: Attempt
    labels: tuple[str, ...]
    stopped: bool = False  # nothing of it runs, and nothing will start
    task: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class Happened:
    """One item of the queue: entries and events in their order, and what goes to the disk with them."""

    job: str
    inputs: tuple[NewEntry | Event, ...]
    attempt: int = 0
    read: dict[str, int] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    done: asyncio.Event | None = None


class Conductor:
    """Every job of one server. `start` and `close` bound it; everything between is called from the server's loop."""

    def __init__(
        self, *, state: StateFolder, store: Store, blobs: BlobStore, pool: WorkerPool, machine: Machine, room: Room, clock: Clock, name: str
    ) -> None:
        self._state, self._store, self._blobs, self._pool = state, store, blobs, pool
        self._machine, self._room, self._clock, self._name = machine, room, clock, name
        self._troubles = Troubles(room, clock)
        self._cancelling: set[str] = set()  # told to stop while that could not be recorded
        self._records: dict[str, JobRecord] = {}
        self._slots: dict[str, Slots] = {}
        self._live: dict[str, Live] = {}
        self._reasons: dict[str, str] = {}  # why each waiting job waits, as its log has it
        self._pulses: dict[str, asyncio.Event] = {}
        self._queue: asyncio.Queue[Happened] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.Task[None] | None = None
        self.closing = asyncio.Event()
        self.quotas_of: Callable[[str], Quotas] = lambda user: NO_QUOTAS

    # ----------------------------------------------------------------- what the server asks

    async def start(self) -> None:
        """Take up the jobs of last time: adopt attempts that live, end what should not, place what waits."""
        for record in await self._store.call(self._store.jobs):
            self._records[record.job.id] = record
        for record in list(self._records.values()):
            await self._take_up(record)
        self._loop = asyncio.create_task(self._conduct(), name="conductor")
        self._spawn(self._troubles.watch(), "watch the disk")
        self._place()

    async def submit(self, spec: FitSpec, *, key: str | None, owner: str = "") -> JobView:
        """A new job of `owner`, or the one that this owner submitted with this key.

        Raises:
            NotEnoughDevices, StoreNotWritable: nothing was kept.
            UnknownName, InvalidSpec: there is no such job, or no checkpoint of it, to go on from.
        """
        ask = attempt_order.ask_of("", spec, self._machine, owner=owner)
        placement.check(ask, devices=len(self._machine.devices), backend=self._name)
        user_turns.check_quotas(ask, self.quotas_of(owner), self._records.values(), self._machine)
        if spec.resume_job:
            await self.checkpoint(spec.resume_job)
        now_s = self._clock.now_s()
        self._room.check()
        words: list[AnyEvent] = [StateChanged(state=JobState.QUEUED), *(Notice(text=note) for note in spec.notes)]
        job, is_new = await self._store.call(self._store.add_job, spec, key=key, at_s=now_s, words=words, owner=owner)
        if is_new or job not in self._records:
            self._records[job] = await self._store.call(self._store.job, job)
            self._publish(job)
            self._place()
        return self.view(job)

    async def checkpoint(self, job: str) -> CheckpointView:
        """What another job may go on from.

        Raises:
            UnknownName: there is no such job.
            InvalidSpec: it has not ended, ended well, or left no checkpoint.
        """
        state = self.view(job).state
        if state is JobState.SUCCEEDED:
            raise InvalidSpec(f"Job {job} has succeeded, so there is nothing to resume. Get its weights with job.apply_to(model).")
        if not state.final:
            raise InvalidSpec(f"Job {job} is {state}. Wait until it ends, or cancel it first.")
        return await asyncio.to_thread(job_files.checkpoint_view, self._state, job)

    async def cancel(self, job: str) -> JobView:
        """The job when it was told to stop. While nothing can be recorded its workers are ended all the same, and at once."""
        state = self.view(job).state
        done = asyncio.create_task(self._happened(job, CancelAsked()))
        self._tasks.add(done)
        done.add_done_callback(self._tasks.discard)
        while not done.done():
            await asyncio.wait([done], timeout=CANCEL_LOOK_S)
            if done.done() or not self._troubles.blocks_all:
                continue
            if not state.final and job not in self._cancelling:
                self._cancelling.add(job)
                self._room.give_reserve()
                stop = StopAttempt(attempt=self._records[job].job.attempt, grace_s=CANCEL_GRACE_S)
                self._spawn(self._stop_attempt(job, stop), f"stop job {job}")
            break
        self._place()
        return self.view(job)

    def view(self, job: str) -> JobView:
        """Raises `UnknownName`."""
        if job not in self._records:
            raise UnknownName("job", job, tuple(self._records)[-100:])
        return self._shown(self._records[job])

    def views(self) -> list[JobView]:
        return [self._shown(record) for record in self._records.values()]

    def _shown(self, record: JobRecord) -> JobView:
        """The job as it is, which may be further than what could be recorded."""
        view, trouble = record.view(), self._troubles.of(record.job.id)
        if view.state.final:
            return view
        if record.job.id in self._cancelling:
            view = msgspec.structs.replace(view, state=JobState.STOPPING, reason="cancelled")
        return view if trouble is None else msgspec.structs.replace(view, reason=str(trouble.error))

    def records(self) -> list[JobRecord]:
        """Every job as it is kept, oldest first."""
        return list(self._records.values())

    async def remove_results(self, jobs: Sequence[str]) -> None:
        """Forget results, files and logs of jobs that are over."""
        now_s = self._clock.now_s()
        await self._store.call(self._store.remove_results, jobs, at_s=now_s)
        for job in jobs:
            self._records[job] = replace(self._records[job], result=None, files=(), removed_s=now_s)

    @property
    def is_busy(self) -> bool:
        return any(not record.job.state.final for record in self._records.values())

    async def entries(self, job: str, *, after: int, wait_s: float) -> list[Entry]:
        """Entries with a higher number than `after`; when there are none, waits up to `wait_s` for one.

        Raises:
            UnknownName: there is no such job.
            StoreNotWritable: one was waited for in vain because nothing of the job can be written, for some seconds already.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + wait_s
        # A job that changed may have no new entry: only how far its workers' files were read, say.
        while self.view(job).last_seq <= after and loop.time() < until_s and not self.closing.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._pulses.setdefault(job, asyncio.Event()).wait(), until_s - loop.time())
            if self._troubles.worth_telling(job) is not None:
                break
        last = self.view(job).last_seq
        if last <= after:
            # Who only looks sees what there is.
            if wait_s > 0 and not self.view(job).state.final and (error := self._troubles.worth_telling(job)) is not None:
                raise error
            return []
        entries = await self._store.call(self._store.entries, job, after=after)
        return [entry for entry in entries if entry.seq <= last]

    def wake(self) -> None:
        """The server ends: whoever waits for entries is answered now."""
        self.closing.set()
        for pulse in self._pulses.values():
            pulse.set()

    async def close(self) -> None:
        """End every worker; jobs that are not over go on at the next start."""
        self.wake()
        for job in list(self._live):
            self._queue.put_nowait(Happened(job, (ServerEnds(),)))
        if self._troubles.blocks_all:
            self._room.give_reserve()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_S):
                while self._live:  # noqa: ASYNC110 - several tasks and the queue must come to rest, not one event
                    await asyncio.sleep(LOOK_S)
        # What could not be recorded, or did not come to rest, is not left behind either.
        ends = (live.attempt.stop(grace_s=0.0) for live in self._live.values())
        for end in await asyncio.gather(*ends, return_exceptions=True):
            if isinstance(end, Exception):
                log.error("an attempt's processes could not be ended", exc_info=end)
        pending = [task for task in (self._loop, *self._tasks, *(live.task for live in self._live.values())) if task is not None]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    # ----------------------------------------------------------------- the loop

    async def _conduct(self) -> None:
        while True:
            happened = await self._queue.get()
            try:
                await self._apply_until_kept(happened)
            except Exception:
                log.exception("job %s: what happened could not be carried out: %s", happened.job, happened.inputs)
            if happened.done is not None:
                happened.done.set()

    async def _apply_until_kept(self, happened: Happened) -> None:
        while True:
            try:
                await self._apply(happened)
            except StoreNotWritable as error:
                await self._troubles.wait_for_records(happened.job, error)
            else:
                break
        self._troubles.recorded()
        if self._records[happened.job].job.state in ENDING:
            self._cancelling.discard(happened.job)

    async def _apply(self, happened: Happened) -> None:
        """Everything up to the write changes nothing, so that it can be tried again."""
        now_s = self._clock.now_s()
        record = self._records[happened.job]
        job, entries, actions = record.job, [], []
        for input_ in happened.inputs:
            if isinstance(input_, NewEntry):
                entries.append(input_)
                continue
            job, answered = handle(job, input_)
            entries += [NewEntry(at_s=now_s, attempt=job.attempt, rank=a.rank, event=a.event) for a in answered if isinstance(a, Record)]
            actions += [action for action in answered if not isinstance(action, Record)]
        record = replace(record, job=job, **happened.changes).stamped(now_s)
        last = await self._store.call(self._store.append, job.id, entries, record=record, attempt=happened.attempt, read=happened.read)
        # Whoever reads that a job has ended finds nothing of it left behind.
        for action in actions:
            if isinstance(action, ClearAttempt | ClearJob):
                await self._clear(job.id, action)
        self._records[job.id] = replace(record, last_seq=last)
        self._publish(job.id)
        for action in actions:
            await self._perform(job.id, action)
        if any(isinstance(action, ClearAttempt | ClearJob) for action in actions):
            self._place()

    def _publish(self, job: str) -> None:
        self._pulses.pop(job, asyncio.Event()).set()

    async def _happened(self, job: str, *inputs: NewEntry | Event, **more: Any) -> None:
        """Put something into the queue and wait until it was carried out."""
        done = asyncio.Event()
        self._queue.put_nowait(Happened(job, inputs, done=done, **more))
        await done.wait()

    # ----------------------------------------------------------------- actions

    async def _perform(self, job: str, action: Action) -> None:
        match action:
            case StartAttempt():
                await self._start_attempt(job, action)
            case StopAttempt():
                self._spawn(self._stop_attempt(job, action), f"stop job {job}")
            case KeepResult(attempt=attempt):
                self._spawn(self._keep_result(job, attempt), f"keep the result of job {job}")
            case _:
                pass

    def _spawn(self, work: Any, name: str) -> None:
        task = asyncio.create_task(_logged(work, name), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _start_attempt(self, job: str, action: StartAttempt) -> None:
        """Have the attempt watched from now on, so that even one that never starts comes to an end; the rest takes its time."""
        slots = self._slots[job]
        attempt = await self._pool.attempt(job, action.attempt, ranks=len(slots.ranks))
        self._watch(job, attempt, slots)
        self._spawn(self._start_workers(job, action, attempt, slots), f"start job {job}")

    async def _start_workers(self, job: str, action: StartAttempt, attempt: Attempt, slots: Slots) -> None:
        number = action.attempt
        if not await self._has_room_to_start(job):
            return
        try:
            plan = await asyncio.to_thread(
                attempt_order.plan, self._records[job], slots, state=self._state, blobs=self._blobs, machine=self._machine
            )
            why = attempt_order.why(action, plan.begin, explains=self._records[job].spec.explain is not None)
            started = AttemptStarted(ranks=len(slots.ranks), from_epoch=plan.begin.epoch, from_step=plan.begin.step, why=why)
            words = (started, PhaseEntered(phase=Phase.STARTING))
            await self._happened(job, *(self._word(word, number) for word in words))
            await attempt.start(plan.order)
        except (OSError, RuntimeError, TimeoutError, UnknownName, InvalidSpec) as error:
            log.warning("job %s: attempt %d could not be started: %s", job, number, error)
            self._queue.put_nowait(Happened(job, (StartFailed(number, f"could not start its workers: {error}"),)))

    async def _has_room_to_start(self, job: str) -> bool:
        """Wait until the first files of an attempt find room; whether the attempt was not stopped meanwhile."""
        while (live := self._live.get(job)) is not None and not live.stopped:
            try:
                self._room.check_start()
            except StoreNotWritable as error:
                await self._troubles.wait_for_room(job, error)
            else:
                self._troubles.has_room(job)
                return True
        self._troubles.has_room(job)
        return False

    async def _stop_attempt(self, job: str, action: StopAttempt) -> None:
        live = self._live.get(job)
        if live is None:
            return
        await live.attempt.stop(patience_s=action.patience_s, grace_s=action.grace_s)
        live.stopped = True

    async def _keep_result(self, job: str, attempt: int) -> None:
        while True:
            try:
                sha = await asyncio.to_thread(self._blobs.keep, await self._live[job].attempt.result())
                files = await asyncio.to_thread(job_files.files_of, self._state.job(job).files)
            except (OSError, NotPlainFile, StoreNotWritable) as error:
                if isinstance(error, StoreNotWritable) and says_no_room(str(error)):  # a training is not thrown away for that
                    await self._troubles.wait_for_room(job, error)
                    continue
                self._queue.put_nowait(Happened(job, (ResultMissing(attempt, f"its result could not be kept ({error})"),)))
                return
            break
        self._troubles.has_room(job)
        self._queue.put_nowait(Happened(job, (ResultKept(attempt),), changes={"result": sha, "files": files}))

    async def _clear(self, job: str, action: ClearAttempt | ClearJob) -> None:
        self._slots.pop(job, None)
        if isinstance(action, ClearJob):
            await asyncio.to_thread(job_files.clear_job, self._state.job(job), resumable=action.resumable)
            other_records = [record for id, record in self._records.items() if id != job]
            ended = [*(record.job.id for record in other_records if record.job.state.final), job]
            needed = {record.spec.resume_job for record in other_records if not record.job.state.final}
            await asyncio.to_thread(job_files.forget_checkpoints, self._state, ended, needed=needed)
        elif (live := self._live.pop(job, None)) is not None:
            await live.attempt.clear()

    # ----------------------------------------------------------------- watching

    def _watch(self, job: str, attempt: Attempt, slots: Slots) -> None:
        execution = self._machine.execution_of(self._records[job].spec)
        live = Live(attempt, tuple(self._machine.label(positions, execution) for positions in slots.ranks))
        self._live[job] = live
        live.task = asyncio.create_task(_logged(self._follow(job, live), f"watch job {job}"), name=f"watch job {job}")

    async def _follow(self, job: str, live: Live) -> None:
        """Hand on what the workers say until all have ended."""
        attempt = live.attempt
        while not attempt.is_over:
            news = await attempt.news()
            inputs = inputs_of(news, attempt=attempt.number, labels=live.labels, now_s=self._clock.now_s())
            for report in (line.event.report for _, line in news.lines if isinstance(line.event, Crashed)):
                self._drop_damaged(job, report)
            if news:
                await self._happened(job, *inputs, attempt=attempt.number, read=news.offsets)

    def _drop_damaged(self, job: str, report: ErrorReport) -> None:
        """A worker found other bytes in a blob than were sent: without it the next upload brings them again."""
        spec = self._records[job].spec
        if report.kind == BlobDamaged.__name__ and report.args and report.args[0] in (spec.payload, *spec.arrays):
            log.warning("job %s: %s", job, report.message)
            self._blobs.drop(report.args[0])

    def _word(self, event: Any, attempt: int, rank: int | None = None) -> NewEntry:
        return NewEntry(at_s=self._clock.now_s(), attempt=attempt, rank=rank, event=event)

    # ----------------------------------------------------------------- placing, and taking up again

    def _place(self) -> None:
        """Start what can start, and say of the rest why it waits."""
        if self.closing.is_set():
            return
        waiting = [r for r in self._records.values() if r.job.state is JobState.QUEUED and r.job.id not in self._slots]
        devices = len(self._machine.devices)
        asks = []
        for record in waiting:
            ask = attempt_order.ask_of(record.job.id, record.spec, self._machine, owner=record.owner)
            try:
                placement.check(ask, devices=devices, backend=self._name)
            except NotEnoughDevices as error:  # the machine had more when the job was submitted
                self._queue.put_nowait(Happened(ask.job, (CannotBePlaced(str(error)),)))
            else:
                asks.append(ask)
        devices_held = {job: slots.held for job, slots in self._slots.items()}
        placed = placement.place(
            asks, devices=devices, busy=devices_held, one_each=self._machine.one_each, turns=self._turns(), now_s=self._clock.now_s()
        )
        for ask, slots in placed:
            self._slots[ask.job] = slots
            devices_held[ask.job] = slots.held
            self._reasons.pop(ask.job, None)
            self._queue.put_nowait(Happened(ask.job, (Placed(len(slots.ranks)),), changes={"seats": attempt_order.encode_slots(slots)}))
        started = {ask.job for ask, _ in placed}
        self._say_why([ask for ask in asks if ask.job not in started], devices_held)

    def _turns(self) -> dict[str, UserTurn]:
        return user_turns.turns_of(self._records.values(), self._slots, self._machine, quotas_of=self.quotas_of, now_s=self._clock.now_s())

    def _say_why(self, asks: Sequence[DeviceRequest], busy: dict[str, frozenset[int]]) -> None:
        owners = {id: record.owner for id, record in self._records.items()}
        for job, text in user_turns.why_each_waits(asks, busy, self._machine, owners=owners, turns=self._turns()).items():
            if self._reasons.get(job) != text:
                self._reasons[job] = text
                attempt = self._records[job].job.attempt
                self._queue.put_nowait(Happened(job, (self._word(PhaseEntered(phase=Phase.WAITING, detail=text), attempt),)))

    async def _take_up(self, record: JobRecord) -> None:
        """Continue a job that the server before us knew. Its workers may have gone on, or be gone."""
        job, state = record.job, record.job.state
        await end_attempts(self._pool, job.id, but=None if state.final else job.attempt)
        if state not in {JobState.RUNNING, JobState.STOPPING}:
            return
        slots = attempt_order.decode_slots(record.seats, ranks=job.ranks)
        log_entries = await self._store.call(self._store.entries, job.id, after=0, attempt=job.attempt, limit=1_000_000)
        job = attempt_order.restored(job, log_entries)
        self._records[job.id] = replace(record, job=job)
        self._slots[job.id] = slots
        offsets = await self._store.call(self._store.read_offsets, job.id, job.attempt)
        attempt = await self._pool.adopt(job.id, job.attempt, ranks=len(slots.ranks), offsets=offsets)
        self._watch(job.id, attempt, slots)
        if not attempt.is_started or job.verdict is not None or state is JobState.STOPPING:
            self._spawn(self._stop_attempt(job.id, StopAttempt(attempt=job.attempt)), f"stop job {job.id}")


async def end_attempts(pool: WorkerPool, job: str, *, but: int | None = None) -> None:
    """End the processes of the job's attempts, and clear them away, all except for the number `but`."""
    for attempt in await pool.attempts_of(job):
        if attempt.number != but:
            await attempt.stop(grace_s=0.0)
            await attempt.clear()


async def _logged(work: Any, name: str) -> None:
    """A task's border: nobody awaits it, so what it raises would be lost."""
    try:
        await work
    except Exception:
        log.exception("%s failed", name)
