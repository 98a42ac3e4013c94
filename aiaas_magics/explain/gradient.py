"""Gradient attributions: what a Keras model's derivatives say of its inputs, on TensorFlow and JAX.

Owns the entries and the methods: saliency, gradient x input, integrated gradients and SmoothGrad. Grad-CAM is in `gradcam`, calling and
differentiating the model in `model_gradients`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.explain_settings import ExplainSettings
from aiaas_magics.explain import black_box, gradcam, players, row_plans
from aiaas_magics.explain.attributions import PAD, Arrays, Attributions, OnProgress, bytes_per_row, join_attributions, no_progress
from aiaas_magics.explain.model_gradients import GradientPoint, ModelGradients
from aiaas_magics.explain.players import is_text, words_of

NOISY_COPIES: Final = 25  # SmoothGrad's paper (Smilkov et al. 2017): little changes beyond 50; guess
NEAR_ZERO: Final = 1e-12  # no gradient in float32 is meant to be this small


def gradient_attributions(
    model: Any,
    inputs: Arrays,
    background: Arrays | None,
    settings: ExplainSettings,
    on_progress: OnProgress = no_progress,
    *,
    targets: np.ndarray | None = None,
) -> Attributions:
    """What each entry of each row contributes to its output, from the model's gradients in inference mode.

    A row's attributions do not depend on the other rows of the call, to float rounding. Inputs that embeddings read (tokens, categories)
    get the sum over the embedding's dimensions; texts get it per word.

    Args:
        model: a Keras model on TensorFlow or JAX.
        inputs: rows to explain, one array of shape (rows, *input shape) per input, in the model's order.
        background: what integrated gradients start from: the mean of these rows. None starts from zeros, embeddings from that of id 0.
        settings: the method and its bounds.
        on_progress: called after each part of the rows; what it raises ends the explanation.
        targets: the column to explain of each row (rows,), instead of `settings.target`.

    Raises:
        InvalidSpec: a method of another family, an input without a gradient, or Grad-CAM without a convolution.
        DataMismatch: rows and background that do not fit together.
    """
    return GradientExplainer(model, background, settings).explain(inputs, on_progress, targets=targets)


class GradientExplainer:
    """Explains rows of one model, call after call: what is found and compiled at the first call serves the others.

    Args:
        model, background, settings: as for `gradient_attributions`.

    Raises:
        InvalidSpec: a method of another family.
    """

    def __init__(self, model: Any, background: Arrays | None, settings: ExplainSettings) -> None:
        info = settings.method_info
        if info.family != "gradient":
            raise InvalidSpec(f"{info.title} is no gradient method. Use method='integrated_gradients', 'saliency' or 'gradcam'.")
        self._model, self._background, self._settings = model, background, settings
        self._gradients: ModelGradients | None = None
        self._start: list[np.ndarray] = []

    def explain(self, inputs: Arrays, on_progress: OnProgress = no_progress, *, targets: np.ndarray | None = None) -> Attributions:
        """As `gradient_attributions`."""
        inputs = [np.asarray(array) for array in inputs]
        black_box.check_rows(inputs)
        gradients = self._gradients = self._gradients or self._prepared(inputs)
        before, rows = gradients.evaluations, len(inputs[0])
        step = _rows_per_part(self._settings, gradients.batch_rows)
        parts = []
        for first in range(0, rows, step):
            part = [array[first : first + step] for array in inputs]
            chosen = None if targets is None else targets[first : first + step]
            parts.append(_part(gradients, part, self._start, self._settings, chosen))
            on_progress(min(first + step, rows), rows)
        return _with_notes(join_attributions(parts), evaluations=gradients.evaluations - before)

    def _prepared(self, inputs: list[np.ndarray]) -> ModelGradients:
        settings = self._settings
        # Gradients keep all activations of a batch: a quarter of the rows that predictions take (guess).
        batch_rows = settings.batch_rows or max(1, settings.rows_per_batch(bytes_per_row(inputs)) // 4)
        gradients = ModelGradients(self._model, settings.output, batch_rows)
        gradients.prepare(inputs)
        if settings.resolved_method == "gradcam":
            gradcam.look_at_layer(gradients, inputs, settings.layer)
        if self._background is not None:
            players.check_background(inputs, self._background)
        if settings.resolved_method == "integrated_gradients":
            self._start = gradients.nothing_at(inputs, self._background)
        return gradients


def _rows_per_part(settings: ExplainSettings, batch_rows: int) -> int:
    """So many that all copies of a part's rows are about one batch."""
    copies = {"integrated_gradients": settings.steps, "smoothgrad": settings.samples or NOISY_COPIES}.get(settings.resolved_method, 1)
    return max(1, batch_rows // copies)


def _part(
    gradients: ModelGradients, inputs: list[np.ndarray], start: list[np.ndarray], settings: ExplainSettings, chosen: np.ndarray | None
) -> Attributions:
    """Attributions of a part of the rows."""
    before = gradients.evaluations
    outputs = gradients.outputs(inputs)
    targets = black_box.targets_of(outputs, settings.target) if chosen is None else chosen
    rows = np.arange(len(outputs))
    values = gradients.values_at(inputs)
    bases = np.full(len(outputs), np.nan)
    match settings.resolved_method:
        case "saliency":
            found = [
                _size(gradient, point)
                for gradient, point in zip(gradients.gradients(values, inputs, targets), gradients.points, strict=True)
            ]
        case "gradient_input":
            products = zip(gradients.gradients(values, inputs, targets), values, strict=True)
            found = [gradient * value for gradient, value in products]
        case "integrated_gradients":
            found = _integrated(gradients, values, start, inputs, targets, settings.steps)
            bases = gradients.outputs_at([np.repeat(value, len(rows), axis=0) for value in start], inputs)[rows, targets]
        case "smoothgrad":
            found = _smoothed(gradients, values, inputs, targets, settings)
        case _:
            found = gradcam.heat(gradients.gradients(values, inputs, targets), values, inputs)
    attributed, tokens = _per_input(gradients.points, found, inputs)
    return Attributions(
        method=settings.resolved_method,
        values=attributed,
        base=bases.astype(np.float32),
        outputs=outputs[rows, targets].astype(np.float32),
        targets=targets,
        evaluations=gradients.evaluations - before,
        columns=outputs.shape[1],
        tokens=tokens,
    )


def _size(gradient: np.ndarray, point: GradientPoint) -> np.ndarray:
    """The absolute gradient; of an embedding, the length of each token's."""
    return np.asarray(np.abs(gradient) if point.call is None else np.linalg.norm(gradient, axis=-1, keepdims=True))


def _integrated(
    gradients: ModelGradients,
    values: list[np.ndarray],
    start: list[np.ndarray],
    inputs: list[np.ndarray],
    targets: np.ndarray,
    steps: int,
) -> list[np.ndarray]:
    """Integrated gradients (Sundararajan, Taly and Yan 2017, https://arxiv.org/abs/1703.01365), by Gauss and Legendre's quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    alphas, weights = (nodes + 1) / 2, weights / 2
    along = [
        first[:, None] + alphas.astype(np.float32).reshape(1, -1, *[1] * (value.ndim - 1)) * (value - first)[:, None]
        for value, first in zip(values, start, strict=True)
    ]
    flat = [path.reshape(-1, *path.shape[2:]) for path in along]
    repeated = [np.repeat(array, steps, axis=0) for array in inputs]
    slopes = gradients.gradients(flat, repeated, np.repeat(targets, steps))
    means = [np.einsum("s,rs...->r...", weights, slope.reshape(len(targets), steps, *slope.shape[1:])) for slope in slopes]
    return [mean * (value - first) for mean, value, first in zip(means, values, start, strict=True)]


def _smoothed(
    gradients: ModelGradients, values: list[np.ndarray], inputs: list[np.ndarray], targets: np.ndarray, settings: ExplainSettings
) -> list[np.ndarray]:
    """SmoothGrad (Smilkov et al. 2017, https://arxiv.org/abs/1706.03825): the mean gradient of noisy copies, its size."""
    copies = settings.samples or NOISY_COPIES
    generators = [row_plans.row_generator([array[row] for array in inputs], settings.seed) for row in range(len(targets))]
    noisy = []
    for value in values:
        flat = value.reshape(len(value), -1)
        deviation = settings.noise * (flat.max(axis=1) - flat.min(axis=1))
        noise = np.stack([rng.standard_normal((copies, *value.shape[1:])) for rng in generators])
        scaled = noise * deviation.reshape(-1, *[1] * value.ndim)
        noisy.append((value[:, None] + scaled).astype(np.float32).reshape(-1, *value.shape[1:]))
    repeated = [np.repeat(array, copies, axis=0) for array in inputs]
    slopes = gradients.gradients(noisy, repeated, np.repeat(targets, copies))
    means = [slope.reshape(len(targets), copies, *slope.shape[1:]).mean(axis=1) for slope in slopes]
    return [_size(mean, point) for mean, point in zip(means, gradients.points, strict=True)]


def _per_input(
    points: Sequence[GradientPoint], found: Sequence[np.ndarray], inputs: Arrays
) -> tuple[tuple[np.ndarray, ...], tuple[tuple[str, ...], ...]]:
    """The attributions of each input, in its shape: those of its embeddings summed over their dimensions."""
    values: list[np.ndarray] = []
    tokens: list[tuple[str, ...]] = [()] * len(inputs[0])
    for place, array in enumerate(inputs):
        total: np.ndarray | None = None
        look_up = None
        for point, attributed in zip(points, found, strict=True):
            if point.source != place:
                continue
            summed = attributed if point.call is None else attributed.sum(axis=-1)
            total, look_up = summed if total is None else total + summed, point.look_up
        assert total is not None, "prepare() makes a point for each input"
        if is_text(array):
            total = total.reshape(len(array), -1)
            spoken = [_words(cell, row, look_up) for cell, row in zip(array, total, strict=True)]
            tokens = [earlier + words for earlier, words in zip(tokens, spoken, strict=True)]
            for row, words in zip(total, spoken, strict=True):
                row[len(words) :] = PAD
            total = total[:, : max(map(len, spoken))]
            values.append(total.astype(np.float32))
        else:
            values.append(total.reshape(array.shape).astype(np.float32))
    return tuple(values), tuple(tokens) if any(tokens) else ()


def _words(cell: np.ndarray, row: np.ndarray, look_up: Any) -> tuple[str, ...]:
    """The words of a text that have a place in the embedding; the vocabulary's own words where they are not those between blanks."""
    words = words_of(np.asarray(cell).item())
    if look_up is None or type(look_up).__name__ != "TextVectorization":
        return tuple(words[: len(row)])
    ids = np.ravel(np.asarray(look_up(np.asarray([cell]).reshape(1))))[: len(row)]
    spoken = ids[: len(np.trim_zeros(ids, "b"))]
    if len(spoken) == min(len(words), len(row)):
        return tuple(words[: len(spoken)])
    vocabulary = look_up.get_vocabulary()
    return tuple(vocabulary[word] for word in spoken)


def _with_notes(attributions: Attributions, *, evaluations: int) -> Attributions:
    """What the reader should know: rows without any gradient."""
    silent = np.all([np.nanmax(np.abs(values.reshape(len(values), -1)), axis=1) <= NEAR_ZERO for values in attributions.values], axis=0)
    notes = list(attributions.notes)
    if silent.any():
        why = "the output is saturated there"
        if attributions.method == "gradcam":
            why = "nothing in the convolution speaks for the output there"
        notes.append(
            f"{int(silent.sum())} of {attributions.rows} rows have no attribution at all: {why}. "
            "Use method='kernel_shap' or 'occlusion' for them."
        )
    return replace(attributions, evaluations=evaluations, notes=tuple(notes))
