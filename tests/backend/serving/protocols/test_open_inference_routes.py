"""Open Inference Protocol v2 on a real server: its paths, documents, status codes, and tensors on the wire."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from aiaas_magics.backend.serving.protocols.open_inference.inference_codec import DATATYPES
from tests.backend.serving.support import serving_models
from tests.backend.serving.support.serving_models import ONNX_TYPES, Made
from tests.backend.serving.support.serving_rig import Answer, Rig

SUMS = {
    "id": "42",
    "inputs": [
        {"name": "b", "datatype": "INT32", "shape": [1, 2], "data": [[3, 1]]},
        {"name": "a", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]},
    ],
}


def infer(rig: Rig, name: str, document: dict[str, Any], raw: bytes = b"", *, which: str = "") -> Answer:
    head = json.dumps(document).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))} if raw else {}
    return rig.call("POST", f"/v2/models/{name}{which}/infer", head + raw, headers=headers)


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"live": True, "ready": True}),
        ("/v2/models/plus/ready", {"name": "plus", "ready": True}),
        ("/v2/models/plus/versions/3/ready", {"name": "plus", "ready": True}),
        (
            "/v2/models/sums",
            {
                "name": "sums",
                "versions": ["1"],
                "platform": "onnx_onnxv1",
                "inputs": [
                    {"name": "a", "datatype": "FP32", "shape": [-1, 2]},
                    {"name": "b", "datatype": "INT32", "shape": [-1, 2]},
                ],
                "outputs": [
                    {"name": "total", "datatype": "FP32", "shape": [-1, 2]},
                    {"name": "most", "datatype": "FP32", "shape": [-1, 2]},
                ],
            },
        ),
    ],
)
def test_a_document_is_what_the_protocol_says(shared: Rig, path: str, document: dict[str, Any]) -> None:
    answer = shared.call("GET", path)

    assert (answer.status, answer.document) == (200, document)
    assert answer.headers["content-type"] == "application/json"


def test_a_configuration_has_what_clients_look_for(shared: Rig) -> None:
    document = shared.call("GET", "/v2/models/scalar/config").document

    (together,) = document["dynamic_batching"].pop("preferred_batch_size")
    assert 8 <= together <= 256, "by how quick the model is here"
    assert document == {
        "name": "scalar",
        "platform": "onnx_onnxv1",
        "backend": "onnxruntime",
        "max_batch_size": (64 * 1024 - 64) * 1024 // 4,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [1], "reshape": {"shape": []}}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [1], "reshape": {"shape": []}}],
        "instance_group": [{"name": "scalar", "kind": "KIND_CPU", "count": 1}],
        "dynamic_batching": {"max_queue_delay_microseconds": 0},
    }


def test_as_many_rows_are_taken_as_the_configuration_says(rig: Rig, tmp_path: Path) -> None:
    columns = 4096
    made = serving_models.echo(tmp_path, "wide", "float32", columns)
    rig.load(Made(replace(made.spec, max_delay_us=7, replicas=2), made.artefact, made.samples))
    config = rig.call("GET", "/v2/models/wide/config").document

    def ask(rows: int) -> int:
        raw = bytes(4 * rows * columns)
        entry = {"name": "x", "datatype": "FP32", "shape": [rows, columns], "parameters": {"binary_data_size": len(raw)}}
        return infer(rig, "wide", {"inputs": [entry], "parameters": {"binary_data_output": True}}, raw).status

    assert config["dynamic_batching"] == {"preferred_batch_size": [256], "max_queue_delay_microseconds": 7}
    assert config["instance_group"][0]["count"] == 2
    assert ask(config["max_batch_size"]) == 200
    assert ask(config["max_batch_size"] + 16) == 413


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_the_server_names_its_extensions(shared: Rig, path: str) -> None:
    document = shared.call("GET", path).document

    assert document["name"] == "aiaas_magics"
    assert "binary_tensor_data" in document["extensions"]


def test_a_question_about_the_repository_that_is_no_text_is_refused(shared: Rig) -> None:
    assert shared.manage("plus", "load", b'{"parameters": {"\x80": 1}}').status == 400


@pytest.mark.parametrize("body", [b"", b"{}", b'{"ready": true}'])
def test_the_repository_lists_every_version(shared: Rig, body: bytes) -> None:
    rows = shared.call("POST", "/v2/repository/index", body).document

    assert {"name": "plus", "version": "3", "state": "READY", "reason": ""} in rows


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/v2/models/nobody", 404, "Request for unknown model: 'nobody' is not found"),
        ("GET", "/v2/models/nobody/ready", 404, "Request for unknown model: 'nobody' is not found"),
        ("GET", "/v2/models/plus/versions/9", 404, "Request for unknown model: 'plus' version 9 is not found"),
        ("POST", "/v2/models/nobody/infer", 404, "Request for unknown model: 'nobody' is not found"),
        ("POST", "/v2/models/plus/versions/9/infer", 404, "Request for unknown model: 'plus' version 9 is not found"),
        ("GET", "/v2/models/plus/versions/" + "9" * 30, 400, "beyond what a version can be"),
        ("GET", "/v2/models/plus/versions/x", 404, "Not Found"),
        ("GET", "/v2/models/plus/infer", 405, "Method Not Allowed"),
        ("POST", "/v2", 405, "Method Not Allowed"),
        ("DELETE", "/v2/models/plus", 405, "Method Not Allowed"),
        ("GET", "/v2/repository/index", 405, "Method Not Allowed"),
        ("GET", "/v2/x", 404, "Not Found"),
        ("GET", "/v2/models", 404, "Not Found"),
        ("GET", "/v2/models//ready", 404, "Not Found"),
        ("GET", "/v2/models/plus/", 404, "Not Found"),
        ("GET", "/v2/models/plus/stats/x", 404, "Not Found"),
        ("GET", "/v2/Models/plus", 404, "Not Found"),
        ("POST", "/v2/repository/index", 400, "does not have its form"),
    ],
)
def test_what_cannot_be_answered_is_json_with_its_status(shared: Rig, method: str, path: str, status: int, text: str) -> None:
    answer = shared.call(method, path, b"[7]" if method == "POST" else None)

    assert answer.status == status
    assert text in answer.error
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize("which", ["", "/versions/0", "/versions/1"])
def test_json_tensors_are_answered_with_id_and_version(shared: Rig, which: str) -> None:
    assert infer(shared, "sums", SUMS, which=which).document == {
        "model_name": "sums",
        "model_version": "1",
        "id": "42",
        "outputs": [
            {"name": "total", "datatype": "FP32", "shape": [1, 2], "data": [4.5, 3.5]},
            {"name": "most", "datatype": "FP32", "shape": [1, 2], "data": [3.0, 2.5]},
        ],
    }


def test_json_and_binary_tensors_travel_side_by_side(shared: Rig) -> None:
    array = np.array([[1.5, 2.5]], np.float32)
    binary = {"name": "a", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}
    outputs = [{"name": "most"}, {"name": "total", "parameters": {"binary_data": True}}]

    answer = infer(shared, "sums", {"inputs": [SUMS["inputs"][0], binary], "outputs": outputs}, array.tobytes())

    size = int(answer.headers["inference-header-content-length"])
    assert answer.headers["content-type"] == "application/octet-stream"
    assert json.loads(answer.body[:size])["outputs"] == [
        {"name": "most", "datatype": "FP32", "shape": [1, 2], "data": [3.0, 2.5]},
        {"name": "total", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
    ]
    assert np.frombuffer(answer.body[size:], "<f4").tolist() == [4.5, 3.5]


@pytest.mark.parametrize("dtype", sorted(set(ONNX_TYPES) - {"string"}))
def test_every_datatype_goes_through_the_engine_as_bytes(shared: Rig, dtype: str) -> None:
    array = np.array([[0, 1], [1, 0], [1, 1]], dtype)
    entry = {"name": "x", "datatype": DATATYPES[dtype], "shape": [3, 2], "parameters": {"binary_data_size": array.nbytes}}

    answer = infer(shared, f"echo-{dtype}", {"inputs": [entry], "parameters": {"binary_data_output": True}}, array.tobytes())

    assert answer.status == 200, answer.body
    assert answer.body[int(answer.headers["inference-header-content-length"]) :] == array.tobytes()


def test_strings_go_through_the_engine_as_bytes(shared: Rig) -> None:
    raw = b"".join(len(text).to_bytes(4, "little") + text for text in (b"", "ä€".encode()))
    entry = {"name": "x", "datatype": "BYTES", "shape": [1, 2], "parameters": {"binary_data_size": len(raw)}}

    answer = infer(shared, "echo-string", {"inputs": [entry], "parameters": {"binary_data_output": True}}, raw)

    assert answer.body.endswith(raw)
    assert infer(shared, "echo-string", {"inputs": [entry]}, raw).document["outputs"][0]["data"] == ["", "ä€"]


def test_a_raw_body_is_answered_with_bytes(shared: Rig) -> None:
    answer = shared.call(
        "POST", "/v2/models/plus/infer", np.float32([[1], [2]]).tobytes(), headers={"Inference-Header-Content-Length": "0"}
    )

    assert np.frombuffer(answer.body[int(answer.headers["inference-header-content-length"]) :], "<f4").tolist() == [2.0, 3.0]


def test_a_refusal_is_400_and_the_connection_goes_on(shared: Rig) -> None:
    """Also what only the engine can refuse."""
    refused = infer(shared, "lookup", {"inputs": [{"name": "x", "datatype": "INT64", "shape": [1], "data": [99]}]})
    unread = infer(shared, "plus", {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1, 1], "data": [1.0]}]})

    assert (refused.status, unread.status) == (400, 400)
    assert "cannot compute this input" in refused.error
    assert "expects FP32" in unread.error
    assert shared.call("GET", "/v2/models/plus/ready").status == 200


def test_statistics_count_what_was_asked(rig: Rig, tmp_path: Path) -> None:
    rig.load(serving_models.plus(tmp_path, "plus", 1.0), 3)
    one = {"name": "x", "datatype": "FP32", "shape": [2, 1], "data": [1.0, 2.0]}
    for _ in range(3):
        assert infer(rig, "plus", {"inputs": [one]}).status == 200
    assert infer(rig, "plus", {"inputs": []}).status == 400

    (found,) = rig.call("GET", "/v2/models/plus/stats").document["model_stats"]

    assert (found["name"], found["version"], found["inference_count"], found["execution_count"]) == ("plus", "3", 6, 3)
    assert found["inference_stats"]["success"]["count"] == 3
    assert found["inference_stats"]["fail"]["count"] == 1
    assert found["inference_stats"]["compute_infer"]["ns"] > 0
    assert [(batch["batch_size"], batch["compute_infer"]["count"]) for batch in found["batch_stats"]] == [(2, 3)]
    assert rig.call("GET", "/v2/models/plus/versions/3/stats").document == {"model_stats": [found]}
    assert rig.call("GET", "/v2/models/stats").document == {"model_stats": [found]}
    assert rig.call("GET", "/v2/models/nobody/stats").status == 404
    figures = rig.call("GET", "/endpoints/plus").document["figures"]
    assert (figures["requests"], figures["rows"], figures["batches"], figures["failed"]) == (3, 6, 3, 1)
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["p999_ms"]


def test_an_unloaded_model_is_not_ready_until_it_is_loaded_again(rig: Rig, tmp_path: Path) -> None:
    rig.load(serving_models.plus(tmp_path, "plus", 1.0))
    ask = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}]}

    gone = rig.manage("plus", "unload", b'{"parameters": {"unload_dependents": false}}')
    states = [rig.call("GET", path).status for path in ("/v2/models/plus/ready", "/v2/models/plus", "/v2/health/ready")]
    asked, predicted = infer(rig, "plus", ask), rig.predict("plus", {"instances": [[1.0]]})
    index = rig.call("POST", "/v2/repository/index", b"").document
    back = rig.manage("plus", "load", b"")

    assert (gone.status, gone.document) == (200, {"name": "plus", "unload": True})
    assert states == [503, 503, 200]
    assert (asked.status, asked.headers["retry-after"], predicted.status) == (503, "1", 404)
    assert index == [{"name": "plus", "version": "1", "state": "UNAVAILABLE", "reason": ""}]
    assert (back.status, back.document) == (200, {"name": "plus", "load": True})
    assert infer(rig, "plus", ask).document["outputs"][0]["data"] == [2.0]
    rig.manage("plus", "unload", b"")
    rig.load(serving_models.plus(tmp_path, "plus", 2.0), 2)
    assert infer(rig, "plus", ask).document["outputs"][0]["data"] == [3.0], "a deploy lets it answer again"


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/v2/repository/models/nobody/load", b"", 404, "Request for unknown model: 'nobody' is not found"),
        ("/v2/repository/models/nobody/unload", b"{}", 404, "Request for unknown model: 'nobody' is not found"),
        ("/v2/repository/models/plus/load", b'{"parameters": {"config": "{}"}}', 400, "Models come here by a deploy"),
        ("/v2/repository/models/plus/load", b'{"parameters": 7}', 400, "does not have its form"),
        ("/v2/repository/models/plus/unload", b"[", 400, "does not have its form"),
    ],
)
def test_a_repository_request_that_cannot_be_done_says_why(shared: Rig, path: str, body: bytes, status: int, text: str) -> None:
    answer = shared.call("POST", path, body, token=shared.api_token)

    assert answer.status == status
    assert text in answer.error
    assert shared.call("GET", "/v2/models/plus/ready").status == 200
