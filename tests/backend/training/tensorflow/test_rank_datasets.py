"""Data that yields batches gives n processes the very rows that it gives plain `fit`, each once, in the same order."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from aiaas_magics.backend.folders.feed_folder import FeedFolder
from aiaas_magics.backend.training import batch_partition
from aiaas_magics.backend.training.run import keeping_whole_epochs
from aiaas_magics.backend.training.tensorflow import rank_datasets
from aiaas_magics.backend.training.tensorflow.parallel.hooks import ALONE, DATA, PART
from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.backend.workers.local.launcher_client import LauncherClient
from aiaas_magics.core import feed_frames
from aiaas_magics.core.errors import DataEnded
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.row_order import rows_of
from aiaas_magics.packing.data.batch_sources import Stream, packed
from aiaas_magics.packing.fitcall import fit_call
from tests.backend.training import ranks
from tests.backend.training.feed_cases import CASES, FEW, model


@contextlib.contextmanager
def kernel(streams: Sequence[tuple[Stream, Path]]) -> Iterator[None]:
    """A kernel that iterates; the files are written here instead of by a server."""
    over = threading.Event()

    def send(stream: Stream, folder: FeedFolder) -> None:
        done = -1
        while not over.wait(0.01):
            folder.touch()
            if folder.reading > done:
                done = folder.reading
                send_pass(stream, folder, done)

    def send_pass(stream: Stream, folder: FeedFolder, number: int) -> None:
        index = -1
        for index, frame in enumerate(stream.one_pass()):
            while folder.waiting() > 3:
                if over.wait(0.01) or folder.reading != number:
                    return
            folder.put(number, index, frame)
        folder.put(number, index + 1, feed_frames.encode(feed_frames.FrameKind.END))

    threads = [threading.Thread(target=send, args=(stream, FeedFolder(path).made())) for stream, path in streams]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


@functools.cache
def plain(name: str) -> tuple[list[Any], dict[str, Any]]:
    trained = model()
    history = trained.fit(**CASES[name](), verbose=0).history
    return trained.get_weights(), history


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Your input ran out of data", "ignore:`shuffle=True` was passed")
@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.nightly), 2, pytest.param(3, marks=pytest.mark.nightly)])
def test_all_kinds_of_data_give_the_weights_and_the_history_of_plain_fit(n: int, cases: LauncherClient, tmp_path: Path) -> None:
    sent: dict[str, ranks.Sent] = {}
    files: list[list[Path]] = [[] for _ in range(n)]
    streams = []
    chosen = {name: arguments for name, arguments in CASES.items() if name in FEW.get(n, CASES)}
    for place, (name, arguments) in enumerate(chosen.items()):
        folder = tmp_path / f"case-{place}"
        sent[name] = ranks.send(folder, model(), workers=n, **arguments())
        streams += [(stream, folder / "feed" / stream.name) for stream in sent[name].packed.streams]
        for rank, path in enumerate(ranks.commands(sent[name], folder, ranks=n)):
            files[rank].append(path)

    with kernel(streams):
        ranks.carry_out(cases, files, tmp_path)

    assert not list(tmp_path.glob("case-*/attempt-1/feed/*/*/frame-0-0")), "what was read is removed"
    for place, name in enumerate(chosen):
        history = fit_call.apply_result(ranks.result_in(tmp_path / f"case-{place}"), sent[name].packed)
        weights, expected = plain(name)
        for got, wanted in zip(sent[name].packed.model.get_weights(), weights, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-5, err_msg=name)
        assert history.history.keys() == expected.keys()
        for metric, values in expected.items():
            np.testing.assert_allclose(history.history[metric], values, atol=1e-5, err_msg=f"{name}: {metric}")


def test_ranks_have_each_row_of_each_batch_once_also_where_every_process_would_shuffle_another_way(tmp_path: Path) -> None:
    rows = tf.data.Dataset.range(20).map(lambda i: (i, i)).shuffle(20).batch(6).repeat()  # no seed; the last batch of a pass has 2 rows
    source, _ = packed(rows, "x")
    command = {"job": "j", "attempt": 1, "ranks": 3, "attempt_dir": str(tmp_path), "job_dir": str(tmp_path), "payload": "", "arrays": ()}

    with contextlib.ExitStack() as stack:
        each = [
            stack.enter_context(rank_datasets.opened({"x": source}, WorkerCommand(rank=rank, seed=1, reduce_name="", **command)))["x"]
            for rank in range(3)
        ]
        parts = list(zip(*(adapter.get_tf_dataset().take(12) for adapter in each), strict=True))

    orders = []
    for batches in (parts[:4], parts[4:8], parts[8:]):
        assert [[bool(part[ALONE]) for part in batch] for batch in batches] == [[False] * 3] * 3 + [[True] * 3]
        assert all(sum(float(part[PART]) for part in batch) == pytest.approx(1.0) for batch in batches)
        seen = [row for batch in batches[:3] for part in batch for row in part[DATA][0].numpy()]
        alone = [part[DATA][0].numpy().tolist() for part in batches[3]]
        assert alone[0] == alone[1] == alone[2]
        assert sorted(seen + alone[0]) == list(range(20))
        orders.append(seen)
    assert orders[0] != orders[1], "shuffled anew in each pass"


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_batch_that_nobody_has_counted_yet_is_cut_as_the_plan_cuts_one(n: int) -> None:
    for rank in range(n):
        dealt = tf.function(functools.partial(rank_datasets.part_of_batch, rank=rank, ranks=n), input_signature=[tf.TensorSpec([None, 1])])
        for rows in range(8):
            found, part = dealt(tf.reshape(tf.range(float(rows)), [-1, 1])), batch_partition.part_of(rank, rows=rows, ranks=n)

            assert found[DATA].numpy().ravel().tolist() == list(rows_of(rank, rows=rows, ranks=n))
            assert (bool(found[ALONE]), float(found[PART])) == (part.alone, pytest.approx(part.share))


def test_a_kernel_that_falls_silent_ends_the_job_with_a_clear_word(tmp_path: Path) -> None:
    source, stream = packed((pair for pair in [(np.ones((4, 2)), np.ones(4))] * 9), "x")
    assert stream is not None
    command = WorkerCommand(
        job="j", attempt=1, rank=0, ranks=1, attempt_dir=str(tmp_path), job_dir=str(tmp_path), payload="", arrays=(), seed=1
    )
    folder = FeedFolder(tmp_path / "feed" / "x").made()
    sent = list(stream.one_pass())
    for index in range(2):
        folder.put(0, index, sent[index])
    read: list[Any] = []

    def train() -> None:
        with rank_datasets.opened({"x": source}, command, silent_s=0.2) as given:
            read.extend(given["x"].take(2))
            read.extend(given["x"])

    with pytest.raises(DataEnded, match=r"Nothing was heard for .* Leave the kernel running"):
        train()

    assert len(read) == 2, "what had come was read"


@pytest.mark.parametrize(
    ("asked", "kept"),
    [(Execution(checkpoint_epochs=0, checkpoint_s=30.0), 1), (Execution(checkpoint_epochs=2), 2), (Execution(checkpoint_epochs=0), 0)],
)
def test_checkpoints_asked_for_by_the_second_come_between_epochs(asked: Execution, kept: int) -> None:
    command = WorkerCommand(
        job="test", attempt=1, rank=0, ranks=1, attempt_dir="", job_dir="", payload="", arrays=(), seed=1, execution=asked
    )

    execution = keeping_whole_epochs(command).execution

    assert (execution.checkpoint_s, execution.checkpoint_epochs) == (0.0, kept)
