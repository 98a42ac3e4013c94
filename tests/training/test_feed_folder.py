"""A batch is waited for as long as somebody may send it, and no longer."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiaas_magics.backend.feed_folder import FeedFolder, SenderSilent

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
