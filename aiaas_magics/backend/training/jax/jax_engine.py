"""JAX engine: Keras on JAX, one process whose devices share each batch, and where asked the model itself.

Owns what is JAX's: the devices, the proof that the model computes there what it computes in the
kernel, and which form its steps have. Each step is the program of one device over
the whole batch, cut by JAX along the batch: clipping, statistics and metrics need no correction.

The form in which the fit call comes is `portable_call`, the batches are `jax_batches`, the steps `jax_steps`.
"""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import jax
import keras
import numpy as np
from msgspec.structs import replace

from aiaas_magics.backend.folders.checkpoint_folder import TrainingPosition
from aiaas_magics.backend.training.autotune.step_modes import process_bytes
from aiaas_magics.backend.training.comm.process_group import ProcessGroup
from aiaas_magics.backend.training.engine import FitRun, OpenedFit, StepPolicy, TrainingEngine
from aiaas_magics.backend.training.epochs import LoopLengthPolicy, Reading
from aiaas_magics.backend.training.jax import jax_processes, private_jax_steps
from aiaas_magics.backend.training.jax import jax_steps as steps
from aiaas_magics.backend.training.jax.jax_batches import reading_from
from aiaas_magics.backend.training.jax.jax_masks import keeping_masks
from aiaas_magics.backend.training.job_inputs import arrays_of, payload_of
from aiaas_magics.backend.training.unpacked_fit import Unpacked
from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.core import engines
from aiaas_magics.core.errors import NotOnEngine
from aiaas_magics.core.events import Candidate, Planned
from aiaas_magics.core.internals.jax_internals import xla_bridge
from aiaas_magics.core.internals.keras_internals import GLOBAL_RANDOM_SEED, global_state, jax_trainer
from aiaas_magics.packing.checks import reference_answers
from aiaas_magics.packing.fitcall import fit_call
from aiaas_magics.packing.portable import portable_call
from aiaas_magics.packing.portable.layouts import AXES, Axes


class JaxEngine:
    """See `engine.TrainingEngine`."""

    info = engines.ENGINES["jax"]

    def assert_fork_safe(self) -> None:
        if xla_bridge.backends_are_initialized():
            raise RuntimeError("importing the libraries has initialised JAX's devices; workers cannot fork from here")

    def prepare(self, command: WorkerCommand) -> None:
        """Where there is no GPU, the CPU stands for so many devices."""
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

    def make_ready(self, cores: Sequence[int]) -> None:
        """Nothing: how many devices the CPU stands for must be said before JAX starts, and the command says it."""

    def unpack(self, command: WorkerCommand) -> portable_call.PortedFitCall:
        arrived = portable_call.Arrived(payload_of(command), arrays_of(command))
        fit_call.apply_settings(arrived.recipe.settings)
        # The reference of a study is stock `fit`, which cuts no batch.
        devices = 1 if command.measure is not None and command.measure.plain else command.devices * command.ranks
        distribute(devices, model_parallel=min(devices, command.execution.model_parallel), layouts=arrived.recipe.layouts)
        try:
            call = arrived.build(sync=lambda model: model.jax_state_sync())
            differs = reference_answers.difference(
                call.reference, numbers_of(call.model, (call.reference.x, call.reference.y, call.reference.sample_weight))
            )
        except NotOnEngine:
            raise
        except Exception as error:  # border: the user's layers may raise anything on a backend that they were not written for
            jax_processes.let_others_end(error, ranks=command.ranks)
            raise NotOnEngine(self.info.title, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
        if differs is not None:
            raise NotOnEngine(self.info.title, f"it would compute something else there: {differs}")
        return call

    def joined(self, command: WorkerCommand) -> contextlib.AbstractContextManager[ProcessGroup | None]:
        return contextlib.nullcontext() if command.ranks == 1 else jax_processes.meeting(command)

    def strategy(self, command: WorkerCommand) -> str:
        return "spmd" if command.devices * command.ranks > 1 else "single"

    def reading(self, command: WorkerCommand, call: Unpacked, start: TrainingPosition) -> Reading:
        return Reading(seed=command.seed, first_epoch=int(call.arguments.get("initial_epoch") or 0), start=start)

    def policy(self, command: WorkerCommand, call: Unpacked) -> StepPolicy:
        return JaxPolicy(self.plan(command, call.model))

    def plan(self, command: WorkerCommand, model: Any) -> Planned:
        """How the steps are carried out: in a loop unless somebody asked for none, or it would be slower."""
        why = steps.why_one_by_one(model)
        return Planned(
            fused="off" if why or command.execution.fused == "off" else "xla",
            why=(why,) if why else (),
            engine=self.info.name,
            strategy=self.strategy(command),
        )

    @contextlib.contextmanager
    def opened(self, fit: FitRun) -> Iterator[OpenedFit]:
        with contextlib.nullcontext() if fit.is_plain else reading_from(fit.reading, fit.call.model):
            yield JaxFit(fit, self.plan(fit.command, fit.call.model))

    def memory_bytes(self) -> int:
        peaks = [stats["peak_bytes_in_use"] for device in jax.local_devices() if (stats := device.memory_stats())]
        return max(peaks) if peaks else process_bytes()


class JaxPolicy:
    """See `engine.StepPolicy`: what was measured changes nothing, since a loop is quicker wherever it can be had."""

    def __init__(self, plan: Planned) -> None:
        self._plan = plan

    def concluded(self, candidates: Sequence[Candidate]) -> Planned:
        return self._plan


class JaxFit:
    """See `engine.OpenedFit`."""

    def __init__(self, fit: FitRun, plan: Planned) -> None:
        self._fit, self._plan = fit, plan
        self.callbacks = () if fit.command.measure is None else (FinishedSteps(),)

    def before_checkpoint(self) -> None:
        """Nothing: every process holds the same, and a variable is read from the devices when it is asked for."""

    def fit(self, callbacks: Sequence[Any], *, pace: LoopLengthPolicy, test_pace: LoopLengthPolicy) -> Any:
        stock = contextlib.nullcontext()
        with stock if self._fit.is_plain else multi_step_loop(self._fit, self._plan, pace=pace, test_pace=test_pace):
            return jax_trainer.JAXTrainer.fit(self._fit.call.model, **self._fit.arguments, callbacks=list(callbacks))


ENGINE: Final[TrainingEngine] = JaxEngine()

# --------------------------------------------------------------------------- devices


def distribute(devices: int, *, model_parallel: int, layouts: dict[str, Axes]) -> None:
    """Have Keras cut what is made from now on over the first `devices` devices.

    Raises:
        NotOnEngine: there are fewer, or they cannot be shared out to whole copies of the model.
    """
    visible = keras.distribution.list_devices()[:devices]
    if len(visible) < devices:
        raise NotOnEngine("JAX", f"JAX sees {len(visible)} of {devices} devices")
    if devices % model_parallel:
        raise NotOnEngine("JAX", f"{devices} devices do not make whole groups of {model_parallel}")
    if devices == 1:
        keras.distribution.set_distribution(None)
        return
    if model_parallel == 1:
        # Not cut by Keras: it would want a `tf.data.Dataset`, and our batches are cut already.
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=visible, auto_shard_dataset=False))
        return
    mesh = keras.distribution.DeviceMesh((devices // model_parallel, model_parallel), AXES, visible)
    layout_map = keras.distribution.LayoutMap(mesh)
    for path, axes in layouts.items():
        layout_map[re.escape(path)] = axes
    keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=layout_map, batch_dim_name=AXES[0]))


