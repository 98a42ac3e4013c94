"""Engine timings: what dry runs measured per model and machine, and whether a fit goes to JAX because of it.

Owns that memory, one small file a model and backend in the folder of this account's state, and the choice. Measuring is
`planning`; the forms that a step may have on TensorFlow are remembered by the worker itself (`compile_policy`).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aiaas_magics.core import settings
from aiaas_magics.core.execution import Execution

if TYPE_CHECKING:
    from aiaas_magics.core.spec import About
    from aiaas_magics.packing.fitcall.fit_call import PackedFitCall

WORTH_LEAVING: Final = 1.1  # times as fast: less is within what two measurements of the same differ by (guess)


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """One way to carry out the steps, as it was measured. `start_s` is what lies before its first step."""

    engine: str
    strategy: str
    fused: str
    step_s: float
    compile_s: float
    start_s: float = 0.0

    def fit_s(self, steps: int) -> float:
        """What a fit of so many steps takes, from handing it in."""
        return self.start_s + self.compile_s + max(0, steps - 1) * self.step_s


class Quicker(msgspec.Struct, frozen=True, kw_only=True):
    """The way on JAX, where that is quicker for this fit, and by how much."""

    way: Way
    times: float

    @property
    def why(self) -> str:
        """A clause."""
        return f"measured: on TensorFlow this fit takes {self.times:.3g} times as long, start and compiling included"

    @property
    def note(self) -> str:
        return f"This fit goes to JAX; a dry run has {self.why}. --engine tensorflow keeps it there."

    def execution(self, execution: Execution) -> Execution:
        return msgspec.structs.replace(execution, engine="jax", strategy=self.way.strategy, may_stay=True)


def quicker_on_jax(ways: Sequence[Way], *, steps: int) -> Quicker | None:
    """JAX's quickest way where it is worth leaving TensorFlow for; None also where either was not measured."""
    best = {}
    for engine in ("tensorflow", "jax"):
        candidates = [way for way in ways if way.engine == engine]
        if not candidates:
            return None
        best[engine] = min(candidates, key=lambda way: way.fit_s(steps))
    times = best["tensorflow"].fit_s(steps) / max(best["jax"].fit_s(steps), 1e-9)
    return Quicker(way=best["jax"], times=times) if times >= WORTH_LEAVING else None


def is_open(execution: Execution) -> bool:
    """Whether nothing that was asked for decides on the engine."""
    return execution.engine == execution.strategy == "auto" and not execution.precision and execution.accumulate == 1


class Measurements:
    """What was measured, a file a key. A damaged or missing one is as if nothing was."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or settings.home() / "measured"

    def of(self, key: str) -> tuple[Way, ...]:
        try:
            return msgspec.json.decode((self._folder / f"{key}.json").read_bytes(), type=tuple[Way, ...])
        except (OSError, msgspec.MsgspecError):
            return ()

    def remember(self, key: str, ways: Sequence[Way]) -> None:
        """A folder that cannot be written to costs the next fit its choice, and this one nothing."""
        with contextlib.suppress(OSError):
            settings.make_private(self._folder)
            partial = self._folder / f"{key}.part"
            partial.write_bytes(msgspec.json.encode(tuple(ways)))
            partial.replace(self._folder / f"{key}.json")


def quicker_for(packed: PackedFitCall, about: About, *, execution: Execution, workers: int | None) -> Quicker | None:
    """What dry runs of this model on this backend say to `packed`; None where the engine is not open, or nothing was measured."""
    if not is_open(execution) or not about.versions.jax:
        return None
    return quicker_on_jax(Measurements().of(key_of(packed, about, execution=execution, workers=workers)), steps=packed.shape.steps)


def key_of(packed: PackedFitCall, about: About, *, execution: Execution, workers: int | None) -> str:
    """Names what decides on the time of a step: layers and weights by kind and size, not by name, the batch, and where it is computed.

    Two models that differ in less than that take each other's time; whether JAX computes the same is proved for each by itself.
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
