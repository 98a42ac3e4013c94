"""One inference process with three models for all clients, and what its engines say by themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiaas_magics.backend.serving.engines.onnx_engine import OnnxEngine
from aiaas_magics.backend.serving.grpc.open_inference_schema import inference
from aiaas_magics.backend.serving.grpc.tfserving_schema import serving, tensorflow
from tests.backend.serving.support import serving_models
from tests.backend.serving.support.serving_models import Made
from tests.backend.serving.support.serving_rig import Rig
from tests.conformance.environments import HERE

INPUTS: dict[str, dict[str, np.ndarray]] = {
    "article": {"x": np.random.default_rng(3).normal(size=(4, 100)).astype("float32")},
    "sums": {"a": np.array([[0.1, -2.5], [3.0, 1e-3]], "float32"), "b": np.array([[1, 2], [-3, 4]], "int32")},
    "text": {"x": np.array([["plain", "Zürich"], ["", "two words"]], dtype=object)},
}


@dataclass(frozen=True)
class Served:
    """A living server, and the outputs that each model's engine gives for `INPUTS` when it is asked directly."""

    rig: Rig
    expected: dict[str, dict[str, Any]]

    @property
    def task(self) -> str:
        return json.dumps(
            {
                "http": self.rig.host.url.removeprefix("http://"),
                "grpc": self.rig.host.grpc,
                "token": self.rig.host.token,
                "api_token": self.rig.api_token,
                "inputs": {model: {name: array.tolist() for name, array in inputs.items()} for model, inputs in INPUTS.items()},
                "outputs": {model: list(outputs) for model, outputs in self.expected.items()},
                "messages": described_messages(),
            }
        )


@dataclass(frozen=True)
class Told:
    """What a client's script saw."""

    answers: list[dict[str, Any]]
    seen: dict[str, Any]

    @property
    def calls(self) -> dict[str, list[str]]:
        """Which models were asked by each kind of call."""
        found: dict[str, set[str]] = {}
        for answer in self.answers:
            found.setdefault(answer["call"], set()).add(answer["model"])
        return {call: sorted(models) for call, models in found.items()}


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("models")
    subprocess.run([sys.executable, serving_models.__file__, str(folder)], check=True, capture_output=True, timeout=240)
    models = [
        Made(serving_models.article_spec(), folder / "article.onnx", folder / "article.safetensors"),
        serving_models.sums(folder, "sums"),
        serving_models.echo(folder, "text", "string", 2),
    ]
    with Rig(tmp_path_factory.mktemp("state")) as rig:
        for made in models:
            rig.load(made)
        yield Served(rig, {made.spec.name: engine_says(made) for made in models})


def engine_says(made: Made) -> dict[str, Any]:
    engine = OnnxEngine(made.spec, made.artefact, threads=1)
    inputs = {
        name: np.vectorize(str.encode, otypes=[object])(array) if array.dtype == object else array
        for name, array in INPUTS[made.spec.name].items()
    }
    outputs = engine.run(inputs)
    engine.close()
    return {name: [[as_text(value) for value in row] for row in array.tolist()] for name, array in outputs.items()}


def as_text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


@pytest.fixture(scope="session")
def told_by(served: Served) -> Callable[[Path, str], Told]:
    """Runs a script of `clients` by an environment's interpreter; its answers have been held against the engines'."""

    def run(python: Path, script: str) -> Told:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HTTP_", "http_"))}
        environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "NO_PROXY": "*"}
        done = subprocess.run(
            [python, HERE / "clients" / script], input=served.task, capture_output=True, text=True, timeout=120, env=environment
        )
        assert done.returncode == 0, done.stderr[-4000:]
        told = Told(**json.loads(done.stdout))
        for answer in told.answers:
            expected = served.expected[answer["model"]]
            assert answer["outputs"].keys() == expected.keys(), answer
            for name, values in answer["outputs"].items():
                assert is_same(values, expected[name]), (answer, expected)
        return told

    return run


def is_same(values: Any, expected: Any) -> bool:
    if isinstance(expected[0][0], str):
        return bool(values == expected)
    return np.shape(values) == np.shape(expected) and bool(np.allclose(values, expected, rtol=1e-6, atol=1e-7))


def described_messages() -> dict[str, dict[str, tuple[int, int, bool]]]:
    """Of every message that the server knows: its fields' numbers, types, and whether they repeat. Clients may call packages otherwise."""
    found: dict[str, dict[str, tuple[int, int, bool]]] = {}

    def add(descriptor: Any) -> None:
        name = descriptor.full_name.removeprefix(f"{descriptor.file.package}.")
        found[name] = {field.name: (field.number, field.type, field.is_repeated) for field in descriptor.fields}
        for nested in descriptor.nested_types:
            add(nested)

    for package in (inference, serving, tensorflow):
        for kind in vars(package).values():
            if hasattr(kind, "DESCRIPTOR"):
                add(kind.DESCRIPTOR)
    return found
