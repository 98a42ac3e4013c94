"""What dry runs measured of the engines, by model and machine, and whether a fit goes to another engine by it.

Owns that memory, one small file a model and backend in the folder of this account's state, and the choice. Measuring is
`planning`; the forms that a step may have on TensorFlow are remembered by the worker itself (`compile_policy`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aiaas_magics.core import settings
from aiaas_magics.core.engines import ENGINES, HOME
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.timing_cache import StepTiming, TimingCache

if TYPE_CHECKING:
    from aiaas_magics.core.spec import About
    from aiaas_magics.packing.fitcall.fit_call import DraftedFitCall, PackedFitCall

WORTH_LEAVING: Final = 1.1  # times as fast: less is within what two measurements of the same differ by (guess)


class QuickerEngine(msgspec.Struct, frozen=True, kw_only=True):
    """The way on another engine than the kernel's own, where that is quicker for this fit, and by how much."""

    way: StepTiming
    times: float

    @property
    def why(self) -> str:
        """A clause."""
        return f"measured: {HOME.title} takes {self.times:.3g} times as long for this fit, start and compiling included"

    @property
    def note(self) -> str:
        return f"This fit runs on {ENGINES[self.way.engine].title} ({self.why}). --engine {HOME.name} runs it on {HOME.title}."

    def execution(self, execution: Execution) -> Execution:
        return msgspec.structs.replace(execution, engine=self.way.engine, strategy=self.way.strategy, may_fall_back=True)


def quicker_engine(ways: Sequence[StepTiming], *, steps: int) -> QuickerEngine | None:
    """The quickest way of the other engines where it is worth leaving the kernel's own for; None also where either was not measured."""
    home_s = [way.fit_s(steps) for way in ways if way.engine == HOME.name]
    other_ways = [way for way in ways if way.engine != HOME.name]
    if not home_s or not other_ways:
        return None
    best = min(other_ways, key=lambda way: way.fit_s(steps))
    times = min(home_s) / max(best.fit_s(steps), 1e-9)
    return QuickerEngine(way=best, times=times) if times >= WORTH_LEAVING else None


def is_open(execution: Execution) -> bool:
    """Whether nothing that was asked for decides on the engine."""
    is_stock = not execution.precision and execution.accumulate == 1 and execution.private is None
    return execution.engine == execution.strategy == "auto" and is_stock


def cache() -> TimingCache:
    """The memory of this account."""
    return TimingCache(settings.home() / "measured")


def quicker_for(draft: DraftedFitCall, about: About, *, execution: Execution, workers: int | None) -> QuickerEngine | None:
    """What dry runs of this model on this backend say to `draft`; None where the engine is not open, or nothing was measured."""
    if not is_open(execution) or about.versions.engines.keys() <= {HOME.name}:
        return None
    return quicker_engine(cache().get(key_of(draft, about, execution=execution, workers=workers)), steps=draft.shape.steps)


def key_of(packed: PackedFitCall | DraftedFitCall, about: About, *, execution: Execution, workers: int | None) -> str:
    """Names what decides on the time of a step: layers and weights by kind and size, not by name, the batch, and where it is computed.

    Two models that differ in less than that take each other's time; whether another engine computes the same is verified for each.
    """
    model = packed.model
    layers = [(_name(layer), [(tuple(v.shape), str(v.dtype)) for v in layer.variables]) for layer in model._flatten_layers()]
    data = sorted((array.dtype.str, array.shape[1:]) for array in packed.arrays)
    compiled = [_name(model.optimizer), sorted(_name(callback) for callback in packed.callbacks)]
    where = [about.backend, about.hardware, msgspec.structs.astuple(about.versions)]
    how = [execution.fused, workers, packed.shape.global_batch]
    return hashlib.sha256(repr((_name(model), layers, data, compiled, where, how)).encode()).hexdigest()[:32]


def _name(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
