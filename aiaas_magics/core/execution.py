"""Execution options of a fit call: engine, strategy, steps per call; which go together, and what "auto" stands for.

Owns the value that a user's options become. What a step looks like in it is the plan's, in the worker.
"""

from __future__ import annotations

from typing import Final

import msgspec

from aiaas_magics.core.errors import InvalidSpec

ENGINES: Final = ("auto", "tensorflow", "jax")
STRATEGIES: Final = ("auto", "single", "collective", "mirrored", "spmd")
FUSING: Final = ("auto", "xla", "graph", "off")
PRECISIONS: Final = ("", "float32", "mixed_bfloat16", "mixed_float16")
ONE_PROCESS: Final = frozenset({"mirrored", "spmd"})  # strategies of which one process drives every device of the job


class Execution(msgspec.Struct, frozen=True, kw_only=True):
    """How workers carry out a fit. The defaults leave every choice to the plan.

    Args:
        engine: the library that computes: "auto", "tensorflow" or "jax".
        may_stay: with engine "jax", run on TensorFlow if JAX cannot run the fit, instead of failing.
        strategy: how workers act as one: "auto", "single", "collective" (n processes), "mirrored" (one process drives
            n GPUs, TensorFlow) or "spmd" (the same on JAX).
        fused: how steps are called: "xla" runs many per call, compiled; "graph" runs many per call, not compiled;
            "off" runs one per call, as plain `fit`; "auto" measures or chooses.
        model_parallel: how many devices share one copy of the model (JAX).
        processes: how many processes the devices of "spmd" belong to.
        precision: a Keras dtype policy: "float32", "mixed_bfloat16" or "mixed_float16"; "" keeps the model's own.
        accumulate: in how many parts each batch is computed, for one update.
        checkpoint_epochs: keep a checkpoint every so many epochs; 0 keeps none at the end of an epoch.
        checkpoint_s: keep a checkpoint every so many seconds, also within an epoch; 0 keeps none within an epoch.

    Raises:
        InvalidSpec: values that are unknown or exclude each other.

    >>> Execution(strategy="spmd", processes=2).on_jax
    True
    """

    engine: str = "auto"
    may_stay: bool = False  # on TensorFlow, where JAX cannot do it: nobody asked for JAX by name
    strategy: str = "auto"
    fused: str = "auto"
    model_parallel: int = 1  # devices that share one copy of the model
    processes: int = 1  # among which the devices of spmd are shared out
    precision: str = ""  # a Keras dtype policy; empty: as the model has it
    accumulate: int = 1  # parts that each batch is computed in, one after the other
    checkpoint_epochs: int = 1
    checkpoint_s: float = 0.0

    def __post_init__(self) -> None:
        choices = {"engine": ENGINES, "strategy": STRATEGIES, "fused": FUSING, "precision": PRECISIONS}
        for option, allowed in choices.items():
            if (value := getattr(self, option)) not in allowed:
                raise InvalidSpec(f"{option}={value!r} is not known. Use one of {', '.join(filter(None, allowed))}.")
        if self.accumulate < 1:
            raise InvalidSpec(f"accumulate={self.accumulate}: a batch has at least 1 part. Leave --accumulate out for one.")
        if self.engine == "tensorflow" and self.strategy == "spmd":
            raise InvalidSpec("The strategy spmd is JAX's. Use --engine jax, or --strategy collective on TensorFlow.")
        if self.engine == "jax" and self.strategy not in ("auto", "single", "spmd"):
            raise InvalidSpec(f"The strategy {self.strategy} is TensorFlow's. Use --strategy spmd, or leave --engine out.")
        if self.model_parallel < 1 or (self.model_parallel > 1 and not self.on_jax):
            raise InvalidSpec(f"model_parallel={self.model_parallel} is for JAX, and at least 1. Use --engine jax with it.")
        if self.processes < 1 or (self.processes > 1 and self.strategy != "spmd"):
            raise InvalidSpec(f"processes={self.processes} is for the strategy spmd, and at least 1. Use --strategy spmd with it.")
        if self.processes > 1 and self.model_parallel > 1:
            raise InvalidSpec("A model is cut over the devices of one process. Leave --processes or --model-parallel out.")
        if self.on_jax and (self.precision or self.accumulate > 1):
            raise InvalidSpec("precision and accumulate are not for JAX. Set keras.config.set_dtype_policy, or leave --engine out.")

    @property
    def on_jax(self) -> bool:
        """Whether workers run Keras on JAX."""
        return self.engine == "jax" or self.strategy == "spmd"

    @property
    def must_be_jax(self) -> bool:
        """Whether the job fails, instead of moving to TensorFlow, if JAX cannot run the fit."""
        return (self.engine == "jax" and not self.may_stay) or self.processes > 1

    def resolved(self, *, devices: int, gpus: bool) -> Execution:
        """This execution with the strategy that "auto" stands for.

        Args:
            devices: how many devices of one machine the job gets.
            gpus: whether they are GPUs.
        """
        if self.strategy != "auto":
            return self
        if devices == 1:
            strategy = "single"
        elif self.engine == "jax":
            strategy = "spmd"
        else:
            # On GPUs gradients would go through the host's memory between processes.
            strategy = "mirrored" if gpus else "collective"
        return msgspec.structs.replace(self, strategy=strategy)
