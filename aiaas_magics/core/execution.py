"""Execution options of a fit call: engine, strategy, steps per call; which go together, and what "auto" stands for.

Owns the value that a user's options become. What a step looks like in it is the plan's, in the worker.
"""

from __future__ import annotations

from typing import Final

import msgspec

from aiaas_magics.core.engines import ENGINES, HOME, EngineInfo, engines_with
from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.privacy import Privacy

ENGINE_CHOICES: Final = ("auto", *ENGINES)
STRATEGIES: Final = ("auto", *dict.fromkeys(strategy for info in ENGINES.values() for strategy in info.strategies))
FUSING: Final = ("auto", "xla", "graph", "off")
PRECISIONS: Final = ("", "float32", "mixed_bfloat16", "mixed_float16")


class Execution(msgspec.Struct, frozen=True, kw_only=True):
    """How workers carry out a fit. The defaults leave every choice to the plan.

    Args:
        engine: the library that computes: "auto", "tensorflow" or "jax".
        may_fall_back: with a named engine, run on TensorFlow if that engine cannot run the fit, instead of failing.
        strategy: how workers act as one: "auto", "single", "collective" (n processes), "mirrored" (one process drives
            n GPUs, TensorFlow) or "spmd" (the same on JAX).
        fused: how steps are called: "xla" runs many per call, compiled; "graph" runs many per call, not compiled;
            "off" runs one per call, as plain `fit`; "auto" measures or chooses.
        model_parallel: how many devices share one copy of the model (JAX).
        precision: a Keras dtype policy: "float32", "mixed_bfloat16" or "mixed_float16"; "" keeps the model's own.
        accumulate: in how many parts each batch is computed, for one update.
        private: train by DP-SGD with this guarantee; None trains as usual.
        checkpoint_epochs: keep a checkpoint every so many epochs; 0 keeps none at the end of an epoch.
        checkpoint_s: keep a checkpoint every so many seconds, also within an epoch; 0 keeps none within an epoch.

    Raises:
        InvalidSpec: values that are unknown or exclude each other.

    >>> Execution(strategy="spmd").runs_on.name
    'jax'
    """

    engine: str = "auto"
    may_fall_back: bool = False  # to the kernel's own engine: a measurement chose another one, and nobody asked for it by name
    strategy: str = "auto"
    fused: str = "auto"
    model_parallel: int = 1  # devices that share one copy of the model
    precision: str = ""  # a Keras dtype policy; empty: as the model has it
    accumulate: int = 1  # parts that each batch is computed in, one after the other
    private: Privacy | None = None
    checkpoint_epochs: int = 1
    checkpoint_s: float = 0.0

    def __post_init__(self) -> None:
        choices = {"engine": ENGINE_CHOICES, "strategy": STRATEGIES, "fused": FUSING, "precision": PRECISIONS}
        for option, allowed in choices.items():
            if (value := getattr(self, option)) not in allowed:
                raise InvalidSpec(f"{option}={value!r} is not known. Use one of {', '.join(filter(None, allowed))}.")
        if self.accumulate < 1:
            raise InvalidSpec(f"accumulate={self.accumulate}: a batch has at least 1 part. Leave --accumulate out for one.")
        engine = self.runs_on
        if self.strategy not in ("auto", *engine.strategies):
            owner = next(engines_with(self.strategy))
            raise InvalidSpec(
                f"The strategy {self.strategy} is {owner.title}'s. Use --engine {owner.name}, "
                f"or --strategy {engine.on_cores} on {engine.title}."
            )
        if self.model_parallel < 1 or (self.model_parallel > 1 and "model_parallel" in engine.lacks):
            able = next(info for info in ENGINES.values() if "model_parallel" not in info.lacks)
            raise InvalidSpec(
                f"model_parallel={self.model_parallel} is for {able.title}, and at least 1. Use --engine {able.name} with it."
            )
        if lacking := [name for name in ("precision", "accumulate") if name in engine.lacks and getattr(self, name) not in ("", 1)]:
            raise InvalidSpec(
                f"{' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not for {engine.title}. "
                "Set keras.config.set_dtype_policy, or leave --engine out."
            )

        self._check_private()

    def _check_private(self) -> None:
        if self.private is None:
            return
        if self.strategy == "mirrored":
            raise InvalidSpec("Private training has no strategy mirrored. Use --strategy collective, or --engine jax.")
        if self.model_parallel > 1:
            raise InvalidSpec("Private training keeps the whole model on each device. Leave --model-parallel or --private out.")
        if self.accumulate > 1:
            raise InvalidSpec("Private training computes each batch in parts by itself. Leave --accumulate out.")
        if self.precision == "mixed_float16":
            raise InvalidSpec("Private training takes no scaled loss, which mixed_float16 needs. Use --precision mixed_bfloat16.")

    @property
    def runs_on(self) -> EngineInfo:
        """The engine that workers load: the one that is named, or the first that has the strategy."""
        if self.engine != "auto":
            return ENGINES[self.engine]
        return HOME if self.strategy in ("auto", *HOME.strategies) else next(engines_with(self.strategy))

    @property
    def must_run_there(self) -> bool:
        """Whether the job fails, instead of moving to the kernel's own engine, if `runs_on` cannot run the fit."""
        return self.engine != "auto" and not self.may_fall_back

    def fallen_back(self, *, strategy: str = "auto") -> Execution:
        """This execution on the kernel's own engine, which takes every fit.

        Args:
            strategy: the strategy there; "auto" leaves it to the plan.
        """
        return msgspec.structs.replace(self, engine=HOME.name, may_fall_back=False, strategy=strategy, model_parallel=1)

    def resolved(self, *, devices: int, gpus: bool) -> Execution:
        """This execution with the strategy that "auto" stands for.

        Args:
            devices: how many devices of one machine the job gets.
            gpus: whether they are GPUs.
        """
        if self.strategy != "auto":
            return self
        several = self.runs_on.on_gpus if gpus and self.private is None else self.runs_on.on_cores
        return msgspec.structs.replace(self, strategy="single" if devices == 1 else several)