# --------------------------------------------------------------------------- the model


def numbers_of(model: Any, batch: tuple[Any, Any, Any]) -> reference_answers.Numbers:
    """What the model computes here for the x, y and weights of `batch`, in full precision; it is left as it is.

    By default a GPU multiplies float32 with 10 bits of the number (TF32), which is further off than the tolerance of the parity check.
    """

    def compute(trainable: Any, fixed: Any, metrics: Any, data: Any) -> Any:
        return jax.value_and_grad(model.compute_loss_and_updates, has_aux=True)(trainable, fixed, metrics, *data, training=False)

    state = (
        [v.value for v in variables] for variables in (model.trainable_variables, model.non_trainable_variables, model.metrics_variables)
    )
    distribution = keras.distribution.distribution()
    # Whole in every process, so that each can compare all of it.
    whole = None if distribution is None or jax.process_count() == 1 else steps.everywhere(distribution)
    compiled = jax.jit(compute, out_shardings=whole)
    with jax.default_matmul_precision("highest"):
        (loss, (_, outputs, _, _)), gradients = compiled(*state, steps.placed(batch))
    return reference_answers.numbers(outputs, loss, gradients)


# --------------------------------------------------------------------------- the steps


@contextlib.contextmanager
def multi_step_loop(fit: FitRun, plan: Planned, *, pace: LoopLengthPolicy, test_pace: LoopLengthPolicy) -> Iterator[None]:
    """Inside, `fit` makes many steps in one call, as `pace` says, where `plan` has it so."""
    model, reading = fit.call.model, fit.reading
    fit.on_plan(plan)
    private_function = None if fit.private is None else private_jax_steps.train_function(model, fit.private)
    if plan.fused == "off":
        model.train_function = private_function
        try:
            with keeping_masks():
                yield
        finally:
            model.train_function = None
        return
    reading.pace, reading.test_pace = pace, test_pace
    one_by_one = replace(plan, fused="off", why=("its data do not fit into the share of the memory that they may take",))
    reading.too_large = lambda: fit.on_plan(one_by_one)
    model.train_function, model.test_function = private_function or steps.train_function(model), steps.test_function(model)
    try:
        with keeping_masks():
            yield
    finally:
        model.train_function = model.test_function = None


class FinishedSteps(keras.callbacks.Callback):  # type: ignore[misc]
    """Waits for the end of each step, which JAX only hands in: a clock behind it tells the truth."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        jax.block_until_ready(self._model._jax_state)
