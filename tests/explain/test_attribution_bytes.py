"""Attributions as bytes: what is written comes back, and nothing else is taken for it."""

from __future__ import annotations

import numpy as np
import pytest

from aiaas_magics.core.errors import AiaasBug
from aiaas_magics.explain.attribution_bytes import ExplainResult, read_explain_result, write_explain_result
from aiaas_magics.explain.attributions import Attributions
from aiaas_magics.explain.faithfulness import Faithfulness


def result() -> ExplainResult:
    rng = np.random.default_rng(0)
    attributions = Attributions(
        method="kernel_shap",
        values=(rng.normal(size=(3, 4)).astype("float32"), np.array([[0.5, np.nan], [1.0, 2.0], [0.0, 0.25]], "float32")),
        base=np.array([0.1, np.nan, 0.3], "float32"),
        outputs=np.array([1.0, 2.0, 3.0], "float32"),
        targets=np.array([0, 1, 1]),
        evaluations=12_345,
        columns=2,
        tokens=(("größe",), ("two", "words"), ("<b>", "x")),
        notes=("A note.",),
    )
    texts = np.array([["größe"], ["two words"], ["<b> x"]], object)
    curves = Faithfulness(
        method="kernel_shap",
        fractions=np.linspace(0, 1, 3),
        deletion=rng.random((3, 3)),
        insertion=rng.random((3, 3)),
        random=rng.random((3, 3)),
        completeness=0.25,
        evaluations=7,
    )
    inputs = (rng.normal(size=(3, 4)).astype("float32"), texts)
    return ExplainResult(attributions=attributions, inputs=inputs, facts={"columns": [["a", "b"]]}, faithfulness=curves)


def test_what_is_written_comes_back_to_the_bit() -> None:
    written = result()

    back = read_explain_result(write_explain_result(written))

    for own, other in zip(written.attributions.values, back.attributions.values, strict=True):
        np.testing.assert_array_equal(own, other)
    for name in ("base", "outputs", "targets"):
        np.testing.assert_array_equal(getattr(written.attributions, name), getattr(back.attributions, name))
    for name in ("method", "evaluations", "columns", "tokens", "notes"):
        assert getattr(written.attributions, name) == getattr(back.attributions, name)
    np.testing.assert_array_equal(written.inputs[0], back.inputs[0])
    assert written.inputs[1].tolist() == back.inputs[1].tolist()
    assert back.facts == written.facts
    assert written.faithfulness is not None
    assert back.faithfulness is not None
    np.testing.assert_array_equal(written.faithfulness.deletion, back.faithfulness.deletion)
    assert (back.faithfulness.completeness, back.faithfulness.evaluations) == (0.25, 7)


@pytest.mark.parametrize("data", [b"", b"not a file", write_explain_result(result())[:200]])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(AiaasBug, match="an explanation cannot be read"):
        read_explain_result(data)
