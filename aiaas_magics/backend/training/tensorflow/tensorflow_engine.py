"""One rank of one attempt, from the unpacked fit call to trained weights: the readable spine.

Owns the order of things. Keras' own `fit` does the training; what makes it one of several lies
beside this file: which rows (`batch_partition`, `data`), sums over ranks (`process_group`, `engines`), the corrections
that keep them exact (`reductions`), what is told (`fit_progress`) and kept (`checkpoint_contents`).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import keras
import tensorflow as tf
from msgspec.structs import replace

from aiaas_magics.backend.folders.checkpoint_folder import TrainingPosition
from aiaas_magics.backend.training import rank_datasets, step_timing
from aiaas_magics.backend.training.autotune.compile_policy import FORMS, Choice, Choices, Comparing, Rule, Timing
from aiaas_magics.backend.training.autotune.step_modes import compare, only, process_bytes
from aiaas_magics.backend.training.batch_partition import BatchPartition
from aiaas_magics.backend.training.checkpoint.checkpoint_callback import Keeper, resumed_from
from aiaas_magics.backend.training.comm.process_group import ProcessGroup
from aiaas_magics.backend.training.dtype_policy import set_precision
from aiaas_magics.backend.training.event_channel import EventChannel
from aiaas_magics.backend.training.fit_progress import Progress
from aiaas_magics.backend.training.job_inputs import arrays_of, payload_of
from aiaas_magics.backend.training.loop_length import Pace, Pacing
from aiaas_magics.backend.training.rank_callbacks import agreement, callbacks_of_rank, epoch_lines, most_steps_a_call, plain_arguments
from aiaas_magics.backend.training.rank_rows import RowSource, reading_from, with_part
from aiaas_magics.backend.training.reductions import Scope
from aiaas_magics.backend.training.tensorflow.accumulation import Accumulation
from aiaas_magics.backend.training.tensorflow.epoch_metrics import quick_metrics
from aiaas_magics.backend.training.tensorflow.keras_order import order_of_keras
from aiaas_magics.backend.training.tensorflow.multi_step import FusedSteps, same_random_numbers
from aiaas_magics.backend.training.tensorflow.parallel.collective import Collective
from aiaas_magics.backend.training.tensorflow.parallel.mirrored import Mirrored, is_mirrored, mirroring
from aiaas_magics.backend.training.tensorflow.trace_cache import Traces
from aiaas_magics.backend.training.unpacked_fit import Unpacked
from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.core.events import AnyEvent, Candidate, Notice, Planned
from aiaas_magics.core.internals.keras_internals import TensorFlowTrainer
from aiaas_magics.core.internals.tensorflow_internals import is_op_determinism_enabled
from aiaas_magics.core.row_order import kernel_seed_of
from aiaas_magics.packing.checks.fit_checks import runs_eagerly
from aiaas_magics.packing.data.batch_sources import in_arguments
from aiaas_magics.packing.fitcall import fit_call
from aiaas_magics.packing.fitcall.fit_call import UnpackedFitCall

ENGINE: Final = "tensorflow"


def unpack(command: WorkerCommand) -> UnpackedFitCall:
    """The fit call that the command names."""
    arrays = arrays_of(command)
    with mirroring(command):
        call = fit_call.unpack(payload_of(command), arrays)
        set_precision(call.model, command.execution.precision)
    return call


def run(command: WorkerCommand, call: Unpacked, channel: EventChannel) -> Any:
    """Train, or measure, as `command` says. Returns the `keras.callbacks.History`; the model holds the weights."""
    if command.measure is not None and command.measure.plain:
        return _measure_plain(command, call, channel)
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(_group(command)) if command.ranks > 1 else None
        if command.measure is not None:
            return _measure(command, call, channel, group)
        return _train(command, call, channel, group)


def _train(command: WorkerCommand, call: Unpacked, channel: EventChannel, group: ProcessGroup | None) -> Any:
    arguments = plain_arguments(call.arguments)
    in_batches = bool(in_arguments(arguments))
    if in_batches:
        command = rank_datasets.keeping_whole_epochs(command)
    users = callbacks_of_rank(call.callbacks, rank=command.rank, channel=channel)
    resumed = resumed_from(command, call, channel)
    if resumed and in_batches and command.rank == 0:
        channel.send(Notice(text=rank_datasets.NEW_PASS))
    first = int(arguments.get("initial_epoch") or 0)
    start = resumed.place if resumed else TrainingPosition(first)
    epochs = int(arguments.get("epochs", 1))
    source = _source(command, call, start)
    source.batch_alone = in_batches and command.ranks > 1  # how many rows a batch has is known when it comes
    history = keras.callbacks.History()
    progress = Progress(channel, plan=lambda: source.plan, notices=command.rank == 0)
    # Asked of all callbacks, also those that only rank 0 runs: every rank must trace the same exchanges.
    each = most_steps_a_call(call.model, call.callbacks)
    batch_logs = each is not None
    source.execution, source.is_watched = int(call.model.steps_per_execution or 1), batch_logs
    agreeing = [] if group is None else [agreement(group, each_batch=batch_logs)]
    with contextlib.ExitStack() as stack:
        given = stack.enter_context(rank_datasets.opened(arguments, command, group=group))
        stack.enter_context(reading_from(source, call.model))
        collective = stack.enter_context(_hooked(call.model, group, source, accumulate=command.execution.accumulate, batch_logs=batch_logs))
        settle = collective.settle if collective is not None else lambda: None
        keeper = Keeper(command, call, channel, group=group, history=history, resumed=resumed, reading=source, before_keeping=settle)
        rule, told = Rule(_choices(command)), _to_rank_0(command, channel)
        paces = {"pace": keeper.paced(Pace(each)), "test_pace": Pace(each)}
        stack.enter_context(fusing(command, call, source, collective, **paces, rule=rule, told=told, batch_logs=batch_logs))
        # The Trainer's own `fit`: a subclass' override has run in the kernel already, where it reached the Trainer's.
        TensorFlowTrainer.fit(
            call.model,
            **given
            | {
                "initial_epoch": start.epoch,
                "epochs": start.epoch if resumed and resumed.stopped else epochs,
                "callbacks": [
                    *users,
                    *epoch_lines(call.arguments, rank=command.rank),
                    *agreeing,
                    history,
                    progress,
                    keeper,
                    *_sharing(collective),
                ],
            },
        )
    return history


def _source(command: WorkerCommand, call: Unpacked, start: TrainingPosition) -> RowSource:
    """What the iterators go by in the `fit`, from `start`."""
    first, kernel_seed = int(call.arguments.get("initial_epoch") or 0), kernel_seed_of(command.seed)
    return RowSource(
        seed=command.seed,
        rank=command.rank,
        ranks=command.ranks,
        replicas=call.model.distribute_strategy.num_replicas_in_sync,
        first_epoch=first,
        start=start,
        kernel_order=None if kernel_seed is None else functools.partial(order_of_keras, kernel_seed),
        epochs=int(call.arguments.get("epochs", 1)) - first,
    )


def _measure(command: WorkerCommand, call: Unpacked, channel: EventChannel, group: ProcessGroup | None) -> Any:
    assert command.measure is not None
    if command.measure.compare:
        return _compare(command, call, channel, group)
    timer, plan = _timed(command, call, channel, group, rule=Rule(_choices(command)), told=_to_rank_0(command, channel))
    measured = timer.measured(plan.batch)
    if command.rank == 0:
        channel.send(measured)
    return timer.model.history


def _compare(command: WorkerCommand, call: Unpacked, channel: EventChannel, group: ProcessGroup | None) -> Any:
    """Every form of the steps that the command leaves open, measured on a few of them; then the plan that follows from it."""
    rule, wanted, asked = Comparing(_choices(command)), _wanted(command, call.model), command.execution.fused

    def timed(form: str) -> step_timing.StepTimer:
        # XLA only where the rule allows it: asked for by name, it would compile also what it computes differently.
        fused = "auto" if form == "xla" and asked == "auto" else form
        in_form = replace(command, execution=replace(command.execution, fused=fused))
        return _timed(in_form, call, channel, group, rule=rule, told=only(form))[0]

    found: list[Candidate] = []
    tell = _to_rank_0(command, channel)
    for candidate in compare(asked, timed, engine=ENGINE, strategy=_strategy(command)):
        found.append(candidate)
        tell(candidate)
    measured = {one.fused: Timing(step_s=one.step_s, compile_s=one.compile_s) for one in found if not one.why}
    if rule.planned is not None:
        if measured.keys() >= FORMS:
            rule.remember(measured)
        wanted = rule.planned()
    elif wanted.fused == "auto":
        wanted = Choice(fused="graph" if "graph" in measured else "off", why=(found[-1].why,))
    _settled(command, tell)(wanted)
    history = keras.callbacks.History()
    history.epoch = []
    return history


def _timed(
    command: WorkerCommand,
    call: Unpacked,
    channel: EventChannel,
    group: ProcessGroup | None,
    *,
    rule: Rule,
    told: Callable[[Planned], None],
) -> tuple[step_timing.StepTimer, BatchPartition]:
    """Steady steps, timed, and the plan of their rows."""
    assert command.measure is not None
    arguments = step_timing.steady(plain_arguments(call.arguments))
    # The form of the loop is the one that the whole training would have.
    source = _source(command, call, TrainingPosition(int(arguments["initial_epoch"])))
    source.uneven = step_timing.leaves_rows(plain_arguments(call.arguments))
    # A study leaves callbacks out; a plan is for a fit that has them.
    each = most_steps_a_call(call.model, call.callbacks) if command.measure.compare else None
    timer = step_timing.StepTimer(command.measure, group=group, each=each, memory=_memory_bytes)
    progress = Progress(channel, plan=lambda: source.plan, notices=False)
    hooked = _hooked(call.model, group, source, accumulate=command.execution.accumulate, batch_logs=each is not None)
    with (
        reading_from(source, call.model),
        hooked as collective,
        fusing(command, call, source, collective, pace=timer, test_pace=Pace(), rule=rule, told=told, batch_logs=each is not None),
    ):
        TensorFlowTrainer.fit(call.model, **arguments, callbacks=[*_sharing(collective), timer, progress])
    assert source.plan is not None
    return timer, source.plan


def _memory_bytes() -> int:
    gpus = tf.config.list_logical_devices("GPU")
    return max(tf.config.experimental.get_memory_info(gpu.name)["peak"] for gpu in gpus) if gpus else process_bytes()


def _measure_plain(command: WorkerCommand, call: Unpacked, channel: EventChannel) -> Any:
    """The reference of a study: `fit` on the arrays themselves, nothing of ours in between but the clock."""
    assert command.measure is not None
    arguments = step_timing.steady(plain_arguments(call.arguments))
    timer = step_timing.StepTimer(command.measure)
    history = TensorFlowTrainer.fit(call.model, **arguments, callbacks=[timer])
    channel.send(timer.measured(int(arguments.get("batch_size") or 32)))
    return history


def _wanted(command: WorkerCommand, model: Any) -> Choice:
    """The form of the steps that is asked for, "auto" among them; or the only one that can be had, and why."""
    execution = command.execution
    if execution.fused == "off":
        return Choice(fused="off")
    if is_mirrored(command):
        return Choice(fused="off", why=("MirroredStrategy makes its calls itself",))
    if runs_eagerly(model):
        return Choice(fused="off", why=("the model runs eagerly",))
    for name in ("make_train_function", "make_test_function"):
        if getattr(type(model), name) is not getattr(TensorFlowTrainer, name):
            return Choice(fused="off", why=(f"{type(model).__name__} has a {name} of its own",))
    if command.ranks > 1 and (name := _function_in_step(model)):
        return Choice(
            fused="off", why=(f"{name} is a tf.function, which keeps its first trace, and with it that trace's share of a batch",)
        )
    if execution.accumulate > 1:
        return Choice(fused="graph", why=("XLA would hold all parts of a batch in memory at once",))
    return Choice(fused="xla") if execution.fused == "auto" and model.jit_compile and command.ranks == 1 else Choice(fused=execution.fused)


def _function_in_step(model: Any) -> str:
    """The name of a `tf.function` that the user's own `train_step` is, or calls by its name; empty where there is none."""
    step = inspect.getattr_static(type(model), "train_step")
    if isinstance(step, tf.types.experimental.PolymorphicFunction):
        return "train_step"
    if step is inspect.getattr_static(TensorFlowTrainer, "train_step") or not inspect.isfunction(step):
        return ""
    for name in step.__code__.co_names:
        called = inspect.getattr_static(model, name, step.__globals__.get(name))
        if isinstance(called, tf.types.experimental.PolymorphicFunction):
            return name
    return ""


