"""Keras on JAX: one process whose devices share each batch, and where asked the model itself.

Owns what is JAX's: the devices, the proof that the model computes there what it computes in the
kernel, and the batches that Keras' own JAX `fit` gets. Each step is the program of one device over
the whole batch, cut by JAX along the batch: clipping, statistics and metrics need no correction.

The form in which the fit call comes is `portable_call`.
"""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import jax
import keras
import numpy as np
from msgspec.structs import replace

from aiaas_magics.backend.folders.checkpoint_folder import TrainingPosition
from aiaas_magics.backend.training import step_timing
from aiaas_magics.backend.training.autotune.step_modes import compare, only, process_bytes
from aiaas_magics.backend.training.batch_partition import BatchPartition, Indices
from aiaas_magics.backend.training.checkpoint.checkpoint_callback import Keeper, resumed_from
from aiaas_magics.backend.training.comm.process_group import ProcessGroup
from aiaas_magics.backend.training.epochs import Passes, Reading, Steps, steps_of_epoch
from aiaas_magics.backend.training.event_channel import EventChannel
from aiaas_magics.backend.training.fit_progress import Progress
from aiaas_magics.backend.training.jax import jax_processes
from aiaas_magics.backend.training.jax import jax_steps as steps
from aiaas_magics.backend.training.jax.jax_masks import keeping_masks
from aiaas_magics.backend.training.job_inputs import arrays_of, payload_of
from aiaas_magics.backend.training.loop_length import Pace, Pacing
from aiaas_magics.backend.training.monkeypatch import iterators_of, replaced
from aiaas_magics.backend.training.rank_callbacks import agreement, callbacks_of_rank, epoch_lines, most_steps_a_call, plain_arguments
from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.core.errors import NotOnJax
from aiaas_magics.core.events import Planned
from aiaas_magics.core.internals.jax_internals import xla_bridge
from aiaas_magics.core.internals.keras_internals import GLOBAL_RANDOM_SEED, ArrayDataAdapter, array_slicing, global_state, jax_trainer, tree
from aiaas_magics.packing.checks import reference_answers
from aiaas_magics.packing.fitcall import fit_call
from aiaas_magics.packing.portable import portable_call
from aiaas_magics.packing.portable.layouts import AXES, Axes

ENGINE: Final = "jax"

# --------------------------------------------------------------------------- devices


def prepare(command: WorkerCommand) -> None:
    """Devices and seeds, before anything touches a device. Where there is no GPU, the CPU stands for so many devices."""
    if not command.gpus:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", command.devices)
    if command.ranks > 1:
        jax_processes.join(command)
    seed = command.seed % 2**32  # the same in every process: together they run one program
    # Keras' own function would import TensorFlow, to seed it as well.
    random.seed(seed)
    np.random.seed(seed)
    global_state.set_global_attribute(GLOBAL_RANDOM_SEED, seed)


def prove_untouched() -> None:
    """Raises when a device was touched already: nothing may fork after that."""
    if xla_bridge.backends_are_initialized():
        raise RuntimeError("importing the libraries has initialised JAX's devices; workers cannot fork from here")


def distribute(devices: int, *, model_parallel: int, layouts: dict[str, Axes]) -> None:
    """Have Keras cut what is made from now on over the first `devices` devices.

    Raises:
        NotOnJax: there are fewer, or they cannot be shared out to whole copies of the model.
    """
    found = keras.distribution.list_devices()[:devices]
    if len(found) < devices:
        raise NotOnJax(f"JAX sees {len(found)} of {devices} devices")
    if devices % model_parallel:
        raise NotOnJax(f"{devices} devices do not make whole groups of {model_parallel}")
    if devices == 1:
        keras.distribution.set_distribution(None)
        return
    if model_parallel == 1:
        # Not cut by Keras: it would want a `tf.data.Dataset`, and our batches are cut already.
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=found, auto_shard_dataset=False))
        return
    mesh = keras.distribution.DeviceMesh((devices // model_parallel, model_parallel), AXES, found)
    layout_map = keras.distribution.LayoutMap(mesh)
    for path, axes in layouts.items():
        layout_map[re.escape(path)] = axes
    keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=layout_map, batch_dim_name=AXES[0]))


