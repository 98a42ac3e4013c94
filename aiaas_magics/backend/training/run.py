"""Training run: one rank of one attempt, from the unpacked fit call to trained weights or measured steps, on any engine.

Owns the order of things, and the three that a command may ask for: train, measure, compare. Keras' own `fit` does the
training. How an engine carries it out is behind `engine.TrainingEngine`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import keras
from msgspec.structs import replace

from aiaas_magics.backend.folders.checkpoint_folder import TrainingPosition
from aiaas_magics.backend.training import step_timing
from aiaas_magics.backend.training.autotune.loop_length import LoopLength, agreed
from aiaas_magics.backend.training.autotune.step_modes import compare, only
from aiaas_magics.backend.training.checkpoint.checkpoint_callback import CheckpointCallback, resumed_from
from aiaas_magics.backend.training.comm.process_group import ProcessGroup
from aiaas_magics.backend.training.engine import FitRun, StepPolicy, TrainingEngine
from aiaas_magics.backend.training.event_channel import EventChannel
from aiaas_magics.backend.training.fit_progress import Progress
from aiaas_magics.backend.training.private_fit import PrivacyLog, private_fit
from aiaas_magics.backend.training.rank_callbacks import agreement, callbacks_of_rank, epoch_lines, most_steps_a_call, plain_arguments
from aiaas_magics.backend.training.unpacked_fit import Unpacked
from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.core.events import AnyEvent, Candidate, Notice, Planned
from aiaas_magics.packing.data.batch_sources import in_arguments

NEW_PASS: Final = (
    "The data yields batches: the resumed run began its epoch with a new pass over them, in another order where they are shuffled, "
    "so its numbers are not to the bit those of an undisturbed one."
)
DEFAULT_BATCH: Final = 32  # Keras' own


def run(engine: TrainingEngine, command: WorkerCommand, call: Unpacked, channel: EventChannel) -> Any:
    """Train, measure or compare, as `command` says. Returns the `keras.callbacks.History`; the model holds the weights."""
    if command.measure is not None and command.measure.plain:
        return measure(engine, command, call, channel, None)
    with engine.joined(command) as group:
        if command.measure is None:
            return train(engine, command, call, channel, group)
        if command.measure.compare:
            return measure_forms(engine, command, call, channel, group)
        return measure(engine, command, call, channel, group)


def train(engine: TrainingEngine, command: WorkerCommand, call: Unpacked, channel: EventChannel, group: ProcessGroup | None) -> Any:
    """The whole `fit`, from its beginning or from the checkpoint that `command` names."""
    arguments = plain_arguments(call.arguments)
    in_batches = bool(in_arguments(arguments))
    if in_batches:
        command = keeping_whole_epochs(command)
    users = callbacks_of_rank(call.callbacks, rank=command.rank, channel=channel)
    resumed = resumed_from(command, call, channel)
    if resumed and in_batches and command.rank == 0:
        channel.send(Notice(text=NEW_PASS))
    start = resumed.place if resumed else TrainingPosition(int(arguments.get("initial_epoch") or 0))
    epochs = start.epoch if resumed and resumed.stopped else int(arguments.get("epochs", 1))
    # Asked of all callbacks, also those that only rank 0 runs: every rank must trace the same exchanges.
    most_steps = most_steps_a_call(call.model, call.callbacks)
    reading, private = engine.reading(command, call, start), private_fit(command, call, group)
    reading.sampling = None if private is None else private.sampling
    reading.batch_alone = in_batches and command.ranks > 1  # how many rows a batch has is known when it comes
    reading.execution, reading.is_watched = int(call.model.steps_per_execution or 1), most_steps is not None
    history = keras.callbacks.History()
    progress = Progress(channel, plan=lambda: reading.plan, notices=command.rank == 0)
    spending = [] if private is None else [PrivacyLog(private)]
    agreeing = [] if group is None else [agreement(group, each_batch=most_steps is not None)]
    fit = FitRun(
        command=command,
        call=call,
        arguments=arguments | {"initial_epoch": start.epoch, "epochs": epochs},
        reading=reading,
        policy=engine.policy(command, call),
        on_plan=to_rank_0(command, channel),
        group=group,
        is_watched=most_steps is not None,
        private=private,
    )
    alike = engine.info.has_one_program
    with engine.opened(fit) as opened:
        keeper = CheckpointCallback(
            command,
            call,
            channel,
            group=group,
            alike=alike,
            history=history,
            resumed=resumed,
            reading=reading,
            before_keeping=opened.before_checkpoint,
        )
        pace, test_pace = keeper.paced(LoopLength(most_steps)), LoopLength(most_steps)
        opened.fit(
            [*spending, *users, *epoch_lines(call.arguments, rank=command.rank), *agreeing, history, progress, keeper, *opened.callbacks],
            pace=agreed(pace, group) if alike else pace,
            test_pace=agreed(test_pace, group) if alike else test_pace,
        )
    return history


def keeping_whole_epochs(command: WorkerCommand) -> WorkerCommand:
    """Checkpoints between epochs only: nobody can go on from within a pass over data that is made anew each time."""
    execution = command.execution
    epochs = execution.checkpoint_epochs or int(execution.checkpoint_s > 0)
    return replace(command, execution=replace(execution, checkpoint_s=0.0, checkpoint_epochs=epochs))


def measure(engine: TrainingEngine, command: WorkerCommand, call: Unpacked, channel: EventChannel, group: ProcessGroup | None) -> Any:
    """One point of a study: steady steps, timed."""
    on_plan = to_rank_0(command, channel)
    timer, rows = _timed(engine, command, call, channel, group, policy=engine.policy(command, call), on_plan=on_plan)
    measured = timer.measured(rows)  # every rank: it times exchanges
    if command.rank == 0:
        channel.send(measured)
    return timer.model.history


def measure_forms(engine: TrainingEngine, command: WorkerCommand, call: Unpacked, channel: EventChannel, group: ProcessGroup | None) -> Any:
    """Every form of the steps that the command leaves open, measured on a few of them; then the plan that follows from it."""
    info, policy, form_name = engine.info, engine.policy(command, call), engine.info.form_for(command.execution.fused)

    def timed(form: str) -> step_timing.StepTimer:
        # The quickest only where the policy allows it: asked for by name, it would compile also what it computes differently.
        fused = "auto" if form == info.forms[-1] and form_name == "auto" else form
        in_form = replace(command, execution=replace(command.execution, fused=fused))
        return _timed(engine, in_form, call, channel, group, policy=policy, on_plan=only(form))[0]

    tell, candidates = to_rank_0(command, channel), list[Candidate]()
    for candidate in compare(form_name, timed, forms=info.forms, engine=info.name, strategy=engine.strategy(command)):
        candidates.append(candidate)
        tell(candidate)
    tell(policy.concluded(candidates))
    history = keras.callbacks.History()
    history.epoch = []
    return history


def _timed(
    engine: TrainingEngine,
    command: WorkerCommand,
    call: Unpacked,
    channel: EventChannel,
    group: ProcessGroup | None,
    *,
    policy: StepPolicy,
    on_plan: Callable[[Planned], None],
) -> tuple[step_timing.StepTimer, int]:
    """Steady steps, timed, and the rows of one of them."""
    assert command.measure is not None
    whole = plain_arguments(call.arguments)
    arguments = step_timing.steady(whole)
    # A study leaves callbacks out; a plan is for a fit that has them.
    most_steps = most_steps_a_call(call.model, call.callbacks) if command.measure.compare else None
    reading = engine.reading(command, call, TrainingPosition(int(arguments["initial_epoch"])))
    private = private_fit(command, call, group)
    reading.sampling = None if private is None else private.sampling
    reading.uneven = step_timing.leaves_rows(whole)  # the form of the loop is the one that the whole training would have
    timer = step_timing.StepTimer(command.measure, group=group, most_steps=most_steps, memory=engine.memory_bytes)
    progress = Progress(channel, plan=lambda: reading.plan, notices=False)
    fit = FitRun(
        command=command,
        call=call,
        arguments=arguments,
        reading=reading,
        policy=policy,
        on_plan=on_plan,
        group=group,
        is_watched=most_steps is not None,
        private=private,
    )
    with engine.opened(fit) as opened:
        opened.fit([*opened.callbacks, timer, *([] if fit.is_plain else [progress])], pace=timer, test_pace=LoopLength())
    rows = int(arguments.get("batch_size") or DEFAULT_BATCH) if reading.plan is None else reading.plan.batch
    return timer, rows


def to_rank_0(command: WorkerCommand, channel: EventChannel) -> Callable[[AnyEvent], None]:
    """Sends what rank 0 says for all; other ranks are silent."""
    return channel.send if command.rank == 0 else lambda _: None
