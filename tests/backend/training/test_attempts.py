"""Attempts as real processes: what a rank says, how it fails, and how another attempt goes on."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from aiaas_magics.backend.workers.local.attempt_folder import EXIT_CRASHED
from aiaas_magics.backend.workers.local.local_pool import LocalPool
from aiaas_magics.backend.workers.worker_main import EXIT_ALONE
from aiaas_magics.core.events import Checkpointed, Compiled, Crashed, EpochEnded, Finished, Measured, Notice, Phase, PhaseEntered
from aiaas_magics.core.spec import MeasureSpec
from aiaas_magics.packing.fitcall import fit_call
from tests.backend.training import ranks
from tests.backend.training.fit_cases import data, dense, table
from tests.support import shared_memory

LEFT_ALONE_S = 15.0  # far above the second that a rank needs to see that another is gone: the machine may be busy


class Slow(keras.callbacks.Callback):
    """So that there is a middle of the epoch to be killed in."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        import time

        time.sleep(0.05)


class Breaks(keras.callbacks.Callback):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        raise self.error


class OwnInterrupt(BaseException):
    """What no `except Exception` sees."""


@pytest.mark.process
def test_a_killed_rank_ends_the_others_soon_and_in_plain_words(tmp_path: Path) -> None:
    segments = shared_memory.segments()
    sent = ranks.send(tmp_path, dense("adam")(), **data(epochs=1000, callbacks=lambda: [Slow()])())
    processes = ranks.start(ranks.commands(sent, tmp_path, ranks=2))
    ranks.wait_until(lambda: [e for e in ranks.events_in(tmp_path) if isinstance(e, EpochEnded)], "no epoch ended")

    os.kill(processes[1].pid, signal.SIGKILL)
    processes[1].wait(ranks.WAIT_S)
    killed_s = time.monotonic()
    codes = ranks.finish(processes)

    assert time.monotonic() - killed_s < LEFT_ALONE_S
    assert codes == [EXIT_ALONE, -signal.SIGKILL]
    assert "worker 1 is gone (its process ended); this worker cannot go on without it" in ranks.output_of(tmp_path)
    assert not [e for e in ranks.events_in(tmp_path) if isinstance(e, Crashed | Finished)]
    shared_memory.wait_until_none_is_left(segments)


@pytest.mark.parametrize(
    ("error", "n"),
    [
        (KeyError("no such thing"), 2),
        (KeyboardInterrupt(), 1),
        pytest.param(SystemExit(3), 1, marks=pytest.mark.nightly),
        pytest.param(OwnInterrupt("so"), 1, marks=pytest.mark.nightly),
    ],
    ids=repr,
)
def test_whatever_the_users_code_raises_is_reported_with_its_own_lines(
    pool: LocalPool, tmp_path: Path, error: BaseException, n: int
) -> None:
    sent = ranks.send(tmp_path, dense("adam")(), **data(callbacks=lambda: [Breaks(error)])())

    codes = ranks.fork(pool, sent, tmp_path, ranks=n)

    assert set(codes) <= {EXIT_CRASHED, EXIT_ALONE}
    reports = [e.report for rank in range(n) for e in ranks.events_in(tmp_path, rank) if isinstance(e, Crashed)]
    assert reports
    for report in reports:
        [frame] = [frame for frame in report.frames if frame.user]
        assert (report.type, report.message, report.phase) == (type(error).__name__, str(error), "training")
        assert frame.file == __file__
        assert frame.function == "on_epoch_end"


def test_the_order_of_shuffled_rows_is_the_same_for_every_number_of_workers(pool: LocalPool, tmp_path: Path) -> None:
    one, two = dense("adam")(), dense("adam")()

    ranks.train(pool, tmp_path / "one", one, ranks=1, **data(shuffle=True)())
    ranks.train(pool, tmp_path / "two", two, ranks=2, **data(shuffle=True)())

    assert max(ranks.gaps(two.get_weights(), one.get_weights())) <= 1e-5


def test_what_a_rank_says_tells_the_whole_story(pool: LocalPool, tmp_path: Path) -> None:
    x, y = table()
    x[3] = np.nan

    ranks.train(pool, tmp_path, dense("adam")(), ranks=1, x=x, y=y, epochs=2, verbose=1)

    events = ranks.events_in(tmp_path)
    assert [e.phase for e in events if isinstance(e, PhaseEntered)] == [Phase.COMPILING, Phase.TRAINING]
    assert len([e for e in events if isinstance(e, Compiled)]) == 1
    assert [(e.epoch, e.epochs, e.logs["loss"]) for e in events if isinstance(e, EpochEnded)] == [(0, 2, "nan"), (1, 2, "nan")]
    assert [e.epoch for e in events if isinstance(e, Checkpointed)][:1] == [1]
    [notice] = [e.text for e in events if isinstance(e, Notice)]
    assert "not a number (NaN) since epoch 1" in notice
    assert "learning rate" in notice
    assert isinstance(events[-1], Finished)
    assert "Epoch" not in ranks.output_of(tmp_path)


def test_files_of_callbacks_are_rank_zeros(pool: LocalPool, tmp_path: Path) -> None:
    callbacks = [keras.callbacks.ModelCheckpoint("best.keras"), keras.callbacks.CSVLogger("log.csv")]

    ranks.train(pool, tmp_path, dense("adam")(), ranks=2, **data(callbacks=lambda: callbacks)())

    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == ["best.keras", "log.csv"]
    assert list((tmp_path / "attempt-1" / "files-1").iterdir()) == []
    assert len((tmp_path / "files" / "log.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("n", "spec"),
    [
        (1, {"plain": True}),
        pytest.param(1, {"steps": 4}, marks=pytest.mark.nightly),
        (2, {"steps": 4}),
        pytest.param(2, {"budget_s": 0.05}, marks=pytest.mark.nightly),
    ],
)
def test_a_measured_attempt_times_steady_steps(pool: LocalPool, tmp_path: Path, n: int, spec: dict[str, Any]) -> None:
    model = dense("adam")()
    sent = ranks.send(tmp_path, model, workers=n, **data(validation_split=0.1)())

    codes = ranks.fork(pool, sent, tmp_path, ranks=n, measure=MeasureSpec(**spec))

    assert codes == [0] * n, ranks.output_of(tmp_path)
    [measured] = [e for e in ranks.events_in(tmp_path) if isinstance(e, Measured)]
    assert measured.steps == spec.get("steps", measured.steps) >= 3
    assert measured.rows_per_step == 12
    assert len(measured.seconds) == 3
    assert all(seconds > 0 and math.isfinite(seconds) for seconds in measured.seconds)
    assert measured.compile_s > 0
    told = (measured.exchange_s, measured.exchanges, measured.exchange_bytes, measured.latency_s, measured.transfer_s)
    assert all(value > 0 for value in told) if n > 1 else told == (0, 0, 0, 0, 0)
    assert measured.exchange_bytes == (576 if n > 1 else 0)  # four gradients, each on an aligned address
    assert measured.exchange_s * 3 * measured.steps < sum(measured.seconds)
    result = ranks.result_in(tmp_path)
    fit_call.apply_result(result, sent.packed)
    made = int(model.optimizer.iterations.numpy()) - 3 - 3 * measured.steps
    assert made == 0 if "steps" in spec else 0 < made <= 200  # those that found out how many fill the budget
