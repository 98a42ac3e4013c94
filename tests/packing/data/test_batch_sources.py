"""Data that yields batches travels as a graph, pickled, or batch by batch from the kernel; never as rows that were computed here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiaas_magics.core import feed_frames
from aiaas_magics.core.errors import CannotTravel, DataMismatch, UsageError
from aiaas_magics.core.execution import Execution
from aiaas_magics.packing.data import batch_sources
from aiaas_magics.packing.fitcall.fit_call import FitCall, PackedFitCall, pack, unpack
from tests.support.packed import Namespace

Cell = Callable[..., Namespace]

SOURCES = """
model = keras.Sequential([layers.Input((6,)), layers.Dense(1)])
model.compile('sgd', 'mse')
class Rows(keras.utils.PyDataset):
    thing = None
    def __len__(self): return 3
    def __getitem__(self, i): return x[i * 20:i * 20 + 20], y[i * 20:i * 20 + 20]
held = Rows()
held.thing = (n for n in range(3))
def generator(n=4):
    for i in range(n):
        yield x[i * 10:i * 10 + 10], y[i * 10:i * 10 + 10]
slices = tf.data.Dataset.from_tensor_slices((x, y))
"""


def packed_from(cell: Cell, source: str, workers: int = 1, **arguments: Any) -> PackedFitCall:
    made = cell(SOURCES + f"given = {source}")
    return pack(FitCall(made["model"], {"x": made["given"], "epochs": 2} | arguments), workers=workers)


@pytest.mark.parametrize(
    ("source", "way", "steps", "batch"),
    [
        ("slices.shuffle(70, seed=2).batch(16).prefetch(2)", "as a graph: ", 5, 16),
        ("slices.filter(lambda a, b: a[0] > 0).batch(16, drop_remainder=True)", "as a graph: ", 0, 16),
        ("Rows()", "pickled (Rows): ", 3, 0),
        ("held", "streamed from this kernel: ", 3, 0),
        ("generator()", "streamed from this kernel: ", 0, 0),
        ("iter([(x, y)])", "streamed from this kernel: ", 0, 0),
        ("slices.map(lambda a, b: (tf.ensure_shape(tf.numpy_function(np.abs, [a], tf.float32), [6]), b)).batch(8)", "streamed", 9, 8),
        ("tf.data.Dataset.from_generator(generator, output_signature=slices.batch(8).element_spec)", "streamed", 0, 0),
    ],
)
def test_the_manifest_says_which_way_the_data_goes(source: str, way: str, steps: int, batch: int, cell: Cell) -> None:
    packed = packed_from(cell, source)

    (item,) = packed.manifest.of_kind("dataset")
    assert item.name == "x"
    assert item.detail.startswith(way)
    assert (packed.shape.rows, packed.shape.steps_per_epoch, packed.shape.global_batch) == (0, steps, batch)
    assert [stream.name for stream in packed.streams] == (["x"] if "streamed" in way else [])
    assert any("Streamed from this kernel (x)" in note for note in packed.notes) == bool(packed.streams)
    # A run says so when it is resumed (`tests/backend/training/test_rank_callbacks.py`).
    assert not any("not exact to the bit" in note for note in packed.notes)


FILES = """
for name in 'ab':
    tf.io.write_file(f'{name}/0.png', tf.io.encode_png(np.zeros((4, 4, 3), np.uint8)))
    tf.io.write_file(f'{name}.txt', '1,2\\n3,4\\n')
with tf.io.TFRecordWriter('d.tfrecord') as writer:
    writer.write(b'6')
