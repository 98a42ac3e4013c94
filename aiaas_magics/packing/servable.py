"""A live model to an artefact that a serving host can run and check, without its code.

Owns the export (ONNX, or a zip of a SavedModel where ONNX cannot) and Keras' own outputs on
sample rows. Choosing the rows belongs to `samples`; replaying them belongs to the host. Where fewer
bits were asked for, the samples hold the answers of that form; making it belongs to `reduced`,
what it changes to `change`.

Samples are safetensors with `input/<name>` and `output/<name>`, rows first. A string tensor
travels as UTF-8 in `uint8`, padded with zeros along one more dimension.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from aiaas_magics.errors import DataMismatch, UsageError
from aiaas_magics.packing import change, checks, model_state, reduced
from aiaas_magics.packing.change import PrecisionChange, Reduction
from aiaas_magics.packing.model_state import ModelState
from aiaas_magics.packing.samples import Interface, samples_for, unique_names
from aiaas_magics.precision import ATOL, RTOL
from aiaas_magics.spec import TensorSpec

ONNX: Final = "onnx"
SAVED_MODEL: Final = "saved_model"
NOISY: Final = ("tf2onnx", "tensorflow", "absl")


class CannotServe(UsageError):
    """The model cannot be exported. The argument is the whole sentence, next move included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Servable:
    """An exported model with the proof of what it computes."""

    artefact: bytes
    format: str  # "onnx" | "saved_model"
    samples: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    note: str = ""  # why it is no ONNX file, where it is none
    change: PrecisionChange | None = None  # what fewer bits do to the answers; None as trained
    frozen: tuple[str, ...] = ()  # state that a call changes in Keras, and that no answer depends on


def export(model: Any, sample: Any = None, *, format: str | None = None, reduction: Reduction | None = None) -> Servable:
    """Export `model` with sample rows and Keras' own outputs on them; in fewer bits with those of that form. `model` stays as it is.

    Args:
        sample: Up to 32 typical rows, as `fit` takes them for x; None for validation data, or else rows of the last fit.
        format: "onnx" or "saved_model"; None for ONNX where it can be had.
        reduction: fewer bits for the weights, and the rows to measure on what that changes.

    Raises:
        NoSamples: typical rows are neither given nor known.
        DataMismatch: the rows do not go through the model.
        CannotServe: neither format can express it, or not in so few bits.
    """
    import keras

    if not isinstance(model, keras.Model):
        raise CannotServe(f"{type(model).__name__} is no keras.Model. Give a model to deploy.")
    if keras.backend.backend() != "tensorflow":
        raise CannotServe(
            f"This kernel's Keras runs on {keras.backend.backend()}, and models are exported from TensorFlow. "
            "Set KERAS_BACKEND=tensorflow before importing keras, restart the kernel and load the model again."
        )
    checks.check_free(model, "deploy")
    _refuse_stateful(model)
    if sample is None and reduction is not None:
        sample = change.split(reduction.validation_data)[0]
    interface, rows, which = samples_for(model, sample)
    with model_state.kept(model) as state:
        return _export(model, interface, rows, which, state, format=format, reduction=reduction)


