"""Samples: the rows that an export is compared on, and the interface that they go through.

Owns remembering rows of a fit's data, choosing samples, and naming a model's inputs and
outputs. Exporting belongs to `model_export`.
"""

from __future__ import annotations

import contextlib
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from aiaas_magics.core.errors import CannotTravel, DataMismatch, UsageError
from aiaas_magics.core.spec import TensorSpec
from aiaas_magics.packing.data import batch_sources, fit_data

AUTOMATIC: Final = frozenset({"input_layer", "keras_tensor"})  # Keras' own, with a number that changes from model to model
ROWS: Final = 32  # of the issue: sizes 1, 3 and up to 32 are replayed
MOST_KEPT_BYTES: Final = 16 * 1024 * 1024  # guess: arrays that a dataset's graph holds, kept as long as its model
MOST_SPREAD_ROWS: Final = 4096  # guess: as many as say what data are like
MOST_SPREAD_BYTES: Final = 4 * 1024 * 1024  # guess: kept as long as their model
_spread_rows: Final[weakref.WeakKeyDictionary[Any, Any]] = weakref.WeakKeyDictionary()
_columns: Final[weakref.WeakKeyDictionary[Any, tuple[str, ...]]] = weakref.WeakKeyDictionary()
_remembered: Final[weakref.WeakKeyDictionary[Any, Any]] = weakref.WeakKeyDictionary()


class NoSamples(UsageError):
    """Nothing is known of the model's data. The argument is the whole sentence, next move included."""


def remember_data(model: Any, x: Any, *, dataset: Any, streams: Sequence[batch_sources.Stream]) -> None:
    """Keep rows of the data that `model` is fitted on, or where they are to be had.

    Args:
        x: as it travels, arrays or a `BatchSource`.
        dataset: x as the user gave it.
        streams: what the kernel sends batch by batch.
    """
    _columns[model] = tuple(map(str, dataset.columns)) if hasattr(dataset, "columns") and hasattr(dataset, "to_numpy") else ()
    if isinstance(x, batch_sources.BatchSource):
        _remember_source(model, dataset, x, streams)
    else:
        _remember(model, x)


