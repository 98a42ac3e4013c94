"""shap adapter: the explainers of the library of that name, for those who know and trust them.

Owns the import of `shap`, its explainers' arguments and the form of their answers. Our own Kernel and permutation SHAP need no library.
"""

from __future__ import annotations

import warnings
from typing import Any, Final

import numpy as np

from aiaas_magics.core.errors import DataMismatch, InvalidSpec
from aiaas_magics.core.explain_settings import ExplainSettings
from aiaas_magics.explain import black_box, model_predict, players
from aiaas_magics.explain.attributions import Arrays, Attributions, OnProgress, bytes_per_row, no_progress

DEEP_BACKGROUND: Final = 100  # rows: more cost time and change little (the library's own advice)


def shap_attributions(
    model: Any, inputs: Arrays, background: Arrays | None, settings: ExplainSettings, on_progress: OnProgress = no_progress
) -> Attributions:
    """SHAP values by the library `shap`, of one input and one output.

    Args:
        model: a Keras model on TensorFlow for `shap_deep` and `shap_gradient`; otherwise anything that predicts.
        inputs: the rows, one array.
        background: rows that stand for "not this value".

    Raises:
        InvalidSpec: the library is missing, or its explainer cannot take this model.
        DataMismatch: no background, or several inputs.
    """
    shap = shap_module()
    if len(inputs) != 1 or players.is_text(inputs[0]):
        raise DataMismatch(f"The library shap explains one array of numbers here, and there are {len(inputs)} inputs. Use 'kernel_shap'.")
    black_box.check_rows(inputs)
    players.check_background(inputs, background)
    rows = np.asarray(inputs[0])
    sample = (players.thinned(background, settings.background_rows) or [rows])[0]
    predict = model_predict.predict_of(model, settings.output)
    outputs = flat(predict([rows]))
    targets = black_box.targets_of(outputs, settings.target)
    counter = _Counter(predict, settings.rows_per_batch(bytes_per_row(inputs)), rows.shape[1:])
    values, base = _EXPLAINERS[settings.resolved_method](shap, model, counter, rows, sample, settings)
    on_progress(len(rows), len(rows))
    columns = outputs.shape[1]
    chosen = by_target(np.asarray(values), rows.shape, columns, targets)
    bases = counter.outputs([sample]).mean(axis=0) if base is None else np.broadcast_to(np.ravel(base), (columns,))
    index = np.arange(len(rows))
    return Attributions(
        method=settings.resolved_method,
        values=(chosen.astype(np.float32),),
        base=bases[targets].astype(np.float32),
        outputs=outputs[index, targets].astype(np.float32),
        targets=targets,
        evaluations=counter.evaluations,
        columns=columns,
        notes=(f"Computed by shap {shap.__version__}.",),
    )


def shap_module() -> Any:
    """The library.

    Raises:
        InvalidSpec: it is not installed.
    """
    try:
        import shap
    except ModuleNotFoundError as error:
        raise InvalidSpec(
            "The methods shap_... need the library shap, which is not installed. Install it with: pip install 'aiaas_magics[explain]' "
            "Or use method='kernel_shap', which needs no library."
        ) from error
    return shap


def flat(outputs: np.ndarray) -> np.ndarray:
    return np.asarray(outputs, dtype=np.float64).reshape(len(outputs), -1)


def by_target(values: np.ndarray, shape: tuple[int, ...], columns: int, targets: np.ndarray) -> np.ndarray:
    """The values of each row's target: the library puts the columns of the output last, or leaves a single one out."""
    if values.shape == shape:
        return values
    full = values.reshape(*shape, columns)
    return np.stack([full[row, ..., target] for row, target in enumerate(targets)])


