"""Explain model: explanations in this process, of whatever predicts.

Owns the entry for users and the order of the steps: read the rows, choose the method, compute, measure faithfulness. The same on workers is
`Backend.explain`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from aiaas_magics.core.errors import DataMismatch
from aiaas_magics.core.explain_settings import METHODS, ExplainSettings
from aiaas_magics.explain import black_box, gradient, method_choice, model_inputs, model_predict
from aiaas_magics.explain.attributions import Arrays, Attributions, OnProgress, no_progress
from aiaas_magics.explain.explanation import Explanation
from aiaas_magics.explain.faithfulness import measure_faithfulness
from aiaas_magics.explain.model_inputs import ModelRows
from aiaas_magics.explain.weight_sanity import weight_sanity

SANITY_ROWS = 20  # guess


def explain_model(
    model: Any,
    rows: Any,
    *,
    background: Any = None,
    method: str = "auto",
    target: int | None = None,
    output: str = "",
    labels: Any = None,
    columns: Sequence[str] = (),
    class_names: Sequence[str] = (),
    vocabulary: Sequence[str] = (),
    faithfulness: bool = True,
    sanity: bool = False,
    settings: ExplainSettings | None = None,
    on_progress: OnProgress = no_progress,
) -> Explanation:
    """Explain a model's outputs for some rows, in this process.

    Args:
        model: a Keras model, an estimator with `predict_proba` or `predict`, or a function from rows to outputs.
        rows: what to explain, as for `model.predict`: an array of shape (rows, *input shape), a frame, texts, or a list or dictionary of
            them.
        background: rows that stand for "not this value", of the same form: a sample of the training data. Methods that hide parts of a row
            need it; integrated gradients start from its mean.
        method: "auto", or one of `ExplainSettings`' methods.
        target: the class to explain; None is each row's largest output.
        output: the name of the output to explain, for models with several.
        labels: true outputs, for `method="permutation"`: importance is then the growth of the loss.
        columns: names of columns, where rows are no frame.
        class_names: names of the output's columns; of both classes where the output has one column.
        vocabulary: the word of each id, for a model that takes integers of words: its text is shown. Ids 0 at the end of a row are padding.
        faithfulness: measure the deletion and insertion curves too.
        sanity: explain the model with random weights as well, three times, and compare. The model gets its weights back.
        settings: everything else, such as `samples` and `steps`; `method`, `target` and `output` replace its own.
        on_progress: called with the rows explained and the rows in all; what it raises ends the explanation.

    Returns:
        The explanation; its repr in a notebook is a figure.

    Raises:
        InvalidSpec: a method that cannot explain this model.
        DataMismatch: rows, background and labels that do not fit together.
        UnknownName: no such method, output or layer.
    """
    started = time.perf_counter()
    asked_for = msgspec.structs.replace(settings or ExplainSettings(), method=method, target=target, output=output)
    data = model_inputs.model_rows(model, rows, columns=columns)
    black_box.check_rows(data.arrays)
    others = None if background is None else model_inputs.model_rows(model, background, columns=columns).arrays
    differentiable = asked_for.method == "auto" and model_predict.has_gradients(model, data.arrays, output)
    choice = method_choice.choose_method(data.arrays, others, asked_for, has_gradients=differentiable)
    chosen = asked_for.with_method(choice.method)
    judged = None if labels is None else np.asarray(labels)
    explain = explainer(model, data.arrays, others, chosen, labels=judged)
    attributions = explain(on_progress)
    explanation = Explanation(
        attributions=with_words(attributions, data.arrays, vocabulary) if vocabulary else attributions,
        inputs=tuple(data.arrays),
        input_names=data.inputs,
        columns=data.columns,
        class_names=tuple(map(str, class_names)),
        model=str(getattr(model, "name", "") or getattr(model, "__name__", "") or type(model).__name__),
        why=choice.why,
        seconds=time.perf_counter() - started,
    )
    return measured(explanation, model, data, others, chosen, sanity=sanity) if faithfulness else explanation


def with_words(attributions: Attributions, inputs: Arrays, vocabulary: Sequence[str]) -> Attributions:
    """The attributions with the words that the ids of one input stand for.

    Raises:
        DataMismatch: no input of ids, or ids without a word.
    """
    places = [place for place, array in enumerate(inputs) if array.ndim == 2 and array.dtype.kind in "iu"]
    if len(places) != 1:
        raise DataMismatch(f"A vocabulary names the ids of one input of shape (rows, words), and {len(places)} are. Leave vocabulary out.")
    ids = inputs[places[0]]
    if ids.min() < 0 or ids.max() >= len(vocabulary):
        raise DataMismatch(f"Ids go up to {ids.max()} and the vocabulary has {len(vocabulary)} words. Give one word per id, from 0.")
    tokens = tuple(tuple(str(vocabulary[word]) for word in np.trim_zeros(row, "b")) for row in ids)
    return replace(attributions, tokens=tokens)


def explainer(
    model: Any, inputs: Arrays, background: Arrays | None, settings: ExplainSettings, *, labels: np.ndarray | None = None
) -> Callable[[OnProgress], Attributions]:
    """What computes the attributions of `inputs` with the method that `settings` name."""
    match settings.method_info.family:
        case "gradient":
            return lambda on_progress: gradient.gradient_attributions(model, inputs, background, settings, on_progress)
        case "shap":
            from aiaas_magics.explain.shap_adapter import shap_attributions

            return lambda on_progress: shap_attributions(model, inputs, background, settings, on_progress)
        case _:
            predict = model_predict.predict_of(model, settings.output)
            return lambda on_progress: black_box.black_box_attributions(predict, inputs, background, settings, on_progress, labels=labels)


def measured(
    explanation: Explanation, model: Any, data: ModelRows, background: Arrays | None, settings: ExplainSettings, *, sanity: bool = False
) -> Explanation:
    """The same explanation with its faithfulness, and with the sanity of its weights if asked for."""
    predict = model_predict.predict_of(model, settings.output)
    curves = measure_faithfulness(predict, data.arrays, background, explanation.attributions, settings)
    if sanity and model_predict.is_keras(model):
        curves = replace(curves, sanity=sanity_of(explanation.attributions, model, data.arrays, background, settings))
    return replace(explanation, faithfulness=curves)


def sanity_of(attributions: Attributions, model: Any, inputs: Arrays, background: Arrays | None, settings: ExplainSettings) -> float:
    """Rank correlation with the explanations of models with random weights, for the first rows and their own targets."""
    few = [np.asarray(array)[:SANITY_ROWS] for array in inputs]
    first = attributions.take(slice(SANITY_ROWS))
    if METHODS[attributions.method].family == "gradient":
        return weight_sanity(model, first, lambda: gradient.gradient_attributions(model, few, background, settings, targets=first.targets))
    # Methods that only predict take one target for all rows: the first row's.
    fixed = msgspec.structs.replace(settings, target=int(first.targets[0]))
    own = explainer(model, few, background, fixed)
    return weight_sanity(model, own(no_progress), lambda: own(no_progress))