def _export(
    model: Any,
    interface: Interface,
    rows: Mapping[str, np.ndarray],
    which: str,
    state: ModelState,
    *,
    format: str | None,
    reduction: Reduction | None,
) -> Servable:
    import keras
    import tensorflow as tf

    with _quiet():
        found = _outputs(model, interface, rows)
        moved = state.moved()
        if moved:
            _check_repeats(model, found, _outputs(model, interface, rows), moved)
        function = _function(model, interface, found)
        wanted = [format] if format else [SAVED_MODEL] if "string" in interface.dtypes else [ONNX, SAVED_MODEL]
        state.put_back()
        kind, artefact, note = _exported(model, function, wanted, lambda file: _check_answers(file, rows, found))
    changed = None
    if reduction is not None:
        smaller = _smaller(model, reduction.precision, kind, artefact, note)
        form = change.onnx_form(smaller)
        names, structure = list(found), _call(model, interface, {name: tf.constant(_as_text(array)) for name, array in rows.items()})
        both = change.Forms(
            full=lambda part: {name: tensor.numpy() for name, tensor in function(*(part[name] for name in interface.names)).items()},
            reduced=form,
            structured=lambda answers: keras.tree.pack_sequence_as(structure, [answers[name] for name in names]),
        )
        sizes = len(artefact), len(smaller)
        changed = change.measure(model, reduction, both, interface=interface, sample=rows, of=which, sizes=sizes)
        artefact, found = smaller, form(rows)
    return Servable(
        artefact=artefact,
        format=kind,
        samples=_safetensors(rows, found),
        inputs=tuple(
            TensorSpec(name=name, dtype=dtype, shape=tuple(-1 if n is None else int(n) for n in shape))
            for name, shape, dtype in zip(interface.names, interface.shapes, interface.dtypes, strict=True)
        ),
        outputs=_output_specs(function, found),
        note=note,
        change=changed,
        frozen=moved,
    )


def _refuse_stateful(model: Any) -> None:
    """A recurrent layer that goes on from the call before has no meaning where calls come from anybody."""
    import keras

    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.RNN) and layer.stateful]
    if layers:
        raise CannotServe(
            f"Model {model.name!r} cannot be served: its layer {layers[0].name!r} is stateful, and requests to an endpoint do not follow "
            "one another. Build the model anew with stateful=False, and give it these weights with set_weights."
        )


def _check_repeats(model: Any, first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], moved: Sequence[str]) -> None:
    """Raises `CannotServe` where two calls with the same rows differ: no engine could be compared with Keras then."""
    for name, array in first.items():
        same = array == second[name] if array.dtype.kind in "OSU" else np.isclose(array, second[name], rtol=RTOL, atol=ATOL, equal_nan=True)
        if not np.all(same):
            raise CannotServe(
                f"Model {model.name!r} answers the same rows differently from call to call (output {name!r}), since a call changes "
                f"{', '.join(moved[:4])}. Deploy a model without that part, whose answers depend on its inputs alone."
            )


# --------------------------------------------------------------------------- fewer bits


def _smaller(model: Any, precision: str, kind: str, artefact: bytes, note: str) -> bytes:
    if kind != ONNX:
        why = f" ({note})" if note else ", since texts go into it"
        raise CannotServe(
            f"Model {model.name!r} can be served as a SavedModel only{why}; {precision} is to be had as ONNX. "
            "Leave --precision out, or deploy the part of the model that ONNX can express."
        )
    try:
        return reduced.reduce(artefact, precision)
    except reduced.NothingToReduce as error:
        raise CannotServe(f"Model {model.name!r} gains nothing from {precision}: {error}. Leave --precision out.") from error


# --------------------------------------------------------------------------- the model as a function of names


def _call(model: Any, interface: Interface, named: Mapping[str, Any]) -> Any:
    inputs = interface.arranged([named[name] for name in interface.names])
    return model(inputs, training=False) if model._call_has_training_arg else model(inputs)


