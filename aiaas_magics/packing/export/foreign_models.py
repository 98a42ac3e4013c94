"""Foreign models: files of Keras, ONNX files, SavedModel folders, and estimators of other libraries.

Owns telling what was given, opening it, and the answers that the parity check compares: those of the engine that will serve, computed
here. A Keras file is loaded and goes the way of every Keras model (`model_export`); converting an estimator belongs to `estimators`.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from aiaas_magics.core import snippets
from aiaas_magics.core.agreement import largest_of
from aiaas_magics.core.agreement import spread as spread_of
from aiaas_magics.core.errors import DataMismatch
from aiaas_magics.core.precision import MOST_SPREAD
from aiaas_magics.core.spec import TensorSpec
from aiaas_magics.packing.export import estimators, export_formats, model_export, model_folders, sample_bytes, samples, tflite_import
from aiaas_magics.packing.export.export_formats import CannotServe, replayed
from aiaas_magics.packing.export.export_request import QuantizationOptions
from aiaas_magics.packing.export.model_export import Servable
from aiaas_magics.packing.export.onnx_session import Named, onnx_form
from aiaas_magics.packing.export.samples import Interface

KERAS_FILES: Final = (".keras", ".h5", ".hdf5")
SIGNATURE: Final = "serving_default"
ACCEPTED: Final = (
    "Give a Keras model, an estimator of scikit-learn, an ONNX model, or the path of a .keras, .h5, .onnx or .tflite file, a SavedModel's "
    "folder, or a folder that %aiaas_export --for, Triton or TensorFlow Serving starts from."
)
ONE_WAY: Final = {
    ".xml": (
        "OpenVINO IR cannot be served: nothing that is kept turns it into ONNX or a SavedModel again. "
        "Deploy the model that it was made of, or its .onnx or .keras file."
    ),
}
# What cannot be written from here, and the lines that do it.
BY_HAND: Final = {
    "torch": (
        "Write it as ONNX: torch.onnx.export(net, (x,), 'net.onnx', input_names=['x'], dynamic_axes={'x': {0: 'rows'}}, dynamo=False), "
        "then %aiaas_deploy net.onnx --sample ARRAY."
    ),
    "tf_keras": "It is one of tf_keras, the Keras before 3. Save it, model.save('model.h5'), then %aiaas_deploy model.h5.",
    "tensorflow": (
        "Write it as a SavedModel: tf.saved_model.save(it, 'folder', signatures=it.signatures or a tf.function with an input_signature), "
        "then %aiaas_deploy folder --sample ARRAY."
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServableForm:
    """What a serving engine will compute, as it is computed here."""

    name: str  # for messages
    artefact: bytes
    format: str
    interface: Interface
    compute: Callable[[Named], dict[str, np.ndarray]]
    dims: Mapping[str, tuple[int, ...]]  # of the outputs, as they are declared; -1 where free
    origin: str
    note: str = ""


def export(
    model: Any,
    sample: Any = None,
    *,
    other_samples: Sequence[Any] = (),
    quantization_options: QuantizationOptions | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Servable:
    """As `model_export.export`, of a Keras model or of anything that can be served without Keras.

    Raises:
        NoSamples, DataMismatch, CannotServe: with the next move.
    """
    import keras

    if isinstance(model, (str, Path)):
        on_step(f"reading {model}")
    opened = open_model(model, sample, compiled=quantization_options is not None)
    if isinstance(opened, keras.Model):
        return model_export.export(opened, sample, other_samples=other_samples, quantization_options=quantization_options, on_step=on_step)
    if quantization_options is not None:
        raise CannotServe(f"{opened.name} is served as it is: fewer bits are made of Keras models. Leave --precision out.")
    return export_form(opened, sample, other_samples, on_step=on_step)


def export_form(
    form: ServableForm, sample: Any, other_samples: Sequence[Any] = (), *, on_step: Callable[[str], None] = lambda step: None
) -> Servable:
    """`form` with its own answers to each set of rows.

    Raises:
        NoSamples, DataMismatch, CannotServe: with the next move.
    """
    rows = tuple(samples.rows_through(form.name, form.interface, part) for part in (sample, *other_samples))
    on_step("computing sample rows")
    with export_formats.quiet():
        answers = [_answers(form, part) for part in rows]
    first, _ = answers[0]
    return Servable(
        artefact=form.artefact,
        format=form.format,
        samples=sample_bytes.as_safetensors(rows, [arrays for arrays, _ in answers]),
        inputs=form.interface.specs,
        outputs=tuple(_output_spec(name, array, form.dims.get(name, ())) for name, array in first.items()),
        note=form.note,
        spread=max(spread for _, spread in answers),
        origin=form.origin,
        example=snippets.example_of(rows[0]),
    )


def name_of(model: Any) -> str:
    """What a model is called where nobody gave it a name: a file's or folder's own, a Keras model's, or its class."""
    if isinstance(model, (str, Path)):
        return Path(model).stem or "model"
    return str(getattr(model, "name", "") or type(model).__name__)


