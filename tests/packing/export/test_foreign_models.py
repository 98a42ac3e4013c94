"""Files of Keras, ONNX files, SavedModel folders and estimators are served; what cannot be is told the lines that get there."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper

from aiaas_magics.core.errors import DataMismatch
from aiaas_magics.packing.export import foreign_models
from aiaas_magics.packing.export.export_formats import CannotServe
from aiaas_magics.packing.export.onnx_session import onnx_form
from aiaas_magics.packing.export.samples import NoSamples
from tests.support.packed import Namespace

pytestmark = pytest.mark.slow

Cell = Callable[..., Namespace]
X = np.random.default_rng(0).normal(size=(40, 3)).astype("float32")


def double(first: int | str = "rows", dtype: int = TensorProto.FLOAT, *, operator: str = "Add") -> onnx.ModelProto:
    """x + x, or another operator of one or two inputs."""
    given = ["x", "x"] if operator == "Add" else ["x"]
    graph = helper.make_graph(
        [helper.make_node(operator, given, ["y"])],
        "double",
        [helper.make_tensor_value_info("x", dtype, [first, 3])],
        [helper.make_tensor_value_info("y", dtype, [first, 3] if operator == "Add" else None)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_an_onnx_model_is_served_as_it_is(tmp_path: Path) -> None:
    model = double()
    onnx.save(model, tmp_path / "net.onnx")

    for given in (model, tmp_path / "net.onnx", str(tmp_path / "net.onnx")):
        exported = foreign_models.export(given, X)

        assert (exported.format, exported.origin) == ("onnx", "ONNX Runtime in the kernel")
        assert [(spec.name, spec.dtype, spec.shape) for spec in exported.inputs] == [("x", "float32", (-1, 3))]
        assert [(spec.name, spec.shape) for spec in exported.outputs] == [("y", (-1, 3))]
    assert foreign_models.export(model).inputs[0].name == "x"  # rows are made up
    assert foreign_models.name_of(str(tmp_path / "net.onnx")) == "net"


def test_a_keras_file_is_loaded_and_served_as_its_model(cell: Cell, tmp_path: Path) -> None:
    made = cell("model = keras.Sequential([keras.Input((6,)), layers.Dense(2)])")
    made["model"].save(tmp_path / "net.keras")

    exported = foreign_models.export(str(tmp_path / "net.keras"), made["x"][:4])

    answers = onnx_form(exported.artefact)({"input_0": made["x"][:4]})["output_0"]
    assert exported.origin == "Keras"
    np.testing.assert_allclose(answers, made["model"](made["x"][:4]), rtol=1e-4, atol=1e-5)


def test_a_folder_of_a_saved_model_is_served(cell: Cell, tmp_path: Path) -> None:
    made = cell(
        "class Net(tf.Module):\n"
        "    def __init__(self): self.w = tf.Variable([[1.0], [2.0], [3.0]])\n"
        "    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name='x')])\n"
        "    def __call__(self, x): return {'y': x @ self.w}\n"
        "net = Net()"
    )
    made["tf"].saved_model.save(made["net"], tmp_path / "net", signatures=made["net"].__call__)

    exported = foreign_models.export(tmp_path / "net", X)

    assert (exported.format, exported.origin) == ("saved_model", "TensorFlow in the kernel")
    assert [(spec.name, spec.shape) for spec in (*exported.inputs, *exported.outputs)] == [("x", (-1, 3)), ("y", (-1, 1))]
    with pytest.raises(CannotServe, match=r"Write it as a SavedModel: tf\.saved_model\.save"):
        foreign_models.export(made["net"], X)


class Module:
    """As torch names it; torch is not installed."""

    __module__ = "torch.nn"


class Sequential:
    __module__ = "tf_keras.src.models"


@pytest.mark.parametrize(
    ("model", "sample", "error", "said"),
    [
        (double(1), X, CannotServe, "takes 1 row at a time, and requests come with any number. Write it with a free first dimension"),
        (double(operator="ReduceSum"), X, CannotServe, "its output 'y' has no answer for each row"),
        (double(dtype=TensorProto.INT64), None, NoSamples, r"takes more than fractions \(int64\). Give typical rows"),
        (double(), X[:, :2], DataMismatch, r"have the shape \(40, 2\), the model takes \(None, 3\)"),
        ("nowhere/net.onnx", X, CannotServe, "There is no file or folder 'nowhere/net.onnx' here"),
        (__file__, X, CannotServe, "is no kind of file that can be served. Give a Keras model"),
        (Path(__file__).parent, X, CannotServe, "holds no saved_model.pb"),
        (Module(), X, CannotServe, r"A Module cannot be served as it is. Write it as ONNX: torch.onnx.export\("),
        (Sequential(), X, CannotServe, "It is one of tf_keras, the Keras before 3. Save it"),
        (len, X, CannotServe, "A builtin_function_or_method cannot be served. Give a Keras model"),
    ],
)
def test_what_cannot_be_served_is_told_with_the_next_move(model: Any, sample: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        foreign_models.export(model, sample)


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"no ONNX at all")
    (tmp_path / "net.keras").write_bytes(b"no zip")

    with pytest.raises(CannotServe, match="cannot be read as an ONNX file"):
        foreign_models.export(tmp_path / "net.onnx", X)
    with pytest.raises(CannotServe, match=r"cannot be loaded: .* Load it in a cell"):
        foreign_models.export(tmp_path / "net.keras", X)


# --------------------------------------------------------------------------- scikit-learn


def pipeline() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression()).fit(X, X[:, 0] > 0)


@pytest.mark.skipif(importlib.util.find_spec("skl2onnx") is not None, reason="skl2onnx is installed")
def test_without_skl2onnx_an_estimator_is_told_the_lines() -> None:
    with pytest.raises(CannotServe, match=r"A Pipeline is served as ONNX, and skl2onnx is not installed.*%pip install skl2onnx"):
        foreign_models.export(pipeline(), X)


@pytest.mark.nightly
def test_an_estimator_of_scikit_learn_is_served_as_onnx() -> None:
    pytest.importorskip("skl2onnx")
    model = pipeline()

    exported = foreign_models.export(model, X)

    label, probabilities = onnx_form(exported.artefact)({exported.inputs[0].name: X}).values()
    assert [spec.shape for spec in exported.outputs] == [(-1,), (-1, 2)]
    assert (label.astype(bool) == model.predict(X)).all()
    np.testing.assert_allclose(probabilities, model.predict_proba(X), rtol=1e-4, atol=1e-5)
    with pytest.raises(NoSamples, match="What a Pipeline takes is not known"):
        foreign_models.export(model)


@pytest.mark.nightly
def test_a_pipeline_of_columns_takes_them_by_name() -> None:
    pytest.importorskip("skl2onnx")
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    frame = pd.DataFrame({"age": X[:, 0], "town": np.where(X[:, 1] > 0, "Ulm", "Köln"), "rooms": np.arange(40) % 5})
    columns = make_column_transformer((StandardScaler(), ["age", "rooms"]), (OneHotEncoder(), ["town"]))
    model = make_pipeline(columns, LinearRegression()).fit(frame, X[:, 2])

    exported = foreign_models.export(model, frame)

    assert {spec.name: spec.dtype for spec in exported.inputs} == {"age": "float32", "town": "string", "rooms": "int64"}


def estimators() -> dict[str, Any]:
    from sklearn.linear_model import LinearRegression
    from sklearn.svm import LinearSVC

    frame, classes = pd.DataFrame(X, columns=["a", "b", "c"]), (X[:, 0] > 0).astype(int)
    made = {"without probabilities": (LinearSVC().fit(X, classes), X, 1), "of a frame": (LinearRegression().fit(frame, X[:, 1]), frame, 1)}
    if importlib.util.find_spec("lightgbm"):
        import lightgbm

        made["lightgbm"] = (lightgbm.LGBMClassifier(n_estimators=3, min_child_samples=2, verbose=-1, n_jobs=1).fit(X, classes), X, 2)
        made["a booster of lightgbm"] = (lightgbm.LGBMRegressor(n_estimators=2, verbose=-1, n_jobs=1).fit(X, X[:, 1]).booster_, X, 1)
    if importlib.util.find_spec("xgboost"):
        import xgboost

        made["xgboost of a frame"] = (xgboost.XGBClassifier(n_estimators=3, n_jobs=1).fit(frame, classes), frame, 2)
        made["a booster of xgboost"] = (xgboost.XGBRegressor(n_estimators=2, n_jobs=1).fit(X, X[:, 1]).get_booster(), X, 1)
    return made


@pytest.mark.nightly
@pytest.mark.parametrize(
    "kind", ["without probabilities", "of a frame", "lightgbm", "a booster of lightgbm", "xgboost of a frame", "a booster of xgboost"]
)
def test_an_estimator_of_this_kind_is_served_as_onnx(kind: str) -> None:
    pytest.importorskip("onnxmltools" if "boost" in kind or "light" in kind else "skl2onnx")
    if kind not in (known := estimators()):
        pytest.skip(f"no {kind} here")
    model, rows, outputs = known[kind]

    exported = foreign_models.export(model, rows)

    assert [(spec.name, spec.shape) for spec in exported.inputs] == [("x", (-1, 3))]
    assert len(exported.outputs) >= outputs
