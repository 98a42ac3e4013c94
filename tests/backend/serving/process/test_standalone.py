"""An endpoint is served from its folder by one command: no server, no notebook, no TensorFlow, the same answers."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from aiaas_magics.backend.serving.process import standalone
from aiaas_magics.core import bundle, wire
from aiaas_magics.core.errors import BlobDamaged, InvalidSpec
from tests.backend.serving.support.serving_models import Made, plus

TOKEN = "a-token-of-this-test"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As `%aiaas_export --for docker` lays it out."""
    (tmp_path / "made").mkdir()
    return written(plus(tmp_path / "made", "churn", 1.0), tmp_path / "model")


def written(made: Made, folder: Path) -> Path:
    import msgspec

    folder.mkdir()
    model, samples = made.artefact.read_bytes(), made.samples.read_bytes()
    (folder / bundle.MODELS["onnx"]).write_bytes(model)
    (folder / bundle.SAMPLES).write_bytes(samples)
    spec = msgspec.structs.replace(made.spec, artefact=hashlib.sha256(model).hexdigest(), samples=hashlib.sha256(samples).hexdigest())
    (folder / bundle.ENDPOINT).write_bytes(wire.encode(spec))
    return folder


@contextmanager
def served(folder: Path, home: Path, *options: str, token: str | None = TOKEN) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process of the command line and the address that it says."""
    environment = {**os.environ, "AIAAS_HOME": str(home)}
    environment.pop("AIAAS_ENDPOINT_TOKEN", None)
    if token is not None:
        environment["AIAAS_ENDPOINT_TOKEN"] = token
    command = [sys.executable, "-m", "aiaas_magics", "serve-model", str(folder), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield process, line
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def asked(url: str, document: Any, token: str = TOKEN) -> Any:
    request = urllib.request.Request(url, json.dumps(document).encode(), {"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@pytest.mark.process
def test_the_command_serves_the_model_without_tensorflow_and_ends_in_order(folder: Path, tmp_path: Path) -> None:
    with served(folder, tmp_path / "home") as (process, line):
        url = line.split(" at ")[1].split(" ")[0]
        maps = Path(f"/proc/{process.pid}/maps").read_text() if sys.platform == "linux" else ""
        answer = asked(url, {"instances": [[1.5]]})
        with pytest.raises(urllib.error.HTTPError) as refusal:
            asked(url, {"instances": [[1.5]]}, token="another-token-altogether")
        refusal.value.close()

    assert line.startswith("aiaas serves churn at http://127.0.0.1:")
    assert answer == {"predictions": [[2.5]]}
    assert refusal.value.code == 401
    assert "onnxruntime" in maps
    assert "tensorflow" not in maps
    assert process.returncode == 0


@pytest.mark.nightly
def test_without_a_token_one_is_made_and_stays_the_same(folder: Path, tmp_path: Path) -> None:
    tokens = []
    for _ in range(2):
        with served(folder, tmp_path / "home", "--state", str(tmp_path / "state"), token=None) as (_, line):
            tokens.append((tmp_path / "state" / "serving" / "token").read_text())
            asked(line.split(" at ")[1].split(" ")[0], {"instances": [[1.5]]}, token=tokens[-1])

    assert tokens[0] == tokens[1]
    assert (tmp_path / "state" / "serving" / "token").stat().st_mode & 0o077 == 0


@pytest.mark.process
def test_a_model_that_answers_otherwise_here_is_not_served(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    folder = written(plus(tmp_path / "made", "churn", 1.0, expects=1.5), tmp_path / "model")

    with served(folder, tmp_path / "home") as (process, line):
        _, errors = process.communicate(timeout=60)

    assert line == ""
    assert "churn" in errors.splitlines()[-1]
    assert "0.5" in errors.splitlines()[-1]
    assert process.returncode == 2


@pytest.mark.process
@pytest.mark.parametrize(
    ("options", "token", "sentence"),
    [
        (("--host", "0.0.0.0"), TOKEN, "--host 0.0.0.0 is reachable from other machines"),
        ((), "short", "AIAAS_ENDPOINT_TOKEN is too short"),
    ],
)
def test_what_would_be_unsafe_is_refused_in_one_sentence(
    options: tuple[str, ...], token: str, sentence: str, folder: Path, tmp_path: Path
) -> None:
    with served(folder, tmp_path / "home", *options, token=token) as (process, line):
        _, errors = process.communicate(timeout=60)

    assert line == ""
    assert sentence in errors
    assert "Traceback" not in errors
    assert process.returncode == 2


def test_a_folder_whose_files_are_others_is_refused(folder: Path) -> None:
    assert standalone.read_bundle(folder).spec.name == "churn"
    (folder / "model.onnx").write_bytes(b"another")
    with pytest.raises(BlobDamaged, match="is another file than the export wrote"):
        standalone.read_bundle(folder)
    (folder / "model.onnx").unlink()
    with pytest.raises(InvalidSpec, match=r"has no model\.onnx\. Copy the whole folder"):
        standalone.read_bundle(folder)
    (folder / "endpoint.json").write_text("{")
    with pytest.raises(InvalidSpec, match=r"endpoint\.json' cannot be read"):
        standalone.read_bundle(folder)
    (folder / "endpoint.json").unlink()
    with pytest.raises(InvalidSpec, match=r"has no endpoint\.json.*%aiaas_export MODEL --for docker"):
        standalone.read_bundle(folder)


@pytest.mark.nightly
def test_the_pinned_requirements_alone_serve_the_model(tmp_path: Path) -> None:
    """A container of its own without Docker: a fresh environment with `requirements.txt`, and the folder's own copy of our code."""
    from aiaas_magics.packing.formats import serving_folders
    from tests.packing.formats.exported_models import MODELS

    model = MODELS["several"]()
    exported = serving_folders.export_folder(model, "docker", name="several", out=tmp_path)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python), "install", "--quiet", "--no-deps"]
    done = subprocess.run([*pip, "-r", str(exported.path / "requirements.txt")], capture_output=True, text=True, env=without_path())
    assert done.returncode == 0, done.stderr
    command = [str(python), "-m", "aiaas_magics", "serve-model", "model", "--host", "127.0.0.1"]
    environment = {**without_path(), "AIAAS_HOME": str(tmp_path / "home"), "AIAAS_ENDPOINT_TOKEN": TOKEN}
    process = subprocess.Popen(command, cwd=exported.path, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split(" at ")[1].split(" ")[0]
        row = {"age": [1.0, 2.0, 3.0, 4.0], "city": [0.0, 1.0, 0.0]}
        answer = asked(url, {"instances": [row]})["predictions"][0]
    finally:
        process.terminate()
        process.communicate(timeout=30)

    import numpy as np

    own = model.predict({name: np.array([values], "float32") for name, values in row.items()}, verbose=0)
    np.testing.assert_allclose(answer["risk"], own["risk"][0], rtol=1e-4)
    np.testing.assert_allclose(answer["score"], own["score"][0], rtol=1e-4)


def without_path() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


@pytest.mark.nightly
def test_a_model_that_onnx_cannot_hold_is_served_by_tensorflow(tmp_path: Path) -> None:
    import keras
    import numpy as np

    from aiaas_magics.packing.formats import serving_folders

    lookup = keras.layers.StringLookup(vocabulary=["red", "green"], output_mode="one_hot")
    colour = keras.Input((1,), dtype="string", name="colour")
    model = keras.Model(colour, keras.layers.Dense(1)(lookup(colour)), name="colours")
    texts = np.array([["red"], ["green"], ["blue"]], dtype=object)
    exported = serving_folders.export_folder(model, "docker", name="colours", out=tmp_path, sample=texts)

    with served(exported.path / "model", tmp_path / "home") as (_, line):
        answer = asked(line.split(" at ")[1].split(" ")[0], {"instances": [["green"], ["red"]]})

    own = model(keras.ops.convert_to_tensor([["green"], ["red"]])).numpy()
    np.testing.assert_allclose(answer["predictions"], own, rtol=1e-5)