def _remember(model: Any, x: Any) -> None:
    """Keep copies of the first rows of `x`, and of some evenly over all, as long as `model` lives."""
    _remembered[model] = fit_data.map_leaves(lambda array: np.array(array[:ROWS]), x)
    sizes = [(len(array), array.nbytes) for _, array in fit_data.leaves(x, "x")]
    rows = min((rows for rows, _ in sizes), default=0)
    if rows:
        count = max(1, min(rows, MOST_SPREAD_ROWS, MOST_SPREAD_BYTES * rows // max(1, sum(nbytes for _, nbytes in sizes))))
        places = (np.arange(count) * rows) // count
        _spread_rows[model] = fit_data.map_leaves(lambda array: np.array(array[places]), x)


def _remember_source(model: Any, dataset: Any, source: batch_sources.BatchSource, streams: Sequence[batch_sources.Stream]) -> None:
    """Keep where rows of `dataset` are to be had: its first batch is read when samples are asked for, or comes by on its way to the job.

    What is kept is small, so that a model does not hold on to its data.
    """
    _spread_rows.pop(model, None)
    stream = next((stream for stream in streams if stream.name == "x"), None)
    if stream is not None:
        stream.on_first = lambda batch: _remember_batch(model, batch)
    elif isinstance(source, batch_sources.GraphSource) and sum(array.nbytes for array in source.captured) <= MOST_KEPT_BYTES:
        _remembered[model] = _Later(source.built)
    else:
        _remembered[model] = _Later(weakref.ref(dataset))


def _remember_batch(model: Any, batch: Any) -> None:
    with contextlib.suppress(CannotTravel, DataMismatch):
        _remember(model, fit_data.mapped(_x_of(batch), "x"))


@dataclass(frozen=True, slots=True)
class _Later:
    """Rows that are read when somebody wants them. `dataset` gives None where the data are gone."""

    dataset: Callable[[], Any]

    def rows(self) -> Any:
        dataset = self.dataset()
        return None if dataset is None else _rows_of_sample(dataset)


def fitted_rows(model: Any) -> Any:
    """Rows of the data of the last fit, evenly over all of them (of batches the first one); None where none are known."""
    try:
        rows = _spread_rows.get(model)
        return _rows_of_last_fit(model) if rows is None else rows
    except TypeError:  # a path, say: nothing that could have been fitted here
        return None


def fitted_columns(model: Any) -> tuple[str, ...]:
    """The names of the columns of a DataFrame that the last fit was given as x; none where it was no DataFrame."""
    try:
        return _columns.get(model, ())
    except TypeError:
        return ()


def _rows_of_last_fit(model: Any) -> Any:
    rows = _remembered.get(model)
    return rows.rows() if isinstance(rows, _Later) else rows


@dataclass(frozen=True, slots=True)
class Interface:
    """A model's inputs as flat named arrays; `structure` is how the model takes them.

    `absent` are the places among the leaves of `structure` that get None, with their names: optional inputs of a sample without them.
    """

    names: tuple[str, ...]
    structure: Any  # of anything, one leaf an input
    shapes: tuple[tuple[int | None, ...], ...]
    dtypes: tuple[str, ...]
    absent: tuple[tuple[int, str], ...] = ()
    originals: tuple[str, ...] = ()  # the names in Keras, "" where they are the same or made up by Keras
    prepare: Callable[[Any], Any] | None = None  # makes of the arranged inputs what the model is called with

    @classmethod
    def of(cls, *, names: tuple[str, ...], shapes: tuple[tuple[int | None, ...], ...], dtypes: tuple[str, ...]) -> Interface:
        """That of a model which takes its inputs by these names."""
        return cls(names=names, structure=list(names), shapes=shapes, dtypes=dtypes, originals=("",) * len(names))

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The inputs as the backend knows them."""
        return tuple(
            TensorSpec(name=name, dtype=dtype, shape=tuple(-1 if n is None else int(n) for n in shape), original=original)
            for name, shape, dtype, original in zip(self.names, self.shapes, self.dtypes, self.originals, strict=True)
        )

    @property
    def all_names(self) -> list[str]:
        """Names of all leaves of `structure`, those that get None too."""
        names = list(self.names)
        for place, name in self.absent:
            names.insert(place, name)
        return names

    def without(self, places: Sequence[int]) -> Interface:
        """The same model, called with None at these places."""
        places_left = [place for place in range(len(self.names)) if place not in places]
        return Interface(
            names=tuple(self.names[place] for place in places_left),
            structure=self.structure,
            shapes=tuple(self.shapes[place] for place in places_left),
            dtypes=tuple(self.dtypes[place] for place in places_left),
            absent=tuple((place, self.names[place]) for place in sorted(places)),
            originals=tuple(self.originals[place] for place in places_left),
            prepare=self.prepare,
        )

    def freed(self, rows: Sequence[np.ndarray]) -> Interface:
        """The same inputs, with the dimensions free whose sizes `rows`, one array for each name, has otherwise."""

        def free(shape: tuple[int | None, ...], array: np.ndarray) -> tuple[int | None, ...]:
            sizes = _as_ranked(array, shape).shape
            return shape if len(sizes) != len(shape) else tuple(n if n == size else None for n, size in zip(shape, sizes, strict=True))

        return replace(self, shapes=tuple(map(free, self.shapes, rows)))

    def arranged(self, values: Sequence[Any]) -> Any:
        """`values`, one for each name, as the model is called with them."""
        import keras

        leaves = list(values)
        for place, _ in self.absent:
            leaves.insert(place, None)
        arranged = keras.tree.pack_sequence_as(self.structure, leaves)
        return arranged if self.prepare is None else self.prepare(arranged)


def samples_for(
    model: Any, sample: Any, other_samples: Sequence[Any] = (), *, prepare: Callable[[Any], Any] | None = None
) -> tuple[Interface, tuple[dict[str, np.ndarray], ...], str]:
    """The model's interface, up to 32 rows of each size that go through it, and what these are.

    Args:
        sample: rows as `fit` takes them for x; None for those of the last fit.
        other_samples: rows of other sizes. A dimension that differs is free.
        prepare: makes of such rows what the model is called with; what the model declares is not what is served then.

    Raises:
        NoSamples: none were given, none are known, and none can be made up.
        DataMismatch: they are not what the model takes.
    """
    rows = _rows_of_sample(sample) if sample is not None else _rows_of_last_fit(model)
    origin = "your sample" if sample is not None else "the data of the last fit"
    is_declared = _is_functional(model) and prepare is None
    if is_declared:
        interface = _declared_interface(model)
        if rows is None:
            rows, origin = _made_up(model, interface), "made-up data"
    elif rows is None:
        raise NoSamples(
            f"What model {model.name!r} takes is not known: it was not fitted by %%aiaas_train in this kernel. "
            "Give typical rows with --sample ARRAY."
        )
    else:
        interface = replace(_interface_of_rows(rows), prepare=prepare)
    absent = [place for place, leaf in enumerate(_leaves(model, interface, rows)) if leaf is None]
    if len(absent) == len(interface.names):
        raise DataMismatch("The sample has no array: each of its inputs is None. Give typical rows.")
    interface = interface.without(absent) if absent else interface
    other_rows = [_rows_of_sample(other) for other in other_samples]
    if not is_declared:
        for other in other_rows:
            interface = interface.freed(_arrays(model, interface, other))
    return interface, tuple(_named(model, interface, part, most=ROWS) for part in (rows, *other_rows)), origin


def _rows_of_sample(sample: Any) -> Any:
    """The rows of `sample`: arrays as `fit` takes them, or the first batch of what yields batches."""
    if batch_sources.is_source(sample):
        sample = first_batch(sample)
    try:
        return fit_data.mapped(sample, "sample")
    except CannotTravel as error:  # which speaks of training
        raise DataMismatch(f"{error.path} is {error.why}: no rows to try the model on. {error.next_move}") from None


def first_batch(source: Any) -> Any:
    """x of the first batch of a sample in batches. An iterator is not touched: what is read of it would be missing in the next fit."""
    if hasattr(source, "__next__"):
        raise DataMismatch("sample is an iterator, and reading a batch of it would use that up. Give an array of typical rows.")
    batch = source[0] if hasattr(source, "__getitem__") else next(iter(source), None)
    if batch is None:
        raise DataMismatch("sample yields no batch. Give an array of typical rows.")
    return _x_of(batch)


def _x_of(batch: Any) -> Any:
    return batch[0] if isinstance(batch, (tuple, list)) else batch


def rows_for(model: Any, interface: Interface, x: Any, path: str) -> dict[str, np.ndarray]:
    """All rows of `x`, as `fit` takes it, by the interface's names.

    Raises:
        DataMismatch: they are not what the model takes.
    """
    return _named(model, interface, fit_data.mapped(x, path), most=None)


def rows_through(name: str, interface: Interface, sample: Any) -> dict[str, np.ndarray]:
    """Up to 32 rows of `sample` by the interface's names; made up where there is none and any number is a possible input.

    Args:
        name: of the model, for messages.

    Raises:
        NoSamples: none were given, and none can be made up.
        DataMismatch: they are not what the model takes.
    """
    if sample is None:
        if any(not dtype.startswith("float") for dtype in interface.dtypes):
            raise NoSamples(f"{name} takes more than fractions ({', '.join(interface.dtypes)}). Give typical rows with --sample ARRAY.")
        rows = _normal(interface)
    elif len(interface.names) > 1 and hasattr(sample, "columns") and hasattr(sample, "to_numpy"):  # a DataFrame, by its columns
        rows = {str(column): np.asarray(sample[column]) for column in sample.columns}
    else:
        rows = _rows_of_sample(sample)
    return _named(_Named(name), interface, rows, most=ROWS)


@dataclass(frozen=True, slots=True)
class _Named:
    """What messages call a model."""

    name: str


def _normal(interface: Interface) -> Any:
    """Random normal rows."""
    draw = np.random.default_rng(0)
    arrays = [draw.standard_normal([ROWS, *(n or 8 for n in shape[1:])]) for shape in interface.shapes]
    return dict(zip(interface.names, arrays, strict=True)) if len(arrays) > 1 else arrays[0]


def _is_functional(model: Any) -> bool:
    from aiaas_magics.core.internals.keras_internals import Functional

    return isinstance(model, Functional) or getattr(model, "_functional", None) is not None


def is_by_input_names(model: Any, rows: Any) -> bool:
    """Whether `rows` are a dict by the names of a functional model's inputs."""
    if not _is_functional(model) or not isinstance(rows, Mapping):
        return False
    structure = (getattr(model, "_functional", None) or model)._inputs_struct
    return isinstance(structure, Mapping) and set(rows) == set(structure)


def _declared_interface(model: Any) -> Interface:
    """What a functional or built Sequential model says of its inputs."""
    import keras

    graph = getattr(model, "_functional", None) or model
    structure = graph._inputs_struct
    places = keras.tree.flatten(structure)
    names = _keys(structure) if isinstance(structure, Mapping) else [_layer_of(tensor) for tensor in places]
    return Interface(
        names=unique_names(names, "input"),
        originals=original_names(names, "input"),
        structure=structure,
        shapes=tuple((None, *tensor.shape[1:]) for tensor in places),
        dtypes=tuple(keras.backend.standardize_dtype(tensor.dtype) for tensor in places),
    )


def _keys(structure: Any) -> list[str]:
    """A name for each leaf of a nested dict, in the order in which Keras flattens it: {"a": {"b": ...}} gives "a_b"."""
    import keras

    return ["_".join(map(str, path)) for path, _ in keras.tree.flatten_with_path(structure)]


def _interface_of_rows(rows: Any) -> Interface:
    """The interface of a subclassed model, from rows that it takes."""
    import keras

    leaves = keras.tree.flatten(rows)
    keys = _keys(rows) if isinstance(rows, Mapping) else [f"input_{index}" for index in range(len(leaves))]
    return Interface(
        names=unique_names(keys, "input"),
        originals=original_names(keys, "input"),
        structure=rows,
        shapes=tuple(() if array is None else (None, *array.shape[1:]) for array in leaves),
        dtypes=tuple("" if array is None else _dtype_of(array) for array in leaves),
    )


def _dtype_of(array: np.ndarray) -> str:
    import keras

    if array.dtype.kind in "OSU":
        return "string"
    return str(keras.config.floatx()) if array.dtype.kind == "f" else str(keras.backend.standardize_dtype(array.dtype))


def _leaves(model: Any, interface: Interface, rows: Any) -> list[Any]:
    """The arrays of `rows` (None where there is none) in the order of all the interface's names."""
    import keras

    names = interface.all_names
    originals = [interface.originals[interface.names.index(name)] or name if name in interface.names else name for name in names]
    if isinstance(rows, Mapping) and set(rows) >= set(originals):
        flat = [rows[name] for name in originals]
    elif isinstance(rows, Mapping) and set(rows) >= set(names):
        flat = [rows[name] for name in names]
    else:
        flat = keras.tree.flatten(rows)
        if isinstance(interface.structure, Mapping) and not isinstance(rows, Mapping):
            order = sorted(range(len(names)), key=lambda place: list(interface.structure)[place])
            flat = [flat[place] for place in order] if len(flat) == len(order) == len(interface.structure) else flat
    if len(flat) != len(names):
        raise DataMismatch(f"{model.name!r} takes the inputs {names}; {len(flat)} arrays were given. Give one for each.")
    return flat


def _arrays(model: Any, interface: Interface, rows: Any) -> list[np.ndarray]:
    """The arrays of `rows` in the order of the interface's names."""
    absent = {place for place, _ in interface.absent}
    flat = [leaf for place, leaf in enumerate(_leaves(model, interface, rows)) if place not in absent]
    if any(leaf is None for leaf in flat):
        raise DataMismatch(f"{model.name!r} got None for an input that the sample has. Give the same inputs in both.")
    return flat


def _named(model: Any, interface: Interface, rows: Any, *, most: int | None) -> dict[str, np.ndarray]:
    """`rows` by the interface's names, in its dtypes, checked against its shapes."""
    flat = _arrays(model, interface, rows)
    named = {}
    for name, leaf, shape, dtype in zip(interface.names, flat, interface.shapes, interface.dtypes, strict=True):
        array = _as_ranked(leaf, shape)
        fits = array.ndim == len(shape) and all(want in (None, size) for want, size in zip(shape, array.shape, strict=True))
        if not fits or not len(array):
            raise DataMismatch(f"Sample rows for input {name!r} have the shape {array.shape}, the model takes {shape}. Give whole rows.")
        named[name] = array[:most] if dtype == "string" else np.ascontiguousarray(array[:most], dtype=dtype)
    if len({len(array) for array in named.values()}) > 1:
        raise DataMismatch("The sample arrays have different numbers of rows. Give as many rows in each.")
    return named


def _as_ranked(array: np.ndarray, shape: Sequence[int | None]) -> np.ndarray:
    """As Keras' functional models do: a last axis of 1 that is missing is added, one too many is taken off."""
    if array.ndim == len(shape) - 1 and shape[-1] == 1:
        return array[..., np.newaxis]
    return array[..., 0] if array.ndim == len(shape) + 1 and array.shape[-1] == 1 else array


def _made_up(model: Any, interface: Interface) -> Any:
    """Random normal rows, where any number is a possible input."""
    if _looks_up(model) or any(not dtype.startswith(("float", "bfloat")) for dtype in interface.dtypes):
        raise NoSamples(
            f"Model {model.name!r} takes indices or texts, and it was not fitted by %%aiaas_train in this kernel, so typical rows are not "
            "known. Give some with --sample ARRAY."
        )
    return _normal(interface)


def _looks_up(model: Any) -> bool:
    """Whether an input is what an Embedding looks up. One inside another layer, of positions say, is that layer's own."""
    import keras

    return any(
        isinstance(layer, keras.layers.Embedding) or (isinstance(layer, keras.Model) and _is_functional(layer) and _looks_up(layer))
        for layer in model.layers
    )


def _layer_of(tensor: Any) -> str:
    history = getattr(tensor, "_keras_history", None)
    return str(history.operation.name if history is not None and history.operation is not None else tensor.name)


def original_names(keras_names: Sequence[Any], kind: str, automatic: frozenset[str] = AUTOMATIC) -> tuple[str, ...]:
    """Keras' name for each of `unique_names`, "" where it is the same, or made up by Keras."""
    served = unique_names(keras_names, kind, automatic)
    return tuple("" if name == str(own) or _stem(own) in automatic else str(own) for name, own in zip(served, keras_names, strict=True))


def _stem(name: Any) -> str:
    return re.sub(r"_\d+$", "", str(name))


def unique_names(keras_names: Sequence[Any], kind: str, automatic: frozenset[str] = AUTOMATIC) -> tuple[str, ...]:
    """Names that a signature may have. A name that Keras made up changes from model to model: its place stands for it."""
    names: list[str] = []
    for place, name in enumerate(map(str, keras_names)):
        cleaned = re.sub(r"[^A-Za-z0-9_.]", "_", name)
        usable = _stem(name) not in automatic and re.match(r"[A-Za-z]", cleaned) and cleaned not in names
        names.append(cleaned if usable else f"{kind}_{place}")
    return tuple(names)
