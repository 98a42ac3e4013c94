"""The strategy spmd in two processes computes what it computes in one, and outlives the death of either.

No option asks for several processes, since one is as quick on one machine; a cluster's pool gives an attempt several ranks.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil
import pytest
from keras import layers
from msgspec.structs import replace

from aiaas_magics.backend.folders import checkpoint_folder
from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.backend.workers import worker_main
from aiaas_magics.backend.workers.local.attempt_folder import AttemptFolder, write_value
from aiaas_magics.core.errors import NotOnEngine
from aiaas_magics.core.events import Checkpointed, EpochEnded, Planned
from aiaas_magics.core.execution import Execution
from aiaas_magics.packing.fitcall import fit_call
from tests.backend.training import ranks
from tests.backend.training.jax import jax_models

SPMD = Execution(strategy="spmd")


def statistics() -> Any:
    """Dropout, and BatchNormalization over the whole batch, whoever has its rows."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [layers.Input((6,)), layers.Dense(16, "tanh"), layers.BatchNormalization(), layers.Dropout(0.3), layers.Dense(1, "sigmoid")]
    )
    metrics = ["accuracy", keras.metrics.AUC(name="auc")]
    model.compile(keras.optimizers.Adam(0.01, global_clipnorm=0.5), "binary_crossentropy", metrics=metrics)
    return model


def trained(folder: Path, *, n: int, devices: int, **arguments: Any) -> Any:
    model = statistics()
    sent = ranks.send(folder, model, execution=SPMD, **arguments)
    codes = ranks.finish(ranks.start(ranks.commands(sent, folder, ranks=n, devices=devices, execution=sent.packed.execution)))
    assert codes == [0] * n, ranks.output_of(folder)
    history = fit_call.apply_result(ranks.result_in(folder), sent.packed)
    return model, history


@pytest.mark.nightly
def test_two_processes_compute_what_one_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    x, y = jax_models.table(53)  # the last batch has 5 rows, which two devices cannot share evenly
    y = (y > y.mean()).astype("float32")
    given = {"x": x, "y": y, "epochs": 4, "batch_size": 16, "validation_data": (x[:21], y[:21])}

    one, expected = trained(tmp_path / "one", n=1, devices=2, **given)
    two, history = trained(tmp_path / "two", n=2, devices=1, **given)

    ours, theirs = ([v.numpy() for v in (*model.variables, *model.optimizer.variables)] for model in (two, one))
    assert max(ranks.gaps(ours, theirs)) <= 1e-5
    assert history.history.keys() == expected.history.keys()
    for log, values in expected.history.items():
        np.testing.assert_allclose(history.history[log], values, rtol=1e-5, atol=1e-6, err_msg=log)
    [planned] = [event for event in ranks.events_in(tmp_path / "two") if isinstance(event, Planned)]
    assert (planned.engine, planned.strategy, planned.fused) == ("jax", "spmd", "xla")
    told = [event for event in ranks.events_in(tmp_path / "two") if isinstance(event, EpochEnded)]
    assert told[-1].logs["val_auc"] == pytest.approx(history.history["val_auc"][-1])
    assert not [event for event in ranks.events_in(tmp_path / "two", rank=1) if isinstance(event, Planned | Checkpointed)]


@pytest.mark.nightly
@pytest.mark.process
def test_processes_listen_on_loopback_only_and_one_that_is_told_to_end_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    x, y = jax_models.table(512)
    sent = ranks.send(tmp_path, jax_models.dropping(), execution=SPMD, x=x, y=y, epochs=10**6, batch_size=16)
    processes = ranks.start(ranks.commands(sent, tmp_path, ranks=2, devices=1, execution=sent.packed.execution))
    try:
        ranks.wait_until(lambda: any(isinstance(event, EpochEnded) for event in ranks.events_in(tmp_path)), "no epoch ended")
        heard = [
            c.laddr.ip for process in processes for c in psutil.Process(process.pid).net_connections() if c.status == psutil.CONN_LISTEN
        ]
        assert heard
        assert set(heard) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
        processes[1].terminate()
        assert processes[1].wait(ranks.WAIT_S) == -signal.SIGTERM
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.nightly
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_costs_one_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    x, y = jax_models.table(4096)
    sent = ranks.send(tmp_path, jax_models.dropping(), execution=SPMD, x=x, y=y, epochs=3, batch_size=16, shuffle=False)
    often = replace(sent.packed.execution, checkpoint_epochs=0, checkpoint_s=0.2)
    first = ranks.start(ranks.commands(sent, tmp_path, ranks=2, devices=1, execution=often))
    kept = tmp_path / "checkpoints"
    try:
        ranks.wait_until(lambda: list(kept.glob("epoch-*")), "no checkpoint was written")
        first[rank].kill()
        codes = [process.wait(ranks.WAIT_S) for process in first]
    finally:
        for process in first:
            process.kill()
            process.wait()
    position, checkpoint = checkpoint_folder.newest_whole(kept) or pytest.fail("no checkpoint is whole")

    again = ranks.commands(sent, tmp_path, ranks=2, attempt=2, devices=1, execution=often, resume_from=str(checkpoint))
    ended = ranks.finish(ranks.start(again))

    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank], "neither goes on alone"
    assert (position.epoch, position.step) > (0, 0)
    assert ended == [0, 0], ranks.output_of(tmp_path)
    assert len(ranks.result_in(tmp_path, attempt=2).history["loss"]) == 3


@pytest.mark.parametrize("ranks_", [1, 2])
def test_only_a_process_alone_goes_on_with_tensorflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks_: int) -> None:
    """Two that fell back would be two trainings that know nothing of each other."""
    where = {"attempt_dir": str(tmp_path), "job_dir": str(tmp_path)}
    command = WorkerCommand(job="1", attempt=1, rank=0, ranks=ranks_, payload="", arrays=(), seed=1, execution=SPMD, **where)
    path = AttemptFolder(tmp_path).command(0)
    write_value(path, command)

    def refuses(*_: Any) -> None:
        raise NotOnEngine("JAX", "it would compute something else there")

    fallen = list[str]()
    monkeypatch.setattr(worker_main, "prepare_process", lambda _: None)
    monkeypatch.setattr(worker_main, "work", refuses)
    monkeypatch.setattr(worker_main, "fall_back", lambda command, path, error: fallen.append(error.why))
    worker_main.main(str(path))

    told = [json.loads(line)["event"]["kind"] for line in AttemptFolder(tmp_path).events(0).read_text().splitlines()]
    assert fallen == ["it would compute something else there"] * (ranks_ == 1)
    assert told == (["notice", "crashed"] if ranks_ == 1 else ["crashed"])


def test_no_option_and_no_value_of_the_api_asks_for_processes() -> None:
    with pytest.raises(TypeError, match="processes"):
        Execution(strategy="spmd", processes=2)  # type: ignore[call-arg]
