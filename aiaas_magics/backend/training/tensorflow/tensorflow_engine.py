"""TensorFlow engine: Keras on TensorFlow, one of several processes or one that drives several devices.

Owns putting together what makes Keras' own `fit` one of several: which rows (`rank_rows`, `rank_datasets`), exchanges over ranks
(`parallel`), the corrections that keep them exact (`reductions`), and many steps in one call (`multi_step`).
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import keras
import tensorflow as tf

from aiaas_magics.backend.folders.checkpoint_folder import TrainingPosition
from aiaas_magics.backend.training.autotune.compile_policy import Choice
from aiaas_magics.backend.training.autotune.step_modes import process_bytes
from aiaas_magics.backend.training.comm.process_group import ProcessGroup
from aiaas_magics.backend.training.comm.shared_memory_group import SharedMemoryGroup
from aiaas_magics.backend.training.dtype_policy import set_precision
from aiaas_magics.backend.training.engine import FitRun, OpenedFit, StepPolicy, TrainingEngine
from aiaas_magics.backend.training.epochs import LoopLengthPolicy
from aiaas_magics.backend.training.job_inputs import arrays_of, payload_of
from aiaas_magics.backend.training.tensorflow import rank_datasets, tensorflow_forms
from aiaas_magics.backend.training.tensorflow.accumulation import Accumulation
from aiaas_magics.backend.training.tensorflow.epoch_metrics import quick_metrics
from aiaas_magics.backend.training.tensorflow.keras_order import order_of_keras
from aiaas_magics.backend.training.tensorflow.multi_step import MultiStepFunction, same_random_numbers
from aiaas_magics.backend.training.tensorflow.parallel import mirrored
from aiaas_magics.backend.training.tensorflow.parallel.collective import Collective
from aiaas_magics.backend.training.tensorflow.parallel.mirrored import Mirrored, mirroring
from aiaas_magics.backend.training.tensorflow.parallel.reductions import Scope
from aiaas_magics.backend.training.tensorflow.private_tensorflow_steps import PrivateTensorFlowSteps, read_drawn
from aiaas_magics.backend.training.tensorflow.rank_rows import RowSource, reading_from, with_part
from aiaas_magics.backend.training.tensorflow.tensorflow_forms import TensorFlowPolicy
from aiaas_magics.backend.training.unpacked_fit import Unpacked
from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.core.internals.keras_internals import TensorFlowTrainer
from aiaas_magics.core.internals.tensorflow_internals import context, is_op_determinism_enabled
from aiaas_magics.core.row_order import kernel_seed_of
from aiaas_magics.packing.fitcall import fit_call
from aiaas_magics.packing.fitcall.fit_call import UnpackedFitCall


class TensorFlowEngine:
    """See `engine.TrainingEngine`."""

    info = tensorflow_forms.INFO

    def assert_fork_safe(self) -> None:
        existing = context.context_safe()
        if existing is not None and existing._initialized:
            raise RuntimeError("importing the libraries has initialised TensorFlow's devices; workers cannot fork from here")

    def prepare(self, command: WorkerCommand) -> None:
        set_threads(command.cores)
        if mirrored.is_mirrored(command) and not command.gpus:
            mirrored.simulate_devices(command.devices)
        keras.utils.set_random_seed((command.seed + command.rank) % 2**32)

    def make_ready(self, cores: Sequence[int]) -> None:
        """Devices, threads, and a first loop."""
        set_threads(cores)
        weights = tf.Variable(tf.zeros((4, 4)))

        def steps(rows: Any, stop: Any) -> Any:
            def step(at: Any, _: Any) -> Any:
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean(tf.nn.relu(tf.matmul(rows, weights)))
                weights.assign_sub(tape.gradient(loss, weights))
                return at + 1, loss

            return tf.while_loop(lambda at, _: at < stop, step, (0, 0.0), parallel_iterations=1)

        tf.function(tf.autograph.experimental.do_not_convert(steps))(tf.zeros((4, 4)), tf.constant(1))

    def unpack(self, command: WorkerCommand) -> UnpackedFitCall:
        arrays = arrays_of(command)
        with mirroring(command):
            call = fit_call.unpack(payload_of(command), arrays)
            set_precision(call.model, command.execution.precision)
        return call

    def joined(self, command: WorkerCommand) -> contextlib.AbstractContextManager[ProcessGroup | None]:
        if command.ranks == 1:
            return contextlib.nullcontext()
        # Ranks that share a core must not take it from one another by looking.
        own_core = bool(command.cores) and command.ranks <= (os.cpu_count() or 1)
        return SharedMemoryGroup(
            rank=command.rank, ranks=command.ranks, name=command.reduce_name, folder=Path(command.attempt_dir), spin=own_core
        )

    def strategy(self, command: WorkerCommand) -> str:
        return tensorflow_forms.strategy_of(command)

    def reading(self, command: WorkerCommand, call: Unpacked, start: TrainingPosition) -> RowSource:
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

    def policy(self, command: WorkerCommand, call: Unpacked) -> StepPolicy:
        return TensorFlowPolicy(command, call)

    @contextlib.contextmanager
    def opened(self, fit: FitRun) -> Iterator[OpenedFit]:
        if fit.is_plain:
            yield TensorFlowFit(fit, fit.arguments, None)
            return
        with contextlib.ExitStack() as stack:
            arguments = stack.enter_context(rank_datasets.opened(fit.arguments, fit.command, group=fit.group))
            if fit.private is not None:
                rows_of(fit).read_training = read_drawn
            stack.enter_context(reading_from(rows_of(fit), fit.call.model))
            yield TensorFlowFit(fit, arguments, stack.enter_context(_hooked(fit)))

    def memory_bytes(self) -> int:
        gpus = tf.config.list_logical_devices("GPU")
        return max(tf.config.experimental.get_memory_info(gpu.name)["peak"] for gpu in gpus) if gpus else process_bytes()


class TensorFlowFit:
    """See `engine.OpenedFit`. `arguments` have what `fit` takes in the place of a data source."""

    def __init__(self, fit: FitRun, arguments: Any, collective: Collective | None) -> None:
        self._fit, self._arguments, self._collective = fit, arguments, collective
        self.callbacks = _sharing(collective)

    def before_checkpoint(self) -> None:
        if self._collective is not None:
            self._collective.settle()

    def fit(self, callbacks: Sequence[Any], *, pace: LoopLengthPolicy, test_pace: LoopLengthPolicy) -> Any:
        stock = contextlib.nullcontext()
        with stock if self._fit.is_plain else multi_step_loop(self._fit, self._collective, pace=pace, test_pace=test_pace):
            # The Trainer's own `fit`: a subclass' override has run in the kernel already, where it reached the Trainer's.
            return TensorFlowTrainer.fit(self._fit.call.model, **self._arguments, callbacks=list(callbacks))


ENGINE: Final[TrainingEngine] = TensorFlowEngine()


def set_threads(cores: Sequence[int]) -> None:
    """TensorFlow's, before it has started; afterwards these same numbers only."""
    if cores:
        tf.config.threading.set_intra_op_parallelism_threads(len(cores))
        # One more than cores: an exchange that waits for other ranks occupies one, and data is read meanwhile.
        tf.config.threading.set_inter_op_parallelism_threads(len(cores) + 1)


