"""Faithfulness tells a good explanation from a bad one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from aiaas_magics.core.errors import DataMismatch
from aiaas_magics.core.explain_settings import ExplainSettings
from aiaas_magics.explain.agreement_of_methods import rank_correlation, row_agreements
from aiaas_magics.explain.attributions import Attributions
from aiaas_magics.explain.black_box import black_box_attributions
from aiaas_magics.explain.explain_model import explain_model
from aiaas_magics.explain.faithfulness import Faithfulness, measure_faithfulness
from aiaas_magics.explain.weight_sanity import random_weights

pytestmark = pytest.mark.slow  # each trains a model

RNG = np.random.default_rng(11)
WEIGHTS = RNG.normal(size=12)
ROWS, BACKGROUND = RNG.normal(size=(30, 12)), RNG.normal(size=(40, 12))
SETTINGS = ExplainSettings(method="occlusion")


def linear(inputs: list[np.ndarray]) -> np.ndarray:
    return np.asarray(inputs[0] @ WEIGHTS)


@pytest.fixture(scope="module")
def true() -> Attributions:
    return black_box_attributions(linear, [ROWS], [BACKGROUND], SETTINGS)


def measured(attributions: Attributions) -> Faithfulness:
    return measure_faithfulness(linear, [ROWS], [BACKGROUND], attributions, SETTINGS)


def test_a_true_explanation_holds_and_its_opposite_fails(true: Attributions) -> None:
    holds, fails = measured(true), measured(replace(true, values=(-true.values[0],)))

    assert holds.verdict == "holds"
    assert holds.deletion_area < holds.random_area < holds.insertion_area
    assert fails.verdict == "fails"
    assert "no more than hiding parts at random" in fails.failures[0]


def test_an_explanation_at_random_never_holds(true: Attributions) -> None:
    verdicts = [measured(replace(true, values=(np.random.default_rng(seed).normal(size=ROWS.shape),))).verdict for seed in range(5)]

    assert "holds" not in verdicts


def test_curves_start_at_the_output_and_end_where_everything_is_hidden(true: Attributions) -> None:
    curves = measured(true)
    nothing = linear([BACKGROUND.mean(axis=0, keepdims=True)])[0]

    assert np.allclose(curves.deletion[:, 0], true.outputs, atol=1e-6)
    assert np.allclose(curves.deletion[:, -1], nothing)
    assert np.allclose(curves.insertion[:, 0], nothing)
    assert np.allclose(curves.insertion[:, -1], true.outputs, atol=1e-6)


def test_the_area_of_a_linear_model_is_what_arithmetic_says() -> None:
    rows = np.array([[4.0, 2.0, 1.0, 1.0]])
    predict = lambda inputs: inputs[0].sum(axis=1)  # noqa: E731
    attributions = black_box_attributions(predict, [rows], [np.zeros((1, 4))], SETTINGS)

    curves = measure_faithfulness(predict, [rows], [np.zeros((1, 4))], attributions, SETTINGS)

    hidden = np.round(np.linspace(0, 1, 21) * 4).astype(int)
    expected = np.array([8.0, 4.0, 2.0, 1.0, 0.0])[hidden]
    assert np.allclose(curves.deletion[0], expected)
    assert curves.deletion_area == pytest.approx(np.trapezoid(expected, np.linspace(0, 1, 21)))


def test_incomplete_attributions_and_insane_weights_are_failures(true: Attributions) -> None:
    incomplete = replace(true, method="kernel_shap", base=np.zeros(30, dtype=np.float32), values=(0.5 * true.values[0],))
    curves = measured(incomplete)

    assert any("miss the output by" in reason for reason in curves.failures)
    assert any("random weights" in reason for reason in replace(curves, sanity=0.95).failures)
    assert not any("random weights" in reason for reason in replace(curves, sanity=0.1).failures)


def test_rank_correlation_is_spearmans() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    for _ in range(10):
        first, second = RNG.integers(0, 6, 15).astype(float), RNG.normal(size=15)

        assert rank_correlation(first, second) == pytest.approx(scipy_stats.spearmanr(first, second).statistic)
    assert np.isnan(rank_correlation(np.ones(4), np.arange(4.0)))


def test_methods_that_say_the_same_agree(true: Attributions) -> None:
    other = black_box_attributions(linear, [ROWS], [BACKGROUND], ExplainSettings(method="permutation_shap"))
    upside_down = replace(true, values=(-true.values[0],))

    assert np.allclose(row_agreements(true, other), 1.0)
    assert np.allclose(row_agreements(true, upside_down), -1.0)
    with pytest.raises(DataMismatch, match="same rows"):
        row_agreements(true, true.take(slice(0, 3)))


def test_weights_come_back_after_the_sanity_check_whatever_happens() -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dense(1)])
    before = model.get_weights()

    def break_off() -> None:
        with random_weights(model, 0):
            assert not np.allclose(model.get_weights()[0], before[0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()

    assert all(np.array_equal(old, new) for old, new in zip(before, model.get_weights(), strict=True))


def test_an_explanation_of_the_input_alone_is_caught_by_random_weights() -> None:
    """A model of one input layer that every weight passes through: |gradient x input| of many equal weights shows the input."""
    keras.utils.set_random_seed(0)
    rows = RNG.normal(size=(10, 40)).astype(np.float32)
    learned: Any = keras.Sequential([keras.Input((40,)), layers.Dense(8, activation="tanh"), layers.Dense(1)])
    weights = learned.get_weights()
    weights[0] = np.zeros((40, 8)) + 0.01
    weights[0][7] = 3.0
    learned.set_weights(weights)
    flat: Any = keras.Sequential(
        [keras.Input((40,)), layers.Lambda(lambda values: keras.ops.sum(values**2, axis=1, keepdims=True)), layers.Dense(1)]
    )

    depends = explain_model(learned, rows, method="gradient_input", sanity=True).faithfulness
    shows_input = explain_model(flat, rows, method="gradient_input", sanity=True).faithfulness

    assert depends is not None
    assert shows_input is not None
    assert depends.sanity is not None
    assert depends.sanity < 0.7
    assert shows_input.sanity == pytest.approx(1.0)
    assert any("random weights" in reason for reason in shows_input.failures)