# --------------------------------------------------------------------------- the model


def unpack(command: WorkerCommand) -> portable_call.PortedFitCall:
    """The fit call on its devices, proved.

    Raises:
        NotOnJax: it cannot be made here, or computes something else.
    """
    arrived = portable_call.Arrived(payload_of(command), arrays_of(command))
    fit_call.apply_settings(arrived.recipe.settings)
    # The reference of a study is stock `fit`, which cuts no batch.
    devices = 1 if command.measure is not None and command.measure.plain else command.devices * command.ranks
    distribute(devices, model_parallel=min(devices, command.execution.model_parallel), layouts=arrived.recipe.layouts)
    try:
        call = arrived.build(sync=lambda model: model.jax_state_sync())
        differs = reference_answers.difference(call.reference, numbers_of(call.model, call.reference))
    except NotOnJax:
        raise
    except Exception as error:  # border: the user's layers may raise anything on a backend that they were not written for
        jax_processes.let_others_end(error, ranks=command.ranks)
        raise NotOnJax(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
    if differs is not None:
        raise NotOnJax(f"it would compute something else there: {differs}")
    return call


def numbers_of(model: Any, sample: reference_answers.ReferenceAnswers) -> reference_answers.Numbers:
    """What the model computes here for the rows of the proof; it is left as it is."""

    def compute(trainable: Any, fixed: Any, metrics: Any, data: Any) -> Any:
        return jax.value_and_grad(model.compute_loss_and_updates, has_aux=True)(trainable, fixed, metrics, *data, training=False)

    state = (
        [v.value for v in variables] for variables in (model.trainable_variables, model.non_trainable_variables, model.metrics_variables)
    )
    distribution = keras.distribution.distribution()
    # Whole in every process, so that each can compare all of it.
    whole = None if distribution is None or jax.process_count() == 1 else steps.everywhere(distribution)
    compiled = jax.jit(compute, out_shardings=whole)
    (loss, (_, outputs, _, _)), gradients = compiled(*state, steps.placed((sample.x, sample.y, sample.sample_weight)))
    return reference_answers.numbers(outputs, loss, gradients)


# --------------------------------------------------------------------------- training


def run(command: WorkerCommand, call: portable_call.PortedFitCall, channel: EventChannel) -> Any:
    """Train, or measure, as `command` says. Returns the `keras.callbacks.History`; the model holds the weights."""
    if command.measure is not None:
        return _measure(command, call, channel)
    if command.ranks == 1:
        return _train(command, call, channel, None)
    with jax_processes.meeting(command) as group:
        return _train(command, call, channel, group)


def _train(command: WorkerCommand, call: portable_call.PortedFitCall, channel: EventChannel, group: ProcessGroup | None) -> Any:
    arguments = plain_arguments(call.arguments)
    users = callbacks_of_rank(call.callbacks, rank=command.rank, channel=channel)
    resumed = resumed_from(command, call, channel)
    first = int(arguments.get("initial_epoch") or 0)
    start = resumed.place if resumed else TrainingPosition(first)
    each = most_steps_a_call(call.model, call.callbacks)
    execution = int(call.model.steps_per_execution or 1)
    reading = Reading(seed=command.seed, first_epoch=first, start=start, execution=execution, is_watched=each is not None)
    history = keras.callbacks.History()
    keeper = Keeper(command, call, channel, group=group, alike=True, history=history, resumed=resumed, reading=reading)
    progress = Progress(channel, plan=lambda: reading.plan, notices=command.rank == 0)
    pace, test_pace = jax_processes.agreed(keeper.paced(Pace(each)), group), jax_processes.agreed(Pace(each), group)
    agreeing = [] if group is None else [agreement(group, each_batch=each is not None)]
    tell = channel.send if command.rank == 0 else lambda _: None
    with reading_from(reading, call.model), fusing(command, call.model, reading, pace=pace, test_pace=test_pace, told=tell):
        jax_trainer.JAXTrainer.fit(
            call.model,
            **arguments
            | {
                "initial_epoch": start.epoch,
                "epochs": start.epoch if resumed and resumed.stopped else int(arguments.get("epochs", 1)),
                "callbacks": [*users, *epoch_lines(call.arguments, rank=command.rank), *agreeing, history, progress, keeper],
            },
        )
    return history


def _measure(command: WorkerCommand, call: portable_call.PortedFitCall, channel: EventChannel) -> Any:
    assert command.measure is not None
    if command.measure.compare:
        return _compare(command, call, channel)
    timer = _timed(command, call, channel, told=channel.send)
    channel.send(timer.measured(int(step_timing.steady(plain_arguments(call.arguments)).get("batch_size") or 32)))
    return timer.model.history


def _compare(command: WorkerCommand, call: portable_call.PortedFitCall, channel: EventChannel) -> Any:
    """Both forms of the steps, unless one is asked for, measured on a few of them; then the plan."""

    def timed(form: str) -> step_timing.StepTimer:
        in_form = replace(command, execution=replace(command.execution, fused=form))
        return _timed(in_form, call, channel, told=only(form))

    asked = "xla" if command.execution.fused == "graph" else command.execution.fused
    for candidate in compare(asked, timed, engine=ENGINE, strategy=plan_of(command, call.model).strategy):
        channel.send(candidate)
    channel.send(plan_of(command, call.model))
    history = keras.callbacks.History()
    history.epoch = []
    return history


def _timed(
    command: WorkerCommand, call: portable_call.PortedFitCall, channel: EventChannel, *, told: Callable[[Planned], None]
) -> step_timing.StepTimer:
    """Steady steps, timed; of a study's reference with nothing of ours in between."""
    assert command.measure is not None
    arguments = step_timing.steady(plain_arguments(call.arguments))
    first = int(arguments["initial_epoch"])
    reading = Reading(seed=command.seed, first_epoch=first, start=TrainingPosition(first))
    each = most_steps_a_call(call.model, call.callbacks) if command.measure.compare else None
    timer = step_timing.StepTimer(command.measure, each=each, memory=_memory_bytes)
    progress = Progress(channel, plan=lambda: reading.plan, notices=False)
    plain = command.measure.plain
    with contextlib.ExitStack() as stack:
        if not plain:
            stack.enter_context(reading_from(reading, call.model))
            stack.enter_context(fusing(command, call.model, reading, pace=timer, test_pace=Pace(), told=told))
        jax_trainer.JAXTrainer.fit(call.model, **arguments, callbacks=[FinishedSteps(), timer, *([] if plain else [progress])])
    return timer


def _memory_bytes() -> int:
    peaks = [stats["peak_bytes_in_use"] for device in jax.local_devices() if (stats := device.memory_stats())]
    return max(peaks) if peaks else process_bytes()


def plan_of(command: WorkerCommand, model: Any) -> Planned:
    """How the steps are carried out: in a loop unless somebody asked for none, or it would be slower."""
    why = steps.why_one_by_one(model)
    strategy = "spmd" if command.devices * command.ranks > 1 else "single"
    return Planned(
        fused="off" if why or command.execution.fused == "off" else "xla", why=(why,) if why else (), engine=ENGINE, strategy=strategy
    )


@contextlib.contextmanager
def fusing(
    command: WorkerCommand, model: Any, reading: Reading, *, pace: Pacing, test_pace: Pacing, told: Callable[[Planned], None]
) -> Iterator[None]:
    """Inside, `fit` makes many steps in one call, as `pace` says."""
    plan = plan_of(command, model)
    told(plan)
    if plan.fused == "off":
        with keeping_masks():
            yield
        return
    reading.pace, reading.test_pace = pace, test_pace
    one_by_one = replace(plan, fused="off", why=("its data do not fit into the share of the memory that they may take",))
    reading.too_large = lambda: told(one_by_one)
    model.train_function, model.test_function = steps.train_function(model), steps.test_function(model)
    try:
        with keeping_masks():
            yield
    finally:
        model.train_function = model.test_function = None


class FinishedSteps(keras.callbacks.Callback):  # type: ignore[misc]
    """Waits for the end of each step, which JAX only hands in: a clock behind it tells the truth."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        jax.block_until_ready(self._model._jax_state)


def reading_from(reading: Reading, model: Any) -> contextlib.AbstractContextManager[None]:
    """Inside, Keras' JAX `fit` of `model` gets its batches from `reading`."""

    class JaxBatches(_JaxIterator):
        _reading = reading

    made = iterators_of(model, ("fit", "evaluate", "predict"), ours=JaxBatches, stock=jax_trainer.JAXEpochIterator)
    return replaced((jax_trainer, "JAXEpochIterator", made))


class _JaxIterator(jax_trainer.JAXEpochIterator):  # type: ignore[misc]
    """Stands in for Keras' iterator: in training with our order, elsewhere with the arrays' own; remainders are not cut."""

    _reading: Reading
    _passes: Passes | None = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(self.data_adapter, ArrayDataAdapter):
            raise NotOnJax(f"x of type {type(kwargs.get('x')).__name__} is no array")
        adapter, self._shuffle = self.data_adapter, kwargs.get("shuffle", False)
        self._arrays: Any = None
        self._resident: Any = None
        self._fits = True  # as far as anybody knows
        self._plan = BatchPartition(rows=adapter._num_samples, batch=adapter._batch_size)
        # Only `fit` speaks of class weights, and only predict of no y.
        self._training = "class_weight" in kwargs
        self._pace = self._reading.pace if self._training else self._reading.test_pace if "y" in kwargs else None
        self.reset()

    def reset(self) -> None:
        super().reset()
        if self._training:
            self._reading.plan = self._plan
            self._passes = Passes(self._reading, self._plan, shuffle=self._shuffle, steps_per_epoch=self.steps_per_epoch)

    def _enumerate_iterator(self) -> Steps:
        first = self._passes.first_step() if self._passes else 0
        reading, is_watched = self._reading, self._reading.is_watched and self._pace is not None
        call = self._one_execution if is_watched else self._call
        return steps_of_epoch(
            self,
            first=first,
            execution=reading.execution,
            is_watched=is_watched,
            begin_pass=self._begin_pass,
            call=call,
            took=self._took,
        )

    def _begin_pass(self) -> None:
        self._steps_seen, self._order = self._passes.begin() if self._passes else (0, np.arange(self._plan.rows, dtype=np.int64))
        self._current_iterator, self._at = self._batches(), self._steps_seen
        if self._pace is not None and self._resident is None and self._fits:
            self._resident = steps.resident(self._sliceable())
            self._fits = self._resident is not None
            if self._training and not self._fits:
                self._reading.too_large()
        if self._resident is not None:
            self._positions = steps.positions(self._order, self._plan)

    def _call(self, at: int, most: int) -> tuple[int, Any]:
        many = min(most, self._plan.full_batches - at)
        if self._pace is None:
            return self.steps_per_execution, self._current_iterator
        if self._resident is None or many < 1:
            self._at = at  # Keras' own steps: a whole execution, as far as there are batches
            return min(self._reading.execution, self._plan.batches - at), self._current_iterator
        count = min(self._pace(), many)
        return count, steps.JaxChunk(self._resident, self._positions, at, at + count)

    def _one_execution(self, at: int, most: int) -> tuple[int, Any]:
        """What is resident by one chunk and what is not by Keras' own steps, as one call: callbacks see one execution."""
        end = min(at + min(self._reading.execution, most), self._plan.batches)
        resident_end = min(end, self._plan.full_batches) if self._resident is not None else at
        self._at = max(at, resident_end)
        chunk = [steps.JaxChunk(self._resident, self._positions, at, resident_end)] if resident_end > at else []
        return end - at, (*chunk, *([self._current_iterator] if end > resident_end else []))

    def _took(self, count: int, seconds: float) -> None:
        if self._pace is not None:
            self._pace.took(count, seconds)

    def _batches(self) -> Iterator[Any]:
        """The batches from where the pass stands, one after the other."""
        while self._at < self._plan.batches:
            start = self._at * self._plan.batch
            self._at += 1
            yield self._batch(self._order[start : start + self._plan.batch])

    def _sliceable(self) -> Any:
        if self._arrays is None:
            self._arrays = array_slicing.convert_to_sliceable(self.data_adapter._inputs, target_backend="jax")
        return self._arrays

    def _batch(self, rows: Indices) -> Any:
        cut = tree.map_structure(lambda array: array.convert_to_jax_compatible(array[rows]), self._sliceable(), none_is_leaf=False)
        return steps.placed(cut)
