"""Folders of `%aiaas_export --for` are what their servers' own packages read: Triton's and TensorFlow Serving's protos, KServe's models.

Run by `make conformance`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiaas_magics.packing.formats import serving_folders, triton_config
from tests.conformance.environments import python_of
from tests.packing.formats.exported_models import MODELS

TRITON = """
import json, sys
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
config = text_format.Parse(open(sys.argv[1]).read(), ModelConfig())
print(json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True)))
"""
TFSERVING = """
import json, sys
from google.protobuf import json_format, text_format
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig
config = text_format.Parse(open(sys.argv[1]).read(), ModelServerConfig())
print(json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True)))
"""
# Builds the SDK's models of a document and refuses what they do not know: `InferenceService` as the API server's schema has it.
KSERVE = """
import json, re, sys
import kubernetes.client.models, kserve.models, yaml

def built(kind, document):
    if kind in ("str", "int", "bool", "float", "object"):
        assert kind == "object" or type(document).__name__ == kind, (kind, document)
        return document
    if match := re.fullmatch(r"[Ll]ist\\[(.*)\\]", kind):
        return [built(match[1], item) for item in document]
    if match := re.fullmatch(r"dict\\(str, (.*)\\)|[Dd]ict\\[str, (.*)\\]", kind):
        return {key: built(match[1] or match[2], value) for key, value in document.items()}
    model = getattr(kserve.models, kind, None) or getattr(kubernetes.client.models, kind)
    fields = {key: name for name, key in model.attribute_map.items()}
    assert set(document) <= set(fields), (kind, set(document) - set(fields))
    return model(**{fields[key]: built(model.openapi_types[fields[key]], value) for key, value in document.items()})

service = built("V1beta1InferenceService", yaml.safe_load(open(sys.argv[1])))
spec = service.spec.predictor.model
print(json.dumps([service.metadata.name, spec.model_format.name, spec.runtime, spec.protocol_version, spec.storage_uri]))
"""


def said_by(environment: str, script: str, path: Path, *, beside_main: bool = False) -> Any:
    python = python_of(environment, beside_main=beside_main)
    done = subprocess.run(
        [str(python), "-c", script, str(path)], capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": ""}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", MODELS)
def test_triton_parses_the_configuration(name: str, tmp_path: Path) -> None:
    sample = np.ones((4, 2), "int32") if name == "indices" else None
    exported = serving_folders.export_folder(MODELS[name](), "triton", name=name, out=tmp_path, sample=sample)

    config = said_by("tritonclient", TRITON, exported.path / name / "config.pbtxt")

    import onnxruntime

    session = onnxruntime.InferenceSession(exported.path / name / "1" / "model.onnx")
    assert (config["name"], config["backend"], config["max_batch_size"]) == (name, "onnxruntime", triton_config.MOST_ROWS)
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == "100"
    for side, tensors in (("input", session.get_inputs()), ("output", session.get_outputs())):
        sizes = {tensor["name"]: [int(size) for size in tensor["dims"]] for tensor in config[side]}
        assert sizes == {tensor.name: [size if isinstance(size, int) else -1 for size in tensor.shape[1:]] for tensor in tensors}
        dtypes = {"tensor(float)": "TYPE_FP32", "tensor(int32)": "TYPE_INT32"}
        assert {tensor["name"]: tensor["data_type"] for tensor in config[side]} == {tensor.name: dtypes[tensor.type] for tensor in tensors}


def test_kserves_sdk_builds_the_inference_service(tmp_path: Path) -> None:
    of_onnx = serving_folders.export_folder(MODELS["mlp"](), "kserve", name="churn.v2", out=tmp_path, storage="s3://models/churn")
    manifest = of_onnx.path / "inference_service.yaml"

    assert said_by("kserve", KSERVE, manifest) == ["churn-v2", "onnx", "kserve-tritonserver", "v2", "s3://models/churn"]
    manifest.write_text(manifest.read_text().replace("storageUri", "storageURL"))
    with pytest.raises(AssertionError, match="storageURL"):
        said_by("kserve", KSERVE, manifest)


def test_tensorflow_serving_parses_its_configuration_and_reads_the_folder(tmp_path: Path) -> None:
    exported = serving_folders.export_folder(MODELS["several"](), "tfserving", name="several", out=tmp_path)

    config = said_by("tensorflow_serving_api", TFSERVING, exported.path / "models.config", beside_main=True)
    shown = subprocess.run(
        [Path(sys.executable).parent / "saved_model_cli", "show", "--dir", exported.path / "several" / "1", "--all"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout

    assert config["model_config_list"]["config"] == [{"name": "several", "base_path": "/models/several", "model_platform": "tensorflow"}]
    assert "signature_def['serving_default']" in shown
    for name in ("inputs['age']", "inputs['city']", "outputs['risk']", "outputs['score']"):
        assert name in shown
    assert "Method name is: tensorflow/serving/predict" in shown
