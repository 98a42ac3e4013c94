"""Black-box attributions hold what their papers promise, on functions whose answers are known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiaas_magics.core.errors import DataMismatch, InvalidSpec, UnknownName
from aiaas_magics.core.explain_settings import METHODS, ExplainSettings
from aiaas_magics.explain import coalitions
from aiaas_magics.explain.attributions import Attributions, Predict, join_attributions
from aiaas_magics.explain.black_box import black_box_attributions, black_box_requests, planned_evaluations

BLACK_BOX = [name for name, info in METHODS.items() if info.family == "black_box"]
RNG = np.random.default_rng(7)
WEIGHTS = RNG.normal(size=6)
ROWS = RNG.normal(size=(12, 6))
BACKGROUND = RNG.normal(size=(40, 6))


def linear(inputs: list[np.ndarray]) -> np.ndarray:
    return np.asarray(inputs[0] @ WEIGHTS + 3.0)


def explained(
    method: str, predict: Predict = linear, rows: np.ndarray = ROWS, background: np.ndarray | None = BACKGROUND, **more: object
) -> Attributions:
    chosen = ExplainSettings(method=method, **more)  # type: ignore[arg-type]
    return black_box_attributions(predict, [rows], None if background is None else [background], chosen)


@pytest.mark.parametrize("method", ["kernel_shap", "permutation_shap", "occlusion"])
def test_a_linear_model_gets_weight_times_distance_from_the_mean(method: str) -> None:
    attributions = explained(method)

    assert np.allclose(attributions.values[0], WEIGHTS * (ROWS - BACKGROUND.mean(axis=0)), atol=1e-6)


def test_sampled_kernel_shap_of_a_linear_model_is_exact_too() -> None:
    attributions = explained("kernel_shap", samples=30)

    assert np.allclose(attributions.values[0], WEIGHTS * (ROWS - BACKGROUND.mean(axis=0)), atol=1e-6)


def brute_force(predict: Callable[[np.ndarray], np.ndarray], row: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Shapley values by their definition."""
    count = len(row)
    value = {}
    for size in range(count + 1):
        for members in itertools.combinations(range(count), size):
            mixed = background.copy()
            mixed[:, list(members)] = row[list(members)]
            value[members] = float(predict(mixed).mean())
    shares = np.zeros(count)
    for player in range(count):
        others = [other for other in range(count) if other != player]
        for size in range(count):
            weight = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
            for members in itertools.combinations(others, size):
                shares[player] += weight * (value[tuple(sorted((*members, player)))] - value[members])
    return shares


def uneven(rows: np.ndarray) -> np.ndarray:
    return np.asarray(np.tanh(rows[:, 0] * rows[:, 1]) + rows[:, 2] ** 2 * (rows[:, 3] > 0) - np.abs(rows[:, 0]))


def test_kernel_shap_of_few_columns_is_the_definition() -> None:
    rows, background = RNG.normal(size=(4, 5)), RNG.normal(size=(9, 5))

    attributions = explained("kernel_shap", lambda inputs: uneven(inputs[0]), rows, background)

    assert np.allclose(attributions.values[0], [brute_force(uneven, row, background) for row in rows], atol=1e-6)
    assert "exact" in attributions.notes[0]


def tangled(rows: np.ndarray) -> np.ndarray:
    """Products of three and more columns: pairs of a coalition and its complement make sampling exact for products of two."""
    return np.asarray(np.prod(np.tanh(rows[:, :5]), axis=1) + np.sin(rows[:, :3].sum(axis=1) * rows[:, 5]))


@pytest.mark.parametrize(("method", "samples", "allowed"), [("kernel_shap", 200, 0.05), ("permutation_shap", 400, 0.05)])
def test_sampling_comes_near_the_definition(method: str, samples: int, allowed: float) -> None:
    rows, background = RNG.normal(size=(3, 8)), RNG.normal(size=(9, 8))
    exact = np.array([brute_force(tangled, row, background) for row in rows])

    attributions = explained(method, lambda inputs: tangled(inputs[0]), rows, background, samples=samples)

    assert np.abs(attributions.values[0] - exact).max() < allowed
    assert not np.allclose(attributions.values[0], exact, atol=1e-5)


def test_both_inputs_of_an_exclusive_or_share_its_output() -> None:
    def exclusive_or(inputs: list[np.ndarray]) -> np.ndarray:
        return np.asarray((inputs[0][:, 0] > 0) ^ (inputs[0][:, 1] > 0)).astype(float)

    attributions = explained("kernel_shap", exclusive_or, np.array([[1.0, 0.0, 5.0]]), np.array([[0.0, 0.0, 0.0]]))
    both = explained("kernel_shap", exclusive_or, np.array([[1.0, 1.0, 5.0]]), np.array([[0.0, 0.0, 0.0]]))

    assert np.allclose(attributions.values[0], [[1.0, 0.0, 0.0]])
    assert np.allclose(both.values[0], [[0.0, 0.0, 0.0]], atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**20), columns=st.integers(1, 14), method=st.sampled_from(["kernel_shap", "permutation_shap"]))
