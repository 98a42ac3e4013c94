"""Rank datasets: data that yields batches, built for a rank, and on several ranks cut and handed out.

Owns what takes the place of a `batch_sources.BatchSource` in the arguments of `fit`. Each batch that it
yields is one global batch. On several ranks rank 0 alone iterates, and writes for each other rank its
rows of every batch (of one with fewer rows than ranks, the whole): a shuffle without a seed, a random
filter or a `PyDataset` that shuffles itself would have another order on each rank, and rows would be lost.
Since all ranks exchange gradients in each step, rank 0 is ahead by its own prefetching and no more.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import struct_pb2

from aiaas_magics.backend.folders.feed_folder import FeedFolder, SenderSilent
from aiaas_magics.backend.training.comm.process_group import ProcessGroup, RankMissing
from aiaas_magics.backend.training.tensorflow.parallel.hooks import ALONE, DATA, PART
from aiaas_magics.backend.training.tensorflow.rank_rows import as_it_stands
from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.core.errors import AiaasBug, DataEnded
from aiaas_magics.core.feed_frames import FrameKind, decode, encode
from aiaas_magics.core.internals.keras_internals import DataAdapter, data_adapters, make_class_weight_map_fn
from aiaas_magics.core.internals.tensorflow_internals import nested_structure_coder
from aiaas_magics.packing.data.batch_sources import (
    BatchSource,
    GraphSource,
    PickledSource,
    StreamedSource,
    in_arguments,
    received_element,
    sent_tensors,
)

AHEAD: Final = 4  # batches that rank 0 has ready before it needs them; guess
SILENT_S: Final = 60.0  # a kernel says every few seconds that it is there; guess: a busy one may be late by so much
FORM: Final = "form"  # a file: how the tensors of a part lie in an element


@contextlib.contextmanager
def opened(
    arguments: Mapping[str, Any], command: WorkerCommand, *, group: ProcessGroup | None = None, silent_s: float = SILENT_S
) -> Iterator[dict[str, Any]]:
    """`arguments` with data that the stock `fit` takes in the place of each source.

    Other ranks wait for what rank 0 writes only while its process lives, as their `group` knows.

    Raises:
        DataEnded: batches of a kernel do not come any more.
    """
    ended: list[DataEnded] = []
    opened_arguments = dict(arguments)
    for name, source in in_arguments(arguments).items():
        weights = arguments.get("class_weight") if name == "x" else None
        if command.ranks == 1:
            opened_arguments[name] = _built(source, command, ended, silent_s)
            continue
        parts = Path(command.attempt_dir) / "feed" / name
        if command.rank:
            lost = None if group is None else functools.partial(group.lost, 0)
            opened_arguments[name] = Receiving(FeedFolder(parts / str(command.rank)).made(), batches=source.batches, lost=lost)
        else:
            folders = [FeedFolder(parts / str(rank)).made() for rank in range(1, command.ranks)]
            shuffle = bool(arguments.get("shuffle", True)) and name == "x"
            adapter = _adapted(_built(source, command, ended, silent_s), weights, shuffle=shuffle)
            ahead = 0 if isinstance(source, StreamedSource) else AHEAD
            opened_arguments[name] = HandingOut(adapter, folders, batches=source.batches, ahead=ahead)
    try:
        yield opened_arguments
    except tf.errors.OpError as error:
        if ended:  # TensorFlow keeps only the text of an error in its threads
            raise ended[0] from error
        raise


def _built(source: BatchSource, command: WorkerCommand, ended: list[DataEnded], silent_s: float) -> Any:
    """The user's data as one worker reads it."""
    match source:
        case GraphSource():
            return source.built()
        case PickledSource():
            return source.dataset
        case StreamedSource():
            folder = FeedFolder(Path(command.job_dir) / "feed" / source.name).made()
            dataset = received(folder, source.spec, lambda number, index: _from_kernel(folder, number, index, ended, silent_s))
            return dataset if source.batches is None else dataset.apply(tf.data.experimental.assert_cardinality(source.batches))
        case _:
            raise AiaasBug(f"a {type(source).__name__} came to a worker, which cannot build it")


