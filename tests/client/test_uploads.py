"""Arrays as blobs: named by their bytes, recognised when they come again."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays, scalar_dtypes

from aiaas_magics.client import uploads
from aiaas_magics.client.uploads import BlobSender, SentArrays, array_content, fingerprint, key_of
from aiaas_magics.core.errors import CannotTravel


@given(arrays(scalar_dtypes(), array_shapes(min_dims=1, max_dims=3)))
def test_content_is_what_numpy_saves(array: np.ndarray) -> None:
    stored = b"".join(bytes(chunk) for chunk in array_content(array).chunks())

    again = np.load(io.BytesIO(stored), allow_pickle=False)

    assert again.dtype == array.dtype
    assert again.tobytes() == array.tobytes()


def test_an_array_of_objects_is_refused_by_its_dtype() -> None:
    with pytest.raises(CannotTravel, match="dtype object"):
        array_content(np.array([object()]))


def test_one_changed_element_is_another_array() -> None:
    sent, array = SentArrays(), np.zeros(5_000_000)
    sent.remember(key_of(array), hashlib.sha256(b"").hexdigest())
    assert sent.name_of(key_of(array)) is not None

    array[3_333_333] = 1e-300

    assert sent.name_of(key_of(array)) is None


def test_the_same_bytes_in_another_shape_are_another_array() -> None:
    sent = SentArrays()
    sent.remember(key_of(np.zeros((2, 3))), "a" * 64)

    assert sent.name_of(key_of(np.zeros((3, 2)))) is None
    assert sent.name_of(key_of(np.zeros((2, 3)))) == "a" * 64


def test_a_fingerprint_depends_on_every_part() -> None:
    data = bytearray(40 * 1024 * 1024)
    before = fingerprint(memoryview(bytes(data)))
    data[-1] = 1

    assert fingerprint(memoryview(bytes(data))) != before


class RecordingTransport:
    """A backend that has nothing, and takes everything."""

    def __init__(self) -> None:
        self.uploaded: list[str] = []

    def post(self, path: str, body: Any, answer: Any, *, key: str) -> Any:
        return answer(missing=[name for name in body.blobs if f"/v1/blobs/{name}" not in self.uploaded])

    def upload(self, path: str, chunks: Iterator[bytes], *, size: int) -> None:
        assert sum(len(chunk) for chunk in chunks) == size
        self.uploaded.append(path)


def test_an_array_is_read_once_to_be_recognised_however_often_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprints: list[int] = []
    monkeypatch.setattr(uploads, "fingerprint", lambda data: fingerprints.append(data.nbytes) or fingerprint(data))
    transport, array = RecordingTransport(), np.arange(1000.0)
    blobs = BlobSender(transport, dropbox=None)

    looked_up = blobs.look_up([array])
    first, second = blobs.send_arrays(looked_up), blobs.send_arrays(looked_up)  # a study sends the same call for each number of workers

    assert [upload.is_there for upload in looked_up] == [False]
    assert first == second
    assert transport.uploaded == [f"/v1/blobs/{first[0]}"]
    assert fingerprints == [array.nbytes]
    assert [upload.is_there for upload in blobs.look_up([array])] == [True]