def _strategy(command: WorkerCommand) -> str:
    return "collective" if command.ranks > 1 else "mirrored" if is_mirrored(command) else "single"


def _choices(command: WorkerCommand) -> Choices | None:
    """What was measured before, and may be measured in this run; nothing where somebody asked for the same bits in every run."""
    usable = bool(command.choices) and command.ranks == 1 and not is_op_determinism_enabled()
    return Choices(Path(command.choices)) if usable else None


def _traces(command: WorkerCommand, call: Unpacked) -> Traces | None:
    """Where loops are found that an earlier fit has traced. What several workers exchange, and what is measured, is traced in each."""
    execution = command.execution
    usable = bool(command.choices) and command.ranks == 1 and command.measure is None and not is_mirrored(command)
    if not usable or execution.accumulate > 1:
        return None
    facts = (execution.fused, execution.precision, is_op_determinism_enabled())
    return Traces(Path(command.choices).with_name("traces"), call.model, call.variables, facts=facts)


def _group(command: WorkerCommand) -> ProcessGroup:
    # Ranks that share a core must not take it from one another by looking.
    own_core = bool(command.cores) and command.ranks <= (os.cpu_count() or 1)
    return ProcessGroup(rank=command.rank, ranks=command.ranks, name=command.reduce_name, folder=Path(command.attempt_dir), spin=own_core)