def _outputs(model: Any, interface: Interface, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Keras' own answers on the rows, by output name; never through `predict`, which may batch and wrap."""
    import tensorflow as tf

    try:
        found = _call(model, interface, {name: tf.constant(_as_text(array)) for name, array in rows.items()})
    except Exception as error:
        reason = " ".join(str(error).split())[:400].rstrip(".")
        raise DataMismatch(
            f"Model {model.name!r} does not take these sample rows. Give typical ones with --sample ARRAY. Keras says: {reason}."
        ) from error
    answers = {name: np.asarray(tensor.numpy()) for name, tensor in _named_outputs(model, found).items()}
    single = next((name for name, array in answers.items() if array.ndim == 0), None)
    if single is not None:
        raise CannotServe(
            f"Model {model.name!r} cannot be served: its output {single!r} is one number for all rows together. "
            "Deploy a model that gives an answer for each row, its first dimension the batch."
        )
    return answers


def _named_outputs(model: Any, found: Any) -> dict[str, Any]:
    import keras
    import tensorflow as tf

    from aiaas_magics.internals.keras import to_snake_case

    flat = keras.tree.flatten(found)
    if any(leaf is None for leaf in flat):
        raise CannotServe(f"Model {model.name!r} cannot be served: None is among its outputs. Let call return tensors only.")
    if isinstance(found, Mapping):
        given: list[Any] = ["_".join(map(str, path)) for path, _ in keras.tree.flatten_with_path(found)]
    else:
        given = list(getattr(model, "output_names", None) or [])
    if len(given) != len(flat):
        given = ["output"] * len(flat)
    automatic = frozenset({"output", *(to_snake_case(type(layer).__name__) for layer in model._flatten_layers())})
    names = unique_names(given, "output", frozenset() if isinstance(found, Mapping) else automatic)
    # numpy has no bfloat16, and neither have the clients.
    plain = [tf.cast(tensor, tf.float32) if tensor.dtype == tf.bfloat16 else tf.convert_to_tensor(tensor) for tensor in flat]
    return dict(zip(names, plain, strict=True))


def _function(model: Any, interface: Interface, found: Mapping[str, np.ndarray]) -> Any:
    """A `tf.function` with the interface's names for its arguments and outputs."""
    import tensorflow as tf

    specs = [
        tf.TensorSpec(shape, dtype, name=name)
        for name, shape, dtype in zip(interface.names, interface.shapes, interface.dtypes, strict=True)
    ]

    @tf.function(input_signature=specs, autograph=False)  # type: ignore[untyped-decorator]
    def serve(*tensors: Any) -> dict[str, Any]:
        outputs = _named_outputs(model, _call(model, interface, dict(zip(interface.names, tensors, strict=True))))
        return {name: tf.identity(tensor, name=name) for name, tensor in outputs.items()}

    return serve


def _output_specs(function: Any, found: Mapping[str, np.ndarray]) -> tuple[TensorSpec, ...]:
    structured = function.get_concrete_function().structured_outputs
    specs = []
    for name, array in found.items():
        shape = structured[name].shape
        dims = [-1] * array.ndim if shape.rank is None else [-1 if n is None else int(n) for n in shape]
        specs.append(TensorSpec(name=name, dtype="string" if array.dtype.kind in "OSU" else array.dtype.name, shape=tuple(dims)))
    return tuple(specs)


# --------------------------------------------------------------------------- two formats


def _exported(model: Any, function: Any, wanted: list[str], check_onnx: Callable[[bytes], None]) -> tuple[str, bytes, str]:
    """The first format that can be had, and why not the ones before it."""
    makers: dict[str, Callable[[Any, Any, Path], bytes]] = {ONNX: _onnx, SAVED_MODEL: _saved_model}
    reasons: list[str] = []
    for kind in wanted:
        with tempfile.TemporaryDirectory(prefix="aiaas-export-") as folder:
            try:
                artefact = makers[kind](model, function, Path(folder))
                if kind == ONNX:
                    check_onnx(artefact)
                return kind, artefact, "; ".join(reasons)
            except Exception as error:  # noqa: BLE001 - border: the exporters raise anything over an operator they do not know
                said = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
                reasons.append(f"{kind}: {said[:300] or type(error).__name__}")
    why = "; ".join(dict.fromkeys(reason.partition(": ")[2] for reason in reasons))
    raise CannotServe(f"Model {model.name!r} cannot be exported ({' and '.join(wanted)}: {why}). {_move(why, function)}")


# What the exporters say, and what to do about it.
MOVES: Final = (
    (r"valid (root )?scope name", "Rename the model and its layers: letters, digits, '.', '_', '/' and '-', with a letter or digit first."),
    (r"numpy|py_?func", "Replace Python and numpy code in call by keras.ops or TensorFlow operators."),
)
FREE_SIZE: Final = "Give every dimension of its Input but the first a size, or deploy the part of the model without the layer named there."
ANY_LAYER: Final = "Replace the layer that is named there, or deploy the part of the model without it."


def _move(why: str, function: Any) -> str:
    known = [move for pattern, move in MOVES if re.search(pattern, why, re.IGNORECASE)]
    is_free = any(None in tuple(spec.shape)[1:] for spec in function.input_signature)
    return known[0] if known else FREE_SIZE if is_free else ANY_LAYER


def _onnx(model: Any, function: Any, folder: Path) -> bytes:
    import onnx
    import tf2onnx

    from aiaas_magics.internals.keras import patch_tf2onnx

    patch_tf2onnx()
    proto, _ = tf2onnx.convert.from_function(function, input_signature=function.input_signature)
    # An operator without a translation is left as TensorFlow's own, and tf2onnx only logs it; the checker does not know it.
    onnx.checker.check_model(proto)
    _hold(proto, function)
    made = {output.name for output in proto.graph.output}
    promised = set(function.get_concrete_function().structured_outputs)
    if made != promised:
        raise ValueError(f"outputs are called {sorted(made)} instead of {sorted(promised)}")
    return bytes(proto.SerializeToString())


def _hold(proto: Any, function: Any) -> None:
    """Tensors that the function closes over (an adapted Normalization's mean, say) into the file; tf2onnx makes inputs of them."""
    import tensorflow as tf
    from onnx import numpy_helper

    concrete = function.get_concrete_function()
    held = {inside.name: outside for outside, inside in concrete.graph.captures if outside.dtype != tf.resource}
    for given in [given for given in proto.graph.input if given.name in held]:
        proto.graph.initializer.append(numpy_helper.from_array(held[given.name].numpy(), given.name))
        proto.graph.input.remove(given)


def _check_answers(artefact: bytes, rows: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> None:
    """Raises `ValueError` for a file whose answers the host's proof would refuse: half precision and rare operators come out otherwise.

    The host decides; asked here first, such a model is served as a SavedModel instead of not at all.
    """
    answers = change.onnx_form(artefact)(rows)
    for name, expected in found.items():
        if expected.dtype.kind in "OSU":
            continue
        if answers[name].shape != expected.shape:
            raise ValueError(f"its output {name!r} has the shape {answers[name].shape} instead of {expected.shape}")
        if not np.allclose(answers[name], expected, rtol=RTOL, atol=ATOL, equal_nan=True):
            apart = float(np.abs(answers[name].astype(np.float64) - expected.astype(np.float64)).max())
            raise ValueError(f"its answers differ from Keras' by {apart:.2g}")


def _saved_model(model: Any, function: Any, folder: Path) -> bytes:
    from aiaas_magics.internals.keras import ExportArchive

    archive = ExportArchive()
    archive.track(model)
    function.get_concrete_function()
    archive.add_endpoint("serving_default", function)
    archive.write_out(str(folder / "model"), verbose=False)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as file:
        for path in sorted((folder / "model").rglob("*")):
            if path.is_file():
                file.write(path, path.relative_to(folder / "model").as_posix())
    return packed.getvalue()


# --------------------------------------------------------------------------- samples as bytes


def _safetensors(inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save

    tensors = {f"input/{name}": array for name, array in inputs.items()}
    tensors |= {f"output/{name}": array for name, array in outputs.items()}
    return bytes(save({name: np.ascontiguousarray(_padded(array)) for name, array in tensors.items()}))


def _as_text(array: np.ndarray) -> np.ndarray:
    return array.astype(object) if array.dtype.kind in "SU" else array


def _padded(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "OSU":
        return array
    texts = [text if isinstance(text, bytes) else str(text).encode() for text in array.ravel()]
    width = max(1, *map(len, texts))
    return np.frombuffer(b"".join(text.ljust(width, b"\0") for text in texts), np.uint8).reshape(*array.shape, width)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' log lines and warnings from the notebook.

    TensorFlow's C++ writes to the process's standard error, which Jupyter shows in the cell:
    the descriptor points elsewhere for the second that an export takes.
    """
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
