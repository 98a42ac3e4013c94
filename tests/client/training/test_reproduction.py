"""A job is trained again from its record: bit-equal where the environment is the same, and else it is said how far apart."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

import aiaas_magics
from aiaas_magics.client.training import job_record, reproduction
from aiaas_magics.core import settings
from aiaas_magics.core.errors import InvalidSpec, UnknownName
from aiaas_magics.core.events import Planned
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.spec import FitShape, FitSpec, JobState, JobView, MeasureSpec, Versions
from aiaas_magics.core.story import JobStory
from aiaas_magics.core.training_record import TrainingEnvironment, TrainingRecord, environment_differences
from aiaas_magics.packing.data.data_fingerprints import npy_sha256
from aiaas_magics.packing.fitcall.fit_result import FitResult
from aiaas_magics.packing.fitcall.result_comparison import compare_results, differing_bits, same_history

SHA = "a" * 64
VERSIONS = Versions(python="3.11.9", keras="3.15.1", tensorflow="2.21.0", aiaas_magics="0.1.0")
WHERE = TrainingEnvironment(
    python="3.11.9",
    platform="Linux",
    packages={"keras": "3.15.1", "numpy": "2.4.6"},
    kernel_processor="cpu",
    backend="local",
    hardware="2 cores",
    backend_versions=VERSIONS,
)
RECORD = TrainingRecord(
    created_s=1.0,
    where=WHERE,
    execution=Execution(),
    workers=1,
    row_seed=-4,
    random_states={},
    model="net",
    parameters=3,
    payload=SHA,
    data=(),
)
SHAPE = FitShape(rows=8, global_batch=2, steps_per_epoch=4, initial_epoch=0, epochs=1, parameters=3, model="net")
SPEC = FitSpec(name="net", payload=SHA, arrays=(), shape=SHAPE, versions=VERSIONS, seed=3)
DONE = JobView(id="7", spec=SPEC, state=JobState.SUCCEEDED, created_s=0.0)


# --------------------------------------------------------------------------- what decides


@pytest.mark.parametrize(
    ("view", "record", "sentence"),
    [
        (replace(DONE, state=JobState.RUNNING), RECORD, "Job 7 is running. Wait until it ends: %aiaas_wait 7."),
        (replace(DONE, state=JobState.FAILED), RECORD, "Job 7 has failed, so there is no result to compare with"),
        (replace(DONE, spec=replace(SPEC, measure=MeasureSpec())), RECORD, "measured steps for a study and trained nothing"),
        (replace(DONE, spec=replace(SPEC, resume_job="3")), RECORD, "resumed from a checkpoint of job 3, which is not kept"),
        (DONE, replace(RECORD, is_streamed=True), "fed batch by batch from its kernel, and nobody keeps those"),
    ],
)
def test_a_job_that_nothing_can_train_again_is_refused(view: JobView, record: TrainingRecord, sentence: str) -> None:
    reproduction.check_possible(DONE, RECORD)

    with pytest.raises(InvalidSpec) as refusal:
        reproduction.check_possible(view, record)

    assert sentence in str(refusal.value)


def test_steps_are_carried_out_in_the_form_that_the_first_run_chose() -> None:
    story = JobStory(plan=Planned(fused="xla", engine="tensorflow", strategy="collective"))

    assert reproduction.as_planned(Execution(), story) == (
        Execution(fused="xla"),
        ("Steps are carried out as in the first run (--fused xla).",),
    )
    assert reproduction.as_planned(Execution(fused="graph"), story) == (Execution(fused="graph"), ())
    assert reproduction.as_planned(Execution(engine="jax"), story) == (Execution(engine="jax"), ())
    assert reproduction.as_planned(Execution(), JobStory()) == (Execution(), ())


def test_what_differs_between_two_environments_is_named() -> None:
    now = replace(
        WHERE,
        hardware="8 cores",
        packages={"keras": "3.15.1", "numpy": "2.5.0", "six": "1.0"},
        backend_versions=replace(VERSIONS, tensorflow="2.21.1"),
    )

    assert list(map(str, environment_differences(WHERE, now))) == [
        "backend's hardware: 2 cores then, 8 cores now",
        "tensorflow on the backend: 2.21.0 then, 2.21.1 now",
        "numpy: 2.4.6 then, 2.5.0 now",
        "six: not installed then, 1.0 now",
    ]
    assert environment_differences(WHERE, WHERE) == ()


def result(**variables: Any) -> FitResult:
    """Of a net with one layer and an optimizer, with some variables changed."""
    values = {"dense/kernel": np.array([[1.0, -2.0]], "float32"), "dense/bias": np.zeros(2, "float32"), "adam/m": np.ones(3, "float32")}
    values |= {name.replace("__", "/"): np.asarray(array, "float32") for name, array in variables.items()}
    return FitResult(
        variables=tuple(values.values()),
        paths=tuple(values),
        roles={"weights": (0, 1), "optimizer": (2,), "metrics": (), "seeds": ()},
        history={"loss": [0.5, 0.25]},
        epoch=[0, 1],
        params={},
        callbacks=(),
        stop_training=False,
        batch=None,  # type: ignore[arg-type]  # of no concern here
    )


def test_layers_are_compared_bit_for_bit_and_by_their_largest_difference() -> None:
    same, other = compare_results(result(), result()), compare_results(result(), result(dense__kernel=[[1.0, -2.5]], adam__m=[1, 1, 2]))

    assert [(layer.layer, layer.values, layer.differing, layer.largest) for layer in same] == [
        ("dense", 4, 0, 0.0),
        ("optimizer, metrics and seeds", 3, 0, 0.0),
    ]
    assert [(layer.layer, layer.differing, layer.largest, layer.relative) for layer in other] == [
        ("dense", 1, 0.5, 0.25),
        ("optimizer, metrics and seeds", 1, 1.0, 1.0),
    ]
    assert differing_bits(np.array([0.0, np.nan]), np.array([-0.0, np.nan])) == 1
    assert same_history(result(), result())


def test_a_second_run_says_what_it_found() -> None:
    equal = reproduction.Reproduction(
        job="7", again="8", layers=compare_results(result(), result()), same_history=True, environment=(), notes=("A note.",)
    )
    apart = reproduction.Reproduction(
        job="7",
        again="8",
        layers=compare_results(result(), result(dense__kernel=[[1.0, -2.5]])),
        same_history=False,
        environment=environment_differences(WHERE, replace(WHERE, hardware="8 cores")),
    )

    assert str(equal) == (
        "Job 8 reproduced job 7: all 7 numbers of the trained state are bit-equal.\nThe history is the same.\n"
        "The environment is the same.\nA note."
    )
    assert str(apart) == (
        "Job 8 did not reproduce job 7 bit for bit: 1 of 7 numbers differ, by at most 0.5; relative to the largest value of its "
        "variable by at most 0.2 (layer dense).\nThe history differs.\nbackend's hardware: 2 cores then, 8 cores now"
    )


def test_a_fingerprint_is_the_hash_of_the_arrays_file(tmp_path: Path) -> None:
    array = np.arange(12, dtype="float32").reshape(3, 4)
    np.save(tmp_path / "x.npy", array)

    assert npy_sha256(array) == hashlib.sha256((tmp_path / "x.npy").read_bytes()).hexdigest()
    assert npy_sha256(array.T) != npy_sha256(array)
    assert npy_sha256(np.array(["a", "b"], dtype=object)) != npy_sha256(np.array(["a", "c"], dtype=object))


def test_the_installed_packages_are_those_of_the_metadata() -> None:
    packages = job_record.installed_packages()

    assert {name: packages[name] for name in ("numpy", "keras", "tensorflow", "msgspec")} == {
        name: settings.installed_version(name) for name in ("numpy", "keras", "tensorflow", "msgspec")
    }


@pytest.mark.parametrize(
    ("code", "kept"),
    [
        ("model.fit(x, y, epochs=3)", "model.fit(x, y, epochs=3)"),
        ("%env API_KEY=abc123\n%env SIZE=3", "%env API_KEY=<hidden>\n%env SIZE=3"),
        ("os.environ['HF_TOKEN'] = 'hf_x'", "os.environ['HF_TOKEN'] = '<hidden>'"),
        ('connect(password="p w", host="db")', 'connect(password="<hidden>", host="db")'),
        ('url = "postgres://me:secret@db/x"', 'url = "<hidden>"'),
        ("keys = {'secret': b'1', 'plain': b'2'}", "keys = {'secret': b'<hidden>', 'plain': b'2'}"),
    ],
)
def test_what_looks_like_a_secret_is_not_in_the_record(code: str, kept: str) -> None:
    assert job_record.without_secrets(code) == kept


# --------------------------------------------------------------------------- a real backend


@pytest.fixture(scope="module")
def trained(home: Path) -> Any:
    """A backend with one job, and what was trained."""
    import keras

    keras.utils.set_random_seed(3)
    x = np.random.default_rng(0).normal(size=(400, 6)).astype("float32")
    y = (x.sum(axis=1) > 0).astype("float32")
    hidden = [keras.layers.Dense(8, activation="relu"), keras.layers.Dropout(0.3)]
    model = keras.Sequential([keras.Input((6,)), *hidden, keras.layers.Dense(1, activation="sigmoid")], name="net")
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    with aiaas_magics.connect() as backend:
        job = backend.train(model, x, y, epochs=2, batch_size=32)
        job.result()
        yield backend, job, x, y


@pytest.mark.process
def test_a_job_has_a_record_of_what_it_was_trained_from(trained: Any) -> None:
    backend, job, x, _ = trained

    record = backend.job(job.id).record()

    assert record.where.packages["keras"] == record.where.backend_versions.keras
    assert record.random_states["tensorflow"] == "seed 3"
    assert record.row_seed == ~3
    assert [(part.name, part.shape) for part in record.data] == [("x", (400, 6)), ("y", (400,))]
    buffer = io.BytesIO()
    np.save(buffer, x)
    assert record.data[0].sha256 == hashlib.sha256(buffer.getvalue()).hexdigest()
    assert (record.code, record.variables) == ("", ())
    assert record.created_s < job.view().created_s + 1


@pytest.mark.process
def test_a_job_is_trained_again_bit_for_bit(trained: Any) -> None:
    backend, job, *_ = trained

    again = backend.reproduce(job.id)

    assert again.is_equal, str(again)
    assert again.same_history
    assert again.environment == ()
    assert sum(layer.values for layer in again.layers) > 3 * job.view().spec.shape.parameters  # Adam has two numbers for each weight
    second = backend.job(again.again)
    assert second.name == "net again"
    assert second.record().data == job.record().data


@pytest.mark.nightly
def test_another_row_order_is_not_taken_for_the_same(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison sees what training does: the same fit with another seed."""
    backend, job, *_ = trained
    as_it_is = reproduction.spec_again

    def with_another_seed(spec: FitSpec, story: JobStory, *, record_blob: str) -> Any:
        again, notes = as_it_is(spec, story, record_blob=record_blob)
        return replace(again, seed=11), notes

    monkeypatch.setattr(reproduction, "spec_again", with_another_seed)

    again = backend.reproduce(job.id)

    assert not again.is_equal
    assert not again.same_history
    assert "did not reproduce" in again.sentence
    assert any(layer.layer.endswith("dense") and layer.largest > 0 for layer in again.layers)


@pytest.mark.process
def test_data_that_is_not_kept_any_more_is_said_and_nothing_is_submitted(trained: Any, home: Path) -> None:
    backend, job, *_ = trained
    payload = job.view().spec.payload
    path = next(home.glob(f"*/blobs/{payload[:2]}/{payload}"))
    path.rename(path.with_name("aside"))
    try:
        jobs_before = len(backend.jobs())
        with pytest.raises(InvalidSpec, match=r"does not keep the data of job .* any more.*Run the cell again"):
            backend.reproduce(job.id)
        assert len(backend.jobs()) == jobs_before
    finally:
        path.with_name("aside").rename(path)
    with pytest.raises(UnknownName):
        backend.reproduce("no-such-job")
