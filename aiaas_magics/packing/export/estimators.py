"""Estimators of other libraries as ONNX: scikit-learn by skl2onnx, LightGBM and XGBoost by onnxmltools, where these are installed.

Owns the conversion and that the ONNX form answers as the estimator itself does. None of these libraries is required.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np

from aiaas_magics.core.agreement import compare, largest_of
from aiaas_magics.core.precision import Precision
from aiaas_magics.packing.export import samples
from aiaas_magics.packing.export.export_formats import CannotServe
from aiaas_magics.packing.export.onnx_session import onnx_form
from aiaas_magics.packing.export.samples import NoSamples

Convert = Callable[[Any, Any], bytes]
# float32 answers of what computes in float64: a sum's rounding, as between two engines.
NEAR: Final = Precision()


def libraries(model: Any) -> set[str]:
    """The libraries that the class of `model` and its bases come from."""
    return {str(cls.__module__).partition(".")[0] for cls in type(model).__mro__}


def converter(roots: set[str]) -> Convert | None:
    """What makes ONNX of a model of these libraries; None where nothing does."""
    if "lightgbm" in roots or "xgboost" in roots:  # first: their estimators are scikit-learn's too
        return _of_trees
    return _of_sklearn if "sklearn" in roots else None


def _of_sklearn(model: Any, sample: Any) -> bytes:
    skl2onnx = _needed("skl2onnx", model, "skl2onnx.to_onnx(model, x[:1].astype('float32'), options={'zipmap': False})")
    rows = _rows_of(model, sample)
    is_classifier = importlib.import_module("sklearn.base").is_classifier(model)
    # With a map of classes to probabilities for an answer, which is no tensor; some classifiers have none and refuse the option.
    plain: list[Any] = [{id(model): {"zipmap": False}}, None] if is_classifier else [None]

    def convert(types: Any, options: Any) -> bytes:
        return bytes(skl2onnx.to_onnx(model, initial_types=types, options=options).SerializeToString())

    attempts = [
        partial(convert, types, options) for options in plain for number in ("float32", "float64") for types in _types(rows, number)
    ]
    return _nearest(model, rows, attempts)


def _of_trees(model: Any, sample: Any) -> bytes:
    library = "lightgbm" if "lightgbm" in libraries(model) else "xgboost"
    tools = _needed("onnxmltools", model, f"onnxmltools.convert_{library}(model, initial_types=[('x', FloatTensorType([None, width]))])")
    rows = _rows_of(model, sample)
    width = np.shape(rows)[1]
    options = {"zipmap": False} if library == "lightgbm" else {}

    def convert() -> bytes:
        named = copy.deepcopy(model)
        if library == "xgboost":  # its converter wants the names that arrays have
            booster = named.get_booster() if hasattr(named, "get_booster") else named
            booster.feature_names = None
        kind = tools.convert.common.data_types.FloatTensorType([None, width])
        return bytes(getattr(tools, f"convert_{library}")(named, initial_types=[("x", kind)], **options).SerializeToString())

    return _nearest(model, rows, [convert])


def _needed(library: str, model: Any, line: str) -> Any:
    try:
        return importlib.import_module(library)
    except ImportError as error:
        kind = type(model).__name__
        raise CannotServe(
            f"A {kind} is served as ONNX, and {library} is not installed, which makes that of it. In a cell: %pip install {library}, then "
            f"%aiaas_deploy again; or convert it elsewhere, onnx_model = {line}, and deploy that."
        ) from error


def _rows_of(model: Any, sample: Any) -> Any:
    if sample is None:
        raise NoSamples(f"What a {type(model).__name__} takes is not known. Give typical rows, as predict takes them, with --sample ARRAY.")
    return sample.iloc[: samples.ROWS] if hasattr(sample, "iloc") else np.asarray(sample)[: samples.ROWS]


def _types(rows: Any, number: str) -> list[list[tuple[str, Any]]]:
    """skl2onnx's types of the inputs: one array; of a DataFrame also each column by its name, as a ColumnTransformer takes them."""
    from skl2onnx.common import data_types

    def kind(dtype: Any) -> Any:
        if str(dtype) in {"object", "str", "string", "category"}:
            return data_types.StringTensorType
        if np.dtype(dtype).kind in "iu":
            return data_types.Int64TensorType
        if np.dtype(dtype).kind == "b":
            return data_types.BooleanTensorType
        return data_types.FloatTensorType if number == "float32" else data_types.DoubleTensorType

    if not hasattr(rows, "columns"):
        texts = rows.dtype.kind in "OSU"
        return [[("x", kind("object" if texts else "float32")([None, *rows.shape[1:]]))]]
    columns = [(str(name), kind(dtype)([None, 1])) for name, dtype in rows.dtypes.items()]
    is_numeric = all(not isinstance(kind_of_column, data_types.StringTensorType) for _, kind_of_column in columns)
    return [[("x", kind("float32")([None, len(columns)]))], columns] if is_numeric else [columns]


