"""Explanations on workers: real jobs of a local server, whose results are known exactly or are those of one worker."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import aiaas_magics
from aiaas_magics.client.explain.explain_job import ExplainJob
from aiaas_magics.core.errors import DataMismatch, InvalidSpec, JobCancelled, NotEnoughDevices, UnknownName
from aiaas_magics.core.events import AttemptStarted, RowsExplained, WorkerLost, WorkerStarted
from aiaas_magics.core.spec import JobState
from aiaas_magics.explain.attribution_bytes import read_explain_result
from aiaas_magics.explain.attributions import Attributions
from aiaas_magics.explain.explanation import Explanation
from tests.contracts.recipes import small_model, table
from tests.support import waiting

pytestmark = pytest.mark.process
WAIT_S = 90.0
wait_until = functools.partial(waiting.until, wait_s=WAIT_S)


@pytest.fixture(scope="module")
def backend() -> Iterator[aiaas_magics.Backend]:
    with aiaas_magics.connect() as backend:
        yield backend


def linear_model() -> Any:
    import keras

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.set_weights([np.array([[1.0, 0.0], [-2.0, 1.0], [0.5, 3.0]], "float32"), np.array([0.25, -1.0], "float32")])
    return model


def attributions_of(job: ExplainJob) -> Attributions:
    return read_explain_result(job.result_bytes()).attributions


@pytest.mark.parametrize("method", ["shap", "gradients"])
def test_a_linear_model_is_explained_exactly_on_two_workers(backend: aiaas_magics.Backend, method: str) -> None:
    model, rng = linear_model(), np.random.default_rng(0)
    rows, background = rng.normal(size=(11, 3)).astype("float32"), rng.normal(size=(8, 3)).astype("float32")

    job = backend.explain(model, rows, background=background, method=method, target=1, workers=2)

    assert isinstance(job.result(WAIT_S), Explanation)
    found = attributions_of(job)
    weights = model.get_weights()[0][:, 1]
    np.testing.assert_allclose(found.values[0], (rows - background.mean(axis=0)) * weights, atol=1e-5)
    np.testing.assert_allclose(found.outputs, model.predict(rows, verbose=0)[:, 1], atol=1e-5)
    explained = job.story().explained
    assert explained is not None
    assert (explained.rows, explained.of) == (11, 11)
    assert job.seconds > 0


def test_two_workers_give_to_the_bit_what_one_gives_and_rows_alone_what_they_give_together(backend: aiaas_magics.Backend) -> None:
    (x, _), model = table(), small_model()
    arguments: dict[str, Any] = {"background": x[:20], "method": "permutation_shap", "seed": 3}

    one, two, some = (
        attributions_of(job)
        for job in (
            backend.explain(model, x[:30], workers=1, **arguments),
            backend.explain(model, x[:30], workers=2, **arguments),
            backend.explain(model, x[10:15], workers=1, **arguments),
        )
        if job.wait(WAIT_S) is JobState.SUCCEEDED
    )

    np.testing.assert_array_equal(one.values[0], two.values[0])
    np.testing.assert_allclose(some.values[0], one.values[0][10:15], atol=1e-6)
    assert two.evaluations - one.evaluations == 20 * 4  # the background's own outputs, once for each of 8 blocks and of 4


def long_job(backend: aiaas_magics.Backend, **more: Any) -> ExplainJob:
    (x, _), model = table(columns=24), small_model(columns=24)
    return backend.explain(model, x[:160], background=x[:100], method="shap", samples=1024, workers=2, **more)


def test_a_lost_worker_costs_one_attempt_and_no_row_that_was_explained(backend: aiaas_magics.Backend) -> None:
    job = long_job(backend)
    wait_until(lambda: (explained := job.story().explained) is not None and explained.rows > 45, "no rows were explained")
    pids = {entry.rank: entry.event.pid for entry in job.entries() if isinstance(entry.event, WorkerStarted)}

    os.kill(pids[1], signal.SIGKILL)

    assert job.wait(WAIT_S) is JobState.SUCCEEDED
    entries = job.entries()
    assert [entry.event.how for entry in entries if isinstance(entry.event, WorkerLost)] == ["was killed by signal 9"]
    attempts = [entry.event for entry in entries if isinstance(entry.event, AttemptStarted)]
    assert [attempt.why for attempt in attempts] == ["", "Worker 1 was killed by signal 9. Attempt 2 explains the rows that are left."]
    before = {entry.event.rows_before for entry in entries if isinstance(entry.event, RowsExplained) and entry.attempt == 2}
    assert len(before) == 1
    assert min(before) >= 20
    found = attributions_of(job)
    assert found.rows == 160
    assert found.completeness_errors is not None
    assert found.completeness_errors.max() < 1e-4


def test_cancelling_ends_the_workers_and_a_job_of_another_kernel_is_an_explanation_too(backend: aiaas_magics.Backend) -> None:
    job = long_job(backend, name="long")
    wait_until(lambda: job.story().explained is not None, "nothing was explained")

    assert job.cancel() is JobState.CANCELLED

    attached = backend.job(job.id)
    assert isinstance(attached, ExplainJob)
    with pytest.raises(JobCancelled):
        attached.result()
    with pytest.raises(InvalidSpec, match="explains rows and trains nothing"):
        attached.apply_to(small_model())


def test_a_result_is_an_explanation_in_any_kernel(backend: aiaas_magics.Backend) -> None:
    (x, _), model = table(), small_model()
    job = backend.explain(model, x[:4], background=x[:10], class_names=["yes"])

    explanation = backend.job(job.id).result(WAIT_S)

    assert isinstance(explanation, Explanation)


@pytest.mark.nightly
def test_the_library_shap_explains_on_a_worker_and_says_the_same_of_a_linear_model(backend: aiaas_magics.Backend) -> None:
    pytest.importorskip("shap")
    model, rng = linear_model(), np.random.default_rng(0)
    rows, background = rng.normal(size=(3, 3)).astype("float32"), rng.normal(size=(8, 3)).astype("float32")

    job = backend.explain(model, rows, background=background, method="shap_permutation", target=0)

    assert job.wait(WAIT_S) is JobState.SUCCEEDED
    expected = (rows - background.mean(axis=0)) * model.get_weights()[0][:, 0]
    np.testing.assert_allclose(attributions_of(job).values[0], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        (
            {"rows": np.zeros((2, 5), "float32")},
            DataMismatch,
            r"has shape \(2, 5\) and the model takes \(None, 8\)",
        ),
        ({"rows": np.zeros((0, 8), "float32")}, DataMismatch, r"There are no rows to explain\. Give at least one"),
        ({"background": np.zeros((3, 7), "float32")}, DataMismatch, r"has shape \(3, 7\) and the model takes \(None, 8\)"),
        ({"method": "magic"}, UnknownName, "There is no method of explanation 'magic'"),
        ({"output": "z"}, UnknownName, "There is no output 'z'"),
        ({"workers": 1000}, NotEnoughDevices, "fewer than the 1000 workers requested"),
    ],
)
def test_what_cannot_be_explained_is_refused_before_anything_is_sent(
    backend: aiaas_magics.Backend, arguments: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    jobs = len(backend.jobs())
    rows = {"rows": np.zeros((2, 8), "float32"), **arguments}.pop("rows")

    with pytest.raises(error, match=sentence):
        backend.explain(small_model(), rows, **{name: value for name, value in arguments.items() if name != "rows"})

    assert len(backend.jobs()) == jobs


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"method": "gradients", "target": 3}, InvalidSpec, "target=3: the output has 1 column. Use a target from 0 to 0"),
        ({"method": "gradcam"}, InvalidSpec, "Grad-CAM explains one image or series per row"),
        ({"method": "shap"}, DataMismatch, "Give background=x_train"),
    ],
)
def test_what_a_worker_finds_out_is_the_same_error_in_the_kernel(
    backend: aiaas_magics.Backend, arguments: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    job = backend.explain(small_model(), np.zeros((2, 8), "float32"), **arguments)

    with pytest.raises(error, match=sentence):
        job.result(WAIT_S)
