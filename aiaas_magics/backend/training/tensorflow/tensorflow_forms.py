"""Forms of TensorFlow's steps: which one a command leaves, what a measurement concludes, and where traced loops are kept.

Owns the choice before anything was traced. What a traced step says to it is `compile_policy`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from aiaas_magics.backend.training.autotune.compile_policy import Choice, ComparingRule, Rule
from aiaas_magics.backend.training.tensorflow.parallel.mirrored import is_mirrored
from aiaas_magics.backend.training.tensorflow.trace_cache import Traces
from aiaas_magics.backend.training.unpacked_fit import Unpacked
from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.core.engines import ENGINES
from aiaas_magics.core.events import Candidate, Planned
from aiaas_magics.core.internals.keras_internals import TensorFlowTrainer
from aiaas_magics.core.internals.tensorflow_internals import is_op_determinism_enabled
from aiaas_magics.core.timing_cache import StepTiming, TimingCache
from aiaas_magics.packing.checks.fit_checks import runs_eagerly

INFO = ENGINES["tensorflow"]


class TensorFlowPolicy:
    """See `engine.StepPolicy`. `rule` decides each time a step was traced."""

    def __init__(self, command: WorkerCommand, call: Unpacked) -> None:
        self._command, self._model = command, call.model
        compares = command.measure is not None and command.measure.compare
        self.rule: Rule = ComparingRule(_cache(command)) if compares else Rule(_cache(command))

    def concluded(self, candidates: Sequence[Candidate]) -> Planned:
        form, rule = wanted_form(self._command, self._model), self.rule
        timings = [StepTiming.of(candidate) for candidate in candidates if not candidate.why]
        if isinstance(rule, ComparingRule) and rule.planned is not None:
            rule.remember(timings)
            form = rule.planned()
        elif form.fused == "auto":
            form = Choice(fused="graph" if any(timing.fused == "graph" for timing in timings) else "off", why=(candidates[-1].why,))
        return planned(self._command, form)


def planned(command: WorkerCommand, choice: Choice) -> Planned:
    return Planned(fused=choice.fused, why=choice.why, engine=INFO.name, strategy=strategy_of(command))


def strategy_of(command: WorkerCommand) -> str:
    return "collective" if command.ranks > 1 else "mirrored" if is_mirrored(command) else "single"


def wanted_form(command: WorkerCommand, model: Any) -> Choice:
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


def _cache(command: WorkerCommand) -> TimingCache | None:
    """What was measured before, and may be measured in this run; nothing where somebody asked for the same bits in every run."""
    usable = bool(command.choices) and command.ranks == 1 and not is_op_determinism_enabled()
    return TimingCache(Path(command.choices)) if usable else None


def traces_of(command: WorkerCommand, call: Unpacked) -> Traces | None:
    """Where loops are found that an earlier fit has traced. What several workers exchange, and what is measured, is traced in each."""
    execution = command.execution
    usable = bool(command.choices) and command.ranks == 1 and command.measure is None and not is_mirrored(command)
    if not usable or execution.accumulate > 1 or execution.private is not None:  # a trace holds the secret of the noise
        return None
    facts = (execution.fused, execution.precision, is_op_determinism_enabled())
    return Traces(Path(command.choices).with_name("traces"), call.model, call.variables, facts=facts)