def _nearest(model: Any, rows: Any, attempts: Sequence[Callable[[], bytes]]) -> bytes:
    """The first form whose answers are the estimator's own.

    Raises:
        CannotServe: it has no ONNX form, or none that answers so.
    """
    why = ""
    for convert in attempts:
        try:
            artefact = convert()
            difference = _difference(model, rows, artefact)
        except Exception as error:  # noqa: BLE001 - border: the converters raise anything over a step that they do not know
            why = why or f"it has no ONNX form: {' '.join(str(error).split())[:300].rstrip('.')}"
            continue
        if not difference:
            return artefact
        why = f"its ONNX form answers otherwise than its own predict: {difference}"
    raise CannotServe(f"This {type(model).__name__} cannot be served: {why}. Replace the step that is named, or serve the part before it.")


def _difference(model: Any, rows: Any, artefact: bytes) -> str:
    """How far the form's answers are from the estimator's own; "" where they agree."""
    answers = list(onnx_form(artefact)(_fed(rows, artefact)).items())
    for (name, answers_here), own in zip(answers, _own(model, rows), strict=False):
        if answers_here.size != own.size:
            return f"{name} has the shape {answers_here.shape} instead of {own.shape}"
        if own.dtype.kind in "OSU" or answers_here.dtype.kind in "OSU":
            wrong = int((answers_here.astype(str).ravel() != own.astype(str).ravel()).sum())
            if wrong:
                return f"{wrong} of {own.size} values of {name} are others"
            continue
        agreement = compare(answers_here.reshape(own.shape), own, NEAR, largest=largest_of(own))
        if not agreement:
            return f"{name} differs by {agreement.largest:.2g}"
    return ""


def _own(model: Any, rows: Any) -> list[np.ndarray]:
    """The estimator's own answers, in the order of its ONNX form's outputs."""
    if "sklearn" not in libraries(model):  # a Booster, which wants its own kind of rows
        rows = importlib.import_module("xgboost").DMatrix(rows) if "xgboost" in libraries(model) else rows
    methods = ["predict", "predict_proba"] if hasattr(model, "predict") else ["transform"]
    own_answers = [getattr(model, method)(rows) for method in methods if hasattr(model, method)]
    return [np.asarray(answers.todense() if hasattr(answers, "todense") else answers) for answers in own_answers]


def _fed(rows: Any, artefact: bytes) -> dict[str, np.ndarray]:
    import onnx

    feed = {}
    for tensor in onnx.load_model_from_string(artefact).graph.input:
        column = rows[[tensor.name]] if hasattr(rows, "columns") and tensor.name in rows.columns else rows
        column = np.asarray(column)
        kind = tensor.type.tensor_type.elem_type
        is_text = kind == onnx.TensorProto.STRING
        feed[tensor.name] = column.astype(object) if is_text else column.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    return feed
