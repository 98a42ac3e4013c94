"""Keras on JAX: one process whose devices share each batch, and where asked the model itself.

Owns what is JAX's: the devices, the proof that the model computes there what it computes in the
kernel, and the batches that Keras' own JAX `fit` gets. Each step is the program of one device over
the whole batch, cut by JAX along the batch: clipping, statistics and metrics need no correction.

The form in which the fit call comes is `packing.portable`.
"""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
from jax._src import xla_bridge
from keras.src import tree
from keras.src.backend.common import global_state
from keras.src.backend.jax import trainer as jax_trainer
from keras.src.trainers.data_adapters import array_slicing
from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter
from keras.src.utils.rng_utils import GLOBAL_RANDOM_SEED

from aiaas_magics.backend.checkpoint_folder import Place
from aiaas_magics.backend.training import measure
from aiaas_magics.backend.training.callbacks import callbacks_of_rank, plain_arguments
from aiaas_magics.backend.training.channel import Channel
from aiaas_magics.backend.training.command import WorkerCommand
from aiaas_magics.backend.training.keeper import Keeper, resumed_from
from aiaas_magics.backend.training.passes import Passes, Reading, steps_of_epoch
from aiaas_magics.backend.training.plan import Indices, Plan
from aiaas_magics.backend.training.progress import Progress
from aiaas_magics.errors import NotOnJax
from aiaas_magics.packing import fitcall, portable, proof
from aiaas_magics.packing.layouts import AXES, Axes

# --------------------------------------------------------------------------- devices


def prepare(command: WorkerCommand, *, seed: int) -> None:
    """Devices and seeds, before anything touches a device. Where there is no GPU, the CPU stands for so many devices."""
    if not command.gpus:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", command.devices)
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
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=found))
        return
    mesh = keras.distribution.DeviceMesh((devices // model_parallel, model_parallel), AXES, found)
    layout_map = keras.distribution.LayoutMap(mesh)
    for path, axes in layouts.items():
        layout_map[re.escape(path)] = axes
    keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=layout_map, batch_dim_name=AXES[0]))


def placed(batch: Any) -> Any:
    """A batch on the devices: cut where it can be cut evenly, otherwise whole on each, which computes the same."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return batch
    mesh, parts = distribution.device_mesh.backend_mesh, distribution.num_model_replicas

    def place(leaf: Any) -> Any:
        axes = (distribution.batch_dim_name,) if len(leaf) % parts == 0 else ()
        return jax.device_put(leaf, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)))

    return tree.map_structure(place, batch, none_is_leaf=False)


# --------------------------------------------------------------------------- the model


def unpack(command: WorkerCommand) -> portable.PortedFitCall:
    """The fit call on its devices, proved.

    Raises:
        NotOnJax: it cannot be made here, or computes something else.
    """
    arrays = [np.load(path, mmap_mode="r", allow_pickle=False) for path in command.arrays]
    arrived = portable.Arrived(Path(command.payload).read_bytes(), arrays)
    fitcall.apply_settings(arrived.recipe.settings)
    distribute(command.devices, model_parallel=command.execution.model_parallel, layouts=arrived.recipe.layouts)
    try:
        call = arrived.build(sync=lambda model: model.jax_state_sync())
        differs = proof.difference(call.proof, numbers_of(call.model, call.proof))
    except NotOnJax:
        raise
    except Exception as error:  # border: the user's layers may raise anything on a backend that they were not written for
        raise NotOnJax(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
    if differs is not None:
        raise NotOnJax(f"it would compute something else there: {differs}")
    return call


def numbers_of(model: Any, sample: proof.Proof) -> proof.Numbers:
    """What the model computes here for the rows of the proof; it is left as it is."""

    def compute(trainable: Any, fixed: Any, metrics: Any, data: Any) -> Any:
        return jax.value_and_grad(model.compute_loss_and_updates, has_aux=True)(trainable, fixed, metrics, *data, training=False)

    state = (
        [v.value for v in variables] for variables in (model.trainable_variables, model.non_trainable_variables, model.metrics_variables)
    )
    (loss, (_, outputs, _, _)), gradients = jax.jit(compute)(*state, placed((sample.x, sample.y, sample.sample_weight)))
    return proof.numbers(outputs, loss, gradients)


# --------------------------------------------------------------------------- training


def run(command: WorkerCommand, call: portable.PortedFitCall, channel: Channel) -> Any:
    """Train, or measure, as `command` says. Returns the `keras.callbacks.History`; the model holds the weights."""
    if command.measure is not None:
        return _measure(command, call, channel)
    arguments = plain_arguments(call.arguments)
    users = callbacks_of_rank(call.callbacks, rank=command.rank, channel=channel)
    resumed = resumed_from(command, call, channel)
    first = int(arguments.get("initial_epoch") or 0)
    start = resumed.place if resumed else Place(first)
    reading = Reading(seed=command.seed, first_epoch=first, start=start)
    history = keras.callbacks.History()
    keeper = Keeper(command, call, channel, group=None, history=history, resumed=resumed)
    progress = Progress(channel, plan=lambda: reading.plan, notices=True)
    with reading_from(reading):
        jax_trainer.JAXTrainer.fit(
            call.model,
            **arguments
            | {
                "initial_epoch": start.epoch,
                "epochs": start.epoch if resumed and resumed.stopped else int(arguments.get("epochs") or 1),
                "callbacks": [*users, history, progress, keeper],
            },
        )
    return history


def _measure(command: WorkerCommand, call: portable.PortedFitCall, channel: Channel) -> Any:
    assert command.measure is not None
    arguments = measure.steady(plain_arguments(call.arguments))
    first = int(arguments["initial_epoch"])
    reading = Reading(seed=command.seed, first_epoch=first, start=Place(first))
    timer = measure.StepTimer(command.measure)
    progress = Progress(channel, plan=lambda: reading.plan, notices=False)
    plain = command.measure.plain
    with contextlib.nullcontext() if plain else reading_from(reading):
        history = jax_trainer.JAXTrainer.fit(call.model, **arguments, callbacks=[Finished(), timer, *([] if plain else [progress])])
    channel.send(timer.measured(int(arguments.get("batch_size") or 32)))
    return history


class Finished(keras.callbacks.Callback):  # type: ignore[misc]
    """Waits for the end of each step, which JAX only hands in: a clock behind it tells the truth."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        jax.block_until_ready(self._model._jax_state)


