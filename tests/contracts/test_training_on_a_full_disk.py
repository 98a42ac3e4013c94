"""A real training whose disk fills, and has room again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import pytest

import aiaas_magics
from aiaas_magics.core import errors
from tests.contracts.recipes import server_by_hand, small_model, table
from tests.support import waiting
from tests.support.small_disk import MOUNTS, small_disk

# Starting a server whose launcher imports TensorFlow takes 6 s here, and more on a busy machine.
pytestmark = [MOUNTS, pytest.mark.nightly]


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[aiaas_magics.Backend]:
    with (
        small_disk(tmp_path / "disk", megabytes=60) as disk,
        server_by_hand(disk) as (url, token),
        aiaas_magics.connect(url, token) as backend,
    ):
        yield backend


class FillsFor(keras.callbacks.Callback):  # type: ignore[misc]
    """Fills the disk that it writes to for some epochs."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__()
        self.first, self.last = first, last

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        time.sleep(0.2)
        print("epoch", epoch)
        if epoch == self.first:
            descriptor = os.open("large.bin", os.O_WRONLY | os.O_CREAT)
            try:
                while True:
                    os.write(descriptor, b"x" * 4096)
            except OSError:
                os.close(descriptor)
        if epoch == self.last:
            Path("large.bin").unlink()


class TooLarge(keras.callbacks.Callback):  # type: ignore[misc]
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        Path(f"{epoch}.bin").write_bytes(b"x" * 25_000_000)


def test_a_training_goes_on_over_a_full_disk_and_is_told_of_it(
    backend: aiaas_magics.Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = table()
    job = backend.train(small_model(), x, y, epochs=40, callbacks=[FillsFor(3, 25)])

    with pytest.raises(errors.StoreNotWritable, match="AIAAS_HOME"):
        job.result(120)

    waiting.until(lambda: job.state.final, "it did not go on", 120)
    assert len(job.result(30).history["loss"]) == 40
    assert job.view().attempt == 1
    assert ["left out" in text or "written again" in text for text in job.story().notices].count(True) == 2


def test_a_callback_that_fills_the_disk_for_good_is_told_as_that_and_the_job_can_be_cancelled(
    backend: aiaas_magics.Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = table()
    job = backend.train(small_model(), x, y, epochs=10, callbacks=[TooLarge()])

    with pytest.raises(errors.StoreNotWritable, match="AIAAS_HOME"):
        job.result(120)

    job.cancel()
    waiting.until(lambda: job.state.final, "it was not recorded that it was cancelled", 60)
