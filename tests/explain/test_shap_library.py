"""The library shap beside ours: the same values where both are exact, and its explainers behind our entry."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from aiaas_magics import ExplainSettings, explain_model
from aiaas_magics.core.errors import DataMismatch, InvalidSpec

pytestmark = pytest.mark.nightly
shap = pytest.importorskip("shap", reason="the extra `explain` is not installed")
RNG = np.random.default_rng(0)
ROWS, BACKGROUND = RNG.normal(size=(12, 8)).astype(np.float32), RNG.normal(size=(60, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> Any:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((8,)), layers.Dense(16, activation="relu"), layers.Dense(3, activation="softmax")])


@pytest.fixture(scope="module")
def logits(model: Any) -> Any:
    ending_in_logits = keras.Sequential([keras.Input((8,)), layers.Dense(16, activation="relu"), layers.Dense(3)])
    ending_in_logits.set_weights(model.get_weights())
    return ending_in_logits


def values_of(model: Any, method: str, **options: Any) -> np.ndarray:
    explanation = explain_model(model, ROWS, background=BACKGROUND, method=method, faithfulness=False, settings=ExplainSettings(**options))
    return np.asarray(explanation.attributions.values[0])


def test_exact_kernel_shap_is_the_librarys_to_rounding(model: Any) -> None:
    assert np.abs(values_of(model, "kernel_shap") - values_of(model, "shap_kernel")).max() < 1e-6


def test_exact_kernel_shap_is_that_of_the_librarys_exact_explainer(model: Any) -> None:
    explainer = shap.explainers.Exact(lambda rows: model.predict(rows, verbose=0), shap.maskers.Independent(BACKGROUND, max_samples=60))
    expected = explainer(ROWS).values
    targets = model.predict(ROWS, verbose=0).argmax(axis=1)

    chosen = np.stack([expected[row, :, target] for row, target in enumerate(targets)])
    assert np.abs(values_of(model, "kernel_shap") - chosen).max() < 1e-5


@pytest.mark.parametrize(("method", "allowed"), [("shap_permutation", 0.02), ("shap_partition", 0.05), ("shap_gradient", 0.1)])
def test_explainers_that_sample_come_near_the_exact_values(model: Any, method: str, allowed: float) -> None:
    assert np.abs(values_of(model, method) - values_of(model, "kernel_shap")).max() < allowed


def test_deep_shap_comes_near_the_exact_values_of_logits(logits: Any) -> None:
    exact = values_of(logits, "kernel_shap")

    assert np.abs(values_of(logits, "shap_deep") - exact).max() < 0.25 * np.abs(exact).max()


def test_our_sampling_is_no_worse_than_the_librarys(model: Any) -> None:
    exact = values_of(model, "kernel_shap")
    ours = [np.abs(values_of(model, "kernel_shap", samples=60, seed=seed) - exact).mean() for seed in range(5)]
    theirs = [np.abs(values_of(model, "shap_kernel", samples=60, seed=seed) - exact).mean() for seed in range(5)]

    assert np.mean(ours) < 1.5 * np.mean(theirs)


def test_pictures_are_explained_by_parts_of_them() -> None:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((12, 12, 1)), layers.Conv2D(4, 3, activation="relu"), layers.Flatten(), layers.Dense(3)])
    pictures = RNG.random((2, 12, 12, 1)).astype(np.float32)

    explanation = explain_model(model, pictures, background=RNG.random((20, 12, 12, 1)).astype(np.float32), method="shap_partition")

    assert explanation.attributions.values[0].shape == pictures.shape
    assert explanation.attributions.completeness_errors is not None
    assert explanation.attributions.completeness_errors.max() < 1e-4
    assert explanation.kind == "image"


def test_what_the_library_cannot_take_is_refused_in_a_sentence(model: Any) -> None:
    with pytest.raises(InvalidSpec, match="needs a Keras model"):
        explain_model(lambda rows: rows[:, 0], ROWS, background=BACKGROUND, method="shap_deep")
    with pytest.raises(DataMismatch, match="Give background=x_train"):
        explain_model(model, ROWS, method="shap_kernel")
