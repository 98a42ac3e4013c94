"""An endpoint takes the rows that the model's own `predict` takes, under the same names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from aiaas_magics.client.serving.caller_rows import columns, in_keras_names
from aiaas_magics.core.errors import DataMismatch
from aiaas_magics.core.spec import TensorSpec


def spec(name: str, *shape: int, dtype: str = "float32", original: str = "") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=(-1, *shape), original=original)


IMAGES = [spec("input_0", 8, 8, 1)]
ONE = [spec("x", 1)]
PLAIN = [spec("x", 3)]
NUMBERS = [spec("x")]
TEXTS = [spec("t", 1, dtype="string")]
IDS = [spec("ids", 4, dtype="int32")]
TWO = [spec("gr__e__cm_", 1, original="größe (cm)"), spec("b", 1)]
NESTED = [spec("u_v", 3), spec("w_0", 3)]
X3 = np.ones((5, 3))
COLUMN = np.arange(5.0)


@pytest.mark.parametrize(
    ("x", "inputs", "shapes"),
    [
        (np.ones((5, 8, 8)), IMAGES, [(5, 8, 8, 1)]),
        (np.ones((5, 8, 8, 1)), IMAGES, [(5, 8, 8, 1)]),
        (COLUMN, ONE, [(5, 1)]),
        (pd.Series(COLUMN), ONE, [(5, 1)]),
        (np.ones((5, 1)), NUMBERS, [(5,)]),
        (np.array(["a", "b"]), TEXTS, [(2, 1)]),
        (["a", "b"], TEXTS, [(2, 1)]),
        (pd.Series(["a", "b"]), TEXTS, [(2, 1)]),
        ([[1.0, 2.0, 3.0]], PLAIN, [(1, 3)]),
        ([X3], PLAIN, [(5, 3)]),
        (pd.DataFrame(X3), PLAIN, [(5, 3)]),
        (np.ones((5, 4)), IDS, [(5, 4)]),  # whole numbers, as floats
        ({"größe (cm)": COLUMN, "b": COLUMN}, TWO, [(5, 1), (5, 1)]),
        ({"gr__e__cm_": COLUMN, "b": COLUMN}, TWO, [(5, 1), (5, 1)]),
        ({"größe (cm)": list(COLUMN), "b": pd.Series(COLUMN)}, TWO, [(5, 1), (5, 1)]),
        (pd.DataFrame({"b": COLUMN, "größe (cm)": COLUMN}), TWO, [(5, 1), (5, 1)]),
        ([COLUMN, COLUMN], TWO, [(5, 1), (5, 1)]),
        ({"u": {"v": X3}, "w": [X3]}, NESTED, [(5, 3), (5, 3)]),
        ({"u": {"v": X3}, "w": (X3,)}, NESTED, [(5, 3), (5, 3)]),
    ],
)
def test_rows_of_this_form_are_taken(x: Any, inputs: list[TensorSpec], shapes: list[tuple[int, ...]]) -> None:
    found = columns("e", x, inputs)

    assert list(found) == [one.name for one in inputs]
    assert [array.shape for array in found.values()] == shapes


@pytest.mark.parametrize(
    ("x", "inputs", "said"),
    [
        ({"a": COLUMN, "b": COLUMN}, TWO, r"e takes the inputs \['größe \(cm\)', 'b'\], not \['a', 'b'\]"),
        ([COLUMN], TWO, "1 arrays were given. Give one for each"),
        (np.ones((5, 9, 8)), IMAGES, r"has the shape \(rows, 8, 8, 1\); \(5, 9, 8, 1\) was given"),
        (np.ones((5, 4)) / 2, IDS, r"is of dtype int32; float64 was given. Convert it with .astype\('int32'\)"),
        (["a good film"], IDS, r"takes numbers \(int32\); texts were given. Give what the model's preprocessing makes of them"),
        ([[1.0, 2.0], [1.0]], PLAIN, "has rows of different lengths. Pad them"),
    ],
)
def test_a_refusal_says_what_is_taken(x: Any, inputs: list[TensorSpec], said: str) -> None:
    with pytest.raises(DataMismatch, match=said):
        columns("e", x, inputs)


def test_answers_have_the_names_of_keras() -> None:
    answers = {"Preis___x": X3, "class": X3}

    assert list(in_keras_names(answers, [spec("Preis___x", 3, original="Preis €/x"), spec("class", 3)])) == ["Preis €/x", "class"]