def rows_of(fit: FitRun) -> RowSource:
    """The reading of a fit that this engine has made."""
    assert isinstance(fit.reading, RowSource)
    return fit.reading


@contextlib.contextmanager
def _hooked(fit: FitRun) -> Iterator[Collective | None]:
    model, group, source = fit.call.model, fit.group, rows_of(fit)
    accumulate, batch_logs = fit.command.execution.accumulate, fit.is_watched
    scope = Scope()
    several: Collective | Mirrored | None = None
    with contextlib.ExitStack() as stack:
        if fit.private is not None:  # first, so that what adds up over ranks comes after the rows
            stack.enter_context(PrivateTensorFlowSteps(model, fit.private, scope, rank=fit.command.rank).installed())
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
def multi_step_loop(fit: FitRun, collective: Collective | None, *, pace: LoopLengthPolicy, test_pace: LoopLengthPolicy) -> Iterator[None]:
    """Inside, `fit` on arrays makes many steps in one call, as `pace` says; not where the user has a loop of his own."""
    command, call, source = fit.command, fit.call, rows_of(fit)
    assert isinstance(fit.policy, TensorFlowPolicy)
    model, form, settled = call.model, tensorflow_forms.wanted_form(command, call.model), _on_choice(fit)
    if form.fused == "off":
        settled(form)
        yield
        return
    source.pace, source.test_pace = pace, test_pace
    traces = tensorflow_forms.traces_of(command, call)
    train = MultiStepFunction(
        model.train_step,
        stock=functools.partial(model._make_function, model.train_step),
        wrap=with_part,
        choice=form,
        ahead=source.ahead,
        in_all=source.in_all,
        rule=fit.policy.rule,
        # Ranks that try by their own clocks would not come to the same.
        tries=command.measure is None and command.ranks == 1 and not is_op_determinism_enabled(),
        on_choice=settled,
        split_step=None if collective is None else collective.split_step,
        traces=traces,
        name="train",
        read=None if fit.private is None else read_drawn,
    )
    test = MultiStepFunction(
        model.test_step,
        stock=functools.partial(model._make_function, model.test_step),
        wrap=with_part,
        choice=form,
        in_all=source.in_all,
        traces=traces,
        name="test",
    )
    model.train_function, model.test_function = train, test
    try:
        with same_random_numbers(), quick_metrics(model, (train, test), from_step_logs=command.ranks == 1 and not fit.is_watched):
            yield
            if traces is not None:
                traces.write()
    finally:
        model.train_function = model.test_function = None


def _on_choice(fit: FitRun) -> Callable[[Choice], None]:
    return lambda choice: fit.on_plan(tensorflow_forms.planned(fit.command, choice))
