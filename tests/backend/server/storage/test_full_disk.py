"""A state folder on a small disk of its own that fills while jobs run."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiaas_magics.backend.server.storage.quota import KeepFree, Room
from aiaas_magics.client.training.dataset_feed import Feed
from aiaas_magics.client.training.job import Job
from aiaas_magics.core import errors
from aiaas_magics.core.events import AttemptStarted, Checkpointed, EpochEnded, Output, WorkerStarted
from aiaas_magics.core.spec import JobState
from tests.backend.server.served import Served, served, until
from tests.support.small_disk import MOUNTS, full, small_disk

pytestmark = MOUNTS


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("small") / "disk"
    with small_disk(folder), served(folder / "state") as server:
        yield server


def test_a_job_that_cannot_be_recorded_is_told_in_seconds_and_goes_on_where_it_was_when_there_is_room(server: Served) -> None:
    id = server.submit({"do": "say", "text": "before\n"}, {"do": "epochs", "count": 60, "seconds": 0.1}, {"do": "say", "text": "after\n"})
    server.wait_for(id, Checkpointed)
    job = Job(server.transport, server.view(id))
    with full(server.folder.parent):
        began_s = time.monotonic()
        with pytest.raises(errors.StoreNotWritable) as told:
            job.follow()
        assert time.monotonic() - began_s < 15  # 3 s here
        assert str(server.folder) in str(told.value)
        assert "AIAAS_HOME" in str(told.value)
        assert "MB are free there" in str(told.value)
        assert "has no room" in server.view(id).reason
        with pytest.raises(errors.StoreNotWritable, match="are missing"):
            server.put(b"x" * 100)
        with pytest.raises(errors.StoreNotWritable):
            job.follow()

    assert server.result(id) == b"result of attempt 1"

    assert [event.epoch for event in server.events(id, EpochEnded)] == list(range(60))
    assert len(server.events(id, AttemptStarted)) == 1
    assert server.view(id).reason == ""


def test_a_job_is_cancelled_at_once_though_nothing_can_be_recorded(server: Served) -> None:
    id = server.submit({"do": "epochs", "count": 6000, "seconds": 0.05})
    waiting_id = server.submit(workers=None, oversubscribe=True)
    pid = server.wait_for(id, WorkerStarted)[0].pid
    with full(server.folder.parent):
        until(lambda: server.view(id).reason, "the full disk was not seen")
        began_s = time.monotonic()

        # The one that waits first: once the other has ended its devices are free, and this one would run.
        states = [Job(server.transport, server.view(job)).cancel() for job in (waiting_id, id)]

        assert set(states) <= {JobState.STOPPING, JobState.CANCELLED}
        assert time.monotonic() - began_s < 15  # 5 s here
        until(lambda: not alive(pid), "the worker lives on")
        # The reserve of the disk is for that.
        assert (server.end(id).state, server.end(waiting_id).state) == (JobState.CANCELLED, JobState.CANCELLED)

    until((server.folder / "reserve").exists, "there is no reserve for the next time")
    assert len(server.events(id, AttemptStarted)) == 1


def test_a_job_whose_first_files_find_no_room_starts_when_there_is_some(server: Served) -> None:
    before = server.submit({"do": "wait", "seconds": 2}, workers=None)
    id = server.submit({"do": "epochs", "count": 1}, retries=0, workers=None)
    server.wait_for(before, WorkerStarted)
    with full(server.folder.parent):
        until(lambda: server.view(before).reason, "the full disk was not seen")

    assert server.result(id) == b"result of attempt 1"
    assert server.result(before) == b"result of attempt 1"


READS = """
from pathlib import Path
from aiaas_magics.backend.folders.feed_folder import FeedFolder
feed = FeedFolder(Path(play.command.job_dir, "feed", "x")).made()
feed.begin(0)
print(sum(len(feed.take(0, number)) for number in range(4)) > 300_000)
"""


class Batches:
    """What a kernel streams: three batches, of which all but the first wait for `go_on`."""

    name = "x"

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.asked = 0

    def one_pass(self) -> Iterator[bytes]:
        for _ in range(3):
            yield b"x" * 100_000
            self.asked += 1
            self.go_on.wait(60)


def test_what_a_kernel_streams_waits_for_room_and_none_of_it_is_lost(server: Served) -> None:
    id = server.submit({"do": "python", "text": READS})
    batches = Batches()
    feed = Feed(server.transport, id, [batches])  # type: ignore[list-item]
    until(lambda: batches.asked == 1, "nothing was sent")
    with full(server.folder.parent):
        batches.go_on.set()
        until(lambda: server.view(id).reason, "the full disk was not seen")
        assert batches.asked == 1

    assert server.result(id) == b"result of attempt 1"
    assert feed.error is None
    assert [event.text for event in server.events(id, Output)] == ["True"]


@pytest.mark.process
def test_a_server_that_is_stopped_on_a_full_disk_leaves_no_worker(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as folder, served(folder / "state") as server:
        id = server.submit({"do": "epochs", "count": 6000, "seconds": 0.05})
        pid = server.wait_for(id, WorkerStarted)[0].pid
        with full(server.folder.parent):
            until(lambda: server.view(id).reason, "the full disk was not seen")

            assert server.stop() == 0

            assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def test_what_is_to_stay_free_is_an_amount_or_a_share() -> None:
    assert [KeepFree.parse(text).of(10**12) for text in ("2GB", "500 mb", "0", "5%")] == [2 * 10**9, 5 * 10**8, 0, 5 * 10**10]
    assert (KeepFree().of(10**12), KeepFree().of(10**9)) == (1024**3, 5 * 10**7)
    for wrong in ("", "lots", "-1", "101%", "1PB"):
        with pytest.raises(errors.InvalidSpec, match="2GB or 5%"):
            KeepFree.parse(wrong)


def test_what_is_wanted_and_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(errors.StoreNotWritable, match=r"1e\+06 GB are wanted, .* are missing"):
        Room(tmp_path).check(10**15)
    Room(tmp_path, KeepFree.parse("0")).check(1000)
