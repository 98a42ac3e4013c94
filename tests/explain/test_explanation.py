"""Explanations: what users hold, see and read."""

from __future__ import annotations

import builtins
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers
from matplotlib.figure import Figure
from matplotlib.text import Text

from aiaas_magics import ExplainSettings, Explanation, explain_model
from aiaas_magics.core.errors import DataMismatch, InvalidSpec
from aiaas_magics.explain.method_choice import choose_method
from aiaas_magics.plots.explanation_twins import text_html
from aiaas_magics.plots.figure_style import as_png

RNG = np.random.default_rng(5)
FRAME = pd.DataFrame(RNG.normal(size=(40, 4)), columns=["age", "income", "height", "shoe size"])


def score(rows: np.ndarray) -> np.ndarray:
    return np.asarray(3 * rows[:, 1] - rows[:, 0])


def words_of(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


@pytest.fixture(scope="module")
def table() -> Explanation:
    return explain_model(score, FRAME[:12], background=FRAME)


@pytest.fixture(scope="module")
def images() -> Explanation:
    pictures = RNG.random((3, 12, 12, 1))
    return explain_model(lambda rows: rows[:, :4, :4].sum(axis=(1, 2, 3)), pictures, background=np.zeros((1, 12, 12, 1)))


@pytest.fixture(scope="module")
def series() -> Explanation:
    rows = RNG.normal(size=(2, 30, 2))
    return explain_model(lambda rows: rows[:, 5:9, 0].sum(axis=1), rows, background=np.zeros((1, 30, 2)), columns=("volt", "noise"))


@pytest.fixture(scope="module")
def texts() -> Explanation:
    def mood(rows: np.ndarray) -> np.ndarray:
        return np.array([row.split().count("good") - 2.0 * row.split().count("<bad>") for row in rows])

    return explain_model(mood, np.array(["a good film", "<bad>"], dtype=object), class_names=("sad", "happy"))


def test_a_frame_gives_its_names_and_the_frame_of_attributions_too(table: Explanation) -> None:
    frame = table.to_frame()

    assert list(frame.columns) == ["age", "income", "height", "shoe size", "base value", "output", "target"]
    assert np.allclose(frame["age"], -(FRAME["age"] - FRAME["age"].mean())[:12], atol=1e-5)
    assert np.allclose(frame["income"], 3 * (FRAME["income"] - FRAME["income"].mean())[:12], atol=1e-5)
    assert np.allclose(frame.iloc[:, :5].sum(axis=1), frame["output"], atol=1e-5)


def test_auto_says_why(table: Explanation, images: Explanation, texts: Explanation) -> None:
    assert table.method == "kernel_shap"
    assert "with 4 columns every coalition can be evaluated" in table.why
    assert images.method == "occlusion"
    assert texts.method == "kernel_shap"
    wide = choose_method([np.zeros((1, 200))], [np.zeros((5, 200))], ExplainSettings(), has_gradients=False)
    deep = choose_method([np.zeros((1, 200))], None, ExplainSettings(), has_gradients=True)
    assert (wide.method, deep.method) == ("permutation_shap", "integrated_gradients")
    assert choose_method([np.zeros((1, 2))], None, ExplainSettings(method="shap"), has_gradients=True).why == ""


@pytest.mark.parametrize("kind", ["table", "image", "series", "text"])
def test_each_kind_has_a_figure_and_the_same_in_words(kind: str, request: pytest.FixtureRequest) -> None:
    explanation: Explanation = request.getfixturevalue({"image": "images", "text": "texts"}.get(kind, kind))
    figure = explanation.plot()
    shown, text = words_of(figure), explanation.text

    assert explanation.kind == kind
    assert as_png(figure).startswith(b"\x89PNG")
    assert explanation.verdict in text
    assert all(word in shown for word in explanation.why.split()[:3])
    expected = {"table": "income", "image": "upper left", "series": "volt", "text": "good(+1)"}[kind]
    assert expected in text


def test_one_row_has_signed_bars_with_its_values(table: Explanation) -> None:
    row = table.take(3)
    shown = words_of(table.plot(row=3))

    assert f"income = {FRAME['income'][3]:.4g}" in shown
    assert "row 3: " in shown
    assert "row 3: " in row.text
    assert "base value" in shown
    with pytest.raises(InvalidSpec, match="Use a row from 0 to 11"):
        table.plot(row=12)


def test_many_columns_are_summed_up_in_one_line() -> None:
    rows = RNG.normal(size=(1, 30))
    explanation = explain_model(lambda rows: rows.sum(axis=1), rows, background=np.zeros((1, 30)), method="occlusion", faithfulness=False)

    assert "18 others" in explanation.text
    assert "18 others" in words_of(explanation.plot())


def test_classes_have_names_and_a_single_output_the_second() -> None:
    def chances(rows: np.ndarray) -> np.ndarray:
        return np.stack([rows[:, 0] * 0 + 0.2, rows[:, 0] * 0 + 0.8], axis=1)

    two = explain_model(chances, FRAME[:2], background=FRAME, class_names=("no", "yes"), faithfulness=False)
    one = explain_model(score, FRAME[:2], background=FRAME, class_names=("no", "yes"), faithfulness=False)

    assert "0.8 for yes" in two.text
    assert list(two.to_frame()["target"]) == ["yes", "yes"]
    assert "for yes" in one.text


def test_a_notebook_shows_an_image_with_its_alternative_text(table: Explanation, texts: Explanation) -> None:
    bundle = table._repr_mimebundle_()

    assert bundle["text/html"].startswith(f"<img alt='{table.alt_text}")
    assert "income" in table.alt_text
    assert table.verdict in bundle["text/html"]
    assert bundle["text/plain"] == table.text
    html = texts._repr_mimebundle_()["text/html"]
    assert "&lt;bad&gt;" in html
    assert "<bad>" not in html
    assert "title='+1'" in html
    assert "text-decoration:underline" in html


def test_faithfulness_has_its_figure_or_says_that_it_was_not_measured(table: Explanation) -> None:
    shown = words_of(table.plot("faithfulness")).replace("\n", " ")

    assert "The explanation holds" in shown
    assert "random order, area" in shown
    with pytest.raises(InvalidSpec, match="faithfulness=True"):
        table.take(0).plot("faithfulness")


def test_two_explanations_are_compared(table: Explanation) -> None:
    other = explain_model(score, FRAME[:12], background=FRAME, method="occlusion")
    opposite = explain_model(lambda rows: rows[:, 2] + 0.001 * rows[:, 3], FRAME[:12], background=FRAME)
    same, different = table.compare(other), table.compare(opposite)

    assert same.agreement == pytest.approx(1.0)
    assert different.agreement < 0.5
    assert "Kernel SHAP and occlusion rank" in same.text.replace("\n", " ")
    assert as_png(different.plot()).startswith(b"\x89PNG")
    with pytest.raises(DataMismatch):
        table.compare(table.take(0))


def test_a_missing_pandas_is_one_sentence_with_the_pip_line(table: Explanation, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_pandas(name: str, *rest: Any, **more: Any) -> Any:
        if name == "pandas":
            raise ModuleNotFoundError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_pandas)
    with pytest.raises(InvalidSpec, match="pip install pandas"):
        table.to_frame()


def test_a_missing_shap_is_one_sentence_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_shap(name: str, *rest: Any, **more: Any) -> Any:
        if name == "shap":
            raise ModuleNotFoundError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_shap)
    with pytest.raises(InvalidSpec, match=r"pip install 'aiaas_magics\[explain\]'"):
        explain_model(score, FRAME[:2], background=FRAME, method="shap_kernel")