def open_model(model: Any, sample: Any, *, compiled: bool) -> Any:
    """A Keras model, or the form of another.

    Args:
        compiled: whether a file's loss and metrics are needed.

    Raises:
        CannotServe: it is nothing that can be served, or cannot be opened.
    """
    import keras

    if isinstance(model, keras.Model):
        return model
    if isinstance(model, (str, Path)):
        return _from_path(Path(model).expanduser(), compiled=compiled)
    roots = estimators.libraries(model)
    if "onnxruntime" in roots and hasattr(model, "_model_bytes"):
        path = getattr(model, "_model_path", None)
        return _onnx_file(Path(path)) if path else servable_onnx(model._model_bytes, "The session's model")
    if "onnx" in roots and hasattr(model, "SerializeToString"):
        return servable_onnx(model.SerializeToString(), "The ONNX model")
    if "keras" in roots and hasattr(model, "filepath"):  # a TFSMLayer
        return _from_path(Path(model.filepath), compiled=compiled)
    if (by_hand := next((move for library, move in BY_HAND.items() if library in roots), None)) is not None:
        raise CannotServe(f"A {type(model).__name__} cannot be served as it is. {by_hand}")
    if (convert := estimators.converter(roots)) is not None:
        converted = convert(model, sample)
        return servable_onnx(converted, f"The {type(model).__name__} as ONNX")
    raise CannotServe(f"A {type(model).__name__} cannot be served. {ACCEPTED}")


def _from_path(path: Path, *, compiled: bool) -> Any:
    import keras

    if not path.exists():
        raise CannotServe(f"There is no file or folder {str(path)!r} here ({Path.cwd()}). {ACCEPTED}")
    if path.is_dir():
        path = model_folders.model_in(path)
    if path.is_dir():
        return _saved_model(path)
    if path.suffix == ".onnx":
        return _onnx_file(path)
    if path.suffix == ".tflite":
        return servable_onnx(tflite_import.onnx_bytes(path), repr(str(path)))
    if path.suffix == ".zip":
        with tempfile.TemporaryDirectory(prefix="aiaas-export-") as scratch:
            return replace(_saved_model(model_folders.unzipped(path, Path(scratch) / "model")), name=repr(str(path)))
    if path.suffix in ONE_WAY:
        raise CannotServe(ONE_WAY[path.suffix])
    if path.suffix not in KERAS_FILES:
        raise CannotServe(f"{str(path)!r} is no kind of file that can be served. {ACCEPTED}")
    try:
        return keras.models.load_model(path, compile=compiled)
    except Exception as error:
        raise CannotServe(
            f"{str(path)!r} cannot be loaded: {_sentence(error)}. Load it in a cell, "
            f"model = keras.models.load_model({str(path)!r}) with the custom_objects that it needs, and deploy the variable."
        ) from error