@contextlib.contextmanager
def reading_from(reading: Reading) -> Iterator[None]:
    """Inside, Keras' JAX `fit` gets its batches from `reading`."""
    stock = jax_trainer.JAXEpochIterator

    class Batches(_Batches):
        _reading = reading

    jax_trainer.JAXEpochIterator = Batches
    try:
        yield
    finally:
        jax_trainer.JAXEpochIterator = stock


class _Batches(jax_trainer.JAXEpochIterator):  # type: ignore[misc]
    """Stands in for Keras' iterator: in training with our order, elsewhere with the arrays' own; remainders are not cut."""

    _reading: Reading
    _passes: Passes | None = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._shuffle = kwargs.get("shuffle", False)
        self._arrays: Any = None
        if not isinstance(self.data_adapter, ArrayDataAdapter):
            raise NotOnJax(f"x of type {type(kwargs.get('x')).__name__} is no array")
        # Only `fit` speaks of class weights; evaluate and predict, which callbacks may call, do not.
        self._training = "class_weight" in kwargs
        self.reset()

    def reset(self) -> None:
        super().reset()
        if self._training:
            adapter = self.data_adapter
            self._reading.plan = Plan(rows=adapter._num_samples, batch=adapter._batch_size)
            self._passes = Passes(self._reading, self._reading.plan, shuffle=self._shuffle, steps_per_epoch=self.steps_per_epoch)

    def _enumerate_iterator(self) -> Iterator[tuple[int, int, Any]]:
        return steps_of_epoch(self, self._passes, self._begin_pass) if self._passes else super()._enumerate_iterator()

    def _begin_pass(self) -> None:
        assert self._passes is not None
        self._steps_seen, positions = self._passes.begin()
        self._current_iterator = map(self._batch, positions)

    def _get_iterator(self) -> Iterator[Any]:
        size, rows = self.data_adapter._batch_size, self.data_adapter._num_samples
        return (self._batch(slice(start, min(start + size, rows))) for start in range(0, rows, size))

    def _batch(self, rows: slice | Indices) -> Any:
        if self._arrays is None:
            self._arrays = array_slicing.convert_to_sliceable(self.data_adapter._inputs, target_backend="jax")
        cut = tree.map_structure(lambda array: array.convert_to_jax_compatible(array[rows]), self._arrays, none_is_leaf=False)
        return placed(cut)
