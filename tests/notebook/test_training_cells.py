"""Cells that train, in a real kernel against the real local server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.notebook.conftest import WIDGET, Cell, Kernel, started

pytestmark = pytest.mark.slow

MODEL = """
import aiaas_magics, keras, numpy as np
keras.utils.set_random_seed(1)
x = np.random.rand(2000, 8).astype("float32")
y = (x.sum(1) > 4).astype("float32")
def built():
    made = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1, "sigmoid")])
    made.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    return made
class Missing(keras.utils.PyDataset):
    def __len__(self):
        return 2
    def __getitem__(self, index):
        return np.load("no_such.npy"), None
model = built()
""".strip()
JOBS = "len(aiaas_magics.connect().jobs())"


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """A kernel with Keras, data and a model."""
    for kernel in started(tmp_path_factory.mktemp("training")):
        for code in ("%load_ext aiaas_magics", MODEL):
            cell = kernel.run(code)
            assert cell.ok, cell.error
        yield kernel


def value(kernel: Kernel, expression: str) -> Any:
    """A plain value from the kernel's namespace."""
    import ast

    cell = kernel.run(expression)
    assert cell.ok, cell.error
    return ast.literal_eval(cell.outputs[-1]["data"]["text/plain"])


def streams(cell: Cell) -> str:
    return "".join(one["text"] for one in cell.outputs if "text" in one)


def test_a_cell_trains_on_two_workers_and_leaves_only_static_outputs(trainer: Kernel) -> None:
    trainer.run("before = [w.copy() for w in model.get_weights()]")

    cell = trainer.run("%%aiaas_train -n 2 --seed 3 -o history\nreturned = model.fit(x, y, epochs=3, batch_size=200)")

    assert cell.ok, cell.error
    assert WIDGET in cell.seen, "there was a live view"
    assert [sorted(output["data"]) for output in cell.outputs] == [["text/html", "text/plain"], ["image/png", "text/plain"]]
    table, figure = (output["data"]["text/plain"] for output in cell.outputs)
    for expected in ("2 workers", "succeeded: 3 epochs", "packing", "sending", "starting", "compiling", "training", "fetching"):
        assert expected in table
    assert "global batch 200" in figure
    assert value(
        trainer, "type(returned) is keras.callbacks.History, history is returned, sorted(returned.history), len(returned.epoch)"
    ) == (
        True,
        True,
        ["accuracy", "loss"],
        3,
    )
    assert value(trainer, "bool(any((a != b).any() for a, b in zip(before, model.get_weights()))), int(model.optimizer.iterations)") == (
        True,
        30,
    )


def test_the_last_expressions_value_is_shown_as_in_a_normal_cell_and_a_semicolon_silences_it(trainer: Kernel) -> None:
    shown = trainer.run("%%aiaas_train --ui none\nmodel.fit(x, y, epochs=1, batch_size=500).epoch")
    silent = trainer.run("%%aiaas_train --ui none\nmodel.fit(x, y, epochs=1, batch_size=500).epoch;")

    assert shown.text == "[0]\n"
    assert shown.outputs[0]["kind"] == "execute_result"
    assert silent.outputs == []


def test_text_is_enough_where_nothing_else_is_shown(trainer: Kernel) -> None:
    cell = trainer.run("%%aiaas_train --ui text --name small\nmodel.fit(x, y, epochs=2, batch_size=500);")

    assert cell.seen == []
    assert "small" in cell.text
    assert re.search(r"epoch +time +rows/s +accuracy +loss\n", cell.text)


def test_a_dry_run_shows_what_is_sent_and_every_way_to_train_it_and_ends_the_cell_there(trainer: Kernel) -> None:
    trainer.run("many = np.repeat(x, 4, 0)\nbefore = [w.copy() for w in model.get_weights()]")

    fit = "after = 'not reached'\nmodel.fit(many, np.repeat(y, 4), epochs=1)\nafter = 'reached'"
    cell = trainer.run(f"%%aiaas_train --dry-run --engine tensorflow --strategy collective -n 2 -o plan\n{fit}")

    assert cell.ok, cell.error
    assert WIDGET in cell.seen, "there was a live view"
    assert [sorted(output["data"]) for output in cell.outputs] == [["text/html", "text/plain"]] * 2
    sent, plan = (output["data"]["text/plain"] for output in cell.outputs)
    for expected in ("What fit sends", "sequential", "array", "Versions (kernel/backend)", "2, on"):
        assert expected in sent
    for expected in (
        "Ways to run the 250 steps of this fit",
        "steps/s",
        "memory",
        "the plan",
        "many, with XLA",
        "Plan: tensorflow collective, many steps",
    ):
        assert expected in plan
    assert trainer.run("plan").outputs[-1]["data"]["text/plain"] == plan
    assert value(trainer, "after") == "not reached"
    assert value(trainer, "all((a == b).all() for a, b in zip(before, model.get_weights()))") is True


