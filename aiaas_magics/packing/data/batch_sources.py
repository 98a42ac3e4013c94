"""Batch sources: data that yields batches instead of holding rows, such as `tf.data.Dataset`, `PyDataset` and generators.

Owns which way each of them travels, and the values that travel in its place. A dataset of TensorFlow's
own ops goes as its graph, with large captured arrays apart; tables and variables that it uses go with it.
A `PyDataset` is pickled. What holds Python that cannot leave the kernel, or reads files, is streamed: the kernel
iterates, batches go to the job one by one (`Stream` here, `dataset_feed` on the way). Nothing is ever materialised:
that would freeze augmentation and shuffling. Giving batches to ranks belongs to `rank_datasets`.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from aiaas_magics.core import feed_frames
from aiaas_magics.core.errors import CannotTravel, DataMismatch
from aiaas_magics.core.execution import Execution
from aiaas_magics.packing.live.probing import has
from aiaas_magics.packing.pickling import state_pickle

PYTHON_OPS: Final = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})
# A worker's folder is another than the kernel's, and on another machine the files are not there at all. What only writes
# (`cache`, `snapshot`) is not among them: it makes its files where it runs.
FILE_OPS: Final = frozenset(
    {
        "ReadFile",
        "MatchingFiles",
        "MatchingFilesDataset",
        "TextLineDataset",
        "TFRecordDataset",
        "TFRecordDatasetV2",
        "FixedLengthRecordDataset",
        "FixedLengthRecordDatasetV2",
        "CSVDataset",
        "CSVDatasetV2",
        "SqlDataset",
        "LMDBDataset",
        "LoadDataset",
        "InitializeTableFromTextFile",
        "InitializeTableFromTextFileV2",
        *(f"Experimental{name}" for name in ("MatchingFilesDataset", "CSVDataset", "SqlDataset", "LMDBDataset")),
    }
)
IGNORE_STATE: Final = 1  # tf.data's ExternalStatePolicy: random ops and resources are serialized as they are
ENDLESS: Final = -1  # tf.data.INFINITE_CARDINALITY
PLACES: Final = ("x", "validation_data")
_NOT_A_BATCH: Final = "Give each element as (x,), (x, y) or (x, y, weights)."
# What was looked at of a generator is not lost to a second fit, after a dry run say.
_peeked: Final[weakref.WeakKeyDictionary[Any, Any]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class BatchSource:
    """What travels in the place of data that yields batches: what is known of them.

    Where a generator gives None for an optional input, `spec` has an `OptionalSpec`, as in Keras' own dataset.
    """

    spec: Any  # of an element, as TensorFlow tells it
    batches: int | None  # of one pass; None where it ends nobody knows when
    batch_rows: int = 0  # of a full batch; 0 where nobody knows

    def row_bytes(self) -> int:
        import tensorflow as tf

        dense = [leaf for leaf in tf.nest.flatten(self.spec) if isinstance(leaf, tf.TensorSpec)]
        return sum(leaf.dtype.size * int(np.prod([n or 1 for n in leaf.shape[1:]])) for leaf in dense if leaf.shape.rank)


@dataclass(frozen=True, kw_only=True)
class GraphSource(BatchSource):
    """A `tf.data.Dataset` as its graph. The n-th of `captured` is the value of the constant at the n-th of `places`."""

    graph: bytes
    places: tuple[int, ...]
    captured: tuple[np.ndarray, ...]

    def built(self) -> Any:
        """The dataset again, in the state in which it was packed: a seeded shuffle gives the order it would have given there."""
        import tensorflow as tf

        from aiaas_magics.core.internals.tensorflow_internals import dataset_ops

        graph = tf.compat.v1.GraphDef.FromString(self.graph)
        nodes = dict(enumerate(_nodes(graph)))
        for place, array in zip(self.places, self.captured, strict=True):
            nodes[place].attr["value"].tensor.tensor_content = np.asarray(array).tobytes()
        return dataset_ops._VariantDataset(tf.raw_ops.DatasetFromGraph(graph_def=graph.SerializeToString()), self.spec)


@dataclass(frozen=True, kw_only=True)
class PickledSource(BatchSource):
    """A `PyDataset` as it is."""

    dataset: Any


@dataclass(frozen=True, kw_only=True)
class StreamedSource(BatchSource):
    """A place that the kernel sends batches to; `name` is the argument of `fit`."""

    name: str


class Stream:
    """The kernel's side of a `StreamedSource`: the user's own object, iterated here."""

    def __init__(self, name: str, data: Any, adapter: Any, spec: Any) -> None:
        self.name, self.spec = name, spec
        self.on_first: Callable[[Any], None] | None = None  # gets the first batch on its way
        self._data, self._adapter = data, adapter

    def one_pass(self) -> Iterator[bytes]:
        """One pass over the data, batch by batch, as bytes; an error is the user's own with its traceback."""
        import tensorflow as tf

        from aiaas_magics.core.internals.tensorflow_internals import structure

        for batch in self._batches():
            if self.on_first is not None:
                on_first, self.on_first = self.on_first, None
                on_first(batch)
            element = structure.normalize_element(with_empty_optionals(batch), self.spec)
            if not structure.are_compatible(structure.type_spec_from_value(element), self.spec):
                raise DataMismatch(_other_batch(self.name, element, self.spec))
            parts = [tf.io.serialize_tensor(tensor).numpy() for tensor in sent_tensors(element, self.spec)]
            yield feed_frames.encode(feed_frames.FrameKind.BATCH, parts)

    def _batches(self) -> Iterator[Any]:
        if is_iterator(self._data):
            yield from self._adapter.generator()
            return
        self._adapter.on_epoch_begin()
        yield from self._adapter._get_iterator() if hasattr(self._adapter, "_get_iterator") else self._data
        self._adapter.on_epoch_end()


