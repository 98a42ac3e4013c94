"""The strategy spmd in two processes computes what it computes in one, and outlives the death of either."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil
import pytest
import tensorflow as tf
from keras import layers

import aiaas_magics
from aiaas_magics.client import local_server
from aiaas_magics.core import settings
from aiaas_magics.core.errors import InvalidSpec, NotOnEngine
from aiaas_magics.core.events import AttemptStarted, Checkpointed, EpochEnded, Planned, WorkerStarted
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.spec import FitShape, FitSpec, MeasureSpec
from aiaas_magics.packing.fitcall import fit_call
from tests.backend.training import ranks
from tests.backend.training.jax import jax_models
from tests.support import waiting

IN_TWO = Execution(strategy="spmd", processes=2)
IN_ONE = Execution(strategy="spmd")


SHAPE = FitShape(rows=16, global_batch=4, steps_per_epoch=4, initial_epoch=0, epochs=1, parameters=1, model="m")
ASKED: dict[str, Any] = {"name": "m", "payload": "0" * 64, "arrays": (), "shape": SHAPE, "versions": settings.versions(), "seed": 0}


def statistics() -> Any:
    """Dropout, and BatchNormalization over the whole batch, whoever has its rows."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [layers.Input((6,)), layers.Dense(16, "tanh"), layers.BatchNormalization(), layers.Dropout(0.3), layers.Dense(1, "sigmoid")]
    )
    metrics = ["accuracy", keras.metrics.AUC(name="auc")]
    model.compile(keras.optimizers.Adam(0.01, global_clipnorm=0.5), "binary_crossentropy", metrics=metrics)
    return model


def trained(folder: Path, execution: Execution, *, n: int, devices: int, **arguments: Any) -> Any:
    model = statistics()
    sent = ranks.send(folder, model, execution=execution, **arguments)
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

    one, expected = trained(tmp_path / "one", IN_ONE, n=1, devices=2, **given)
    two, history = trained(tmp_path / "two", IN_TWO, n=2, devices=1, **given)

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


@pytest.mark.process
def test_processes_listen_on_loopback_only_and_one_that_is_told_to_end_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    x, y = jax_models.table(512)
    sent = ranks.send(tmp_path, jax_models.dropping(), execution=IN_TWO, x=x, y=y, epochs=10**6, batch_size=16)
    processes = ranks.start(ranks.commands(sent, tmp_path, ranks=2, devices=1, execution=sent.packed.execution))
    try:
        ranks.wait_until(lambda: any(isinstance(event, EpochEnded) for event in ranks.events_in(tmp_path)), "no epoch ended")
        heard = [
            c.laddr.ip for process in processes for c in psutil.Process(process.pid).net_connections() if c.status == psutil.CONN_LISTEN
        ]
        assert heard
        assert set(heard) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
        assert any("asks for no token" in note for note in sent.packed.notes)
        processes[1].terminate()
        assert processes[1].wait(ranks.WAIT_S) == -signal.SIGTERM
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.nightly
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_costs_one_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    monkeypatch.setenv("AIAAS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    x, y = jax_models.table(4096)
    given = {"epochs": 3, "batch_size": 16, "shuffle": False}
    with aiaas_magics.connect() as backend:
        model = jax_models.dropping()
        often = Execution(strategy="spmd", processes=2, checkpoint_epochs=0, checkpoint_s=0.2)
        job = backend.train(model, x, y, workers=2, oversubscribe=True, execution=often, **given)
        waiting.until(lambda: any(isinstance(e.event, Checkpointed) for e in job.entries()), "no checkpoint was written", wait_s=240.0)
        pids = {entry.rank: entry.event.pid for entry in job.entries() if isinstance(entry.event, WorkerStarted)}
        os.kill(pids[rank], signal.SIGKILL)

        history = job.result(280)

        attempts = [entry.event for entry in job.entries() if isinstance(entry.event, AttemptStarted)]
    local_server.stop_local()
    assert len(attempts) == 2
    assert (attempts[1].from_epoch, attempts[1].from_step) > (0, 0)
    assert len(history.history["loss"]) == 3


def test_what_several_processes_cannot_do_is_refused_with_the_reason() -> None:
    for wrong, said in (
        ({"processes": 2}, "is for the strategy spmd"),
        ({"processes": 2, "strategy": "collective"}, "is for the strategy spmd"),
        ({"processes": 2, "strategy": "spmd", "model_parallel": 2}, "cut over the devices of one process"),
    ):
        with pytest.raises(InvalidSpec, match=said):
            Execution(**wrong)
    for wrong, said in (({"workers": 3}, "do not make 2 processes"), ({"workers": None}, "a stated number of workers")):
        with pytest.raises(InvalidSpec, match=said):
            FitSpec(**ASKED, execution=IN_TWO, **wrong)
    with pytest.raises(InvalidSpec, match="are not measured"):
        FitSpec(**ASKED, execution=IN_TWO, workers=2, measure=MeasureSpec())


def test_what_cannot_be_on_jax_is_not_put_on_tensorflow_in_several_processes() -> None:
    x, y = jax_models.table(16)
    streamed = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)

    with pytest.raises(NotOnEngine):
        fit_call.pack(fit_call.FitCall(jax_models.dropping(), {"x": streamed}), workers=2, execution=IN_TWO)
