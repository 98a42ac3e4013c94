"""Recording: the policy as it is typed, and frames that survive being cut off."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.recorded_arrays import array_of, tensor_of
from aiaas_magics.core.recording import RecordedRequest, RecordingPolicy, frame_of, policy_of, requests_in


def a_request(id: str = "a", *, array: np.ndarray | None = None) -> RecordedRequest:
    tensor = tensor_of("x", np.ones((2, 3), "float32") if array is None else array)
    return RecordedRequest(1.5, 1, id, 2, 2, (tensor,), (tensor,))


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("1%", RecordingPolicy(share=0.01)),
        ("0.5", RecordingPolicy(share=0.5)),
        ("100%", RecordingPolicy(share=1.0)),
        ("5%,256MB", RecordingPolicy(share=0.05, most_bytes=256_000_000)),
        ("5%,7d,2gb", RecordingPolicy(share=0.05, most_bytes=2_000_000_000, most_age_s=604_800)),
        ("off", RecordingPolicy()),
    ],
)
def test_a_policy_is_read_as_it_is_typed(text: str, policy: RecordingPolicy) -> None:
    assert policy_of(text) == policy


@pytest.mark.parametrize("text", ["", "0", "0%", "101%", "1.5", "-1%", "nan", "1%,", "1%,256", "1%,7w", "on", "1%,64KB", "1%,1s"])
def test_what_is_no_policy_is_refused_with_the_next_move(text: str) -> None:
    with pytest.raises(InvalidSpec, match="Use "):
        policy_of(text)


def test_bounds_that_are_not_typed_stay_as_they_were() -> None:
    before = policy_of("1%,256MB,7d")

    assert policy_of("5%", before) == RecordingPolicy(share=0.05, most_bytes=256_000_000, most_age_s=604_800)
    assert policy_of("off", before).most_age_s == 604_800


@given(st.lists(st.text(max_size=8), max_size=5), st.integers(0, 400))
def test_what_is_cut_off_costs_no_more_than_the_last_request(ids: Sequence[str], at: int) -> None:
    frames = [frame_of(a_request(id)) for id in ids]
    data = b"".join(frames)[:at]

    whole, size = [], 0
    for id, frame in zip(ids, frames, strict=True):
        size += len(frame)
        if size <= len(data):
            whole.append(id)
    assert [request.id for request, _ in requests_in(data)] == whole


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_byte_is_never_read_as_a_request(place: int, change: int) -> None:
    data = bytearray(frame_of(a_request("first")) + frame_of(a_request("second")))
    data[place % len(data)] ^= change

    for request, _ in requests_in(bytes(data)):
        assert request in (a_request("first"), a_request("second"))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype="int64").reshape(2, 3),
        np.array([[True], [False]]),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(["", "ü", "a b"], object),
        np.zeros((0, 4), "float16"),
    ],
)
def test_arrays_come_back_as_they_were(array: np.ndarray) -> None:
    again = array_of(tensor_of("x", array))

    assert again.shape == array.shape
    assert again.dtype == array.dtype
    assert (again == array).all()
