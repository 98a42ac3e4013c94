"""Recording in the inference process: what is chosen, its bounds, and files that stay whole."""

from __future__ import annotations

import asyncio
import os
import random
import stat
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from aiaas_magics.backend.folders import record_folder
from aiaas_magics.backend.folders.record_folder import RecordFolder, newest_frames
from aiaas_magics.backend.serving.models import recorder as recorders
from aiaas_magics.backend.serving.models.recorder import ChosenRequest, Recorder, Recordings, recorded
from aiaas_magics.core.recorded_arrays import array_of, tensor_of
from aiaas_magics.core.recording import MB, RecordedRequest, RecordingPolicy, frame_of, requests_in

EVERY = RecordingPolicy(share=1.0)


def arrays(value: float, rows: int = 1, columns: int = 2) -> dict[str, np.ndarray]:
    return {"x": np.full((rows, columns), value, "float32")}


def offer(recorder: Recorder, value: float = 0.0, rows: int = 1, columns: int = 2) -> None:
    recorder.offer(1, arrays(value, rows, columns), arrays(-value, rows), rows=rows, id=None)


def framed(time_s: float, nbytes: int) -> tuple[RecordedRequest, bytes]:
    request = RecordedRequest(time_s, 1, str(time_s), 1, 1, (tensor_of("x", np.zeros((1, nbytes), "uint8")),), ())
    return request, frame_of(request)


def in_folder(path: Path) -> list[RecordedRequest]:
    return [request for part in newest_frames(path, most_bytes=10**9) for request, _ in requests_in(part)]


# --------------------------------------------------------------------------- choosing


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1.0])
def test_as_many_requests_are_chosen_as_the_share_says(share: float) -> None:
    recorder = Recorder(RecordingPolicy(share=share), draw=random.Random(1).random)
    chosen = 0

    for _ in range(20_000):
        offer(recorder)
        chosen += len(recorder.take())

    deviation = (20_000 * share * (1 - share)) ** 0.5
    assert abs(chosen - 20_000 * share) <= 4 * deviation


def test_requests_that_are_answered_together_are_chosen_one_by_one_with_their_own_rows() -> None:
    recorder = Recorder(RecordingPolicy(share=0.2), draw=random.Random(2).random)
    chance, chosen, count = random.Random(3), list[ChosenRequest](), 0

    for _ in range(2_000):
        rows = [chance.randint(1, 3) for _ in range(chance.randint(1, 9))]
        count += len(rows)
        ids = np.repeat(np.arange(len(rows)), rows)[:, None]
        if not recorder.passes_over(len(rows)):
            recorder.offer_batch(1, {"x": ids}, {"y": ids}, rows)
        for request in recorder.take():
            assert len(request.inputs["x"]) == request.rows == rows[request.inputs["x"][0, 0]]
            assert len(set(request.inputs["x"].ravel())) == 1
            chosen.append(request)

    assert abs(len(chosen) - 0.2 * count) <= 4 * (count * 0.16) ** 0.5


def test_a_flood_is_bounded_in_memory_and_what_is_dropped_is_counted() -> None:
    recorder = Recorder(EVERY)

    for _ in range(10_000):
        offer(recorder)
    assert len(recorder.take()) == recorders.WAITING
    assert recorder.counts.dropped == 10_000 - recorders.WAITING

    for _ in range(100):
        offer(recorder, rows=1, columns=2**20)  # 4 MB each
    waiting = recorder.take()
    assert sum(array.nbytes for request in waiting for array in request.inputs.values()) <= recorders.WAITING_BYTES
    assert len(waiting) < 10


def test_a_small_part_of_a_large_batch_does_not_keep_the_batch() -> None:
    recorder, batch = Recorder(EVERY), np.zeros((10_000, 100), "float32")

    recorder.offer_batch(1, {"x": batch}, {"y": batch}, [1] * 5)

    assert all(array.base is None for request in recorder.take() for array in (*request.inputs.values(), *request.outputs.values()))


def test_of_a_large_request_rows_are_kept_evenly_and_the_answers_are_theirs() -> None:
    x = np.arange(5_000, dtype="float32")[:, None]

    request = recorded(ChosenRequest(0.0, 1, "mine", 5_000, {"x": x}, {"y": -x}), MB)

    assert request is not None
    assert (request.id, request.rows, request.rows_of) == ("mine", recorders.MOST_ROWS, 5_000)
    rows = array_of(request.inputs[0])[:, 0]
    assert (np.diff(rows) > 0).all()
    assert rows.min() < 40
    assert rows.max() > 4_900
    assert (array_of(request.outputs[0])[:, 0] == -rows).all()


def test_a_row_that_is_larger_than_a_file_is_not_kept_and_counted(tmp_path: Path) -> None:
    async def told() -> int:
        recordings = Recordings(tmp_path)
        recorder = await recordings.apply("churn", RecordingPolicy(share=1.0, most_bytes=MB))
        assert recorder is not None
        offer(recorder, columns=100_000)
        offer(recorder)
        return (await recordings.counts("churn")).too_large

    assert asyncio.run(told()) == 1
    assert len(in_folder(tmp_path / "churn")) == 1


# --------------------------------------------------------------------------- files


