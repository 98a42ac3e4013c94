"""MLflow process: logs one run to a tracking server; the only home of `mlflow`.

Owns MLflow's calls. It runs as a program of its own, with the standard library and `mlflow` alone, so that a server that hangs or a
library that fails never holds up a kernel, and so that the interpreter may be another one (`AIAAS_MLFLOW_PYTHON`). What is logged
belongs to `tracking`, which writes one JSON object per line and reads one reply per line.

    MLFLOW_TRACKING_URI=... python mlflow_process.py

The address is no argument, since it may hold a password, and everybody may read a process' arguments.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from typing import Any, Final

NAME_CHARACTERS: Final = 250  # of a metric or parameter, as MLflow's servers allow
VALUE_CHARACTERS: Final = 6000  # of a parameter's value
ALLOWED: Final = re.compile(r"[^A-Za-z0-9_\-. :/]")
BATCH: Final = 1000  # metrics in one request, as MLflow's servers allow


def cleaned(name: str) -> str:
    """A name that MLflow takes.

    >>> cleaned("top-k (5)")
    'top-k _5_'
    """
    return ALLOWED.sub("_", name)[:NAME_CHARACTERS] or "_"


class Run:
    """One run on a tracking server, from the first message to the last."""

    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient

        self._client, self._id = MlflowClient(uri), ""

    def begin(self, message: dict[str, Any]) -> dict[str, Any]:
        from mlflow.entities import Param

        client, name = self._client, message["experiment"]
        experiment = client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment is not None else client.create_experiment(name)
        run = client.create_run(number, run_name=message["run_name"], tags=message["tags"])
        self._id = run.info.run_id
        parameters = [Param(cleaned(key), str(value)[:VALUE_CHARACTERS]) for key, value in message["parameters"].items()]
        for start in range(0, len(parameters), 100):
            client.log_batch(self._id, params=parameters[start : start + 100])
        return {"run": self._id, "experiment": number}

    def metrics(self, message: dict[str, Any]) -> dict[str, Any]:
        from mlflow.entities import Metric

        entries = [
            Metric(cleaned(name), float(value), int(point["at_ms"]), int(point["step"]))
            for point in message["points"]
            for name, value in point["values"].items()
        ]
        for start in range(0, len(entries), BATCH):
            self._client.log_batch(self._id, metrics=entries[start : start + BATCH])
        return {}

    def file(self, message: dict[str, Any]) -> dict[str, Any]:
        self._client.log_artifact(self._id, message["path"], message["folder"] or None)
        return {}

    def model(self, message: dict[str, Any]) -> dict[str, Any]:
        """Log a `.keras` file as MLflow's own Keras flavor, which `mlflow.keras.load_model` and `mlflow.pyfunc.load_model` read."""
        import shutil

        from mlflow.models import Model

        versions = message["versions"]
        with tempfile.TemporaryDirectory(prefix="aiaas-mlflow-") as folder:
            os.mkdir(os.path.join(folder, "data"))
            shutil.copyfile(message["path"], os.path.join(folder, "data", "model.keras"))
            with open(os.path.join(folder, "requirements.txt"), "w", encoding="utf-8") as file:
                file.writelines(f"{name}=={version}\n" for name, version in versions.items() if version)
            described = Model(artifact_path="model", run_id=self._id)
            options = {
                "data": "data",
                "keras_version": versions["keras"],
                "keras_backend": message["backend"],
                "save_exported_model": False,
            }
            described.add_flavor("keras", **options)
            described.add_flavor(
                "python_function",
                loader_module="mlflow.keras",
                python_version=message["python"],
                env={"virtualenv": "python_env.yaml"},
            )
            with open(os.path.join(folder, "python_env.yaml"), "w", encoding="utf-8") as file:
                file.write(f"python: {message['python']}\ndependencies:\n- -r requirements.txt\n")
            described.save(os.path.join(folder, "MLmodel"))
            self._client.log_artifacts(self._id, folder, "model")
        return {}

    def register(self, message: dict[str, Any]) -> dict[str, Any]:
        from mlflow.exceptions import MlflowException

        name = message["name"]
        try:
            self._client.get_registered_model(name)
        except MlflowException:
            self._client.create_registered_model(name)
        source = f"{self._client.get_run(self._id).info.artifact_uri}/model"
        version = self._client.create_model_version(name, source, self._id)
        return {"version": str(version.version)}

    def end(self, message: dict[str, Any]) -> dict[str, Any]:
        self._client.set_terminated(self._id, status=message["status"])
        return {}


def main(uri: str, lines: Any, reply: Callable[[dict[str, Any]], None]) -> None:
    """Carry out each line, and say after each how that went. A failure ends nothing: the next line is tried."""
    run: Run | None = None
    for line in lines:
        message = json.loads(line)
        action = message["what"]
        try:
            run = run or Run(uri)
            answer = getattr(run, action)(message)
            reply({"what": action, "of": message.get("of", action), **answer})
        except Exception as error:  # noqa: BLE001 - border: MLflow, its stores and the network may fail in any way
            reply(
                {"what": action, "of": message.get("of", action), "error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
            )


if __name__ == "__main__":
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what MLflow prints is no reply

    def write(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main(os.environ["MLFLOW_TRACKING_URI"], sys.stdin, write)