def with_empty_optionals(batch: Any) -> Any:
    """`batch` with TensorFlow's empty `Optional` in the place of each None."""
    import keras
    import tensorflow as tf

    return keras.tree.map_structure(lambda leaf: tf.experimental.Optional.empty(None) if leaf is None else leaf, batch)


def sent_tensors(element: Any, spec: Any) -> list[Any]:
    """The tensors of an element one by one; those of an input that is always None are left out, having no bytes."""
    import tensorflow as tf

    from aiaas_magics.core.internals.tensorflow_internals import structure

    pairs = zip(tf.nest.flatten(spec), structure.to_tensor_list(spec, element), strict=True)
    return [tensor for leaf, tensor in pairs if not isinstance(leaf, tf.OptionalSpec)]


def received_element(tensors: Any, spec: Any) -> Any:
    """The other half of `sent_tensors`."""
    import tensorflow as tf

    rest = iter(tensors)
    leaves = [tf.experimental.Optional.empty(None) if isinstance(leaf, tf.OptionalSpec) else next(rest) for leaf in tf.nest.flatten(spec)]
    return tf.nest.pack_sequence_as(spec, leaves)


def _other_batch(name: str, element: Any, spec: Any) -> str:
    """Why a batch is not one of those that came first, and what to do."""
    import tensorflow as tf

    difference = f"A batch of {name} is {described(element)}, the first ones were {described(spec)}."
    try:
        tf.nest.assert_same_structure(element, spec, expand_composites=False)
    except (TypeError, ValueError):
        return f"{difference} {_NOT_A_BATCH}"
    return (
        f"{difference} Sizes that change must differ between the first two batches already, as plain fit wants it too: "
        f"yield two sizes first, or give {name} as a tf.data.Dataset with None in its shapes."
    )


def is_source(value: Any) -> bool:
    """Whether `value` yields batches and Keras' `fit` takes it."""
    import keras
    import tensorflow as tf

    if isinstance(value, tf.distribute.DistributedDataset):
        return False
    if isinstance(value, (tf.data.Dataset, keras.utils.PyDataset, types.GeneratorType)):
        return True
    library = str(type(value).__module__).partition(".")[0]
    return has(value, "__next__") and not has(value, "__array__") and library not in {"grain", "torch"}