WITH_A_FILE = "keras.callbacks.LambdaCallback(on_epoch_end=lambda e, logs, file=open('/dev/null'): None)"


@pytest.mark.parametrize(
    ("body", "name", "said"),
    [
        ("keras.Sequential([keras.layers.Dense(1)]).fit(x, y)", "NotCompiled", "is not compiled. Call model.compile"),
        ("model.fit(x, y[:7])", "DataMismatch", "x has 2000, y has 7"),
        ("model.fit(x[:, :3], y)", "DataMismatch", "rejects this data"),
        ("model.fit(x[:0], y[:0])", "DataMismatch", "x has no rows"),
        ("model.fit(x, y, epoch=2)", "TypeError", "Did you mean epochs?"),
        ("model.fit(Missing())", "FileNotFoundError", "no_such.npy"),
        (f"model.fit(x, y, callbacks=[{WITH_A_FILE}])", "CannotTravel", "--local-fallback"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_the_cells_line_before_anything_is_sent(
    trainer: Kernel, body: str, name: str, said: str
) -> None:
    before = value(trainer, JOBS)

    cell = trainer.run(f"%%aiaas_train -n 2\n\n{body}")

    assert cell.reply["ename"] == name
    assert f"Cell In[{cell.reply['execution_count']}], line 3" in cell.error
    assert f"----> 3 {body}" in cell.error
    assert said in cell.error
    assert "aiaas_magics/" not in cell.error, "no frames of ours"
    assert not cell.of(WIDGET)
    assert value(trainer, JOBS) == before


def test_more_workers_than_devices_are_refused_with_both_ways_out(trainer: Kernel) -> None:
    cell = trainer.run("%%aiaas_train -n 99\nmodel.fit(x, y)")

    assert cell.reply["ename"] == "NotEnoughDevices"
    assert "--oversubscribe" in cell.error
    assert re.search(r"Use --workers \d+", cell.error)


def test_a_fit_that_cannot_travel_runs_here_if_that_is_wanted(trainer: Kernel) -> None:
    cell = trainer.run(f"%%aiaas_train --local-fallback\nhistory = model.fit(x[:50], y[:50], verbose=0, callbacks=[{WITH_A_FILE}])")

    assert cell.ok, cell.error
    assert "runs in the kernel (--local-fallback)" in cell.text
    assert value(trainer, "len(history.history['loss'])") == 1


def test_an_exception_in_a_worker_is_shown_once_at_the_cells_line_with_both_ranks(trainer: Kernel) -> None:
    code = """%%aiaas_train -n 2 -o failed
class Boom(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            raise KeyError("boom")

model.fit(x, y, epochs=3, batch_size=500, callbacks=[Boom()])"""

    cell = trainer.run(code)

    number = cell.reply["execution_count"]
    assert cell.reply["ename"] == "RemoteTrainingError"
    assert "KeyError on workers 0, 1" in cell.error
    assert f"Cell In[{number}], line 5, in on_epoch_end" in cell.error
    assert '----> 5             raise KeyError("boom")' in cell.error
    assert cell.error.count("KeyError: 'boom'") == 1
    assert value(trainer, "str(failed.state)") == "failed"
    assert not cell.of(WIDGET)


def test_an_operation_that_fails_in_a_compiled_step_is_shown_at_the_line_that_made_it(trainer: Kernel) -> None:
    trainer.run(
        """
import tensorflow as tf
class Checked(keras.layers.Layer):
    def call(self, inputs):
        tf.debugging.assert_less(inputs, 0.5, message="rows are too large")
        return inputs
checked = keras.Sequential([keras.Input((8,)), Checked(), keras.layers.Dense(1)])
checked.compile("sgd", "mse")
""".strip()
    )

    at_a_line = trainer.run("%%aiaas_train --ui none\nchecked.fit(x, y)")
    trainer.run(
        "kinds = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])\nkinds.compile('sgd', 'sparse_categorical_crossentropy')"
    )
    nowhere = trainer.run("%%aiaas_train --ui none\nkinds.fit(x, np.full(2000, 7))")

    assert "----> 4         tf.debugging.assert_less(inputs" in at_a_line.error
    assert "rows are too large" in at_a_line.error
    assert f"Cell In[{nowhere.reply['execution_count']}], line 2" in nowhere.error
    assert "InvalidArgumentError: Received a label value of 7 which is outside the valid range" in nowhere.error
    assert "(at the operation " in nowhere.error
    assert "site-packages" not in at_a_line.error + nowhere.error


def test_interrupting_cancels_the_job_and_leaves_model_and_kernel_usable(trainer: Kernel) -> None:
    code = "%%aiaas_train --ui html -o job\nmodel.fit(x, y, epochs=100_000, batch_size=20)"
    message = trainer.start(code)
    running = trainer.wait(message, until=" of 100000")

    trainer.interrupt()
    cell = trainer.wait(message, cell=running)

    assert cell.reply["ename"] == "Interrupted"
    assert re.fullmatch(r"Interrupted: job \w+ is cancelled; the model in the kernel is unchanged\.", cell.error.strip())
    assert "cancelled after" in cell.text
    assert value(trainer, "str(job.state), model.predict(x[:3], verbose=0).shape") == ("cancelled", (3, 1))
    assert trainer.run("%%aiaas_train --ui none\nmodel.fit(x, y, epochs=1, batch_size=500);").ok


def test_without_waiting_fit_gives_a_job_that_guards_its_model_until_it_is_awaited(trainer: Kernel) -> None:
    handed_in = trainer.run("other = built()\n")
    handed_in = trainer.run("%%aiaas_train --async --name later\njob = other.fit(x, y, epochs=400, batch_size=100)")
    assert handed_in.ok, handed_in.error

    refused = trainer.run("other.predict(x[:3])")
    trainer.run("%aiaas_cancel later")
    again = trainer.run("%%aiaas_train --async --ui none\njob = other.fit(x, y, epochs=2, batch_size=500)")
    waited = trainer.run("history = await job\nlen(history.history['loss']), other.predict(x[:3], verbose=0).shape")

    assert refused.reply["ename"] == "JobStillRunning"
    assert "predict on a model that job" in refused.error
    assert again.ok, again.error
    assert waited.ok, waited.error
    assert waited.text.strip() == "(2, (3, 1))"


def test_the_view_of_a_background_job_is_static_once_it_was_waited_for(trainer: Kernel) -> None:
    cell = trainer.run("%%aiaas_train --async\njob = model.fit(x, y, epochs=2, batch_size=500)")
    assert cell.of(WIDGET), "live while it runs"

    waited = trainer.run("%aiaas_wait")

    assert "succeeded. The model has its weights." in waited.text
    assert not cell.of(WIDGET)
    assert "succeeded: 2 epochs" in cell.text


def test_a_background_jobs_failure_is_shown_at_the_cells_line_when_its_result_is_taken(trainer: Kernel) -> None:
    cell = trainer.run("""%%aiaas_train --async --ui none
class Late(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        raise RuntimeError("late")

job = model.fit(x, y, callbacks=[Late()])""")

    taken = trainer.run("job.result()")

    assert taken.reply["ename"] == "RemoteTrainingError"
    assert f"Cell In[{cell.reply['execution_count']}], line 4, in on_train_begin" in taken.error
    assert trainer.run("model.predict(x[:1], verbose=0).shape").ok, "the guard is gone"


def test_another_kernel_finds_a_job_shows_its_history_and_takes_its_weights(trainer: Kernel, tmp_path: Path) -> None:
    assert trainer.run("%%aiaas_train --ui none --name shared --seed 5\nmodel.fit(x, y, epochs=3, batch_size=500);").ok
    trainer.run("np.save('expected.npy', model.predict(x[:5], verbose=0))")
    expected = value(trainer, "np.load('expected.npy').round(5).ravel().tolist()")

    for other in started(tmp_path):
        other.run("%load_ext aiaas_magics")
        listed = other.run("%aiaas_status")
        attached = other.run("%aiaas_attach shared -o job")
        other.run(MODEL)
        applied = other.run("job.apply_to(model)\nmodel.predict(x[:5], verbose=0).round(5).ravel().tolist()")

        assert "shared" in listed.text
        assert "succeeded: 3 epochs" in attached.text
        assert attached.of("image/png")
        assert not attached.of(WIDGET)
        assert applied.ok, applied.error
        import ast

        assert ast.literal_eval(applied.outputs[-1]["data"]["text/plain"]) == pytest.approx(expected, abs=1e-4)


def test_what_the_disk_holds_is_shown_and_what_nothing_needs_is_freed(trainer: Kernel) -> None:
    shown = trainer.run("%aiaas_storage")
    freed = trainer.run("%aiaas_storage --free")
    wrong = trainer.run("%aiaas_storage --fre")

    assert "records and logs of jobs" in shown.text
    assert "stay reserved" in shown.text
    assert "Freed 0" in freed.text
    assert "Did you mean --free?" in streams(wrong)


def test_from_the_third_fit_of_a_cell_on_each_has_one_line_of_one_output(trainer: Kernel) -> None:
    code = "%%aiaas_train\nfor fold in range(5):\n    built().fit(x, y, epochs=1, batch_size=500)\n    print('fold', fold)"

    cell = trainer.run(code)

    assert cell.ok, cell.error
    tables = [output["data"]["text/plain"] for output in cell.outputs if "data" in output]
    assert len(tables) == 3
    assert all("rows/s" in table for table in tables[:2])
    lines = tables[2].splitlines()
    assert len(lines) == 3
    assert all(re.match(rf"Fit {3 + n} · Job \w+ · .*: succeeded: 1 epoch in .*loss", line) for n, line in enumerate(lines)), lines
    assert re.findall(r"fold \d", streams(cell)) == [f"fold {n}" for n in range(5)]
    assert not cell.of(WIDGET)


TALKS = """%%aiaas_train -n 2
import logging, os, warnings
class Talks(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        print("epoch", epoch)
        print()
        warnings.warn("careful")
        logging.getLogger("mine").warning("logged")
        if os.getcwd().endswith("files-1"):
            print("I am another")

model.fit(x, y, epochs=2, batch_size=500, callbacks=[Talks(), keras.callbacks.LearningRateScheduler(lambda e: 0.1, verbose=1)]);"""


def test_what_workers_print_warn_and_log_stands_below_the_cell_once_and_all_of_it_in_the_logs(trainer: Kernel) -> None:
    cell = trainer.run(TALKS)
    logs = trainer.run("%aiaas_logs").text

    assert cell.ok, cell.error
    lines = [line for line in streams(cell).splitlines() if "warnings.warn" not in line]
    warning = lines.pop(4)
    assert warning.endswith("UserWarning: careful")
    assert [line for line in lines if not line.startswith("Worker 1")] == [
        "",
        "Epoch 1: LearningRateScheduler setting learning rate to 0.1.",
        "epoch 0",
        "",
        "logged",
        "",
        "Epoch 2: LearningRateScheduler setting learning rate to 0.1.",
        "epoch 1",
        "",
        "logged",
    ]
    assert re.fullmatch(r"Worker 1 printed different lines; %aiaas_logs \w+ shows them", lines[-1])
    assert "[1] I am another" in logs
    assert [sorted(output["data"]) for output in cell.outputs if "data" in output] == [
        ["text/html", "text/plain"],
        ["image/png", "text/plain"],
    ]
    assert trainer.run("%aiaas_cancel").text.endswith(" had already ended: succeeded.\n")


DRAWS = """%%aiaas_train -n 2
import matplotlib.pyplot as plt
class Draws(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        plt.plot([epoch, 1])
        if epoch < 2:
            plt.show()

model.fit(x, y, epochs=3, batch_size=500, callbacks=[Draws()]);"""


def test_figures_that_callbacks_show_or_leave_open_stand_below_the_cell_as_pictures(trainer: Kernel) -> None:
    cell = trainer.run(DRAWS)

    assert cell.ok, cell.error
    shown = [output["data"] for output in cell.outputs if "image/png" in output.get("data", {})]
    assert [data["text/plain"] for data in shown[:3]] == [f"Figure {n} of worker 0" for n in (1, 2, 3)]
    assert len({data["image/png"] for data in shown}) == 4, "three, and the curves of the fit"
    assert all(data["image/png"].startswith("iVBORw0KGgo") for data in shown)
    assert streams(cell) == ""


def test_an_unknown_job_is_one_line_that_names_close_ones(trainer: Kernel) -> None:
    cell = trainer.run("%aiaas_attach nobody-here")

    assert cell.reply["ename"] == "UsageError"
    assert "There is no job 'nobody-here'" in cell.text
    assert cell.text.count("\n") == 1


def test_an_endpoint_is_recorded_and_its_drift_is_shown_in_cells(trainer: Kernel) -> None:
    deployed = trainer.run("%aiaas_deploy model --name kept --sample x --record 100% -o endpoint")
    shown = trainer.run("endpoint")
    trainer.run("import numpy as np\nmoved = np.array(x)\nmoved[:, 0] += 3")
    trainer.run("for part in np.array_split(moved, 1 + len(moved) // 200): endpoint.predict(part)")
    drift = trainer.run("%aiaas_drift kept -o drift")
    first = value(trainer, "(drift.features[0].verdict.value, drift.report.origin, len(endpoint.recorded()) == len(x))")
    off = trainer.run("%aiaas_record kept off --forget")
    wrong = trainer.run("%aiaas_record kept all")
    trainer.run("endpoint.stop()")

    assert deployed.ok, deployed.error
    assert "100% of requests, at most 64 MB and 30 days; %aiaas_record kept off ends it" in shown.text
    assert drift.ok, drift.error
    assert "features shifted" in drift.text
    assert len(drift.of("image/png")) == 1
    assert first == ("large shift", "the data of the deployment", True)
    assert "Nothing is recorded from now on" in off.text
    assert "Use a share of the requests" in wrong.text


def test_a_model_is_attacked_in_a_cell(trainer: Kernel) -> None:
    cell = trainer.run("%aiaas_attack model --members x,y --others x,y --adversarial 0.1 -o attacks")
    facts = value(trainer, "sorted(attacks.facts())")
    wrong = trainer.run("%aiaas_attack model --members x")

    assert cell.ok, cell.error
    assert "no better than a guess" in cell.text
    assert len(cell.of("image/png")) == 1
    assert facts[0] == "adversarial accuracy at epsilon 0"
    assert "Give rows and targets of both" in wrong.text


def test_a_model_is_deployed_measured_and_taken_down_and_no_token_is_in_any_output(trainer: Kernel) -> None:
    deployed = trainer.run("%aiaas_deploy model --name churn-test -o endpoint")
    assert deployed.ok, deployed.error + streams(deployed)
    answered = trainer.run("float(abs(endpoint.predict(x[:4]) - model.predict(x[:4], verbose=0)).max()) < 1e-4")
    bench = trainer.run("%aiaas_bench churn-test --concurrency 1,2 --duration 0.3 --rates 50,100")
    plain = {
        kind: trainer.run(f"%aiaas_bench churn-test --concurrency 1 --duration 0.1 --rates none --forms json --ui {kind}")
        for kind in ("none", "text", "html")
    }
    trainer.run("import threading\nasking = threading.Thread(target=lambda: [endpoint.predict(x[:4]) for _ in range(400)])\nasking.start()")
    watched = trainer.run("%aiaas_monitor churn-test --seconds 2 --every 0.5 -o seen")
    trainer.run("asking.join()")
    looks = value(trainer, "[(s.requests_per_s, s.rows_per_s, s.p50_ms, s.p99_ms, s.batch_rows) for s in seen.answered]")
    status = trainer.run("%aiaas_status")
    token = value(trainer, "endpoint.token")
    looked = [
        trainer.run(code)
        for code in (
            "import aiaas_magics\nbackend = aiaas_magics.connect()\nbackend.endpoints()",
            "endpoint.view()",
            "print([endpoint.view()], repr(backend.endpoints()))",
            "{'deployed': backend.endpoints()}",
            "raise ValueError(endpoint.view())",
        )
    ]
    stopped = trainer.run("%aiaas_stop churn-test")
    again = trainer.run("%aiaas_stop churn-test")

    assert [sorted(output["data"]) for output in watched.outputs] == [["text/html", "text/plain"], ["image/png", "text/plain"]]
    assert looks
    assert all(rows_per_s == pytest.approx(4 * requests_per_s) for requests_per_s, rows_per_s, *_ in looks)
    assert all(0 < p50_ms <= p99_ms and batch_rows >= 4 for _, _, p50_ms, p99_ms, batch_rows in looks)
    assert "curl" in deployed.text
    assert '{"instances": [[0.0' not in deployed.text  # a row of the fit's
    assert answered.text.strip() == "True"
    tables, figure = [["text/html", "text/plain"]] * 2, ["image/png", "text/plain"]
    assert [sorted(output["data"]) for output in bench.outputs] == [*tables, figure]
    assert "p99.9" in bench.text
    assert WIDGET in bench.seen
    assert WIDGET in watched.seen
    assert [sorted(output["data"]) for output in plain["none"].outputs] == [["text/html", "text/plain"], figure]
    assert [sorted(output["data"]) for output in plain["html"].outputs] == [["text/html", "text/plain"], figure]
    (printed,) = plain["text"].outputs
    assert "Endpoint churn-test under load: measuring: 1 connection, json" in printed["text"]
    assert "p99.9" in printed["text"]
    assert "offered/s" in bench.text
    assert "churn-test" in status.text
    assert all("token=<hidden>" in streams(cell) + str(cell.outputs) + cell.error for cell in looked)
    for cell in (deployed, bench, watched, status, *looked):
        assert token not in streams(cell) + str(cell.outputs) + cell.error + str(cell.reply)
    assert stopped.text == "Endpoint churn-test is down.\n"
    assert "There is no endpoint 'churn-test'" in again.text


def test_a_watch_ends_with_its_endpoint_or_an_interrupt(trainer: Kernel) -> None:
    trainer.run("passing = model\n%aiaas_deploy passing -o endpoint")  # its name is the variable's
    message = trainer.start("%aiaas_monitor passing --seconds 600 --every 0.2 --ui html -o seen")
    running = trainer.wait(message, until="Endpoint passing: no requests in the last")
    trainer.interrupt()
    interrupted = trainer.wait(message, cell=running)
    trainer.run("import threading\nthreading.Timer(1.0, endpoint.stop).start()")

    cell = trainer.run("%aiaas_monitor passing --seconds 600 --every 0.2")

    assert cell.ok, cell.error
    assert interrupted.ok, interrupted.error
    assert "Ended by an interrupt." in interrupted.text
    assert "The endpoint was taken down." in cell.text
    assert "No request was answered." in cell.text


def test_a_next_version_comes_as_a_canary_is_promoted_and_taken_back(trainer: Kernel) -> None:
    trainer.run("%aiaas_deploy model --name rolled -o endpoint")
    refused = trainer.run("%aiaas_promote rolled")
    canary = trainer.run("%aiaas_deploy model --name rolled --canary 25% -o endpoint")
    status = trainer.run("%aiaas_status")
    promoted = trainer.run("%aiaas_promote rolled")
    back = trainer.run("%aiaas_rollback rolled")
    scaled = trainer.run("%aiaas_scale rolled 2")
    answered = trainer.run("endpoint.predict(x[:3]).shape, endpoint.view().replicas")
    trainer.run("%aiaas_stop rolled")

    assert "rolled has no canary to promote" in refused.text
    assert "2 (canary 25%), 1 (live)" in canary.text
    assert "2 (canary 25%), 1 (live)" in status.text
    assert promoted.text == "Endpoint rolled: 2 (live), 1 (previous).\n"
    assert back.text == "Endpoint rolled: 2 (previous), 1 (live).\n"
    assert scaled.text == "Endpoint rolled: replicas per version set to 2.\n"
    assert answered.text.strip() == "((3, 1), 2)"


def test_a_job_is_trained_again_from_its_record_and_compared_bit_by_bit(trainer: Kernel) -> None:
    trainer.run("%%aiaas_train\nagain = built()\nagain.fit(x, y, epochs=1, batch_size=64, verbose=0)  # token = 'abc'")

    record = trainer.run("%aiaas_reproduce --record -o record")
    second = trainer.run("%aiaas_reproduce -o second")

    assert "%%aiaas_train\nagain = built()\nagain.fit(x, y, epochs=1, batch_size=64, verbose=0)  # token = '<hidden>'" in value(
        trainer, "record.code"
    )
    assert "SHA-256" in record.text
    assert "bit-equal" in second.of("text/html")[-1]
    assert value(trainer, "(second.is_equal, second.same_history, second.environment)") == (True, True, ())
    assert trainer.run("%aiaas_reproduce no-such-job").text.startswith("UsageError: There is no job 'no-such-job'")


def test_a_model_and_what_an_endpoint_serves_leave_the_house_and_come_back(trainer: Kernel, tmp_path: Path) -> None:
    trainer.run("%aiaas_deploy model --name leaves -o endpoint")

    shown = trainer.run(f"written = %aiaas_export model --to onnx --name net --out {tmp_path}\nwritten")
    folder = trainer.run(f"%aiaas_export leaves --for triton --out {tmp_path}")
    saved = trainer.run(f"print(endpoint.save('{tmp_path}/saved.onnx').sentence)")
    wrong = trainer.run(f"endpoint.save('{tmp_path}/saved.keras')")
    again = trainer.run(
        f"%aiaas_deploy {tmp_path}/leaves_triton --name again -o again\nprint(again.predict(x[:2]) - endpoint.predict(x[:2]))"
    )

    assert f"{tmp_path}/net.onnx (ONNX, " in shown.text
    assert "largest difference" in shown.of("text/html")[-1]
    assert "answers as endpoint leaves on 32 sample rows in ONNX Runtime" in folder.text
    assert f"Start it: tritonserver --model-repository={'leaves_triton'}" in folder.text
    assert "answers as endpoint leaves" in saved.text
    assert "cannot be written as a Keras file: what is exported is no Keras model any more" in wrong.error
    assert again.ok, again.error
    assert "[[0.]" in again.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["leaves_triton", "net.onnx", "saved.onnx"]
    trainer.run("endpoint.stop()\nagain.stop()")


def test_a_model_in_fewer_bits_shows_what_they_change_before_it_goes_live(trainer: Kernel) -> None:
    trainer.run("""
import keras
wide = keras.Sequential([keras.Input(x.shape[1:])] + [keras.layers.Dense(n, "relu") for n in (512, 64, 1)])
wide.compile("sgd", "mse", metrics=["mae"])""")
    shown = trainer.run("%aiaas_deploy wide --name bits --precision int8 --validate x,y --max-change 0.2 -o endpoint")
    refused = trainer.run("%aiaas_deploy wide --name bits --precision int4 --validate x,y --max-change 0")
    status = trainer.run("%aiaas_status")
    trainer.run("%aiaas_stop bits")

    assert shown.ok, shown.error + streams(shown)
    assert "Accuracy impact of int8, measured on" in shown.text
    assert "Criterion: " in shown.text
    assert "The model does not go live." in refused.text
    assert "Nothing was deployed: int4 changes" in refused.text
    assert "1 (live, int8)" in status.text


@pytest.mark.timeout(600)
def test_a_study_draws_its_speedup_and_refuses_a_second_fit(trainer: Kernel) -> None:
    code = "%%aiaas_train --workers 1,2 -o study\nfirst = model.fit(x, y, epochs=2, batch_size=1000)\nmodel.fit(x, y)"

    cell = trainer.run(code, timeout_s=500)

    assert cell.reply["ename"] == "InvalidSpec"
    assert "this cell calls a second one" in cell.error
    assert "line 3" in cell.error
    table, figure = (output["data"]["text/plain"] for output in cell.outputs)
    for expected in ("ideal N/n", "efficiency", "Plain fit on all cores", "Recommended", "Parity", "compile (excluded)"):
        assert expected in table
    assert "Global batch 1,000" in figure
    assert value(trainer, "study.to_frame().query('not projected').workers.tolist(), len(first.epoch)") == ([1, 2], 2)
    assert trainer.run("study.plot()").of("image/png")


@pytest.mark.parametrize(
    ("options", "first", "said"),
    [
        ("--workers 1,2", "plain fit, all cores", "the study's job was cancelled"),
        ("--dry-run", "tensorflow, single", "the measuring job was cancelled"),
    ],
)
def test_interrupting_a_study_or_a_dry_run_cancels_the_job_that_runs(trainer: Kernel, options: str, first: str, said: str) -> None:
    message = trainer.start(f"%%aiaas_train {options} --ui html\nmodel.fit(x, y, epochs=2, batch_size=1000)")
    running = trainer.wait(message, until=first)

    trainer.interrupt()
    cell = trainer.wait(message, cell=running)

    assert cell.reply["ename"] == "Interrupted"
    assert said in cell.error
    assert value(trainer, "[str(view.state) for view in aiaas_magics.connect().jobs() if not view.state.final]") == []


def test_interrupting_a_magic_that_waits_is_one_line_and_the_job_goes_on(trainer: Kernel) -> None:
    trainer.run("%%aiaas_train --async --ui none --name slow\njob = built().fit(x, y, epochs=100_000, batch_size=20)")
    message = trainer.start("%aiaas_attach slow --ui html")
    running = trainer.wait(message, until=" of 100000")

    trainer.interrupt()
    cell = trainer.wait(message, cell=running)

    assert cell.reply["ename"] == "Interrupted"
    assert cell.error.strip().startswith("Left job")
    assert value(trainer, "str(job.state)") == "running"
    assert "cancelled" in trainer.run("%aiaas_cancel slow").text


GENERATOR = """
def batches(fails_at=None):
    held = open("held.txt", "w")
    with held:
        for place in range(10**6):
            if place == fails_at:
                raise KeyError("the user's own")
            rows = np.arange(place * 50, place * 50 + 50) % 2000
            yield x[rows], y[rows]
plain, streamed = built(), built()
streamed.set_weights(plain.get_weights())
""".strip()


def test_a_generator_is_streamed_to_two_workers_and_its_error_comes_back_as_it_is(trainer: Kernel) -> None:
    trainer.run(GENERATOR)

    cell = trainer.run("%%aiaas_train -n 2 --ui text\nreturned = streamed.fit(batches(), epochs=2, steps_per_epoch=6)")
    failed = trainer.run("%%aiaas_train --ui none\nstreamed.fit(batches(fails_at=9), epochs=2, steps_per_epoch=6)")

    assert cell.ok, cell.error
    assert "Streamed from this kernel (x)" in cell.text
    expected = "plain.fit(batches(), epochs=2, steps_per_epoch=6, verbose=0).history['loss']"
    assert value(trainer, f"bool(np.allclose({expected}, returned.history['loss'], atol=1e-5))")
    same = "all(np.allclose(a, b, atol=1e-5) for a, b in zip(plain.get_weights(), streamed.get_weights()))"
    assert value(trainer, f"bool({same})")
    assert not failed.ok
    assert 'KeyError: "the user\'s own"' in failed.error
    assert "in batches(fails_at)" in failed.error


def test_a_card_is_shown_as_markdown_and_says_what_was_measured(trainer: Kernel, tmp_path: Path) -> None:
    assert trainer.run("%%aiaas_train --ui none\nmodel.fit(x, y, epochs=2, batch_size=500)").ok
    assert trainer.run(
        "import pandas as pd\nframe = pd.DataFrame(x).assign(sex=np.where(np.arange(2000) % 3, 'f', 'm'))\nrows = x\nsex = frame.sex"
    ).ok

    cell = trainer.run(f"%aiaas_card model --rows rows --truth y --by sex --license MIT --use 'Tests | only' -o {tmp_path / 'card.md'}")

    assert cell.ok, cell.error
    (markdown,) = cell.of("text/markdown")
    assert "## Metrics by group" in markdown
    assert "| m | 667 |" in markdown
    assert "Tests \\| only" in markdown
    assert not markdown.startswith("---"), "the head is for files"
    assert (tmp_path / "card.md").read_text().startswith('---\nlicense: "mit"')
    assert cell.of("image/png"), "the groups are drawn too"
    accuracy = value(trainer, "float(np.mean((model.predict(x, verbose=0)[:, 0] >= 0.5) == y))")
    assert f"| accuracy | {accuracy:.4g} |" in markdown


def test_an_endpoints_card_is_kept_by_a_magic(trainer: Kernel) -> None:
    assert trainer.run("%aiaas_deploy model --name carded-cell").ok

    cell = trainer.run("%aiaas_card carded-cell --limits 'Never tested at night.'")

    assert cell.ok, cell.error
    assert "Never tested at night." in value(trainer, "aiaas_magics.connect().endpoint('carded-cell').card().to_markdown()")
    assert trainer.run("%aiaas_stop carded-cell").ok


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("", "Which model?"),
        ("model --rows x", "belong together"),
        ("model --by sex", "Add --rows"),
        ("model --rows x --truth y --by no_such_column", "no column or variable 'no_such_column'"),
        ("model --rows x --truth nowhere", "'nowhere' is not defined"),
        ("model --license 'all rights'", "no license id"),
        ("no_such_endpoint", "no endpoint 'no_such_endpoint'"),
    ],
)
def test_a_card_that_cannot_be_made_is_one_line(trainer: Kernel, line: str, sentence: str) -> None:
    cell = trainer.run(f"%aiaas_card {line}")

    assert cell.reply["ename"] == "UsageError"
    assert sentence in cell.text


def test_a_tracker_that_fails_is_a_warning_and_the_training_is_there(trainer: Kernel, tmp_path: Path) -> None:
    """In the place of a Python with mlflow: a program that ends at once."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'no server here' >&2\nexit 1\n")
    program.chmod(0o755)
    assert trainer.run(f"import os\nos.environ['AIAAS_MLFLOW_PYTHON'] = {str(program)!r}").ok

    cell = trainer.run("%%aiaas_train --track http://127.0.0.1:9 --ui none -o tracked\nmodel.fit(x, y, epochs=2, batch_size=500)")

    assert cell.ok, cell.error
    assert "The training is complete, but MLflow at http://127.0.0.1:9 did not get all of it" in cell.text
    assert "no server here" in cell.text
    assert value(trainer, "len(tracked.history['loss'])") == 2
    refused = trainer.run("%%aiaas_train --track http://127.0.0.1:9 --async\nmodel.fit(x, y)")
    assert "--track needs a training that the cell waits for" in refused.text