# --------------------------------------------------------------------------- ONNX


def _onnx_file(path: Path) -> ServableForm:
    import onnx

    try:
        artefact = onnx.load(str(path)).SerializeToString()  # with tensors that lie in files beside it
    except Exception as error:
        raise CannotServe(f"{str(path)!r} cannot be read as an ONNX file: {_sentence(error)}. Write it anew.") from error
    return servable_onnx(artefact, repr(str(path)))


def servable_onnx(artefact: bytes, name: str) -> ServableForm:
    """An ONNX file as a form.

    Raises:
        CannotServe: ONNX Runtime does not take it, or an output is no tensor.
    """
    import onnx

    graph = onnx.load_model_from_string(artefact).graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [tensor for tensor in graph.input if tensor.name not in weights]
    for tensor in (*inputs, *graph.output):
        if tensor.type.WhichOneof("value") != "tensor_type":
            raise CannotServe(
                f"{name} cannot be served: {tensor.name!r} is no tensor. A classifier of skl2onnx gives tensors when it is converted with "
                "options={'zipmap': False}."
            )
    fixed = next((sizes[0] for tensor in inputs if (sizes := _dims(tensor)) and sizes[0] is not None), None)
    if fixed is not None:
        raise CannotServe(
            f"{name} takes {fixed} row{'s' if fixed != 1 else ''} at a time, and requests come with any number. Write it with a free "
            "first dimension (dynamic_axes of torch.onnx.export, None in a signature)."
        )
    try:
        run = onnx_form(artefact)
    except Exception as error:
        raise CannotServe(f"{name} cannot be served: ONNX Runtime says {_sentence(error)}. Write it for an older opset, say.") from error
    interface = Interface.of(
        names=tuple(tensor.name for tensor in inputs),
        shapes=tuple((None, *_dims(tensor)[1:]) for tensor in inputs),
        dtypes=tuple(_dtype(tensor, name) for tensor in inputs),
    )
    dims = {tensor.name: tuple(-1 if n is None else n for n in _dims(tensor)) for tensor in graph.output}
    return ServableForm(
        name=name,
        artefact=artefact,
        format=export_formats.ONNX,
        interface=interface,
        compute=lambda rows: run({key: _as_str(array) for key, array in rows.items()}),
        dims=dims,
        origin="ONNX Runtime in the kernel",
    )


def _dims(tensor: Any) -> list[int | None]:
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.type.tensor_type.shape.dim]


def _dtype(tensor: Any, name: str) -> str:
    import onnx

    kind = tensor.type.tensor_type.elem_type
    if kind == onnx.TensorProto.STRING:
        return "string"
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind).name)
    if not dtype.startswith(("float", "int", "uint", "bool")):
        raise CannotServe(f"{name} cannot be served: its input {tensor.name!r} is of dtype {dtype}. Cast it inside the model.")
    return dtype


def _as_str(array: np.ndarray) -> np.ndarray:
    """ONNX Runtime takes texts as `str`."""
    if array.dtype.kind not in "OSU":
        return array
    texts = [text.decode() if isinstance(text, bytes) else str(text) for text in array.ravel()]
    return np.array(texts, dtype=object).reshape(array.shape)


# --------------------------------------------------------------------------- a SavedModel's folder


