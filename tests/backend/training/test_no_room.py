"""A rank on a disk that is full: it goes on, and what it had to say is there when there is room."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiaas_magics.backend.folders.feed_folder import FeedFolder
from aiaas_magics.backend.training.autotune.compile_policy import FORMS
from aiaas_magics.backend.training.checkpoint.checkpoint_contents import write
from aiaas_magics.backend.training.event_channel import FileChannel
from aiaas_magics.backend.training.worker_command import WorkerLine
from aiaas_magics.backend.workers import worker_main
from aiaas_magics.backend.workers.local.attempt_folder import AttemptFolder
from aiaas_magics.backend.workers.rank_output import text_output
from aiaas_magics.core import wire
from aiaas_magics.core.errors import StoreNotWritable
from aiaas_magics.core.events import Finished, Notice
from aiaas_magics.core.timing_cache import StepTiming, TimingCache
from tests.backend.training.checkpoint.test_checkpoints import checkpoint
from tests.support.small_disk import MOUNTS, full, small_disk

pytestmark = [MOUNTS, pytest.mark.process]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[AttemptFolder]:
    """An attempt's folder in a state folder on a disk of one MB."""
    with small_disk(tmp_path / "state", megabytes=1) as disk:
        path = disk / "jobs" / "1" / "attempt-1"
        path.mkdir(parents=True)
        yield AttemptFolder(path)


def disk_of(folder: AttemptFolder) -> Path:
    return worker_main.state_of(folder)


def said(folder: AttemptFolder) -> list[str]:
    lines = [wire.decode(line, WorkerLine).event for line in folder.events(0).read_bytes().splitlines()]
    return [line.text if isinstance(line, Notice) else type(line).__name__ for line in lines]


def test_events_wait_in_memory_and_come_whole_and_in_order(folder: AttemptFolder) -> None:
    channel = FileChannel(folder.events(0))
    channel.send(Notice(text="before"))
    texts = [f"{number}: {'x' * 500}" for number in range(100)]
    with full(disk_of(folder)):
        for text in texts:
            channel.send(Notice(text=text))
        assert len(said_so_far(folder)) < 20

    channel.send(Notice(text="after"))

    assert said(folder) == ["before", *texts, "after"]


def said_so_far(folder: AttemptFolder) -> list[bytes]:
    return folder.events(0).read_bytes().splitlines()


def test_the_last_word_waits_for_room(folder: AttemptFolder) -> None:
    channel = FileChannel(folder.events(0))
    with full(disk_of(folder)):
        for _ in range(20):
            channel.send(Notice(text="x" * 500))
        last = threading.Thread(target=channel.send, args=(Finished(),))
        last.start()
        last.join(0.5)
        assert last.is_alive()

    last.join(30)

    assert said(folder) == ["x" * 500] * 20 + ["Finished"]


def test_more_than_may_be_kept_waits_for_room(folder: AttemptFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiaas_magics.backend.training.event_channel.WAITING_BYTES", 2000)
    channel = FileChannel(folder.events(0))
    with full(disk_of(folder)):
        sends = threading.Thread(target=lambda: [channel.send(Notice(text="x" * 1000)) for _ in range(20)])
        sends.start()
        sends.join(0.5)
        assert sends.is_alive()

    sends.join(30)

    assert said(folder) == ["x" * 1000] * 20


def test_a_line_that_is_printed_without_room_is_lost_and_raises_nothing(folder: AttemptFolder) -> None:
    descriptor = os.open(folder.output(0), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    output = text_output(descriptor)
    print("before", file=output)
    with full(disk_of(folder)):
        print("x" * 1_000_000, file=output)

    print("after", file=output)
    os.close(descriptor)

    lines = folder.output(0).read_text().splitlines()
    assert lines[0] == "before"
    assert lines[-1].endswith("after")


def test_a_checkpoint_that_finds_no_room_leaves_those_before_as_they_are(folder: AttemptFolder) -> None:
    kept = write(folder.path / "checkpoints", checkpoint(1))
    with full(disk_of(folder)), pytest.raises(OSError, match="No space left"):
        write(folder.path / "checkpoints", checkpoint(2))

    assert list((folder.path / "checkpoints").iterdir()) == [kept]


def test_a_result_waits_for_room_and_says_so_and_is_refused_in_the_end(folder: AttemptFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_main, "ROOM_LOOK_S", 0.05)
    channel = FileChannel(folder.events(0))

    def write_one(path: Path) -> None:
        partial = path.with_name(f".{path.name}.1.part")
        partial.write_bytes(b"x" * 100_000)
        partial.replace(path)

    with full(disk_of(folder)):
        waits = threading.Thread(target=worker_main.keep_result, args=(folder, write_one, channel))
        waits.start()
        waits.join(0.5)
        assert waits.is_alive()
    waits.join(30)
    assert folder.result.stat().st_size == 100_000

    monkeypatch.setattr(worker_main, "RESULT_WAIT_S", 0.2)
    with full(disk_of(folder)), pytest.raises(StoreNotWritable, match="No space left on device") as told:
        worker_main.keep_result(folder, write_one, channel)

    assert str(disk_of(folder)) in str(told.value)
    channel.send(Notice(text="end"))
    assert any("waits for room on the disk of" in text for text in said(folder))


def test_batches_for_another_rank_and_a_new_pass_wait_for_room(folder: AttemptFolder) -> None:
    feed = FeedFolder(folder.path / "feed").made()
    with full(disk_of(folder)):
        sends = threading.Thread(target=lambda: (feed.begin(3), feed.put(3, 0, b"x" * 10_000)))
        sends.start()
        sends.join(0.5)
        assert sends.is_alive()

    sends.join(30)

    assert (feed.reading, feed.take(3, 0)) == (3, b"x" * 10_000)


def test_what_was_measured_is_forgotten_without_room_and_read_from_plain_files_only(folder: AttemptFolder) -> None:
    cache = TimingCache(folder.path / "choices")
    timings = tuple(StepTiming(engine="e", strategy="s", fused=form, step_s=1.0, compile_s=1.0) for form in sorted(FORMS))
    with full(disk_of(folder)):
        cache.put("a", timings)
    assert cache.get("a") == ()
    cache.put("a", timings)
    assert cache.get("a") == timings
    os.mkfifo(folder.path / "choices" / "b.json")
    (folder.path / "choices" / "c.json").symlink_to("a.json")

    assert cache.get("b") == cache.get("c") == ()


def test_only_the_state_folders_own_disk_is_told_as_full(folder: AttemptFolder) -> None:
    here, there = (OSError(28, "No space left on device", name) for name in (str(folder.path / "a"), "/mnt/other/a"))

    assert worker_main.is_of_state(here, folder)
    assert worker_main.is_of_state(OSError(28, "No space left on device", "relative"), folder)
    assert worker_main.is_of_state(RuntimeError("safetensors: I/O error: No space left on device (os error 28)"), folder)
    assert not worker_main.is_of_state(there, folder)
    assert not worker_main.is_of_state(OSError(2, "no such file"), folder)