def is_iterator(value: Any) -> bool:
    """Whether passes over `value` go on where the last one stopped. A `PyDataset` may have `__next__` too (Keras' image iterators)."""
    import keras

    return has(value, "__next__") and not isinstance(value, keras.utils.PyDataset)


def packed(value: Any, name: str, *, shuffle: bool = False) -> tuple[BatchSource, Stream | None]:
    """What travels in the place of `value`, and, where the kernel must send its batches, who does.

    Args:
        shuffle: whether the batches of a `PyDataset` that is iterated here come in another order each pass.

    Raises:
        CannotTravel: its batches are of a kind that goes nowhere.
        DataMismatch: it is empty, or yields no batches.
    """
    import keras
    import tensorflow as tf

    if isinstance(value, tf.data.Dataset):
        graph = _graph_of(value)
        if graph is not None:
            return graph, None
    elif isinstance(value, keras.utils.PyDataset) and _is_picklable(value):
        spec = _adapted(value, name).get_tf_dataset().element_spec
        return PickledSource(dataset=value, spec=spec, batches=value.num_batches, batch_rows=_batch_rows(value, spec)), None
    adapter = _adapted(value, name, shuffle=shuffle)
    spec = adapter.get_tf_dataset().element_spec
    source = StreamedSource(name=name, spec=spec, batches=adapter.num_batches, batch_rows=_batch_rows(value, spec))
    return source, Stream(name, value, adapter, spec)


def check_ways(source: BatchSource, name: str, *, workers: int, execution: Execution) -> None:
    """Batches that are cut for ranks, or sent one by one, are dense; some ways to train take arrays only.

    `execution` has its strategy chosen already.

    Raises:
        CannotTravel: naming the kind that they are, or the way.
    """
    import tensorflow as tf

    if execution.accumulate > 1:
        raise CannotTravel(name, "its batches are not cut into the parts of --accumulate", "Give smaller batches, or arrays.")
    if workers > 1 and execution.strategy == "mirrored":
        raise CannotTravel(name, "its batches are not cut for the devices of one process", "Use --strategy collective, or arrays.")
    if workers < 2 and not isinstance(source, StreamedSource):
        return
    for leaf in tf.nest.flatten(source.spec):
        if not isinstance(leaf, tf.TensorSpec) and not _is_always_none(leaf):
            kind = type(leaf).__name__.removesuffix("Spec")
            raise CannotTravel(name, f"its batches hold a {kind}, which is not cut or sent one by one", "Make them dense, with map().")


def in_arguments(arguments: Mapping[str, Any]) -> dict[str, BatchSource]:
    """The sources among the arguments of `fit`, by name."""
    return {name: value for name in PLACES if isinstance(value := arguments.get(name), BatchSource)}


def _batch_rows(dataset: Any, spec: Any) -> int:
    """Rows of a full batch: as the shapes have it, or the last `batch` on the way through a dataset."""
    import tensorflow as tf

    shape = next((leaf.shape for leaf in tf.nest.flatten(spec) if not _is_always_none(leaf)), tf.TensorShape([]))
    if shape.rank and shape[0]:
        return int(shape[0])
    while dataset is not None:
        if (size := getattr(dataset, "_batch_size", None)) is not None:
            return int(size)
        dataset = getattr(dataset, "_input_dataset", None)
    return 0


def check(value: Any, name: str, *, steps_name: str, steps: int | None, declared: Any = None) -> None:
    """What is known of a dataset before anything is sent.

    Args:
        declared: the shapes of the model's inputs, batch first; None where the model declares none.

    Raises:
        DataMismatch: it is not batched, or has no end.
    """
    import tensorflow as tf

    if not isinstance(value, tf.data.Dataset):
        return
    leaves = [leaf for leaf in tf.nest.flatten(value.element_spec) if isinstance(leaf, tf.TensorSpec)]
    inputs = [leaf for leaf in tf.nest.flatten(_x_of(value.element_spec)) if isinstance(leaf, tf.TensorSpec)]
    single = [leaf for leaf in leaves if leaf.shape.rank == 0]
    if declared and len(declared) == len(inputs):
        # Keras adds a last axis of one, so that a batch of a column or of texts has one axis less than declared.
        pairs = zip(inputs, declared, strict=True)
        single += [leaf for leaf, shape in pairs if leaf.shape.rank == len(shape) - 1 and shape[-1] != 1]
    if single:
        raise DataMismatch(f"{name} yields single samples ({described(value.element_spec)}), not batches. Use {name}.batch(32), say.")
    if int(value.cardinality()) == ENDLESS and not steps:
        raise DataMismatch(f"{name} has no end. Give {steps_name}, or take() of it.")