tf.data.Dataset.range(4).save('saved')
names = tf.data.Dataset.from_tensor_slices(['a.txt', 'b.txt'])
words = tf.lookup.TextFileInitializer('a.txt', tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER)
table = tf.lookup.StaticHashTable(words, -1)
"""


@pytest.mark.parametrize(
    ("source", "way"),
    [
        ("keras.utils.image_dataset_from_directory('.', image_size=(4, 4), verbose=False)", batch_sources.StreamedSource),
        ("tf.data.TFRecordDataset('d.tfrecord').batch(1)", batch_sources.StreamedSource),
        ("tf.data.TFRecordDataset(['d.tfrecord'], num_parallel_reads=2).batch(1)", batch_sources.StreamedSource),
        ("tf.data.TextLineDataset('a.txt').batch(1)", batch_sources.StreamedSource),
        ("tf.data.FixedLengthRecordDataset('a.txt', 4).batch(1)", batch_sources.StreamedSource),
        ("tf.data.experimental.CsvDataset('a.txt', [1.0, 2.0]).batch(2)", batch_sources.StreamedSource),
        ("tf.data.Dataset.load('saved').batch(2)", batch_sources.StreamedSource),
        ("names.interleave(tf.data.TextLineDataset).batch(2)", batch_sources.StreamedSource),
        ("names.map(lambda name: tf.cond(name == '', lambda: name, lambda: tf.io.read_file(name))).batch(1)", batch_sources.StreamedSource),
        ("names.map(tf.io.matching_files).batch(1)", batch_sources.StreamedSource),
        ("names.map(table.lookup).batch(1)", batch_sources.StreamedSource),
        ("tf.data.Dataset.list_files('*.txt').batch(1)", batch_sources.GraphSource),  # names alone, which were listed here
        ("slices.cache('cached').batch(8)", batch_sources.GraphSource),
        ("slices.batch(8).cache().repeat(2)", batch_sources.GraphSource),
    ],
)
def test_what_reads_files_is_read_where_they_are(
    source: str, way: type, cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = cell(SOURCES + FILES + f"given = {source}")

    found, stream = batch_sources.packed(made["given"], "x")

    assert isinstance(found, way)
    assert (stream is None) == (way is batch_sources.GraphSource)
    if stream is not None:
        assert list(stream.one_pass()), "this kernel finds them"


def test_arrays_tables_and_variables_of_a_dataset_travel_with_its_graph_and_large_arrays_apart(cell: Cell) -> None:
    made = cell(
        "model = keras.Sequential([layers.Input((50,)), layers.Dense(1)])\nmodel.compile('sgd', 'mse')\n"
        "large = rows.normal(size=(2000, 50)).astype('float32')\n"
        "table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([0, 1], [5.0, 7.0]), 0.0)\n"
        "scale, seen = tf.Variable(3.0), tf.Variable(0)\n"
        "def read(i):\n    seen.assign_add(1)\n    return large_there[i] * scale, table.lookup(tf.cast(i % 2, tf.int32))\n"
        "large_there = tf.constant(large)\n"
        "given = tf.data.Dataset.range(2000).map(read).batch(64)"
    )

    packed = pack(FitCall(made["model"], {"x": made["given"]}))

    assert len(packed.payload) < 60_000
    assert [array.shape for array in packed.arrays] == [(2000, 50)]
    assert int(made["seen"]) == 0, "nothing was computed here"
    assert packed.memory_bytes > packed.arrays[0].nbytes
    rebuilt = unpack(packed.payload, packed.arrays).arguments["x"].built()
    given, targets = (np.concatenate(part) for part in zip(*rebuilt.as_numpy_iterator(), strict=True))
    assert np.array_equal(given, made["large"] * np.float32(3.0))
    assert np.array_equal(targets, np.where(np.arange(2000) % 2, 7.0, 5.0))


def test_looking_into_a_generator_loses_none_of_its_batches(cell: Cell) -> None:
    made = cell(SOURCES + "given = generator()")
    call = FitCall(made["model"], {"x": made["given"]})

    pack(call)  # as a dry run does
    (stream,) = pack(call).streams

    sent = [feed_frames.decode(frame) for frame in stream.one_pass()]
    assert [kind for kind, _ in sent] == [feed_frames.FrameKind.BATCH] * 4
    import tensorflow as tf

    assert np.array_equal(np.concatenate([tf.io.parse_tensor(parts[0], tf.float32) for _, parts in sent]), made["x"][:40])


@pytest.mark.parametrize(
    ("source", "more", "told"),
    [
        ("slices", {}, "x yields single samples (float32 (6,), float32 ()), not batches. Use x.batch(32), say."),
        ("slices.batch(8).repeat()", {}, "x has no end. Give steps_per_epoch, or take() of it."),
        ("slices.batch(8)", {"y": np.ones(3)}, "y was given beside x of type _BatchDataset."),
        ("slices.batch(8)", {"validation_split": 0.2}, "validation_split needs arrays"),
        ("generator()", {"class_weight": {0: 1.0}}, "class_weight was given beside a generator"),
        ("generator(0)", {}, "x: When passing a Python generator to a Keras model, the generator must yield at least one batch."),
        ("slices.map(lambda a, b: (a[:4], b)).batch(8)", {}, "rejects this data: a batch is x (8, 4), y (8,)"),
    ],
)
def test_data_that_cannot_train_this_model_is_told_in_words_before_it_is_sent(
    source: str, more: dict[str, Any], told: str, cell: Cell
) -> None:
    with pytest.raises(DataMismatch) as caught:
        packed_from(cell, source, **more)

    assert told in str(caught.value)


def test_batches_that_are_not_dense_are_refused_where_they_are_cut(cell: Cell) -> None:
    source = "tf.data.Dataset.from_tensors((tf.sparse.from_dense(x), y))"

    with pytest.raises(CannotTravel, match="its batches hold a SparseTensor, which is not cut or sent one by one"):
        packed_from(cell, source, workers=2)


@pytest.mark.parametrize(
    ("execution", "told"),
    [(Execution(accumulate=2), "the parts of --accumulate"), (Execution(strategy="mirrored"), "--strategy collective")],
)
def test_a_way_to_train_that_takes_arrays_only_says_so(execution: Execution, told: str, cell: Cell) -> None:
    made = cell(SOURCES)

    with pytest.raises(CannotTravel, match=told):
        pack(FitCall(made["model"], {"x": made["slices"].batch(8)}), workers=2, execution=execution)


def test_a_dataset_to_validate_with_must_end_too(cell: Cell) -> None:
    made = cell(SOURCES)

    with pytest.raises(UsageError, match=r"validation_data has no end\. Give validation_steps"):
        pack(FitCall(made["model"], {**made["arguments"], "validation_data": made["slices"].batch(8).repeat()}))
