"""Small models of every kind are deployed: as ONNX wherever ONNX can, with Keras' answers on rows that the export has not seen."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from aiaas_magics.packing.export import model_export
from aiaas_magics.packing.export.model_export import Servable
from aiaas_magics.packing.export.onnx_session import onnx_form
from tests.packing.export.zoo import KINDS, NOT_IN_A_GRAPH, NOT_IN_ONNX, TEXTS, entries

# Of an output's largest value: float32 in another order of sums (design, section 6; the parity check of a deploy allows 1e-5).
TOLERANCE = 2e-5

pytestmark = pytest.mark.nightly


@pytest.mark.parametrize(("kind", "expression"), list(dict.fromkeys(entries())))
def test_a_model_is_served_and_answers_as_keras(kind: str, expression: str, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    model = built(kind, expression)
    draw = np.random.default_rng(3)
    sample, fresh = KINDS[kind].rows(draw), KINDS[kind].rows(draw)

    if expression in NOT_IN_A_GRAPH:
        with pytest.raises(model_export.CannotServe):
            model_export.export(model, one_or_all(sample))
        return
    exported = model_export.export(model, one_or_all(sample))

    is_onnx = kind not in TEXTS and expression not in NOT_IN_ONNX
    assert exported.format == ("onnx" if is_onnx else "saved_model"), exported.note
    assert exported.note or is_onnx, "nobody is told why it is no ONNX file"
    answers = answered(exported, fresh, tmp_path)
    rows = list(map(tf.constant, fresh)) if kind in TEXTS else fresh  # Keras itself takes texts as tensors only
    expected = keras.tree.flatten(model.predict(one_or_all(rows), verbose=0))
    assert len(answers) == len(expected)
    for spec, right in zip(exported.outputs, expected, strict=True):
        assert_close(answers[spec.name], np.asarray(right))


def built(kind: str, expression: str) -> Any:
    inputs = [keras.Input(shape, dtype=dtype) for shape, dtype in KINDS[kind].inputs]
    x = one_or_all(inputs)
    found = eval(expression, {"L": layers, "ops": ops, "np": np, "x": x})
    return keras.Model(x, found(x) if isinstance(found, keras.Layer) else found)


def one_or_all(values: Sequence[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def answered(exported: Servable, rows: Sequence[Any], folder: Path) -> Mapping[str, Any]:
    """What the file computes, without Keras."""
    named = {spec.name: values for spec, values in zip(exported.inputs, rows, strict=True)}
    if exported.format == "onnx":
        return onnx_form(exported.artefact)(named)
    with zipfile.ZipFile(io.BytesIO(exported.artefact)) as file:
        file.extractall(folder)
    loaded = tf.saved_model.load(str(next(folder.rglob("saved_model.pb")).parent))
    found = loaded.signatures["serving_default"](**{name: tf.constant(values) for name, values in named.items()})
    return {name: values.numpy() for name, values in found.items()}


def assert_close(answer: Any, expected: np.ndarray) -> None:
    answer = np.asarray(answer)
    assert answer.shape == expected.shape
    if expected.dtype.kind != "f":
        np.testing.assert_array_equal(answer, expected)
        return
    finite = np.isfinite(expected)
    largest = np.abs(expected[finite]).max(initial=0.0)
    np.testing.assert_array_equal(np.isfinite(answer), finite)
    np.testing.assert_allclose(answer[finite], expected[finite], rtol=0, atol=TOLERANCE * max(largest, 1e-6))