def test_off_means_no_file_at_all(tmp_path: Path) -> None:
    async def run() -> None:
        recordings = Recordings(tmp_path / "recorded")
        assert await recordings.apply("churn", RecordingPolicy()) is None
        await recordings.flush()
        assert (await recordings.counts("churn")).requests == 0

    asyncio.run(run())

    assert list(tmp_path.iterdir()) == []


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    folder = RecordFolder(tmp_path / "recorded" / "churn")

    folder.append([framed(0.0, 10)], EVERY)

    (file,) = folder.path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_the_oldest_make_room_and_the_size_is_never_beyond_its_bound(tmp_path: Path) -> None:
    folder, policy = RecordFolder(tmp_path / "churn"), RecordingPolicy(share=1.0, most_bytes=MB)

    for second in range(0, 400, 4):
        folder.append([framed(float(second + more), 5_000) for more in range(4)], policy)
        assert sum(path.stat().st_size for path in folder.path.iterdir()) <= MB

    times = [request.time_s for request in in_folder(folder.path)]
    assert times == sorted(times)
    assert times[-1] == 399.0
    assert 180 <= len(times) <= 200  # 5 kB each, and a sixteenth goes at once


def test_nothing_is_kept_beyond_its_age(tmp_path: Path) -> None:
    folder, policy = RecordFolder(tmp_path / "churn"), RecordingPolicy(share=1.0, most_age_s=3_600)
    for minute in range(120):
        folder.append([framed(60.0 * minute, 10)], policy)

    folder.sweep(policy, 60.0 * 119)

    times = [request.time_s for request in in_folder(folder.path)]
    assert min(times) >= 60.0 * 59
    assert len(times) >= 55  # a sixteenth of the hour may go early
    folder.sweep(policy, 60.0 * 600)
    assert in_folder(folder.path) == []


def test_what_is_too_old_goes_though_nothing_more_is_recorded(tmp_path: Path) -> None:
    folder = RecordFolder(tmp_path / "churn")
    folder.append([framed(time.time() - 3_700, 10), framed(time.time() - 3_500, 10)], EVERY)

    async def start() -> None:
        await Recordings(tmp_path).apply("churn", RecordingPolicy(most_age_s=3_600))  # off, and a process begins

    asyncio.run(start())

    assert in_folder(folder.path) == []


def test_a_file_that_was_cut_off_loses_its_last_request_and_the_next_process_begins_another(tmp_path: Path) -> None:
    folder = RecordFolder(tmp_path / "churn")
    folder.append([framed(1.0, 10), framed(2.0, 10), framed(3.0, 10)], EVERY)
    (file,) = folder.path.iterdir()
    os.truncate(file, file.stat().st_size - 3)

    again = RecordFolder(tmp_path / "churn")
    again.append([framed(4.0, 10)], EVERY)

    assert [request.time_s for request in in_folder(again.path)] == [1.0, 2.0, 4.0]
    assert sum(file.requests for file in again.files) == 3


def test_a_full_disk_costs_requests_that_are_counted_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> tuple[int, int]:
        recordings = Recordings(tmp_path)
        recorder = await recordings.apply("churn", EVERY)
        assert recorder is not None
        with monkeypatch.context() as full:
            full.setattr(record_folder, "open_record", lambda path: open("/dev/full", "ab", buffering=0))  # noqa: SIM115
            offer(recorder)
            lost = (await recordings.counts("churn")).dropped
        offer(recorder)
        return lost, (await recordings.counts("churn")).requests

    assert asyncio.run(run()) == (1, 1)


def test_the_newest_requests_are_read_up_to_so_many_bytes(tmp_path: Path) -> None:
    folder, policy = RecordFolder(tmp_path / "churn"), RecordingPolicy(share=1.0, most_bytes=MB)
    frames = [framed(float(second), 5_000) for second in range(100)]
    folder.append(frames, policy)

    parts = newest_frames(folder.path, most_bytes=10 * len(frames[0][1]) + 10)

    assert [request.time_s for part in parts for request, _ in requests_in(part)] == [float(second) for second in range(90, 100)]


def test_an_endpoint_that_is_gone_leaves_nothing_and_the_folders_of_others_stay(tmp_path: Path) -> None:
    async def run() -> None:
        recordings = Recordings(tmp_path)
        for name in ("churn", "other"):
            recorder = await recordings.apply(name, EVERY)
            assert recorder is not None
            offer(recorder)
        await recordings.flush()
        await recordings.drop("churn")

    asyncio.run(run())

    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    Recordings(tmp_path).keep_only(["churn"])
    assert list(tmp_path.iterdir()) == []


def test_forgetting_removes_what_waits_too_and_recording_goes_on(tmp_path: Path) -> None:
    async def run() -> Sequence[int]:
        recordings = Recordings(tmp_path)
        recorder = await recordings.apply("churn", EVERY)
        assert recorder is not None
        offer(recorder, 1.0)
        await recordings.flush()
        offer(recorder, 2.0)
        await recordings.forget("churn")
        nothing = (await recordings.counts("churn")).requests
        offer(recorder, 3.0)
        return nothing, (await recordings.counts("churn")).requests

    assert asyncio.run(run()) == (0, 1)
    (request,) = in_folder(tmp_path / "churn")
    assert array_of(request.inputs[0])[0, 0] == 3.0


def test_what_cannot_be_recorded_is_nobodys_fault_and_the_next_request_is_recorded() -> None:
    recorder, odd = Recorder(EVERY), {"x": np.array([[object()]], object)}  # an engine's output that is no text

    recorder.offer(1, odd, odd, rows=1, id=None)
    recorder.offer_batch(1, odd, odd, [1])
    offer(recorder, 1.0)

    assert [request.inputs["x"][0, 0] for request in recorder.take()] == [1.0]