def _saved_model(folder: Path) -> ServableForm:
    import tensorflow as tf

    if not (folder / "saved_model.pb").is_file():
        raise CannotServe(f"The folder {str(folder)!r} holds no saved_model.pb. {ACCEPTED}")
    with export_formats.quiet():
        try:
            loaded = tf.saved_model.load(str(folder))
        except Exception as error:
            raise CannotServe(f"{str(folder)!r} cannot be loaded: {_sentence(error)}. Write it anew with model.export(folder).") from error
    signatures = dict(loaded.signatures)
    if SIGNATURE not in signatures:
        signatures_text = f"it has {', '.join(sorted(signatures))}" if signatures else "it has none"
        raise CannotServe(
            f"{str(folder)!r} has no signature {SIGNATURE!r} ({signatures_text}). Write it with tf.saved_model.save(it, folder, "
            f"signatures={{{SIGNATURE!r}: a tf.function with an input_signature}})."
        )
    function = signatures[SIGNATURE]
    takes = function.structured_input_signature[1]
    interface = Interface.of(
        names=tuple(takes),
        shapes=tuple((None, *(list(spec.shape)[1:] if spec.shape.rank else ())) for spec in takes.values()),
        dtypes=tuple(spec.dtype.name for spec in takes.values()),
    )

    def compute(rows: Named) -> dict[str, np.ndarray]:
        feed = {name: tf.constant(sample_bytes.as_text(rows[name]), dtype=spec.dtype) for name, spec in takes.items()}
        return {name: np.asarray(tensor.numpy()) for name, tensor in function(**feed).items()}

    with tempfile.TemporaryDirectory(prefix="aiaas-export-") as scratch:
        artefact = export_formats.zipped(folder, Path(scratch) / "model.zip")
    shapes = {name: spec.shape for name, spec in function.structured_outputs.items()}
    return ServableForm(
        name=repr(str(folder)),
        artefact=artefact,
        format=export_formats.SAVED_MODEL,
        interface=interface,
        compute=compute,
        dims={name: tuple(-1 if n is None else int(n) for n in shape) for name, shape in shapes.items() if shape.rank is not None},
        origin="TensorFlow in the kernel",
        note="it is a SavedModel",
    )


# --------------------------------------------------------------------------- answers


def _answers(form: ServableForm, rows: Named) -> tuple[dict[str, np.ndarray], float]:
    """The form's answers to all rows, and how far those to fewer of them differ, as a part of the largest.

    Raises:
        CannotServe: it computes no rows, or what it answers to a row depends on the rows beside it.
    """
    count, widest = len(next(iter(rows.values()))), 0.0
    whole = _computed(form, rows)
    single = next((name for name, array in whole.items() if array.ndim == 0 or len(array) != count), None)
    if single is not None:
        raise CannotServe(f"{form.name} cannot be served: its output {single!r} has no answer for each row. Leave that output out.")
    for number in replayed(count):
        places = np.arange(number) % count
        part = whole if number == count else _computed(form, {name: np.ascontiguousarray(array[places]) for name, array in rows.items()})
        for name, array in whole.items():
            apart = _apart(part[name], array if number == count else array[places], array)
            if apart > MOST_SPREAD:
                raise CannotServe(
                    f"{form.name} cannot be served: what it answers to a row depends on the rows beside it (output {name!r}, {number} "
                    f"of the {count} sample rows alone). Requests come with any number of rows."
                )
            widest = max(widest, apart)
    return whole, widest


def _computed(form: ServableForm, rows: Named) -> dict[str, np.ndarray]:
    try:
        return form.compute(rows)
    except Exception as error:
        count = len(next(iter(rows.values())))
        raise DataMismatch(
            f"{form.name} does not compute {count} sample row{'s' if count != 1 else ''}: {_sentence(error)}. "
            "Give typical ones with --sample ARRAY."
        ) from error


def _apart(computed: np.ndarray, expected: np.ndarray, whole: np.ndarray) -> float:
    if computed.shape != expected.shape:
        return math.inf
    if expected.dtype.kind in "OSU":
        return 0.0 if (computed == expected).all() else math.inf
    return spread_of(computed, expected, largest=largest_of(whole))


def _output_spec(name: str, array: np.ndarray, dims: Sequence[int]) -> TensorSpec:
    fits = len(dims) == array.ndim and all(n in (-1, size) for n, size in zip(dims[1:], array.shape[1:], strict=True))
    shape = (-1, *dims[1:]) if fits else (-1,) * array.ndim
    return TensorSpec(name=name, dtype="string" if array.dtype.kind in "OSU" else array.dtype.name, shape=shape)


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
