"""A folder that a server starts from holds the model under the right names, and is a model again when it is deployed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml  # of JupyterLab
from safetensors.numpy import load_file

from aiaas_magics.core import bundle, export_names, wire
from aiaas_magics.core.errors import InvalidName
from aiaas_magics.core.spec import DeploySpec, TensorSpec
from aiaas_magics.packing.export import foreign_models, model_folders
from aiaas_magics.packing.export.export_formats import CannotServe
from aiaas_magics.packing.export.onnx_session import onnx_form
from aiaas_magics.packing.formats import format_table, model_files, serving_folders, triton_config
from aiaas_magics.packing.formats.container_files import closure, requirements_text
from aiaas_magics.packing.formats.export_source import CannotExport
from tests.packing.formats.exported_models import MODELS, PLAIN, SAMPLES

pytestmark = pytest.mark.slow


def test_the_tables_have_a_row_for_each_name_of_the_magic() -> None:
    assert tuple(format_table.FORMATS) == export_names.MODEL_FORMATS
    assert tuple(serving_folders.FOLDERS) == export_names.SERVERS
    assert set(format_table.ELSEWHERE) == set(format_table.FORMATS)


@pytest.mark.parametrize("name", [PLAIN, *(pytest.param(name, marks=pytest.mark.nightly) for name in MODELS if name != PLAIN)])
def test_each_folder_holds_the_model_and_is_deployed_again(name: str, tmp_path: Path) -> None:
    model, sample = MODELS[name](), SAMPLES.get(name)

    folders = {kind: serving_folders.export_folder(model, kind, name=name, out=tmp_path, sample=sample) for kind in serving_folders.FOLDERS}

    assert {kind: exported.path.name for kind, exported in folders.items()} == {kind: f"{name}_{kind}" for kind in folders}
    assert all(0 <= exported.relative < 1e-5 for exported in folders.values())
    assert (folders["tfserving"].path / name / "1" / "saved_model.pb").is_file()
    assert (folders["triton"].path / name / "1" / "model.onnx").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}_{kind}" for kind in folders)
    again = {kind: foreign_models.export(exported.path, sample) for kind, exported in folders.items()}
    assert {kind: servable.format for kind, servable in again.items()} == {
        **dict.fromkeys(("triton", "kserve", "docker"), "onnx"),
        "tfserving": "saved_model",
    }
    for servable in again.values():
        assert sorted((spec.name, spec.dtype, spec.shape) for spec in servable.inputs) == inputs_of(model)


def inputs_of(model: Any) -> list[tuple[str, str, tuple[int, ...]]]:
    names = ["input_0"] if len(model.inputs) == 1 else [tensor.name for tensor in model.inputs]
    return sorted((name, tensor.dtype, (-1, *tensor.shape[1:])) for name, tensor in zip(names, model.inputs, strict=True))


def test_tritons_configuration_has_names_dtypes_and_dimensions() -> None:
    inputs = (
        TensorSpec(name="age", dtype="float32", shape=(-1, 4)),
        TensorSpec(name="word", dtype="string", shape=(-1,)),
        TensorSpec(name="frames", dtype="int64", shape=(-1, -1, 8)),
    )
    text = triton_config.config_text("churn", "onnx", inputs, (TensorSpec(name="risk", dtype="float16", shape=(-1, 1)),))

    assert text == (
        'name: "churn"\nbackend: "onnxruntime"\nmax_batch_size: 64\n'
        'input [\n  {\n    name: "age"\n    data_type: TYPE_FP32\n    dims: [ 4 ]\n  },\n'
        '  {\n    name: "word"\n    data_type: TYPE_STRING\n    dims: [ 1 ]\n    reshape: { shape: [ ] }\n  },\n'
        '  {\n    name: "frames"\n    data_type: TYPE_INT64\n    dims: [ -1, 8 ]\n  }\n]\n'
        'output [\n  {\n    name: "risk"\n    data_type: TYPE_FP16\n    dims: [ 1 ]\n  }\n]\n'
        "dynamic_batching {\n  max_queue_delay_microseconds: 100\n}\n"
    )


def test_a_container_folder_names_its_files_by_their_hashes_and_pins_what_serves_it(tmp_path: Path) -> None:
    exported = serving_folders.export_folder(MODELS["several"](), "docker", name="several", out=tmp_path)

    folder = exported.path / "model"
    spec = wire.decode((folder / bundle.ENDPOINT).read_bytes(), DeploySpec)
    assert spec.artefact == model_files.hash_of(folder / "model.onnx")
    assert spec.samples == model_files.hash_of(folder / bundle.SAMPLES)
    samples = load_file(folder / bundle.SAMPLES)
    answers = onnx_form((folder / "model.onnx").read_bytes())({name: samples[f"input/{name}"] for name in ("age", "city")})
    np.testing.assert_allclose(answers["risk"], samples["output/risk"], atol=1e-5)
    pins = (exported.path / "requirements.txt").read_text().splitlines()
    assert f"onnxruntime=={format_table.settings.installed_version('onnxruntime')}" in pins
    assert not {pin.partition("==")[0] for pin in pins} & {"tensorflow", "keras", "jax"}
    assert (exported.path / "aiaas_magics" / "cli.py").is_file()
    assert not list(exported.path.rglob("__pycache__"))
    dockerfile = (exported.path / "Dockerfile").read_text()
    assert 'CMD ["python", "-m", "aiaas_magics", "serve-model", "model"' in dockerfile
    copied = {line.split()[1] for line in dockerfile.splitlines() if line.startswith("COPY")}
    assert copied == {"requirements.txt", "aiaas_magics", "model"} <= {path.name for path in exported.path.iterdir()}
    service = yaml.safe_load((exported.path / "compose.yaml").read_text())["services"]["several"]
    assert service["ports"] == ["127.0.0.1:8080:8080", "127.0.0.1:8081:8081"]
    assert service["environment"]["AIAAS_ENDPOINT_TOKEN"].startswith("${AIAAS_ENDPOINT_TOKEN:?")
    assert service["read_only"] is True


def test_requirements_of_a_saved_model_have_tensorflow_and_all_that_it_needs() -> None:
    pins = {pin.partition("==")[0] for pin in requirements_text("saved_model").splitlines()}

    assert {"tensorflow", "keras", "h5py"} <= pins
    assert "ipython" not in pins
    assert closure(["no-such-distribution-of-ours"]) == set()


def test_a_model_that_onnx_cannot_hold_stands_in_tritons_folder_as_a_saved_model(tmp_path: Path) -> None:
    import keras

    lookup = keras.layers.StringLookup(vocabulary=["red", "green"], output_mode="one_hot")
    colour = keras.Input((1,), dtype="string", name="colour")
    model = keras.Model(colour, keras.layers.Dense(1)(lookup(colour)), name="colours")
    texts = np.array([["red"], ["green"], ["blue"]], dtype=object)

    exported = serving_folders.export_folder(model, "triton", name="colours", out=tmp_path, sample=texts)

    assert (exported.path / "colours" / "1" / "model.savedmodel" / "saved_model.pb").is_file()
    config = (exported.path / "colours" / "config.pbtxt").read_text()
    assert 'platform: "tensorflow_savedmodel"' in config
    assert "TYPE_STRING" in config
    assert exported.notes[0] == (
        "The model stands in the folder for Triton as a SavedModel. Model 'colours' cannot be written as ONNX: "
        "texts go into it, and ONNX has no operators for texts."
    )
    container = serving_folders.export_folder(model, "docker", name="colours", out=tmp_path, sample=texts)
    assert sorted(path.name for path in (container.path / "model").iterdir()) == ["endpoint.json", "model.zip", "samples.safetensors"]
    assert foreign_models.export(container.path, texts).format == "saved_model"


def test_a_server_that_is_not_known_and_a_name_that_is_not_allowed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotExport, match=r"'mlserver' is no kind of serving folder\. Use one of triton, kserve, tfserving, docker"):
        serving_folders.export_folder(MODELS["mlp"](), "mlserver", name="net", out=tmp_path)
    with pytest.raises(InvalidName):
        serving_folders.export_folder(MODELS["mlp"](), "triton", name="../net", out=tmp_path)
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------- folders of others, deployed


def test_of_several_versions_the_newest_is_deployed(tmp_path: Path) -> None:
    for version in ("1", "9", "10"):
        (tmp_path / "net_triton" / "net" / version).mkdir(parents=True)
        (tmp_path / "net_triton" / "net" / version / "model.onnx").write_bytes(b"")
    (tmp_path / "net_triton" / "net" / "11").mkdir()  # being copied

    assert model_folders.model_in(tmp_path / "net_triton") == tmp_path / "net_triton" / "net" / "10" / "model.onnx"


def test_a_folder_without_a_model_and_one_with_several_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CannotServe, match=r"holds no saved_model.pb, and no model as Triton.*Give the folder that holds the model"):
        foreign_models.export(tmp_path / "empty")
    for name in ("a", "b"):
        (tmp_path / "store" / name / "1").mkdir(parents=True)
        (tmp_path / "store" / name / "1" / "model.onnx").write_bytes(b"")
    with pytest.raises(CannotServe, match=r"holds several models \(a/1/model.onnx, b/1/model.onnx\)\. Give the folder of one of them"):
        foreign_models.export(tmp_path / "store")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text("{}")
    with pytest.raises(CannotServe, match=r"is one of Hugging Face\. Load it, model = keras_hub"):
        foreign_models.export(tmp_path / "hub")
    (tmp_path / "net.xml").write_text("<net/>")
    with pytest.raises(CannotServe, match=r"OpenVINO IR cannot be served.*Deploy the model that it was made of"):
        foreign_models.export(tmp_path / "net.xml")


@pytest.mark.nightly
def test_a_litert_file_is_deployed_as_onnx_under_the_names_of_its_signature(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    model = MODELS["several"]()
    exported = model_files.export_model(model, "tflite", out=tmp_path)

    servable = foreign_models.export(exported.path)

    assert (servable.format, servable.origin) == ("onnx", "ONNX Runtime in the kernel")
    rows = {"age": np.ones((3, 4), "float32"), "city": np.ones((3, 3), "float32")}
    answers = onnx_form(servable.artefact)(rows)
    for name, own in model.predict(rows, verbose=0).items():
        np.testing.assert_allclose(answers[name], own, rtol=1e-4, atol=1e-5)
    with pytest.raises(CannotServe, match=r"ONNX has no operator for LiteRT's GELU"):
        foreign_models.export(model_files.export_model(MODELS["mlp"](), "tflite", out=tmp_path).path)
    with pytest.raises(CannotServe, match=r"takes 1 row at a time"):
        foreign_models.export(model_files.export_model(MODELS["lstm"](), "tflite", out=tmp_path).path)


def test_the_report_of_a_folder_is_json_for_programs(tmp_path: Path) -> None:
    exported = serving_folders.export_folder(MODELS["mlp"](), "tfserving", name="net", out=tmp_path)

    report = json.loads((exported.path / model_files.REPORT).read_bytes())

    assert report["format"] == "saved_model"
    assert report["differences"] == {"output_0": {"largest": exported.largest, "relative": exported.relative}}
    assert [path.name for path in exported.path.rglob(model_files.REPORT)] == [model_files.REPORT]