class _Counter:
    """Predictions in batches, counted; the library asks with flat rows for tables and whole ones for images."""

    def __init__(self, predict: Any, batch_rows: int, shape: tuple[int, ...]) -> None:
        self._predict, self._batch_rows, self._shape = predict, batch_rows, shape
        self.evaluations = 0

    def outputs(self, inputs: list[np.ndarray]) -> np.ndarray:
        rows = np.asarray(inputs[0]).reshape(-1, *self._shape).astype(np.float32)
        self.evaluations += len(rows)
        parts = [flat(self._predict([rows[first : first + self._batch_rows]])) for first in range(0, len(rows), self._batch_rows)]
        return np.concatenate(parts)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return self.outputs([rows])


def _by_gradients(name: str) -> Any:
    """An explainer that needs the model itself."""

    def explain(
        shap: Any, model: Any, counter: _Counter, rows: np.ndarray, sample: np.ndarray, settings: ExplainSettings
    ) -> tuple[Any, Any]:
        if not model_predict.is_keras(model):
            raise InvalidSpec(f"shap's {name} needs a Keras model, and this is a {type(model).__name__}. Use method='kernel_shap'.")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # its own, about the forms of inputs
                counter.evaluations += len(rows) * (
                    min(len(sample), DEEP_BACKGROUND) if name == "DeepExplainer" else settings.samples or 200
                )
                if name == "DeepExplainer":
                    explainer = shap.DeepExplainer(model, sample[:DEEP_BACKGROUND])
                    return explainer.shap_values(rows, check_additivity=False), None
                explainer = shap.GradientExplainer(model, sample)
                return explainer.shap_values(rows, nsamples=settings.samples or 200, rseed=settings.seed), None
        except Exception as error:  # border: the library meets a model that it does not know, and may raise anything
            raise InvalidSpec(
                f"shap's {name} cannot explain this model: {type(error).__name__}: {error}. Use 'integrated_gradients'."
            ) from error

    return explain


def _kernel(shap: Any, _: Any, counter: _Counter, rows: np.ndarray, sample: np.ndarray, settings: ExplainSettings) -> tuple[Any, Any]:
    wide = int(np.prod(rows.shape[1:]))
    explainer = shap.KernelExplainer(counter, sample.reshape(len(sample), wide), seed=settings.seed)
    options = {"nsamples": settings.samples} if settings.samples else {}
    return explainer.shap_values(rows.reshape(len(rows), wide), silent=True, l1_reg=0, **options), explainer.expected_value


def _permutation(shap: Any, _: Any, counter: _Counter, rows: np.ndarray, sample: np.ndarray, settings: ExplainSettings) -> tuple[Any, Any]:
    wide = int(np.prod(rows.shape[1:]))
    masker = shap.maskers.Independent(sample.reshape(len(sample), wide), max_samples=len(sample))
    explainer = shap.explainers.Permutation(counter, masker, seed=settings.seed)
    orders = settings.samples or 10
    return explainer(rows.reshape(len(rows), wide), max_evals=orders * (2 * wide + 1), silent=True).values, None


def _partition(shap: Any, _: Any, counter: _Counter, rows: np.ndarray, sample: np.ndarray, settings: ExplainSettings) -> tuple[Any, Any]:
    """Images: parts are hidden by the mean picture; anything else by the background's rows."""
    if rows.ndim == 4:
        mean = sample.mean(axis=0)
        masker = shap.maskers.Image(mean, rows.shape[1:])
        answer = shap.explainers.Partition(counter, masker)(rows, max_evals=settings.samples or 500, batch_size=50, silent=True)
        return answer.values, counter.outputs([mean[None]])[0]
    wide = int(np.prod(rows.shape[1:]))
    masker = shap.maskers.Partition(sample.reshape(len(sample), wide), max_samples=len(sample))
    answer = shap.explainers.Partition(counter, masker)(rows.reshape(len(rows), wide), max_evals=settings.samples or 500, silent=True)
    return answer.values, None


_EXPLAINERS = {
    "shap_deep": _by_gradients("DeepExplainer"),
    "shap_gradient": _by_gradients("GradientExplainer"),
    "shap_kernel": _kernel,
    "shap_permutation": _permutation,
    "shap_partition": _partition,
}