def _adapted(data: Any, weights: Any, *, shuffle: bool) -> Any:
    """Keras' adapter; of a dataset the weights of classes are mapped here, since Keras would read ahead for them."""
    if not isinstance(data, tf.data.Dataset):
        return data_adapters.get_data_adapter(data, class_weight=weights, shuffle=shuffle)
    return data_adapters.get_data_adapter(data if weights is None else data.map(make_class_weight_map_fn(weights)))


def _from_kernel(folder: FeedFolder, number: int, index: int, ended: list[DataEnded], silent_s: float) -> bytes:
    why = None
    try:
        frame = folder.take(number, index, silent_s=silent_s)
        kind, parts = decode(frame)
        if kind is not FrameKind.FAILED:
            return frame
        why = f"The data raised in the kernel: {parts[0].decode()} Correct the cell and run it again."
    except SenderSilent as silent:
        why = (
            f"Nothing was heard for {silent.args[0]} s from the kernel that sends this job's data. Leave the kernel running until the "
            "job has ended, or give data that travels: arrays, a tf.data.Dataset without Python functions, a PyDataset."
        )
    ended.append(DataEnded(why))
    raise ended[-1]


def received(folder: FeedFolder, spec: Any, take: Callable[[int, int], bytes]) -> tf.data.Dataset:
    """The batches that come into `folder`, in order; each iteration begins a new pass.

    Nothing is read before it is needed: reading ahead would wait for a batch that nobody sends.
    """
    passes = itertools.count(folder.reading + 1)
    specs = [leaf for leaf in tf.nest.flatten(spec) if isinstance(leaf, tf.TensorSpec)]

    def batches() -> Iterator[list[bytes]]:
        number = next(passes)
        folder.begin(number)
        for index in itertools.count():
            kind, parts = decode(take(number, index))
            if kind is FrameKind.END:
                return
            yield parts

    def parsed(parts: Any) -> Any:
        tensors = [tf.ensure_shape(tf.io.parse_tensor(parts[at], like.dtype), like.shape) for at, like in enumerate(specs)]
        return received_element(tensors, spec)

    raw = tf.data.Dataset.from_generator(batches, output_signature=tf.TensorSpec([len(specs)], tf.string))
    return raw.map(parsed).with_options(as_it_stands())


class _OneOfSeveral(DataAdapter):  # type: ignore[misc]
    """What ranks have in common. Keras takes an adapter as it takes data."""

    _batches: int | None

    @property
    def num_batches(self) -> int | None:
        return self._batches

    @property
    def batch_size(self) -> int | None:
        return None


