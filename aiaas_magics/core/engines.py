"""Table of training engines: what each is called, where its code is, and what it can do.

Owns the rows. Options, plans, launchers, workers and messages read them; nothing else names an engine to decide by it.
A new engine is a row here and a folder in `backend/training` whose module has an `ENGINE` (see `training.engine`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """One training engine.

    Args:
        name: the word of `--engine`, of plans and of events.
        title: the name in a sentence.
        packages: the distributions that its library comes in; one of them must be installed.
        keras_backend: what KERAS_BACKEND is in its workers. No two engines share one.
        module: has `ENGINE`, which keeps the promises of `training.engine.TrainingEngine`.
        preload: what a launcher imports before it forks workers.
        keeps_out: modules that Keras would import for this backend and that nothing needs.
        on_cores: the strategy that "auto" stands for on several cores.
        on_gpus: the same on several GPUs.
        one_process: those of its strategies in which one process drives several devices.
        several: every strategy for several devices, in the order in which a dry run measures them.
        forms: how steps may be called, the quickest last: "off" (one per call), "graph" (many), "xla" (many, compiled).
        lacks: fields of `Execution` that it does not take other values of than the default.
        ported: a fit call reaches it in its portable form; otherwise it comes by state, as it is in the kernel.
        has_one_program: its processes run one program and hold the same, so that one keeps a checkpoint for all.
        has_spares: a worker can be made ready before it has a command.
    """

    name: str
    title: str
    packages: tuple[str, ...]
    keras_backend: str
    module: str
    preload: tuple[str, ...]
    on_cores: str
    on_gpus: str
    one_process: frozenset[str]
    several: tuple[str, ...]
    forms: tuple[str, ...]
    keeps_out: tuple[str, ...] = ()
    lacks: frozenset[str] = frozenset()
    ported: bool = True
    has_one_program: bool = False
    has_spares: bool = False

    @property
    def strategies(self) -> tuple[str, ...]:
        return ("single", *self.several)

    def form_for(self, form: str) -> str:
        """The form that `form` is here: "auto" stays open, and one that it does not have is its quickest."""
        return form if form == "auto" or form in self.forms else self.forms[-1]


_WORKER: Final = (
    "keras",
    "numpy",
    "aiaas_magics.packing.fitcall.fit_call",
    "aiaas_magics.backend.training.run",
    "aiaas_magics.backend.workers.worker_main",
)

_ROWS: Final = (
    EngineInfo(
        name="tensorflow",
        title="TensorFlow",
        packages=("tensorflow", "tensorflow-cpu"),
        keras_backend="tensorflow",
        module="aiaas_magics.backend.training.tensorflow.tensorflow_engine",
        preload=("tensorflow", *_WORKER, "aiaas_magics.backend.training.tensorflow.tensorflow_engine"),
        keeps_out=("jax",),  # Keras on TensorFlow imports JAX to mend a JAX that is too old for Orbax, and for nothing else
        on_cores="collective",
        on_gpus="mirrored",  # between processes gradients would go through the host's memory
        one_process=frozenset({"mirrored"}),
        several=("collective", "mirrored"),
        forms=("off", "graph", "xla"),
        lacks=frozenset({"model_parallel"}),
        ported=False,
        has_spares=True,
    ),
    EngineInfo(
        name="jax",
        title="JAX",
        packages=("jax",),
        keras_backend="jax",
        module="aiaas_magics.backend.training.jax.jax_engine",
        preload=("jax", *_WORKER, "aiaas_magics.backend.training.jax.jax_engine"),
        on_cores="spmd",
        on_gpus="spmd",
        one_process=frozenset({"spmd"}),
        several=("spmd",),
        forms=("off", "xla"),
        lacks=frozenset({"precision", "accumulate"}),
        has_one_program=True,
    ),
)

ENGINES: Final[Mapping[str, EngineInfo]] = {info.name: info for info in _ROWS}
HOME: Final = next(info for info in _ROWS if not info.ported)  # the kernel's own: what "auto" begins with, and falls back to
ONE_PROCESS: Final = frozenset[str]().union(*(info.one_process for info in _ROWS))  # strategies


def engines_with(strategy: str) -> Iterator[EngineInfo]:
    """The engines that have this strategy; all where it is "auto"."""
    return (info for info in _ROWS if strategy == "auto" or strategy in info.strategies)


def of_keras_backend(backend: str) -> EngineInfo:
    """The engine whose workers run Keras on `backend`.

    >>> of_keras_backend("jax").name
    'jax'
    """
    return next(info for info in _ROWS if info.keras_backend == backend)
