"""Accuracy impact of quantization: how it changes a model's answers, measured in the kernel before anything is sent.

Owns running both forms on the same rows, the model's own loss and metrics of both, and what they are judged by. Computing
an ONNX form belongs to `onnx_session`, making the smaller one to `quantization`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from aiaas_magics.core import errors
from aiaas_magics.core.errors import DataMismatch
from aiaas_magics.packing.export.export_request import QuantizationRequest
from aiaas_magics.packing.export.onnx_session import Form, Named

ROWS_AT_ONCE: Final = 256  # guess: keeps activations of images in memory
MOST_CHANGE: Final = 0.01  # one point of accuracy; --max-change sets another
MOST_CHANGE_OF_SAMPLES: Final = 0.1  # guess: 32 rows cannot tell one point, a broken model they can


@dataclass(frozen=True, slots=True, kw_only=True)
class Forms:
    """A model as trained and in fewer bits, from named rows to named outputs; `structured` makes Keras' own structure of these."""

    full: Form
    reduced: Form
    structured: Callable[[Named], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImpactLine:
    """One figure of both forms; `before` is None where it compares the two."""

    measure: str
    before: float | None
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionChange:
    """What was measured. `of` says on which rows; `judged` and `by` what is held against `limit`."""

    precision: str
    bytes_before: int
    bytes_after: int
    rows: int
    of: str
    validated: bool
    lines: tuple[ImpactLine, ...]
    judged: str
    by: float
    limit: float
    note: str = ""

    @property
    def is_within(self) -> bool:
        return self.by <= self.limit  # not for NaN

    @property
    def sentence(self) -> str:
        """One clause for the version's view."""
        first = self.lines[0]
        measured = (
            f"{first.measure} {first.after:.4g}" if first.before is None else f"{first.measure} {first.before:.4g} -> {first.after:.4g}"
        )
        return f"{measured} on {self.rows:,} rows of {self.of}"

    def check(self) -> None:
        """Raises `ChangedTooMuch` when the change is beyond its limit."""
        if not self.is_within:
            raise errors.ChangedTooMuch(self.precision, self.judged, self.by, self.limit, f"{self.rows:,} rows of {self.of}")


def measure(model: Any, request: QuantizationRequest, forms: Forms, *, sizes: tuple[int, int]) -> PrecisionChange:
    """What the smaller form changes, on the rows of `request`.

    Args:
        sizes: bytes of both forms.

    Raises:
        DataMismatch: the model's loss and metrics do not take what is true of them.
    """
    validation = request.validation
    before, after = in_parts(forms.full, validation.rows), in_parts(forms.reduced, validation.rows)
    own: tuple[ImpactLine, ...] = ()
    note = ""
    if validation.truth is not None:
        own, note = own_figures(model, validation.truth, forms.structured(before), forms.structured(after))
    lines = (*own, *differences(before, after))
    judged_by, change = judged(lines)
    usual = MOST_CHANGE if validation.is_validation else MOST_CHANGE_OF_SAMPLES
    return PrecisionChange(
        precision=request.precision,
        bytes_before=sizes[0],
        bytes_after=sizes[1],
        rows=len(next(iter(validation.rows.values()))),
        of=validation.origin,
        validated=validation.is_validation,
        lines=lines,
        judged=judged_by,
        by=change,
        limit=usual if request.max_change is None else request.max_change,
        note=note,
    )


def in_parts(form: Form, rows: Named) -> dict[str, np.ndarray]:
    """A form's answers on any number of rows."""
    count = len(next(iter(rows.values())))
    parts = [form({name: array[start : start + ROWS_AT_ONCE] for name, array in rows.items()}) for start in range(0, count, ROWS_AT_ONCE)]
    return {name: np.concatenate([np.atleast_1d(part[name]) for part in parts]) for name in parts[0]}


# --------------------------------------------------------------------------- the figures


def differences(before: Named, after: Named) -> Iterator[ImpactLine]:
    """How far the outputs are apart; first the share of rows with the same answer, where they are a classifier's."""
    several = len(before) > 1
    for name, full in before.items():
        of = f" of {name}" if several else ""
        reduced = after[name].astype(np.float64)
        full = full.astype(np.float64)
        if (same := same_answers(full, reduced)) is not None:
            yield ImpactLine(measure=f"same answer{of}", before=None, after=same)
        apart = np.abs(full - reduced)
        spread = float(full.std()) or float(np.abs(full).max(initial=0.0)) or 1.0
        yield ImpactLine(measure=f"mean difference{of}, of its spread", before=None, after=float(apart.mean()) / spread)
        yield ImpactLine(measure=f"largest difference{of}", before=None, after=float(apart.max(initial=0.0)))


def same_answers(full: np.ndarray, reduced: np.ndarray) -> float | None:
    """The share of rows whose class is the same: the most probable, or whether one probability is above a half; None for other outputs."""
    if full.ndim >= 2 and full.shape[-1] > 1 and (full >= 0).all() and np.allclose(full.sum(-1), 1.0, atol=1e-3):
        same = full.argmax(-1) == reduced.argmax(-1)
    elif full.ndim in (1, 2) and full.size == len(full) and (full >= 0).all() and (full <= 1).all():
        same = (full > 0.5) == (reduced > 0.5)
    else:
        return None
    return float(same.reshape(len(full), -1).all(axis=1).mean())


def evaluated(model: Any, y: Any, answers: Any) -> dict[str, float]:
    """The model's own compiled metrics, then its loss, of `answers` to rows whose truth is `y`.

    The loss is the one given to `compile`: what layers and regularizers add is the same for both forms.
    """
    import keras

    count = len(keras.tree.flatten(answers)[0])
    losses = 0.0
    metrics, loss = model._compile_metrics, model._compile_loss
    with _metrics_restored(model):
        if metrics is not None:
            metrics.reset_state()
        for start in range(0, count, ROWS_AT_ONCE):

            def part(array: np.ndarray, start: int = start) -> Any:
                return keras.ops.convert_to_tensor(array[start : start + ROWS_AT_ONCE])

            truth, predictions = keras.tree.map_structure(part, y), keras.tree.map_structure(part, answers)
            if loss is not None:
                losses += float(loss(truth, predictions)) * (min(count, start + ROWS_AT_ONCE) - start)
            if metrics is not None:
                metrics.update_state(truth, predictions)
        results = {} if metrics is None else dict(metrics.result())
    scalars = {name: float(value) for name, value in results.items() if np.ndim(value) == 0}
    return scalars | ({"loss": losses / count} if loss is not None else {})


@contextmanager
def _metrics_restored(model: Any) -> Iterator[None]:
    """Metrics count on: what they had counted is put back."""
    before = [(variable, np.array(variable.numpy())) for variable in model.metrics_variables]
    try:
        yield
    finally:
        known_ids = {id(variable) for variable, _ in before}
        for variable, value in before:
            variable.assign(value)
        if any(id(variable) not in known_ids for variable in model.metrics_variables):
            model._compile_metrics.reset_state()


def own_figures(model: Any, y: Any, before: Any, after: Any) -> tuple[tuple[ImpactLine, ...], str]:
    """Metrics and loss of both forms, and why there are none."""
    import keras

    if not getattr(model, "compiled", False):
        return (), "The model is not compiled, so its answers are compared and y_val is not used."
    if type(model).test_step is not keras.Model.test_step:
        return (), "The model has a test_step of its own, so its answers are compared and y_val is not used."
    try:
        full, reduced = evaluated(model, y, before), evaluated(model, y, after)
    except (ValueError, TypeError, KeyError) as error:
        raise DataMismatch(
            f"The model's loss and metrics do not take y_val ({' '.join(str(error).split())[:200].rstrip('.')}). Give it as fit takes y."
        ) from error
    return tuple(ImpactLine(measure=name, before=full[name], after=reduced[name]) for name in full), ""


def judged(lines: tuple[ImpactLine, ...]) -> tuple[str, float]:
    """What the limit is for, and how much it changed: the first metric, or answers that became others, or how far they moved.

    A metric above 1 counts in parts of itself: 0.01 is a point of accuracy, and a hundredth of an error of 30.
    """
    first = lines[0]
    if first.before is not None:
        return first.measure, abs(first.after - first.before) / max(1.0, abs(first.before))
    same = [line.after for line in lines if line.measure.startswith("same answer")]
    if same:
        return "the share of other answers", 1.0 - min(same)
    return "the mean difference", _worst(line.after for line in lines if line.measure.startswith("mean difference"))


def _worst(values: Iterator[float]) -> float:
    numbers = list(values)
    return math.nan if any(math.isnan(value) for value in numbers) else max(numbers)
