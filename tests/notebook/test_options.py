"""What is typed wrong gets one line that says so and what to type instead."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis.strategies import text
from IPython.core.error import UsageError
from traitlets.config import Config

from aiaas_magics.core.execution import Execution
from aiaas_magics.core.privacy import Privacy
from aiaas_magics.core.routing import Rollout, Scaling
from aiaas_magics.notebook import options
from aiaas_magics.notebook.extension import AiaasMagics, magics
from aiaas_magics.notebook.magics.bench_magic import BenchRequest
from aiaas_magics.notebook.magics.job_magics import JobRequest
from aiaas_magics.notebook.magics.serving_magics import DeployRequest, ScaleRequest
from aiaas_magics.notebook.magics.train_magic import TrainRequest
from aiaas_magics.notebook.option_values import Every, Workers

BAD_LINES = [
    ("train", "--wrkers 2", "no option --wrkers. Did you mean --workers?"),
    ("train", "--worker=2", "Did you mean --workers?"),
    ("train", "--zzz", "%aiaas_train -h"),
    ("train", "-n 0", "0 workers cannot train. Use at least 1"),
    ("train", "-n -1", "-1 workers cannot train"),
    ("train", "-n two", "'two' is not a number of workers"),
    ("train", "-n 2.5", "'2.5' is not a number of workers"),
    ("train", "-n 1, 2", "Write 1,2 without spaces"),
    ("train", "-n 1,,2", "nothing between two commas"),
    ("train", "-n 2,2", "contains a number twice"),
    ("train", "-n 99999", "more than 1024"),
    ("train", "-n", "needs a value"),
    ("train", "--seed -3", "out of range"),
    ("train", "--seed x", "not a whole number"),
    ("train", "--ui gui", "invalid choice"),
    ("train", "--checkpoint-every often", "write 30s for seconds"),
    ("train", "--checkpoint-every -2", "out of range"),
    ("train", "--checkpoint-every 0s", "not a time in seconds"),
    ("train", "--retries -1", "between 0 and 100"),
    ("train", "-o 2x", "not a variable name"),
    ("train", "-o class", "not a variable name"),
    ("train", "--name {missing}", "Variable 'missing' is not defined"),
    ("train", "--name $missing", "Variable 'missing' is not defined"),
    ("train", "--name='a b", "quotation mark is not closed"),
    ("train", "model", "'model' was not expected here"),
    ("deploy", "model --name 'My Model'", "cannot name an endpoint"),
    ("deploy", "model --name ../etc", "cannot name an endpoint"),
    ("deploy", "model --replicas 0", "between 1 and 64"),
    ("deploy", "model --replicas many", "Use 2, auto, or auto:1-4"),
    ("deploy", "model --replicas auto:4-1", "the larger number comes last"),
    ("deploy", "model --precision int3", "invalid choice"),
    ("deploy", "model --precision int8 --validate x,y,z", "Write x_val,y_val without spaces"),
    ("deploy", "model --precision int8 --validate x,", "Write x_val,y_val without spaces"),
    ("deploy", "model --precision int8 --max-change nan", "such as 0.01 or 1%"),
    ("deploy", "model --validate x,y", "Add --precision int8"),
    ("deploy", "model other", "'other' was not expected here"),
    ("bench", "churn --concurrency 0", "out of range"),
    ("bench", "churn --concurrency 1, 2", "without spaces"),
    ("bench", "churn --duration -1", "not a time in seconds"),
    ("bench", "churn --duration nan", "not a time in seconds"),
    ("bench", "churn --rows 0", "out of range"),
    ("bench", "churn --rates 0", "is not a list of rates"),
    ("bench", "churn --rates fast", "is not a list of rates"),
    ("bench", "churn --forms xml", "is not an encoding of tensors"),
    ("wait", "7 --timeout soon", "not a time in seconds"),
    ("logs", "--lines 0", "out of range"),
    ("train", "--track http://127.0.0.1:5000 --async", "--track needs a training that the cell waits for"),
]

REQUESTS = {"train": TrainRequest, "deploy": DeployRequest, "bench": BenchRequest}


def magic(name: str) -> Any:
    return getattr(AiaasMagics, f"aiaas_{name}")


@pytest.mark.parametrize(("name", "line", "said"), BAD_LINES)
def test_a_typing_mistake_is_told_with_what_to_type_instead(name: str, line: str, said: str) -> None:
    with pytest.raises(UsageError) as told:
        options.read(magic(name), line, REQUESTS.get(name, JobRequest))

    assert type(told.value) is UsageError, "IPython prints a traceback for subclasses"
    assert said in str(told.value)
    assert "\n" not in str(told.value)


def test_a_tracker_is_read_with_its_address() -> None:
    assert options.read(magic("train"), "--track http://127.0.0.1:5000", TrainRequest).track == "http://127.0.0.1:5000"


def test_every_option_of_training_is_read() -> None:
    line = (
        "-n 4,1,2 --weak --name 'my run' --async -o out --dry-run --seed 7 --oversubscribe --local-fallback --ui text "
        "--engine tensorflow --strategy single --fused off --model-parallel 1 --checkpoint-every 30s --retries 5 --resume 7 "
        "--precision mixed_bfloat16 --accumulate 4 --env MY_KEY,MY_RATE --private epsilon=2,delta=1e-5,clip=0.5"
    )

    request = options.read(magic("train"), line, TrainRequest)

    assert request == TrainRequest(
        workers=Workers(points=(1, 2, 4)),
        weak=True,
        name="my run",
        background=True,
        out="out",
        dry_run=True,
        seed=7,
        oversubscribe=True,
        engine="tensorflow",
        strategy="single",
        model_parallel=1,
        fused="off",
        precision="mixed_bfloat16",
        accumulate=4,
        private=Privacy(epsilon=2.0, delta=1e-5, clip=0.5),
        checkpoint_every=Every(seconds=30.0),
        retries=5,
        resume="7",
        env=("MY_KEY", "MY_RATE"),
        no_env=False,
        local_fallback=True,
        track=None,
        ui="text",
        help=False,
    )
    assert request.workers is not None
    assert request.workers.is_study
    with pytest.raises(UsageError, match="--workers 1,2"):
        options.read(magic("train"), "--weak -n 2", TrainRequest)


def test_a_budget_that_gives_no_guarantee_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match=r"--private: epsilon=0 is no budget\. Use a value above 0"):
        options.read(magic("train"), "--private epsilon=0,delta=1e-5", TrainRequest)


def test_environment_variables_are_named_or_none_is_sent() -> None:
    assert options.read(magic("train"), "", TrainRequest).fits.environment == ()
    assert options.read(magic("train"), "--env A,B", TrainRequest).fits.environment == ("A", "B")
    assert options.read(magic("train"), "--no-env", TrainRequest).fits.environment is None
    with pytest.raises(UsageError, match="Leave one of them out"):
        options.read(magic("train"), "--no-env --env A", TrainRequest)
    with pytest.raises(UsageError, match="without values"):
        options.read(magic("train"), "--env A=1", TrainRequest)


def test_every_option_of_deploying_is_read() -> None:
    line = "model --name churn --replicas 2 --sample rows --canary 10% --keep 1 --max-delay-us 500 -o endpoint"

    request = options.read(magic("deploy"), line, DeployRequest)

    assert (request.model, request.name, request.replicas, request.sample, request.out) == (
        "model",
        "churn",
        Scaling(replicas=2),
        ("rows",),
        "endpoint",
    )
    assert options.read(magic("deploy"), "model --sample short,long", DeployRequest).sample == ("short", "long")
    assert (request.rollout, request.max_delay_us) == (Rollout(canary=0.1, keep=1), 500)
    assert (request.precision, request.validate, request.max_change) == ("", None, None)
    reduced = options.read(magic("deploy"), "model --precision int4 --validate x_val,y_val --max-change 2%", DeployRequest)
    assert (reduced.precision, reduced.validate, reduced.max_change) == ("int4", ("x_val", "y_val"), 0.02)
    assert options.read(magic("deploy"), "model --canary 0.25", DeployRequest).rollout.canary == 0.25
    for wrong in ("0%", "100%", "2", "x", "-5%"):
        with pytest.raises(UsageError, match="not a share of the requests"):
            options.read(magic("deploy"), f"model --canary={wrong}", DeployRequest)


def test_scaling_takes_an_endpoint_and_a_number() -> None:
    request = options.read(magic("scale"), "churn 3", ScaleRequest)

    assert (request.name, request.replicas) == ("churn", Scaling(replicas=3))
    with pytest.raises(UsageError, match="between 1 and 64"):
        options.read(magic("scale"), "churn 99", ScaleRequest)


@pytest.mark.parametrize("line", ["--name 'two words'", '--name "two words"', "--name='two words'", '--name="two words"'])
def test_quotes_hold_words_together_and_are_taken_off(line: str) -> None:
    assert options.read(magic("train"), line, TrainRequest).name == "two words"


@pytest.mark.parametrize(("line", "expected"), [("-n max", Workers(most=True)), ("-n3", Workers((3,))), ("--workers=1,2", Workers((1, 2)))])
def test_workers_are_a_number_a_list_or_max(line: str, expected: Workers) -> None:
    assert options.read(magic("train"), line, TrainRequest).workers == expected


def test_checkpoints_come_by_epochs_or_by_seconds() -> None:
    def execution(line: str) -> Execution:
        return options.read(magic("train"), line, TrainRequest).execution

    assert execution("") == Execution()
    assert execution("--checkpoint-every 2") == Execution(checkpoint_epochs=2)
    assert execution("--checkpoint-every 2.5s") == Execution(checkpoint_epochs=0, checkpoint_s=2.5)
    assert execution("--checkpoint-every 0") == Execution(checkpoint_epochs=0)


def test_nothing_typed_means_the_defaults() -> None:
    assert options.read(magic("train"), "", TrainRequest).workers is None
    assert options.read(magic("bench"), "churn", BenchRequest).concurrency == (1, 2, 4)
    assert options.read(magic("bench"), "churn", BenchRequest).rates is None
    assert options.read(magic("bench"), "churn --rates none", BenchRequest).rates == ()
    assert options.read(magic("bench"), "churn --rates 200,50.5", BenchRequest).rates == (50.5, 200.0)
    assert options.read(magic("bench"), "churn --forms binary", BenchRequest).forms == ("binary",)
    assert options.read(magic("deploy"), "model", DeployRequest).replicas == Scaling(replicas=1)


@pytest.mark.parametrize(("written", "most"), [("3", 0), ("auto:3-4", 4)])
def test_replicas_are_a_number_or_bounds_between_which_the_load_decides(written: str, most: int) -> None:
    scaling = options.read(magic("deploy"), f"model --replicas {written}", DeployRequest).replicas

    assert scaling == Scaling(replicas=3, most=most)
    assert str(scaling) == written
    assert options.read(magic("deploy"), "model --replicas auto", DeployRequest).replicas == Scaling(replicas=1, most=64)


@given(line=text(max_size=40))
def test_whatever_is_typed_is_read_or_refused_with_a_usage_error(line: str) -> None:
    with contextlib.suppress(UsageError):
        assert isinstance(options.read(magic("train"), line, TrainRequest), TrainRequest)


def test_on_binder_every_magic_loads_the_extension() -> None:
    prepared = (Path(__file__).parents[2] / "binder" / "postBuild").read_text(encoding="utf-8")
    *_, script = re.findall(r"<<'PY' > \S+\n(.*?)\nPY\n", prepared, re.DOTALL)
    written, config = io.StringIO(), Config()
    with contextlib.redirect_stdout(written):
        exec(script, {})

    exec(written.getvalue(), {"get_config": lambda: config})

    assert config.MagicsManager.lazy_magics == dict.fromkeys(magics(), "aiaas_magics")


def test_the_magics_are_those_of_the_files_in_magics() -> None:
    assert len(magics()) == 23
    assert {kind: set(names) for kind, names in AiaasMagics.magics.items()} == {"line": set(magics()), "cell": {"aiaas_train"}}


def test_the_reference_page_knows_every_option_of_every_magic() -> None:
    page = (Path(__file__).parents[2] / "docs" / "magics.md").read_text(encoding="utf-8")
    chapters = {chapter.split("\n")[0]: chapter for chapter in page.split("\n## ")}

    for name in magics():
        actions = magic(name.removeprefix("aiaas_")).parser._actions
        assert all(f"`{flag}" in chapters[name] for action in actions for flag in action.option_strings)
        assert all(action.help for action in actions)
