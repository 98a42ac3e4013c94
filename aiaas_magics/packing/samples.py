"""Sample rows for the proof of an export, and the interface that they go through.

Owns remembering rows of a fit's data, choosing samples, and naming a model's inputs and
outputs. Exporting belongs to `servable`.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from aiaas_magics.errors import DataMismatch, UsageError
from aiaas_magics.packing import data

ROWS: Final = 32  # of the issue: sizes 1, 3 and up to 32 are replayed
_remembered: Final[weakref.WeakKeyDictionary[Any, Any]] = weakref.WeakKeyDictionary()


class NoSamples(UsageError):
    """Nothing is known of the model's data. The argument is the whole sentence, next move included."""


def remember(model: Any, x: Any) -> None:
    """Keep copies of the first rows of `x`, as long as `model` lives."""
    _remembered[model] = data.map_leaves(lambda array: np.array(array[:ROWS]), x)


@dataclass(frozen=True, slots=True)
class Interface:
    """A model's inputs as flat named arrays; `structure` is how the model takes them."""

    names: tuple[str, ...]
    structure: Any  # of anything, one leaf an input
    shapes: tuple[tuple[int | None, ...], ...]
    dtypes: tuple[str, ...]


def samples_for(model: Any, sample: Any) -> tuple[Interface, dict[str, np.ndarray], str]:
    """The model's interface, up to 32 rows that go through it, and what these are.

    Args:
        sample: Rows as `fit` takes them for x; None for those of the last fit.

    Raises:
        NoSamples: none were given, none are known, and none can be made up.
        DataMismatch: they are not what the model takes.
    """
    rows = data.mapped(sample, "sample") if sample is not None else _remembered.get(model)
    which = "your sample" if sample is not None else "the data of the last fit"
    if _is_functional(model):
        interface = _declared(model)
        if rows is None:
            rows, which = _made_up(model, interface), "made-up data"
    elif rows is None:
        raise NoSamples(f"What model {model.name!r} takes is not known before it was fitted here. Give typical rows with --sample ARRAY.")
    else:
        interface = _seen(rows)
    return interface, _named(model, interface, rows, most=ROWS), which


def rows_for(model: Any, interface: Interface, x: Any, path: str) -> dict[str, np.ndarray]:
    """All rows of `x`, as `fit` takes it, by the interface's names.

    Raises:
        DataMismatch: they are not what the model takes.
    """
    return _named(model, interface, data.mapped(x, path), most=None)


def _is_functional(model: Any) -> bool:
    from keras.src.models.functional import Functional

    return isinstance(model, Functional) or getattr(model, "_functional", None) is not None


def _declared(model: Any) -> Interface:
    """What a functional or built Sequential model says of its inputs."""
    import keras

    graph = getattr(model, "_functional", None) or model
    structure = graph._inputs_struct
    places = keras.tree.flatten(keras.tree.map_structure(lambda leaf: leaf, structure))
    given = list(structure) if isinstance(structure, Mapping) else [_layer_of(tensor) for tensor in places]
    if isinstance(structure, Mapping):
        given = sorted(given)  # the order in which Keras flattens a dict
    return Interface(
        names=unique_names(given, "input"),
        structure=structure,
        shapes=tuple((None, *tensor.shape[1:]) for tensor in places),
        dtypes=tuple(keras.backend.standardize_dtype(tensor.dtype) for tensor in places),
    )


def _seen(rows: Any) -> Interface:
    """The interface of a subclassed model, from rows that it takes."""
    import keras

    leaves = keras.tree.flatten(rows)
    keys = sorted(rows) if isinstance(rows, Mapping) else [f"input_{index}" for index in range(len(leaves))]
    return Interface(
        names=unique_names(keys, "input"),
        structure=rows,
        shapes=tuple((None, *array.shape[1:]) for array in leaves),
        dtypes=tuple(_dtype_of(array) for array in leaves),
    )


def _dtype_of(array: np.ndarray) -> str:
    import keras

    if array.dtype.kind in "OSU":
        return "string"
    return str(keras.config.floatx()) if array.dtype.kind == "f" else str(keras.backend.standardize_dtype(array.dtype))


def _named(model: Any, interface: Interface, rows: Any, *, most: int | None) -> dict[str, np.ndarray]:
    """`rows` by the interface's names, in its dtypes, checked against its shapes."""
    import keras

    if isinstance(rows, Mapping) and set(rows) >= set(interface.names):
        flat = [rows[name] for name in interface.names]
    elif isinstance(rows, Mapping):
        flat = [rows[name] for name in sorted(rows)]
    else:
        flat = keras.tree.flatten(rows)
        if isinstance(interface.structure, Mapping):
            order = sorted(range(len(interface.names)), key=lambda place: list(interface.structure)[place])
            flat = [flat[place] for place in order] if len(flat) == len(order) else flat
    if len(flat) != len(interface.names):
        raise DataMismatch(f"{model.name!r} takes the inputs {list(interface.names)}; {len(flat)} arrays were given. Give one for each.")
    chosen = {}
    for name, array, shape, dtype in zip(interface.names, flat, interface.shapes, interface.dtypes, strict=True):
        fits = array.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, array.shape, strict=True))
        if not fits or not len(array):
            raise DataMismatch(f"Sample rows for input {name!r} have the shape {array.shape}, the model takes {shape}. Give whole rows.")
        chosen[name] = array[:most] if dtype == "string" else np.ascontiguousarray(array[:most], dtype=dtype)
    if len({len(array) for array in chosen.values()}) > 1:
        raise DataMismatch("The sample arrays have different numbers of rows. Give as many rows in each.")
    return chosen


def _made_up(model: Any, interface: Interface) -> Any:
    """Random normal rows, where any number is a possible input."""
    import keras

    looked_up = any(isinstance(layer, keras.layers.Embedding) for layer in model._flatten_layers())
    if looked_up or any(not dtype.startswith(("float", "bfloat")) for dtype in interface.dtypes):
        raise NoSamples(
            f"Model {model.name!r} takes indices or texts, and it was not fitted here, so typical rows are not known. "
            "Give some with --sample ARRAY."
        )
    draw = np.random.default_rng(0)
    made = [draw.standard_normal([ROWS, *(n or 8 for n in shape[1:])]) for shape in interface.shapes]
    return dict(zip(interface.names, made, strict=True)) if len(made) > 1 else made[0]


def _layer_of(tensor: Any) -> str:
    history = getattr(tensor, "_keras_history", None)
    return str(history.operation.name if history is not None and history.operation is not None else tensor.name)


def unique_names(
    given: Sequence[Any], kind: str, automatic: frozenset[str] = frozenset({"input_layer", "keras_tensor"})
) -> tuple[str, ...]:
    """Names that a signature may have. A name that Keras made up changes from model to model: its place stands for it."""
    names: list[str] = []
    for place, name in enumerate(map(str, given)):
        stem = re.sub(r"_\d+$", "", name)
        cleaned = re.sub(r"[^A-Za-z0-9_.]", "_", name)
        usable = stem not in automatic and re.match(r"[A-Za-z]", cleaned) and cleaned not in names
        names.append(cleaned if usable else f"{kind}_{place}")
    return tuple(names)
