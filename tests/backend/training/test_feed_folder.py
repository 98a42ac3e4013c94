"""A batch is waited for as long as somebody may send it, and no longer."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tensorflow as tf

from aiaas_magics.backend.folders.feed_folder import FeedFolder, SenderSilent
from aiaas_magics.backend.training.comm.process_group import RankMissing
from aiaas_magics.backend.training.comm.shared_memory_group import SharedMemoryGroup
from aiaas_magics.backend.training.tensorflow import rank_datasets
from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.backend.workers.worker_main import missing_rank
from aiaas_magics.packing.data.batch_sources import packed
from tests.backend.training.ranks import ROOT

SILENT_S = 1.0


@contextlib.contextmanager
def heard_of(folder: FeedFolder, *, sends_after_s: float) -> Iterator[None]:
    """A sender that says twenty times a second that it is there, and sends in the end."""

    def send() -> None:
        began = time.monotonic()
        while time.monotonic() - began < sends_after_s:
            folder.touch()
            time.sleep(0.05)
        folder.put(0, 0, b"a frame")

    thread = threading.Thread(target=send)
    thread.start()
    yield
    thread.join()


@pytest.mark.parametrize("by_s", [3600.0, -3600.0])
def test_a_clock_that_is_set_while_a_batch_is_waited_for_is_no_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_s: float
) -> None:
    folder, now = FeedFolder(tmp_path), time.time
    steps_s = time.monotonic() + 0.3  # the times of files are the machine's own, as if another had set it
    monkeypatch.setattr(time, "time", lambda: now() + (by_s if time.monotonic() > steps_s else 0.0))

    with heard_of(folder, sends_after_s=2 * SILENT_S):
        assert folder.take(0, 0, silent_s=SILENT_S) == b"a frame"


def test_whoever_is_not_heard_of_is_silent_whatever_the_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, now = FeedFolder(tmp_path), time.time
    folder.touch()
    monkeypatch.setattr(time, "time", lambda: now() - 3600)
    began = time.monotonic()

    with pytest.raises(SenderSilent):
        folder.take(0, 0, silent_s=SILENT_S)

    assert time.monotonic() - began >= SILENT_S


def test_what_a_lost_sender_wrote_before_its_end_is_read_and_nothing_is_waited_for_after_that(tmp_path: Path) -> None:
    folder = FeedFolder(tmp_path)

    def lost() -> Exception:
        if not folder.reading:
            folder.put(0, 0, b"the last one")
        return RuntimeError("it is gone")

    folder.begin(0)
    assert folder.take(0, 0, lost=lost) == b"the last one"
    folder.begin(1)
    with pytest.raises(RuntimeError, match="it is gone"):
        folder.take(1, 0, lost=lost)


@pytest.mark.process
def test_a_rank_does_not_wait_for_batches_of_a_rank_0_whose_process_is_gone(tmp_path: Path) -> None:
    source, _ = packed(tf.data.Dataset.range(20).map(lambda i: (i, i)).batch(6), "x")
    command = {"job": "j", "attempt": 1, "ranks": 2, "attempt_dir": str(tmp_path), "job_dir": str(tmp_path), "payload": "", "arrays": ()}
    first, second = (WorkerCommand(rank=rank, seed=1, reduce_name="", **command) for rank in range(2))
    name = f"aiaas-test-{secrets.token_hex(4)}"
    script = str(Path(__file__).parent / "comm" / "group_rank.py")
    arguments = [sys.executable, script, "0", "2", name, str(tmp_path), "dies"]
    with (
        subprocess.Popen(arguments, env={"PYTHONPATH": str(ROOT), "PATH": ""}) as rank_0,
        SharedMemoryGroup(rank=1, ranks=2, name=name, folder=tmp_path, spin=False) as group,
    ):
        assert rank_0.wait(60) == 9

        with rank_datasets.opened({"x": source}, second, group=group) as given, pytest.raises(RankMissing, match="worker 0 is gone"):
            given["x"].get_tf_dataset()
        with (
            rank_datasets.opened({"x": source}, first),  # it dies after it has said what will come
            rank_datasets.opened({"x": source}, second, group=group) as given,
            pytest.raises(tf.errors.OpError) as raised,
        ):
            list(given["x"].get_tf_dataset())

    assert "worker 0 is gone" in (missing_rank(raised.value) or "")