@contextlib.contextmanager
def _hooked(model: Any, group: ProcessGroup | None, source: RowSource, *, accumulate: int, batch_logs: bool) -> Iterator[Collective | None]:
    scope = Scope()
    several: Collective | Mirrored | None = None
    with contextlib.ExitStack() as stack:
        if accumulate > 1:  # first, so that what adds up over ranks comes after the parts
            corrected = group is not None or source.replicas > 1
            stack.enter_context(Accumulation(model, accumulate, scope).installed(corrected=corrected))
        if group is not None:
            several = Collective(
                model, group, batch_alone=lambda: source.batch_alone, batch_logs=batch_logs, scope=scope, share_out=accumulate == 1
            )
        elif source.replicas > 1:
            several = Mirrored(model, batch_alone=lambda: source.batch_alone, batch_logs=batch_logs, scope=scope)
        if several is not None:
            stack.enter_context(several.installed())
        yield several if isinstance(several, Collective) else None


def _sharing(collective: Collective | None) -> list[Any]:
    """A callback that tells `collective` of every call, last before it begins."""
    if collective is None:
        return []

    load, count_on = collective.load, collective.count_on

    class Sharing(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            load()

        def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
            count_on()

    return [Sharing()]


@contextlib.contextmanager
def fusing(
    command: WorkerCommand,
    call: Unpacked,
    source: RowSource,
    collective: Collective | None = None,
    *,
    pace: Pacing,
    test_pace: Pacing,
    rule: Rule,
    told: Callable[[Planned], None],
    batch_logs: bool,
) -> Iterator[None]:
    """Inside, `fit` on arrays makes many steps in one call, as `pace` says; not where the user has a loop of his own.

    `batch_logs`: somebody looks on between steps.
    """
    model, wanted, settled = call.model, _wanted(command, call.model), _settled(command, told)
    if wanted.fused == "off":
        settled(wanted)
        yield
        return
    source.pace, source.test_pace = pace, test_pace
    traces = _traces(command, call)
    train = FusedSteps(
        model.train_step,
        stock=functools.partial(model._make_function, model.train_step),
        wrap=with_part,
        fused=wanted,
        ahead=source.ahead,
        in_all=source.in_all,
        rule=rule,
        # Ranks that try by their own clocks would not come to the same.
        tries=command.measure is None and command.ranks == 1 and not is_op_determinism_enabled(),
        settled=settled,
        halves=None if collective is None else collective.halves,
        traces=traces,
        name="train",
    )
    test = FusedSteps(
        model.test_step,
        stock=functools.partial(model._make_function, model.test_step),
        wrap=with_part,
        fused=wanted,
        in_all=source.in_all,
        traces=traces,
        name="test",
    )
    model.train_function, model.test_function = train, test
    try:
        with same_random_numbers(), quick_metrics(model, (train, test), told=command.ranks == 1 and not batch_logs):
            yield
            if traces is not None:
                traces.write()
    finally:
        model.train_function = model.test_function = None


def _settled(command: WorkerCommand, told: Callable[[Planned], None]) -> Callable[[Choice], None]:
    return lambda choice: told(Planned(fused=choice.fused, why=choice.why, engine=ENGINE, strategy=_strategy(command)))


def _to_rank_0(command: WorkerCommand, channel: EventChannel) -> Callable[[AnyEvent], None]:
    return channel.send if command.rank == 0 else lambda _: None
