"""Environment variables of the notebook reach the workers, and nothing else of it does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from aiaas_magics.client import local_server
from aiaas_magics.core import environment
from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.remote_error import ErrorReport
from aiaas_magics.packing.fitcall.fit_call import FitCall, pack, read_result
from tests.support.packed import Namespace, Worker

Cell = Callable[..., Namespace]

READER = """
import os
model = keras.Sequential([layers.Input((6,)), layers.Dense(1)])
model.compile('sgd', 'mse')
class Reader(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.rate = os.environ.get("MY_RATE")
        self.shell = os.environ.get("FROM_THE_SHELL")
        self.key = os.environ.get("MY_API_KEY")
        self.quiet = os.environ.get("QUIET_MODE")
"""


def test_a_variable_that_the_notebook_sets_is_there_in_the_worker(
    cell: Cell, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cell(READER)
    for name, value in (("MY_RATE", "0.25"), ("MY_API_KEY", "s3cret"), ("FROM_THE_SHELL", "zsh"), ("QUIET_MODE", "")):
        monkeypatch.setenv(name, value)

    packed = pack(FitCall(made["model"], {**made["arguments"], "callbacks": [made["Reader"]()]}))
    (seen,) = read_result(worker.train(packed, tmp_path / "job")).callbacks

    assert (seen["rate"], seen["shell"], seen["quiet"]) == ("0.25", "zsh", "")
    assert seen["key"] is None
    assert [item.name for item in packed.manifest.of_kind("variable")] == ["FROM_THE_SHELL", "MY_RATE", "QUIET_MODE"]
    assert packed.environment_notes == (
        "Environment variables sent to the workers: FROM_THE_SHELL, MY_RATE, QUIET_MODE. Use --no-env to send none.",
        "Not sent, because it may be a secret: MY_API_KEY. Use --env MY_API_KEY where the workers need it.",
    )
    assert b"s3cret" not in packed.payload


def test_a_secret_goes_when_it_is_named_and_nothing_goes_with_no_env(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    made = cell(READER)
    monkeypatch.setenv("MY_API_KEY", "s3cret")
    monkeypatch.setenv("MY_RATE", "0.25")
    call = FitCall(made["model"], {**made["arguments"], "callbacks": [made["Reader"]()]})

    assert [item.name for item in pack(call, environment=("MY_API_KEY",)).manifest.of_kind("variable")] == ["MY_API_KEY", "MY_RATE"]
    silent = pack(call, environment=None)
    assert not silent.manifest.of_kind("variable")
    assert silent.environment_notes == ()


def test_what_was_there_when_the_kernel_began_goes_only_where_the_code_names_it() -> None:
    initial = {"PROJECT": "blue", "REGION": "eu", "PATH": "/bin"}
    current = {**initial, "PATH": "/other/bin", "JPY_PARENT_PID": "7", "AIAAS_HOME": "x", "CUDA_VISIBLE_DEVICES": "1", "STEP": "2"}

    chosen = environment.choose(current, initial, mentioned={"PROJECT", "PATH", "HOME"})

    assert chosen.values == {"PROJECT": "blue", "STEP": "2"}
    assert chosen.secrets == ()


@pytest.mark.parametrize("name", ["API_KEY", "WANDB_API_KEY", "HF_TOKEN", "MYSECRETVALUE", "db_password", "GH_PAT_TOKEN", "SERVICE_AUTH"])
def test_a_variable_that_is_called_a_secret_stays(name: str) -> None:
    assert environment.choose({name: "x"}, {}).secrets == (name,)


def test_an_address_with_a_password_is_a_secret_and_a_plain_one_is_not() -> None:
    chosen = environment.choose({"TRACKING": "https://me:pw@host/x", "OTHER": "https://host:80/x", "TOKENIZERS_PARALLELISM": "false"}, {})

    assert chosen.secrets == ("TRACKING",)
    assert set(chosen.values) == {"OTHER", "TOKENIZERS_PARALLELISM"}


def test_a_variable_that_libraries_read_at_import_is_said_to_come_too_late() -> None:
    (_, late) = environment.choose({"TF_ENABLE_ONEDNN_OPTS": "0"}, {}).notes()

    assert late.startswith("Workers get TF_ENABLE_ONEDNN_OPTS after they have imported TensorFlow and Keras")
    assert "before Jupyter (or `aiaas serve`) starts" in late


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("NOT_SET", "--env NOT_SET: this kernel has no such environment variable. Set it first"),
        ("PATH", "--env PATH: it describes a machine"),
    ],
)
def test_env_refuses_what_is_not_set_and_what_belongs_to_a_machine(name: str, said: str) -> None:
    with pytest.raises(InvalidSpec, match=said):
        environment.choose({"PATH": "/bin"}, {}, named=(name,))


def test_a_variable_missing_in_a_worker_is_told_with_the_option_that_sends_it() -> None:
    from aiaas_magics.backend.training.error_report import report_of

    try:
        os.environ["MY_MISSING_KEY"]
    except KeyError as error:
        report = report_of(error, rank=0)
    from aiaas_magics.core.errors import RemoteTrainingError

    assert "send the kernel's variable with --env MY_MISSING_KEY" in str(RemoteTrainingError(report))
    assert "--env" not in str(RemoteTrainingError(ErrorReport(type="KeyError", message="'MY_MISSING_KEY'")))


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads the environment of another process from /proc")
def test_the_local_server_has_nothing_of_the_notebook_that_started_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIAAS_HOME", str(tmp_path))
    for name in ("PYTHONWARNINGS", "MY_RATE", "MY_API_KEY", "JPY_PARENT_PID"):
        monkeypatch.setenv(name, "ignore")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    url, _ = local_server.ensure_local()
    try:
        port = int(url.rpartition(":")[2])
        (server,) = [process for process in psutil.Process().children() if any(c.laddr.port == port for c in process.net_connections())]
        names = server.environ()
    finally:
        local_server.stop_local()

    assert not {"PYTHONWARNINGS", "MY_RATE", "MY_API_KEY", "JPY_PARENT_PID"} & names.keys()
    assert {"AIAAS_HOME", "CUDA_VISIBLE_DEVICES", "PATH"} <= names.keys()
