"""Explanations of deployed Keras models: texts, images and several inputs, as their endpoints compute them and the client reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import aiaas_magics
from aiaas_magics.core.errors import BackendRefused, DataMismatch

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def backend() -> Iterator[aiaas_magics.Backend]:
    with aiaas_magics.connect() as backend:
        yield backend


def test_an_image_is_explained_by_hiding_squares_behind_the_background(backend: aiaas_magics.Backend) -> None:
    import keras

    images = np.zeros((6, 8, 8, 1), "float32")
    images[:, 2:4, 4:6] = np.linspace(0.5, 1, 6)[:, None, None, None]
    layers = [keras.layers.Flatten(), keras.layers.Dense(1, use_bias=False)]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers], name="corner")
    weights = np.zeros((8, 8, 1), "float32")
    weights[2:4, 4:6] = 1.0
    model.set_weights([weights.reshape(64, 1)])
    endpoint = backend.deploy(model, name="corner", sample=images, background=np.zeros_like(images))

    explanation = endpoint.explain(images[:2], patch=2)

    values = explanation.attributions.values[0]
    assert "auto chose occlusion" in explanation.why
    assert explanation.kind == "image"
    np.testing.assert_allclose(values[:, 2:4, 4:6], images[:2, 2:4, 4:6], atol=1e-5)
    assert np.abs(values).sum() == pytest.approx(np.abs(images[:2]).sum(), abs=1e-4)
    assert np.isnan(explanation.attributions.base).all()
    assert explanation.verdict
    endpoint.stop()


def test_several_inputs_are_explained_by_their_own_names(backend: aiaas_magics.Backend) -> None:
    import keras

    a, c = keras.Input((2,), name="age"), keras.Input((1,), name="debt")
    output = keras.layers.Dense(1, name="score", use_bias=False)(keras.layers.Concatenate()([a, c]))
    model = keras.Model({"age": a, "debt": c}, output, name="score")
    model.set_weights([np.array([[1.0], [2.0], [-3.0]], "float32")])
    rng = np.random.default_rng(0)
    rows: dict[str, Any] = {"age": rng.random((9, 2)).astype("float32"), "debt": rng.random((9, 1)).astype("float32")}
    endpoint = backend.deploy(model, name="score", sample=rows, background=rows)

    explanation = endpoint.explain({name: array[:3] for name, array in rows.items()})

    assert explanation.input_names == ("age", "debt")
    found = explanation.attributions.values
    np.testing.assert_allclose(found[0], (rows["age"][:3] - rows["age"].mean(0)) * [1.0, 2.0], atol=1e-5)
    np.testing.assert_allclose(found[1], (rows["debt"][:3] - rows["debt"].mean(0)) * -3.0, atol=1e-5)
    with pytest.raises(BackendRefused, match="ntegrated gradients needs the model itself"):
        endpoint.explain(rows, method="gradients")
    with pytest.raises(DataMismatch, match="has the shape"):
        endpoint.explain({**rows, "age": rows["debt"]})
    endpoint.stop()


def test_a_background_of_another_shape_is_refused_before_anything_is_sent(backend: aiaas_magics.Backend) -> None:
    import keras

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)], name="plain")

    with pytest.raises(DataMismatch, match=r"has the shape \(rows, 3\)"):
        backend.deploy(model, name="plain", sample=np.zeros((4, 3), "float32"), background=np.zeros((4, 2), "float32"))
    with pytest.raises(DataMismatch, match="The background has no rows"):
        backend.deploy(model, name="plain", sample=np.zeros((4, 3), "float32"), background=np.zeros((0, 3), "float32"))
