"""Reference answers: what a model computes for a few rows, as numbers that another backend is compared with.

Owns the numbers: outputs, loss and gradients with `training=False`, taken in the kernel from the
model as it is, and the comparison with those of another backend. Computing them there belongs to
that backend's engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from aiaas_magics.packing.data import batch_shapes, fit_data
from aiaas_magics.packing.live import model_state
from aiaas_magics.packing.live.model_variables import tensorflow_variable

ROWS: Final = 16  # guess: enough that no row stands for all
TOLERANCE: Final = 1e-4  # of the norm, in single precision: other orders of sums differ by 1e-7 to 1e-5
HALF_TOLERANCE: Final = 5e-2  # where a layer computes in 16 bits: bfloat16 has 8 of them for the number
FLOOR: Final = 1e-5  # of the norm of all gradients together: below it a gradient is rounding
HALF_FLOOR: Final = 4e-3  # the same in bfloat16, of which it is one unit
# Gradients of a bias are sums that nearly cancel, and XLA adds bfloat16 up in bfloat16 on a CPU: those of a Transformer's values differed
# by 0.062 between one device and two.
HALF_GRADIENT_TOLERANCE: Final = 0.2
SKETCHED_FROM: Final = 1 << 16  # items; a bigger gradient travels as sums
SKETCH: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Outputs and gradients, flat, in the order of the model's outputs and trainable variables."""

    outputs: tuple[np.ndarray, ...]
    loss: float
    gradients: tuple[np.ndarray | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceAnswers:
    """Sample rows and what the kernel's model makes of them."""

    x: Any
    y: Any
    sample_weight: Any
    numbers: Numbers
    tolerance: float
    paths: tuple[str, ...]  # of the trainable variables

    @property
    def batch(self) -> tuple[Any, Any, Any]:
        """x, y and weights."""
        return self.x, self.y, self.sample_weight

    @property
    def gradient_tolerance(self) -> float:
        return self.tolerance if self.tolerance < HALF_TOLERANCE else HALF_GRADIENT_TOLERANCE

    @property
    def floor(self) -> float:
        """The share of the norm of all gradients below which one of them is rounding."""
        return FLOOR if self.tolerance < HALF_TOLERANCE else HALF_FLOOR


def sample(model: Any, arguments: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """The first rows of x, y and weights, in the dtypes that `fit` gives the model."""
    import keras

    rows = min(batch_shapes.shape_rows(arguments), batch_shapes.training_rows(arguments))
    fixed = getattr(getattr(model, "_functional", None) or model, "_inputs", None) or ()
    if not any(tensor.shape[0] for tensor in fixed if hasattr(tensor, "shape")):
        rows = min(rows, ROWS)

    def cut(array: np.ndarray) -> np.ndarray:
        first = np.array(array[:rows])
        return first.astype(keras.config.floatx()) if first.dtype.kind == "f" else first

    x, y, weight = (fit_data.map_leaves(cut, arguments.get(part)) for part in fit_data.PARTS)
    return x, y, weight


def take(model: Any, arguments: Mapping[str, Any]) -> ReferenceAnswers:
    """The answers of a TensorFlow model, which is left as it is. Layers run as in `predict`: nothing is dropped, no statistics move."""
    import tensorflow as tf
    from keras import tree

    x, y, weight = sample(model, arguments)
    moving = [*model.non_trainable_variables, *model.metrics_variables]
    values = [np.array(variable.numpy()) for variable in moving]
    tensors = [tree.map_structure(lambda leaf: None if leaf is None else tf.convert_to_tensor(leaf), part) for part in (x, y, weight)]
    try:
        with model_state.restored_after(model), tf.GradientTape() as tape:
            outputs = model(tensors[0], training=False)
            loss = model._compute_loss(x=tensors[0], y=tensors[1], y_pred=outputs, sample_weight=tensors[2], training=False)
        gradients = tape.gradient(loss, [tensorflow_variable(variable) for variable in model.trainable_variables])
    finally:
        for variable, value in zip(moving, values, strict=True):
            variable.assign(value)
    computed = numbers(outputs, loss, [None if grad is None else tf.convert_to_tensor(grad) for grad in gradients])
    return answers_of(model, (x, y, weight), computed)


def answers_of(model: Any, batch: tuple[Any, Any, Any], computed: Numbers) -> ReferenceAnswers:
    """What `model` was found to compute for `batch`, with the tolerance that its dtypes ask for."""
    x, y, weight = batch
    halves = any(getattr(layer, "compute_dtype", "") in ("float16", "bfloat16") for layer in model._flatten_layers())
    return ReferenceAnswers(
        x=x,
        y=y,
        sample_weight=weight,
        numbers=computed,
        tolerance=HALF_TOLERANCE if halves else TOLERANCE,
        paths=tuple(variable.path for variable in model.trainable_variables),
    )


def numbers(outputs: Any, loss: Any, gradients: Sequence[Any]) -> Numbers:
    from keras import tree

    return Numbers(
        outputs=tuple(_flat(output) for output in tree.flatten(outputs)),
        loss=float(np.asarray(loss)),
        gradients=tuple(None if gradient is None else sketch(_flat(gradient)) for gradient in gradients),
    )


def sketch(flat: np.ndarray) -> np.ndarray:
    """`flat`, or where that is long 1,024 signed sums of it, whose differences have on average the norm of the full ones."""
    if flat.size < SKETCHED_FROM:
        return flat
    rows = np.pad(flat, (0, -flat.size % SKETCH)).reshape(-1, SKETCH)
    signs = np.random.default_rng(0).choice(np.array([-1.0, 1.0]), size=len(rows))
    summed: np.ndarray = signs @ rows
    return summed


def difference(expected: ReferenceAnswers, answers: Numbers) -> str | None:
    """The largest difference beyond the tolerance as a clause; None where all agree."""
    own_numbers, worst = expected.numbers, (0.0, "", "")
    pairs = [("the loss", np.array([own_numbers.loss]), np.array([answers.loss]), 0.0)]
    if [output.shape for output in own_numbers.outputs] != [output.shape for output in answers.outputs]:
        return "its outputs have other shapes"
    pairs += [(f"output {place}", a, b, 0.0) for place, (a, b) in enumerate(zip(own_numbers.outputs, answers.outputs, strict=True))]
    scale = float(np.sqrt(sum(_norm(g) ** 2 for g in own_numbers.gradients if g is not None)))
    for path, reference, gradient in zip(expected.paths, own_numbers.gradients, answers.gradients, strict=True):
        zeros = np.zeros(1) if reference is None and gradient is None else np.zeros_like(gradient if reference is None else reference)
        own = zeros if reference is None else reference
        pairs.append((f"the gradient of {path}", own, zeros if gradient is None else gradient, expected.floor * scale))
    for label, a, b, floor in pairs:
        allowed = expected.gradient_tolerance if label.startswith("the gradient") else expected.tolerance
        relative = _gap(a, b) / max(_norm(a), floor / allowed, 1e-30)
        measured = f"{relative:.2g} of its norm ({allowed:g} is allowed)"
        worst = max(worst, (relative / allowed, label, measured), key=lambda row: row[0])
    excess, label, measured = worst
    if excess <= 1:
        return None
    if np.isinf(excess):
        return f"{label} is not a number, or infinite, in other places"
    return f"{label} differs by {measured}"


def _norm(flat: np.ndarray) -> float:
    """Of what is finite."""
    return float(np.linalg.norm(flat[np.isfinite(flat)]))


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    """The norm of the difference. NaN, or one infinity, in the same place of both is none; in one of them it is infinite."""
    differs = ~((a == b) | (np.isnan(a) & np.isnan(b)))
    gap = float(np.linalg.norm(a[differs] - b[differs]))
    return gap if np.isfinite(gap) else np.inf


def _flat(value: Any) -> np.ndarray:
    return np.asarray(value).astype(np.float64).reshape(-1)