def test_attributions_sum_to_the_output_less_the_base_value(seed: int, columns: int, method: str) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(columns, 3))

    attributions = explained(
        method,
        lambda inputs: np.sin(inputs[0] @ weights),
        rng.normal(size=(2, columns)),
        rng.normal(size=(5, columns)),
        samples=min(64, max(2, 2**columns - 2)),
    )

    assert attributions.completeness_errors is not None
    assert attributions.completeness_errors.max() < 1e-5


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**20), samples=st.integers(4, 300), columns=st.integers(3, 20))
def test_every_sampled_coalition_comes_with_its_complement_in_weight(seed: int, samples: int, columns: int) -> None:
    chosen = coalitions.kernel_coalitions(columns, samples, np.random.default_rng(seed))
    weights = {row.tobytes(): weight for row, weight in zip(chosen.shown, chosen.weights, strict=True)}

    assert len(weights) == len(chosen.shown) <= max(samples, 2)
    for row, weight in zip(chosen.shown, chosen.weights, strict=True):
        assert weights[(~row).tobytes()] == pytest.approx(weight)


@pytest.mark.parametrize("method", BLACK_BOX)
def test_columns_that_play_the_same_part_get_the_same(method: str) -> None:
    rows = np.array([[2.0, 2.0, -1.0, 0.5]])
    background = np.repeat(RNG.normal(size=(10, 1)), 4, axis=1)

    attributions = explained(method, lambda inputs: inputs[0][:, 0] * inputs[0][:, 1] + inputs[0][:, 2], rows, background)

    assert attributions.values[0][0, 0] == pytest.approx(attributions.values[0][0, 1], abs=1e-6)
    assert attributions.values[0][0, 3] == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("method", BLACK_BOX)
def test_a_planted_cause_comes_first(method: str) -> None:
    rows = RNG.normal(size=(15, 13))

    attributions = explained(
        method, lambda inputs: 5 * np.tanh(inputs[0][:, 9]) + 0.1 * inputs[0].sum(axis=1), rows, RNG.normal(size=(30, 13))
    )

    assert np.abs(attributions.values[0]).mean(axis=0).argmax() == 9


@pytest.mark.parametrize("method", BLACK_BOX)
@pytest.mark.parametrize("batch_rows", [1, 7, 100_000])
def test_a_row_gets_the_same_alone_in_a_batch_and_in_any_place(method: str, batch_rows: int) -> None:
    def curved(inputs: list[np.ndarray]) -> np.ndarray:
        return np.asarray(np.sin(inputs[0] ** 2).sum(axis=1) + inputs[0][:, 0] * inputs[0][:, 5])

    whole = explained(method, curved, background=BACKGROUND[:8], samples=20)
    reversed_rows = explained(method, curved, ROWS[::-1], BACKGROUND[:8], samples=20)
    shards = [
        explained(method, curved, ROWS[first : first + 5], BACKGROUND[:8], samples=20, batch_rows=batch_rows) for first in range(0, 12, 5)
    ]

    assert np.allclose(join_attributions(shards).values[0], whole.values[0], atol=1e-9)
    assert np.allclose(reversed_rows.values[0][::-1], whole.values[0], atol=1e-9)


@pytest.mark.parametrize("method", BLACK_BOX)
def test_the_evaluations_are_known_before(method: str) -> None:
    counted = []

    def predict(inputs: list[np.ndarray]) -> np.ndarray:
        counted.append(len(inputs[0]))
        return linear(inputs)

    attributions = explained(method, predict, batch_rows=64)
    planned = planned_evaluations([ROWS], [BACKGROUND], ExplainSettings(method=method))

    assert attributions.evaluations == sum(counted) <= planned <= sum(counted) + len(BACKGROUND)
    assert max(counted) <= 64


def test_a_caller_drives_batch_by_batch_and_may_stop() -> None:
    requests = black_box_requests([ROWS], [BACKGROUND], ExplainSettings(method="kernel_shap", batch_rows=50))

    batch = next(requests)
    progress = []
    for _ in range(60):
        batch = requests.send(linear(batch.inputs))
        progress.append(batch.explained)
        assert len(batch.inputs[0]) <= 50
    requests.close()

    assert progress == sorted(progress)
    assert batch.rows == 12


