"""What a backend promises, the local one and one that was started by hand alike."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import aiaas_magics
from aiaas_magics.client.training.study import run
from aiaas_magics.client.training.submission import TrainOptions
from aiaas_magics.core import errors, settings
from aiaas_magics.core.events import Checkpointed
from aiaas_magics.core.spec import JobState
from aiaas_magics.packing.fitcall.fit_call import FitCall
from tests.contracts.memory_group import memory_group
from tests.contracts.recipes import gap, server_by_hand, small_model, table

pytestmark = pytest.mark.process


@pytest.fixture(scope="module", params=["local", "by hand"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[aiaas_magics.Backend]:
    if request.param == "local":
        with aiaas_magics.connect() as backend:
            yield backend
        return
    with server_by_hand(tmp_path_factory.mktemp("by-hand")) as (url, token), aiaas_magics.connect(url, token) as backend:
        yield backend


# Both backends are one server: what is long and was seen on the local one is seen on the other at night.
LONG = pytest.mark.parametrize("backend", ["local", pytest.param("by hand", marks=pytest.mark.nightly)], indirect=True, scope="module")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_backend_says_what_it_is(backend: aiaas_magics.Backend) -> None:
    about = backend.about()

    assert about.devices
    assert about.versions.keras.startswith("3.")
    assert str(len(about.devices)) in about.hardware


def test_training_there_gives_what_training_here_gives(backend: aiaas_magics.Backend, here: Path) -> None:
    x, y = table()
    model, plain = small_model(), small_model()

    history = backend.train(model, x, y, epochs=3, batch_size=64, shuffle=False).result(120)

    expected = plain.fit(x, y, epochs=3, batch_size=64, shuffle=False, verbose=0)
    assert gap(model, plain) <= 1e-5
    assert int(model.optimizer.iterations.numpy()) == 3 * 8
    assert history is model.history
    np.testing.assert_allclose(history.history["loss"], expected.history["loss"], rtol=1e-5)
    np.testing.assert_allclose(history.history["accuracy"], expected.history["accuracy"], rtol=1e-6)


@LONG
def test_two_workers_compute_what_one_computes(backend: aiaas_magics.Backend, here: Path) -> None:
    x, y = table(rows=500)  # the last batch is uneven
    model, plain = small_model(), small_model()

    history = backend.train(model, x, y, workers=2, oversubscribe=True, epochs=2, batch_size=63, shuffle=False).result(120)

    expected = plain.fit(x, y, epochs=2, batch_size=63, shuffle=False, verbose=0)
    assert gap(model, plain) <= 1e-5
    np.testing.assert_allclose(history.history["accuracy"], expected.history["accuracy"], rtol=1e-6)


def test_bits_that_rotted_are_not_trained_on_and_the_next_run_sends_them_again(here: Path) -> None:
    x, y = table(rows=5000)
    given = {"epochs": 1, "batch_size": 500, "shuffle": False}
    with aiaas_magics.connect() as backend:
        first = backend.train(small_model(), x, y, **given)
        expected = first.result(120).history
        sha = first.view().spec.arrays[0]
        blob = settings.local_state() / "blobs" / sha[:2] / sha
        blob.chmod(0o600)
        with blob.open("r+b") as file:
            file.seek(4000)
            file.write(b"\xff" * 400)

        model = small_model()
        before = model.get_weights()
        with pytest.raises(errors.BlobDamaged, match=f"Blob {sha[:12]} is damaged: its bytes changed on the backend's disk. Run the cell"):
            backend.train(model, x, y, workers=2, oversubscribe=True, **given).result(120)

        assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
        assert backend.train(small_model(), x, y, **given).result(120).history == expected


def test_a_result_that_rotted_is_not_taken(here: Path) -> None:
    x, y = table(rows=64)
    with aiaas_magics.connect() as backend:
        job = backend.train(small_model(), x, y, epochs=1)
        job.wait(120)
        sha = job.view().result or ""
        blob = settings.local_state() / "blobs" / sha[:2] / sha
        blob.chmod(0o600)
        with blob.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\xff")

        with pytest.raises(errors.BlobDamaged):
            job.result(120)


@LONG
def test_a_failed_job_is_gone_on_from_on_another_number_of_workers(backend: aiaas_magics.Backend, here: Path) -> None:
    import keras

    class BreaksOnce(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                raise ValueError("a mistake in the cell")

    x, y = table(rows=500)
    model, plain = small_model(), small_model()
    broken = backend.train(model, x, y, epochs=4, batch_size=63, seed=5, callbacks=[BreaksOnce()])
    with pytest.raises(errors.RemoteTrainingError):
        broken.result(120)

    fixed = backend.train(model, x, y, workers=2, oversubscribe=True, epochs=4, batch_size=63, resume=broken.id)

    history = fixed.result(120)
    whole = backend.train(plain, x, y, epochs=4, batch_size=63, seed=5).result(120)
    assert gap(model, plain) <= 1e-5
    np.testing.assert_allclose(history.history["loss"], whole.history["loss"], rtol=1e-5)
    # Epochs are short here, and checkpoints take a twentieth of the time at most: the second may have none.
    assert re.match(rf"Goes on from the last checkpoint of job {broken.id}: epoch [23] of 4 epochs\.", fixed.story().notices[0])
    with pytest.raises(
        errors.InvalidSpec, match=r"in the checkpoint and float32 \[9, 16\] in the model. Build and compile the model as it was"
    ):
        backend.train(small_model(9), np.zeros((500, 9), "float32"), y, epochs=4, resume=broken.id)
    with pytest.raises(errors.InvalidSpec, match="has succeeded"):
        backend.train(model, x, y, epochs=4, resume=fixed.id)


@LONG
def test_a_worker_that_the_kernel_ends_for_its_memory_is_told_as_that(backend: aiaas_magics.Backend, here: Path) -> None:
    import keras

    class Hoards(keras.callbacks.Callback):
        def __init__(self, group: str) -> None:
            super().__init__()
            self.group = group

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            import os
            from pathlib import Path

            Path(self.group, "cgroup.procs").write_text(str(os.getpid()))
            self.hoard = b"x" * 2**29

    with memory_group(2**26) as group:
        job = backend.train(small_model(), *table(), epochs=2, callbacks=[Hoards(str(group))])

        with pytest.raises(errors.OutOfMemory, match=rf"Worker 0 of job {job.id} ran out of memory .* Use a smaller batch_size"):
            job.result(120)

    assert job.view().attempt == 1, "it would need as much again"


@LONG
def test_a_second_fit_goes_on_from_the_first(backend: aiaas_magics.Backend, here: Path) -> None:
    x, y = table()
    model, plain = small_model(), small_model()

    for _ in range(2):
        backend.train(model, x, y, epochs=1, shuffle=False).result(120)

    for _ in range(2):
        plain.fit(x, y, epochs=1, shuffle=False, verbose=0)
    assert gap(model, plain) <= 1e-5


def test_a_second_job_with_the_same_arrays_sends_none_of_them(backend: aiaas_magics.Backend, here: Path) -> None:
    from aiaas_magics.client.training.submission import TrainOptions, prepare, submit
    from aiaas_magics.packing.fitcall.fit_call import FitCall

    x, y = table(rows=40_000)
    call = FitCall(model=small_model(), arguments={"x": x, "y": y, "epochs": 1, "batch_size": 4096})
    submit(prepare(backend, call, TrainOptions())).result(120)

    again = prepare(backend, call, TrainOptions())

    assert again.preflight.known_bytes >= x.nbytes
    assert again.preflight.send_bytes < 1_000_000


@LONG
@pytest.mark.parametrize("save_freq", ["epoch", 3])
def test_files_that_callbacks_wrote_come_back(backend: aiaas_magics.Backend, here: Path, save_freq: str | int) -> None:
    import keras

    x, y = table()
    model = small_model()
    last = keras.callbacks.ModelCheckpoint("deep/best.keras", save_freq="epoch")
    often = keras.callbacks.ModelCheckpoint("deep/often.keras", save_freq=save_freq)

    backend.train(model, x, y, workers=2, oversubscribe=True, epochs=2, callbacks=[last, often]).result(120)

    assert (here / "deep" / "often.keras").exists()

    again = keras.models.load_model(here / "deep" / "best.keras")
    assert gap(again, model) <= 1e-6


@LONG
def test_callbacks_write_into_the_folders_beside_the_notebook_and_go_on_with_a_log(backend: aiaas_magics.Backend, here: Path) -> None:
    import keras

    x, y = table()
    (here / "logs" / "first").mkdir(parents=True)
    for epochs in (2, 1):
        model = small_model()
        backend.train(model, x, y, epochs=epochs, callbacks=[keras.callbacks.CSVLogger("logs/first/all.csv", append=True)]).result(120)

    lines = (here / "logs" / "first" / "all.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["epoch", "0", "1", "0"]
    assert sorted(path.name for path in here.iterdir()) == ["logs"]


@LONG
def test_files_of_callbacks_come_home_and_cost_the_user_none_of_his(backend: aiaas_magics.Backend, here: Path) -> None:
    import keras

    class Writes(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: object = None) -> None:
            from pathlib import Path

            with open("mine.txt", "a") as file:
                file.write(f"{epoch}\n")
            for name in ("notes.md", "new.txt", "helpers.py", ".bashrc"):
                Path(name).write_text(f"epoch {epoch}")

    x, y = table()
    for name in ("mine.txt", "notes.md", ".bashrc"):
        (here / name).write_text("precious\n")
    for _ in range(2):
        model = small_model()
        callbacks = [Writes(), keras.callbacks.ModelCheckpoint("deep/best.keras")]
        job = backend.train(model, x, y, epochs=2, callbacks=callbacks)
        job.take()

    assert (here / "mine.txt").read_text() == "precious\n0\n1\n0\n1\n"
    assert (here / "notes.md").read_text() == (here / ".bashrc").read_text() == "precious\n"
    assert (here / "new.txt").read_text() == (here / "aiaas_files" / job.id / "notes.md").read_text() == "epoch 1"
    assert gap(keras.models.load_model(here / "deep" / "best.keras"), model) <= 1e-6, "the second fit may replace what the first wrote"
    assert not (here / "helpers.py").exists()
    came, aside, left = job.story().notices[-3:]
    assert came == "Files of the callbacks: mine.txt (added to), new.txt, deep/best.keras."
    assert aside.startswith(f"Put into aiaas_files/{job.id}/ instead: helpers.py, notes.md (it could be run and a file of that name is")
    assert left.startswith("Left on the backend: .bashrc (it is hidden).")


def test_a_fit_without_callbacks_brings_no_files(backend: aiaas_magics.Backend, here: Path) -> None:
    import keras

    class Writes(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            import os
            from pathlib import Path

            Path(f"traced-by-{os.getpid()}.txt").write_text("")
            return x

    model = keras.Sequential([keras.Input((8,)), Writes(), keras.layers.Dense(1)])
    model.compile(loss="mse")

    job = backend.train(model, *table(), epochs=1)
    job.result(120)

    (name,) = job.view().files
    assert not (here / name).exists()
    assert not (here / "aiaas_files").exists()


def test_plain_state_of_callbacks_comes_back(backend: aiaas_magics.Backend, here: Path) -> None:
    import keras

    x, y = table()
    stopper = keras.callbacks.EarlyStopping(monitor="loss", patience=0, min_delta=10.0)

    history = backend.train(small_model(), x, y, epochs=9, callbacks=[stopper]).result(120)

    assert stopper.stopped_epoch == 1
    assert history.epoch == [0, 1]


@LONG
def test_a_callback_used_twice_judges_the_second_fit_as_the_first(backend: aiaas_magics.Backend, here: Path) -> None:
    """Keras turns the sign of `min_delta` once a callback knows what "better" means; coming back must not turn it again."""
    import keras

    x, y = table()
    model, plain = small_model(), small_model()
    ours, theirs = (keras.callbacks.EarlyStopping(monitor="loss", patience=1, min_delta=10.0) for _ in range(2))

    epochs = [backend.train(model, x, y, epochs=5, shuffle=False, callbacks=[ours]).result(120).epoch for _ in range(2)]

    expected = [plain.fit(x, y, epochs=5, shuffle=False, verbose=0, callbacks=[theirs]).epoch for _ in range(2)]
    assert epochs == expected == [[0, 1], [0, 1]]


@LONG
def test_an_error_of_the_users_code_is_one_error_with_its_line(backend: aiaas_magics.Backend, here: Path) -> None:
    import keras

    class Breaks(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: object = None) -> None:
            raise LookupError("no such column")

    x, y = table()
    job = backend.train(small_model(), x, y, workers=2, oversubscribe=True, epochs=2, callbacks=[Breaks()])

    with pytest.raises(errors.RemoteTrainingError, match="LookupError: no such column") as caught:
        job.result(120)

    frame = caught.value.report.frames[-1]
    assert (frame.function, frame.user) == ("on_epoch_end", True)
    assert "test_backend.py" in frame.file
    assert job.state is JobState.FAILED


@LONG
def test_a_cancelled_job_leaves_the_model_as_it_was(backend: aiaas_magics.Backend, here: Path) -> None:
    x, y = table()
    model, before = small_model(), small_model()
    job = backend.train(model, x, y, epochs=100_000)
    while not any(isinstance(entry.event, Checkpointed) for entry in job.entries()):
        assert not job.state.final

    assert job.cancel() is JobState.CANCELLED

    with pytest.raises(errors.JobCancelled):
        job.result(10)
    assert gap(model, before) == 0


@LONG
def test_a_job_can_be_awaited(backend: aiaas_magics.Backend, here: Path) -> None:
    x, y = table()

    async def wait() -> object:
        return await backend.train(small_model(), x, y, epochs=1)

    assert list(asyncio.run(wait()).history) == ["accuracy", "loss"]  # type: ignore[attr-defined]


@LONG
def test_another_kernel_finds_the_job_and_takes_its_weights(backend: aiaas_magics.Backend, here: Path) -> None:
    x, y = table()
    model, fresh = small_model(), small_model(seed=99)
    mine = backend.train(model, x, y, epochs=2, name="churn")
    mine.result(120)

    found = backend.job(mine.id)
    history = found.apply_to(fresh)

    assert found.name == "churn"
    assert gap(fresh, model) == 0
    assert len(history.history["loss"]) == 2


def test_more_workers_than_devices_are_refused_before_anything_is_sent(backend: aiaas_magics.Backend) -> None:
    x, y = table()
    jobs = len(backend.jobs())

    with pytest.raises(errors.NotEnoughDevices, match="--oversubscribe"):
        backend.train(small_model(), x, y, workers=1000)

    assert len(backend.jobs()) == jobs


def test_unknown_names_are_answered_with_the_nearest(backend: aiaas_magics.Backend) -> None:
    with pytest.raises(errors.UnknownName, match="There is no job"):
        backend.job("nope")
    with pytest.raises(errors.UnknownName, match="There is no endpoint"):
        backend.endpoint("nope")


def test_deploy_predict_redeploy_stop(backend: aiaas_magics.Backend, here: Path) -> None:
    x, _ = table()
    model = small_model()

    endpoint = backend.deploy(model, name="churn", sample=x)
    first = endpoint.predict(x[:5])
    model.set_weights([weight * 0.5 for weight in model.get_weights()])
    again = backend.deploy(model, name="churn", sample=x)

    np.testing.assert_allclose(again.predict(x[:5]), model.predict(x[:5], verbose=0), rtol=1e-4, atol=1e-5)
    assert not np.allclose(first, again.predict(x[:5]))
    assert max(version.version for version in again.versions) == 2
    assert again.token not in repr(again)
    again.stop()
    with pytest.raises(errors.UnknownName):
        backend.endpoint("churn")
    for gone in (endpoint, again):
        with pytest.raises(errors.BackendRefused, match=r"'churn' is not live any more. Deploy a model"):
            gone.predict(x[:5])


@LONG
def test_what_is_recorded_comes_back_and_a_shifted_column_is_found(backend: aiaas_magics.Backend, here: Path) -> None:
    x, _ = table(rows=2000)
    names = [f"column {number}" for number in range(8)]
    model = small_model()
    endpoint = backend.deploy(model, name="recorded", sample=pd.DataFrame(x, columns=names), recording="100%,10MB")
    assert str(endpoint.view().recording) == "100% of requests, at most 10 MB and 30 days"
    assert endpoint.recording().requests == 0, "the rows of the reference are no traffic"
    assert endpoint.recorded().empty
    assert endpoint.drift().verdict == "too few rows"

    now, _ = table(rows=600, seed=5)
    now[:, 3] += 1.0
    answers = np.concatenate([endpoint.predict(part) for part in np.split(now, 6)])
    frame, drift = endpoint.recorded(), endpoint.drift()

    inputs, outputs = ([name for name in frame if name.startswith(side)] for side in ("input", "output"))
    np.testing.assert_array_equal(frame[inputs].to_numpy("float32"), now)
    np.testing.assert_array_equal(frame[outputs].to_numpy("float32"), answers)
    assert frame["request"].nunique() == 6
    assert frame["time"].is_monotonic_increasing
    assert drift.features[0].name == "column 3"
    assert drift.to_frame()["name"].tolist()[0] == "column 3"
    assert (drift.report.rows_then, drift.report.rows_now) == (2000, 600)
    assert {feature.side for feature in drift.features} == {"input", "output"}

    again = backend.deploy(model, name="recorded", sample=x)
    assert again.view().recording.is_on, "the next version is recorded as the one before"
    assert again.drift().report.rows_now == 0
    assert "Nothing is recorded of version 2" in str(again.drift())
    assert again.recording().requests == 6, "the rows of the next reference are no traffic either"
    again.record("100%", reference=x[:100])
    assert again.recording().requests == 6
    again.predict(now)
    assert (again.drift().report.rows_then, again.drift().report.origin) == (100, "the rows that were given")
    with pytest.raises(errors.DataMismatch):
        again.record("50%", reference=x[:, :3])
    assert str(again.view().recording).startswith("100%"), "as before"
    endpoint.record("off")
    endpoint.predict(now)
    assert endpoint.recording().requests == 7
    endpoint.forget_recorded()
    assert endpoint.recording().requests == 0
    with pytest.raises(errors.InvalidSpec, match="Use a share"):
        endpoint.record("all")
    endpoint.stop()


def test_an_endpoint_refuses_a_wrong_shape_with_a_sentence(backend: aiaas_magics.Backend, here: Path) -> None:
    x, _ = table()
    endpoint = backend.deploy(small_model(), name="shapes", sample=x)

    with pytest.raises(errors.AiaasError, match="shape"):
        endpoint.predict(x[0])

    assert endpoint.predict(x[:1]).shape == (1, 1)
    endpoint.stop()


@LONG
def test_a_study_compares_the_same_steps(backend: aiaas_magics.Backend, here: Path) -> None:
    x, y = table(rows=2048)
    model, before = small_model(), small_model()

    study = backend.study(model, x, y, workers=(1, 2), oversubscribe=True, batch_size=256)

    frame = study.to_frame()
    assert list(frame.columns) == ["workers", "seconds", "rows_per_second", "speedup", "efficiency", "spread", "projected"]
    assert list(frame.workers[~frame.projected]) == [1, 2]
    assert study.parity is not None
    assert study.parity <= 1e-5
    assert study.adaptive == "Adam"
    assert study.recommended in (1, 2)
    assert gap(model, before) == 0
    assert study.plot().axes


@pytest.mark.nightly
@pytest.mark.parametrize("backend", ["local"], indirect=True)  # nothing in it depends on where the backend is
def test_a_weak_study_grows_the_batch_with_the_workers(backend: aiaas_magics.Backend, here: Path) -> None:
    x, y = table(rows=2048)
    model = small_model()

    with pytest.raises(errors.InvalidSpec, match="each of 2 workers 1,500 rows a step, 3,000 together, and there are 2,048"):
        backend.study(model, x, y, workers=(1, 2), weak=True, oversubscribe=True, batch_size=1500)
    call = FitCall(model=model, arguments={"x": x, "y": y, "steps_per_epoch": 8, "epochs": 2})
    study = run(backend, call, points=(1, 2), options=TrainOptions(oversubscribe=True), weak=True)

    assert [point.measured.rows_per_step for point in (study.reference, *study.points)] == [256, 256, 512]
    assert len({point.measured.steps for point in study.points}) == 1
    assert study.parity is None
    [ideal_s] = {row.ideal_s for row in study.rows()}
    assert ideal_s == study.rows()[0].seconds
    assert study.job is not None
    assert backend.job(study.job).view().spec.shape.global_batch == 512
    assert len(study.history.epoch) == 2
    assert int(model.optimizer.iterations) == 8, "2 epochs of 4 batches of 512: the training after the measurements"