def _is_always_none(leaf: Any) -> bool:
    import tensorflow as tf

    return isinstance(leaf, tf.OptionalSpec)


def _x_of(spec: Any) -> Any:
    return spec[0] if isinstance(spec, tuple) else spec


def _adapted(value: Any, name: str, *, shuffle: bool = False) -> Any:
    """Keras' own adapter of `value`; one that has looked into a generator stays with it."""
    import keras

    from aiaas_magics.core.internals.keras_internals import data_adapters

    adapter = _peeked.get(value) if isinstance(value, types.GeneratorType) else None
    if adapter is not None:
        return adapter
    try:
        adapter = data_adapters.get_data_adapter(_generator_of(value), shuffle=shuffle and isinstance(value, keras.utils.PyDataset))
    except ValueError as error:
        raise DataMismatch(f"{name}: {_sentence(error)} {_NOT_A_BATCH}") from error
    if isinstance(value, types.GeneratorType):
        _peeked[value] = adapter
    return adapter


def _generator_of(value: Any) -> Any:
    """Keras takes generators, not other iterators, which it would have to be told from arrays."""
    if is_iterator(value) and not isinstance(value, types.GeneratorType):
        return (batch for batch in value)
    return value


def _graph_of(dataset: Any) -> GraphSource | None:
    """None where Python takes part or files are read, or where the graph cannot be written."""
    import tensorflow as tf

    try:
        graph_bytes = tf.raw_ops.DatasetToGraphV2(
            input_dataset=dataset._variant_tensor, external_state_policy=IGNORE_STATE, strip_device_assignment=True
        ).numpy()
    except tf.errors.OpError:  # a dataset of another library, or more than the 2 GB of a graph
        return None
    graph = tf.compat.v1.GraphDef.FromString(graph_bytes)
    nodes = list(_nodes(graph))
    if any(node.op in PYTHON_OPS | FILE_OPS for node in nodes):  # those of functions that the graph calls among them
        return None
    places, captured = [], []
    for place, node in enumerate(nodes):
        if node.op != "Const" or node.attr["value"].tensor.ByteSize() < state_pickle.APART_BYTES:
            continue
        array = tf.make_ndarray(node.attr["value"].tensor)
        if array.dtype.hasobject:
            continue
        places.append(place)
        captured.append(array)
        node.attr["value"].tensor.ClearField("tensor_content")
        for name in [name for name, _ in node.attr["value"].tensor.ListFields() if name.name.endswith("_val")]:
            node.attr["value"].tensor.ClearField(name.name)
    count = int(dataset.cardinality())
    return GraphSource(
        graph=graph.SerializeToString(),
        places=tuple(places),
        captured=tuple(captured),
        spec=dataset.element_spec,
        batches=count if count >= 0 else None,
        batch_rows=_batch_rows(dataset, dataset.element_spec),
    )


def _nodes(graph: Any) -> Iterator[Any]:
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def


def _is_picklable(value: Any) -> bool:
    try:
        state_pickle.dumps(value)
    except state_pickle.Failed:
        return False
    return True


def described(spec: Any) -> str:
    """Dtypes and shapes of an element, for messages."""
    import tensorflow as tf

    def described_leaf(leaf: Any) -> str:
        dtype = getattr(leaf, "dtype", None)
        return "None" if dtype is None else f"{dtype.name} {getattr(leaf, 'shape', '')}"

    return ", ".join(described_leaf(leaf) for leaf in tf.nest.flatten(spec))


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") + "."
