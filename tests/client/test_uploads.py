"""Arrays as blobs: named by their bytes, recognised when they come again."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays, scalar_dtypes

from aiaas_magics.client.uploads import Sent, array_content, fingerprint, key_of
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
    sent, array = Sent(), np.zeros(5_000_000)
    sent.remember(key_of(array), hashlib.sha256(b"").hexdigest())
    assert sent.name_of(key_of(array)) is not None

    array[3_333_333] = 1e-300

    assert sent.name_of(key_of(array)) is None


def test_the_same_bytes_in_another_shape_are_another_array() -> None:
    sent = Sent()
    sent.remember(key_of(np.zeros((2, 3))), "a" * 64)

    assert sent.name_of(key_of(np.zeros((3, 2)))) is None
    assert sent.name_of(key_of(np.zeros((2, 3)))) == "a" * 64


def test_a_fingerprint_depends_on_every_part() -> None:
    data = bytearray(40 * 1024 * 1024)
    before = fingerprint(memoryview(bytes(data)))
    data[-1] = 1

    assert fingerprint(memoryview(bytes(data))) != before