def test_the_largest_output_of_each_row_is_explained_or_the_target() -> None:
    def two(inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack([inputs[0][:, 0], -inputs[0][:, 0]], axis=1)

    rows = np.array([[3.0, 1.0], [-3.0, 1.0]])
    largest = explained("occlusion", two, rows, np.zeros((1, 2)))
    second = explained("occlusion", two, rows, np.zeros((1, 2)), target=1)

    assert largest.targets.tolist() == [0, 1]
    assert largest.values[0][:, 0].tolist() == [3.0, 3.0]
    assert second.values[0][:, 0].tolist() == [-3.0, 3.0]


def test_images_are_hidden_in_squares_and_series_in_windows() -> None:
    image = RNG.random((1, 12, 12, 1))
    series = RNG.random((1, 32, 2))

    spot = explained("occlusion", lambda inputs: inputs[0][:, 3:6, 6:9].sum(axis=(1, 2, 3)), image, np.zeros((1, 12, 12, 1)), patch=3)
    moment = explained("occlusion", lambda inputs: inputs[0][:, 8:12].sum(axis=(1, 2)), series, np.zeros((1, 32, 2)), patch=4)

    assert np.allclose(spot.values[0][0, 3:6, 6:9].sum(), image[0, 3:6, 6:9].sum(), atol=1e-5)
    assert np.abs(spot.values[0]).sum() == pytest.approx(np.abs(spot.values[0][0, 3:6, 6:9]).sum())
    assert np.flatnonzero(np.abs(moment.values[0][0]).sum(axis=1) > 1e-9).tolist() == [8, 9, 10, 11]


@pytest.mark.parametrize("method", ["kernel_shap", "permutation_shap", "occlusion"])
def test_words_of_texts_are_left_out_one_by_one(method: str) -> None:
    def mood(inputs: list[np.ndarray]) -> np.ndarray:
        return np.array([text.split().count("good") - 2.0 * text.split().count("bad") for text in inputs[0].ravel()])

    texts = np.array([["a good film"], ["bad"]], dtype=object)
    attributions = black_box_attributions(mood, [texts], None, ExplainSettings(method=method))

    assert attributions.tokens == (("a", "good", "film"), ("bad",))
    assert np.allclose(attributions.values[0], [[0, 1, 0], [-2, np.nan, np.nan]], equal_nan=True, atol=1e-6)


def test_several_inputs_share_one_output() -> None:
    first, second = RNG.normal(size=(3, 2)), RNG.normal(size=(3, 4))

    attributions = black_box_attributions(
        lambda inputs: inputs[0][:, 0] + 2 * inputs[1][:, 3],
        [first, second],
        [np.zeros((5, 2)), np.zeros((5, 4))],
        ExplainSettings(method="kernel_shap"),
    )

    assert np.allclose(attributions.values[0][:, 0], first[:, 0], atol=1e-6)
    assert np.allclose(attributions.values[1][:, 3], 2 * second[:, 3], atol=1e-6)


def test_permutation_importance_with_labels_is_the_growth_of_the_loss() -> None:
    labels = ROWS @ WEIGHTS + 3.0
    with_labels = black_box_attributions(linear, [ROWS], [BACKGROUND], ExplainSettings(method="permutation", samples=40), labels=labels)

    expected = (WEIGHTS * (BACKGROUND[None] - ROWS[:, None])) ** 2
    assert np.allclose(with_labels.values[0], expected.mean(axis=1), rtol=1e-4)


def test_permutation_importance_of_classes_is_the_growth_of_the_cross_entropy() -> None:
    def chances(inputs: list[np.ndarray]) -> np.ndarray:
        odds = 1 / (1 + np.exp(-3 * inputs[0][:, 0]))
        return np.stack([1 - odds, odds], axis=1)

    rows = np.array([[1.5, 0.0], [-1.5, 0.0]])
    right = black_box_attributions(chances, [rows], [-rows], ExplainSettings(method="permutation", samples=2), labels=np.array([1, 0]))

    assert (right.values[0][:, 0] > 1).all()
    assert np.allclose(right.values[0][:, 1], 0)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"rows": np.zeros((0, 6))}, DataMismatch, "no rows"),
        ({"background": None}, DataMismatch, "Give background=x_train"),
        ({"background": np.zeros((5, 4))}, DataMismatch, r"background has \(4,\)"),
        ({"target": 4}, InvalidSpec, "the output has 1 column"),
        ({"predict": lambda inputs: np.zeros(3)}, DataMismatch, "one output row per row"),
        ({"predict": lambda inputs: np.array(["cat"] * len(inputs[0]))}, DataMismatch, "Choose an output of numbers"),
        ({"method": "saliency"}, InvalidSpec, "needs the model itself"),
    ],
)
def test_what_cannot_be_explained_is_refused_in_a_sentence(change: dict[str, object], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        explained(**{"method": "kernel_shap", **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"method": "shapp"}, UnknownName, "Did you mean 'shap'"),
        ({"samples": -1}, InvalidSpec, "samples=-1"),
        ({"steps": 0}, InvalidSpec, "steps=0"),
        ({"target": -1}, InvalidSpec, "target=-1"),
    ],
)
def test_settings_out_of_bounds_are_refused(options: dict[str, object], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        ExplainSettings(**options)  # type: ignore[arg-type]
