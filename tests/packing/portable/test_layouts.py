"""The user's rules for what is cut over devices, in each form that Keras knows."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.execution import Execution
from aiaas_magics.packing.fitcall import fit_call
from aiaas_magics.packing.portable.layouts import layouts_of

AXES = {"net/wide/kernel": (None, "model"), "net/wide/bias": ("model",)}


def model(rules: Any) -> Any:
    made = keras.Sequential([keras.layers.Input((6,)), keras.layers.Dense(8, name="wide"), keras.layers.Dense(1)], name="net")
    made.compile("sgd", "mse")
    made.layout_map = rules
    return made


def layout_map(axes: dict[str, Any]) -> Any:
    mesh = keras.distribution.DeviceMesh((1, 2), ("batch", "model"), ["cpu:0", "cpu:1"])
    made = keras.distribution.LayoutMap(mesh)
    for path, given in axes.items():
        made[path] = given  # which makes a TensorLayout of it
    return made


@pytest.mark.parametrize(
    "rules",
    [
        AXES,
        {path: keras.distribution.TensorLayout(axes) for path, axes in AXES.items()},
        layout_map(AXES),
    ],
    ids=["a dict of axes", "a dict of layouts", "a LayoutMap"],
)
def test_rules_of_every_form_are_the_same_and_go_to_jax(rules: Any) -> None:
    arguments = {"x": np.ones((16, 6), "float32"), "y": np.ones(16, "float32"), "batch_size": 8}

    packed = fit_call.pack(fit_call.FitCall(model(rules), arguments), workers=2, execution=Execution(engine="jax", model_parallel=2))

    assert packed.execution.runs_on.ported
    assert layouts_of(model(rules), parts=2) == AXES


def test_a_layout_that_does_not_fit_its_variable_is_told_as_axes() -> None:
    with pytest.raises(InvalidSpec, match=r"is \(None, 'model'\), and net/wide/bias has the shape \(8,\)"):
        layouts_of(model(layout_map({"net/wide/bias": (None, "model")})), parts=2)