class HandingOut(_OneOfSeveral):
    """Rank 0's data: yields its own part of each batch, and writes those of the other ranks into `folders`."""

    def __init__(self, adapter: Any, folders: list[FeedFolder], *, batches: int | None, ahead: int) -> None:
        self._adapter, self._folders, self._batches = adapter, folders, batches
        self._passes = itertools.count()
        self._number, self._index = -1, -1  # of the pass that was begun last; an older one is over by then
        dataset = self._handed_out(adapter.get_tf_dataset())
        self._dataset = dataset.prefetch(ahead) if ahead else dataset
        form = nested_structure_coder.encode_structure(self._dataset.element_spec).SerializeToString()
        for folder in folders:
            folder.leave(FORM, form)

    def get_tf_dataset(self) -> tf.data.Dataset:
        return self._dataset

    def on_epoch_begin(self) -> None:
        self._adapter.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self._adapter.on_epoch_end()

    def _handed_out(self, data: tf.data.Dataset) -> tf.data.Dataset:
        ranks = len(self._folders) + 1

        def hand_out(number: Any, index: Any, batch: Any) -> Any:
            own_part, *other_parts = (part_of_batch(batch, rank=rank, ranks=ranks) for rank in range(ranks))
            spec = tf.nest.map_structure(tf.type_spec_from_value, own_part)
            frames = [tf.stack([tf.io.serialize_tensor(tensor) for tensor in sent_tensors(part, spec)]) for part in other_parts]
            with tf.control_dependencies([_called(self._write, number, index, *frames)]):
                return tf.nest.map_structure(lambda leaf: tf.identity(leaf) if tf.is_tensor(leaf) else leaf, own_part)

        begun = tf.data.Dataset.range(1).map(lambda _: _called(self._begin))
        # Beside the data, not around it: inside of `flat_map` a shuffle draws other seeds for its passes than in the stock `fit`.
        number = begun.flat_map(lambda n: tf.data.Dataset.from_tensors(n).repeat())
        handed = tf.data.Dataset.zip((number, tf.data.Dataset.range(2**62), data)).map(hand_out)
        end = tf.data.Dataset.range(1).flat_map(lambda _: handed.take(_called(self._end)))
        return handed.concatenate(end).with_options(as_it_stands())

    def _begin(self) -> int:
        self._number, self._index = next(self._passes), -1
        return self._number

    def _write(self, number: int, index: int, *parts: Any) -> int:
        for folder, part in zip(self._folders, parts, strict=True):
            folder.put(int(number), int(index), encode(FrameKind.BATCH, list(part)))
        self._index = int(index)
        return 0

    def _end(self) -> int:
        for folder in self._folders:
            folder.put(self._number, self._index + 1, encode(FrameKind.END))
        return 0  # so many batches are left


class Receiving(_OneOfSeveral):
    """Another rank's data: its part of each batch, as rank 0 writes it. A server ends this rank when rank 0 dies, but may be dead too."""

    def __init__(self, folder: FeedFolder, *, batches: int | None, lost: Callable[[], RankMissing | None] | None = None) -> None:
        self._folder, self._batches, self._lost = folder, batches, lost

    def get_tf_dataset(self) -> tf.data.Dataset:
        form = struct_pb2.StructuredValue.FromString(self._folder.wait_for(FORM, lost=self._lost))
        return received(self._folder, nested_structure_coder.decode_proto(form), functools.partial(self._folder.take, lost=self._lost))


def part_of_batch(batch: Any, *, rank: int, ranks: int) -> dict[str, Any]:
    """Of one global batch what `rank` has, in the graph: `batch_partition.part_of` for rows that nobody has counted."""
    first_tensor = next(leaf for leaf in tf.nest.flatten(batch) if tf.is_tensor(leaf))
    rows = tf.shape(first_tensor, out_type=tf.int64)[0]
    alone = rows < ranks
    rows_per_rank, more = rows // ranks, rows % ranks
    first = tf.where(alone, np.int64(0), rank * rows_per_rank + tf.minimum(np.int64(rank), more))
    stop = tf.where(alone, rows, first + rows_per_rank + tf.cast(rank < more, tf.int64))
    own_rows = tf.cast(stop - first, tf.float64)
    share = tf.where(alone, tf.constant(1.0 / ranks, tf.float64), own_rows / tf.cast(tf.maximum(rows, 1), tf.float64))

    def cut(x: Any) -> Any:
        if isinstance(x, tf.experimental.Optional):
            return x
        return tf.ensure_shape(x[first:stop], [None, *x.shape[1:]]) if x.shape.rank else x

    return {PART: share, ALONE: alone, DATA: tf.nest.map_structure(cut, batch)}


def _called(function: Callable[..., int], *arguments: Any) -> Any:
    """A number that Python tells while the graph runs."""
    number = tf.numpy_function(lambda *values: np.int64(function(*values)), list(arguments), tf.int64)
    number.set_shape([])
    return number