@pytest.fixture(scope="module")
def model() -> Any:
    return keras.Sequential([keras.Input((4,)), layers.Dense(3)], name="churn")


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (np.zeros((2, 5)), r"has shape \(2, 5\) and the model takes \(None, 4\)"),
        (np.zeros(4), r"Give a batch of rows, as in x_test\[:1\]"),
        (np.zeros((0, 4)), "no rows to explain"),
        (np.array([["a", 1, 2, 3]], dtype=object), "holds 'a' among other kinds"),
        ({"other": np.zeros((2, 4))}, "The rows have no input"),
    ],
)
def test_rows_that_the_model_does_not_take_are_refused_in_a_sentence(model: Any, rows: Any, sentence: str) -> None:
    with pytest.raises(DataMismatch, match=sentence):
        explain_model(model, rows, background=np.zeros((3, 4)))


def test_what_does_not_predict_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="int does not predict"):
        explain_model(3, np.zeros((1, 2)), background=np.zeros((1, 2)))


def test_an_estimator_is_explained_by_its_probabilities() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    labels = (FRAME["income"] > 0).astype(int)
    fitted = linear_model.LogisticRegression().fit(FRAME.to_numpy(), labels)

    explanation = explain_model(fitted, FRAME[:6], background=FRAME, target=1)

    assert np.abs(explanation.attributions.values[0]).mean(axis=0).argmax() == 1
    assert explanation.model == "LogisticRegression"


def test_a_keras_model_is_explained_by_every_family_alike(model: Any) -> None:
    shap = explain_model(model, FRAME[:6], background=FRAME, class_names=("a", "b", "c"))
    path = explain_model(model, FRAME[:6], background=FRAME, method="gradients", settings=ExplainSettings(steps=64))

    assert np.allclose(shap.attributions.values[0], path.attributions.values[0], atol=1e-5)
    assert shap.compare(path).agreement == pytest.approx(1.0)
    assert np.allclose(shap.attributions.outputs, model.predict(FRAME[:6].to_numpy(), verbose=0).max(axis=1), atol=1e-6)
    assert repr(path) == "<Explanation of churn: integrated gradients, 6 rows, table>"


def test_dollars_and_angles_in_names_are_drawn_as_they_stand() -> None:
    frame = FRAME.rename(columns={"income": "$x^2$ <income>"})
    explanation = explain_model(score, frame[:1], background=frame, faithfulness=False)

    assert "$x^2$ <income>" in words_of(explanation.plot())
    assert as_png(explanation.plot()).startswith(b"\x89PNG")


def test_colored_words_escape_what_they_show(texts: Explanation) -> None:
    from aiaas_magics.explain.explanation_parts import text_part

    assert "<bad>" not in text_html(text_part(texts))


def test_ids_of_words_are_shown_as_words_where_a_vocabulary_names_them() -> None:
    vocabulary = ["", "a", "good", "bad", "film"]
    ids = np.array([[1, 2, 4, 0], [3, 0, 0, 0]])

    def mood(rows: np.ndarray) -> np.ndarray:
        return np.asarray((rows == 2).sum(axis=1) - 2.0 * (rows == 3).sum(axis=1))

    explanation = explain_model(mood, ids, background=np.zeros((1, 4), dtype=int), vocabulary=vocabulary)

    assert explanation.kind == "text"
    assert "a(0) good(+1) film(0)" in explanation.text
    assert list(explanation.to_frame()["word"]) == ["a", "good", "film", "bad"]
    with pytest.raises(DataMismatch, match="the vocabulary has 3 words"):
        explain_model(mood, ids, background=ids, vocabulary=vocabulary[:3])
