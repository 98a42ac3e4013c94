"""Data that yields batches, in all the forms that plain `fit` takes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras.src.legacy.preprocessing.image import ImageDataGenerator

from aiaas_magics.client.training.dataset_feed import Feed
from aiaas_magics.core.errors import DataMismatch
from aiaas_magics.core.feed_frames import FeedView, FrameKind, decode
from aiaas_magics.packing.data import batch_sources
from tests.same_code.fits import fit

random = np.random.default_rng(1)
X = random.normal(size=(40, 3)).astype("float32")
Y = X[:, :1] - X[:, 1:2]
IMAGES = random.normal(size=(36, 4, 4, 1)).astype("float32")
TEXTS = np.array(["red green", "blue", "green", "blue red"] * 10)


class Add(layers.Layer):  # type: ignore[misc]
    def call(self, a: Any, b: Any = None) -> Any:
        return a if b is None else a + b


def columns() -> Any:
    a, c = keras.Input((1,), name="a"), keras.Input((1,), name="c")
    return keras.Model({"a": a, "c": c}, layers.Dense(1)(layers.Concatenate()([a, c])))


def batches_of_columns() -> Any:
    return tf.data.Dataset.from_tensor_slices(({"a": X[:, 0], "c": X[:, 1]}, Y[:, 0])).batch(8)


def texts() -> Any:
    words = keras.Input((1,), dtype="string")
    vocabulary = layers.TextVectorization(vocabulary=["red", "green", "blue"], output_mode="multi_hot")
    return keras.Model(words, layers.Dense(1)(vocabulary(words)))


def batches_of_texts() -> Any:
    return tf.data.Dataset.from_tensor_slices((TEXTS, Y)).batch(8)


def images() -> Any:
    return keras.Sequential([layers.Input((4, 4, 1)), layers.Flatten(), layers.Dense(1)])


def flow() -> Any:
    return ImageDataGenerator(rescale=2.0).flow(IMAGES, Y[:36], batch_size=8, shuffle=False)


def optional() -> Any:
    a, b = keras.Input((3,), name="x"), keras.Input((3,), name="o", optional=True)
    return keras.Model({"x": a, "o": b}, layers.Dense(1)(Add()(a, b)))


def with_none() -> Iterator[Any]:
    for _ in range(4):
        yield {"o": None, "x": X[:8]}, Y[:8]


CASES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "columns": (columns, batches_of_columns),
    "texts": (texts, batches_of_texts),
    "ImageDataGenerator.flow": (images, flow),
    "None for an optional input": (optional, with_none),
}


@pytest.mark.parametrize("case", CASES)
def test_data_that_yields_batches_trains_as_in_plain_fit(case: str, tmp_path: Path) -> None:
    make, data = CASES[case]
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        models.append(make())
        models[-1].compile("sgd", "mse")
    plain, ours = models
    more = {"epochs": 1, "steps_per_epoch": 4} if case.startswith("None") else {"epochs": 2}
    expected = plain.fit(data(), **more, shuffle=False, verbose=0).history["loss"]
    if case.startswith("Image"):
        source, _ = batch_sources.packed(flow(), "x")
        assert source.batches == 5, "and not without an end"

    history = fit(tmp_path, ours, x=data(), **more, shuffle=False).history["loss"]

    np.testing.assert_allclose(history, expected, rtol=1e-5)


def changing() -> batch_sources.Stream:
    def batches() -> Iterator[Any]:
        for width in (16, 16, 24):
            rows = np.ones((10, width, 8), "float32")
            yield rows, rows[:, 0, :1]

    _, stream = batch_sources.packed(batches(), "x")
    assert stream is not None
    return stream


def test_a_generator_whose_batches_change_their_size_is_told_with_the_sizes() -> None:
    stream = changing()

    with pytest.raises(DataMismatch, match=r"A batch of x is float32 \(10, 24, 8\).*the first ones were float32 \(None, 16, 8\)") as caught:
        list(stream.one_pass())

    assert "must differ between the first two batches" in str(caught.value)
    assert "(x, y, weights)" not in str(caught.value)


class Recorder:
    """A job that asks for one pass, and keeps what it is sent."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.failed = threading.Event()

    def put(self, path: str, frame: bytes, _: Any) -> FeedView:
        self.frames.append(frame)
        if decode(frame)[0] is FrameKind.FAILED:
            self.failed.set()
        return self.view()

    def get(self, path: str, _: Any, **__: Any) -> FeedView:
        return self.view()

    def view(self) -> FeedView:
        return FeedView(reading=0, waiting=0, open=not self.failed.is_set())


def test_a_job_hears_at_once_that_a_batch_does_not_fit() -> None:
    recorder = Recorder()

    feed = Feed(recorder, "1", [changing()])  # type: ignore[arg-type]

    assert recorder.failed.wait(30.0), "it would wait for 60 s else"
    kind, parts = decode(recorder.frames[-1])
    assert kind is FrameKind.FAILED
    assert b"A batch of x is float32 (10, 24, 8)" in parts[0]
    assert isinstance(feed.error, DataMismatch)


def test_single_samples_are_still_told_from_batches() -> None:
    for data in (tf.data.Dataset.from_tensor_slices((X, Y)), tf.data.Dataset.from_tensor_slices((X[:, 0], Y[:, 0]))):
        with pytest.raises(DataMismatch, match="yields single samples"):
            batch_sources.check(data, "x", steps_name="steps_per_epoch", steps=None, declared=[(None, 3)])
