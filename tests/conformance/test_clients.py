"""Clients as their makers ship them, against a real server: every call that they make, and the engines' own answers.

Run by `make conformance`; what a call answered with has been compared in `conftest`.
"""

from __future__ import annotations

import base64
import ctypes.util
import gzip
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conformance.conftest import INPUTS, Served, Told, is_same
from tests.conformance.environments import packages_of, python_of

ALL = ["article", "sums", "text"]
SUMS_INPUTS = [{"name": "a", "datatype": "FP32", "shape": [-1, 2]}, {"name": "b", "datatype": "INT32", "shape": [-1, 2]}]
Running = Callable[[Path, str], Told]


@pytest.mark.parametrize(
    ("script", "calls", "codes"),
    [
        (
            "triton_http.py",
            ("binary", "json", "async", "gzip", "deflate", "aio"),
            {"infer_unloaded": "[503]", "no_model": "[404]", "wrong_input": "[400]", "no_token": "[401]", "basic": "[401]"},
        ),
        (
            "triton_grpc.py",
            ("infer", "gzip", "deflate", "async", "stream", "aio", "aio stream"),
            {"infer_unloaded": "UNAVAILABLE", "no_model": "NOT_FOUND", "wrong_input": "INVALID_ARGUMENT", "no_token": "UNAUTHENTICATED"},
        ),
    ],
)
def test_tritonclient(told_by: Running, script: str, calls: tuple[str, ...], codes: dict[str, str]) -> None:
    told = told_by(python_of("tritonclient"), script)

    assert told.calls == dict.fromkeys(calls, ALL)
    seen = told.seen
    for name in (
        "live",
        "ready",
        "model_ready",
        "version_ready",
        "loaded",
        "counted",
        "aio_live",
        "aio_ready",
        "aio_model_ready",
        "aio_counted",
    ):
        assert seen[name] is True, name
    assert seen["nobody_ready"] is seen["unloaded"] is False
    assert (seen["server"], seen["aio_server"], seen["backend"], seen["aio_backend"]) == ("aiaas_magics",) * 2 + ("onnxruntime",) * 2
    assert (seen["id"], seen["index"], seen["aio_index"]) == ("42", ALL, 3)
    for inputs in (seen["inputs"], seen["aio_inputs"]):
        assert [{**tensor, "shape": [int(size) for size in tensor["shape"]]} for tensor in inputs] == SUMS_INPUTS
    assert {name: code in seen[name] for name, code in codes.items()} == dict.fromkeys(codes, True), seen
    if script == "triton_grpc.py":
        assert (seen["differing"], seen["final"]) == ([], True)
        assert {field.partition(".")[0] for field in seen["missing"]} == {"RepositoryModelLoadResponse", "RepositoryModelUnloadResponse"}
        assert seen["compared"] > 100
        assert "unknown model" in seen["stream_fault"]


def test_kserve(told_by: Running) -> None:
    told = told_by(python_of("kserve"), "kserve_both.py")

    all_calls = dict.fromkeys(("json", "binary", "binary both", "v1", "grpc typed", "grpc raw"), ALL)
    assert told.calls == {**all_calls, "v1 explain": ["article"]}
    seen = told.seen
    for name in ("live", "ready", "model_ready", "v1_live", "v1_model_ready", "grpc_live", "grpc_ready", "grpc_model_ready"):
        assert seen[name] is True, name
    assert seen["id"] == "42"
    assert "404" in seen["no_model"]
    assert "401" in seen["no_token"]
    assert "404" in seen["v1_nobody_ready"]
    assert "404" in seen["v1_nobody_explained"]
    assert [columns for columns, _ in seen["explanations"]] == [100] * len(INPUTS["article"]["x"])
    assert max(abs(error) for _, error in seen["explanations"]) < 1e-3, "attributions sum to the output minus the base value"
    assert "UNAUTHENTICATED" in seen["grpc_no_token"]
    assert (seen["unloaded"], seen["loaded"]) == (["sums", True], ["sums", True])
    assert (seen["inputs"], seen["server"]) == (["a", "b"], "aiaas_magics")
    # Its messages have none of Triton's extensions, and in two of them a number of their own, which is taken as well.
    assert seen["differing"] == ["RepositoryModelLoadRequest.model_name", "RepositoryModelUnloadRequest.model_name"]
    assert seen["compared"] > 50


def test_ovmsclient(told_by: Running) -> None:
    told = told_by(python_of("ovmsclient"), "ovms.py")

    assert told.calls == dict.fromkeys(("http latest", "http version", "grpc latest", "grpc version"), ALL)
    seen = told.seen
    for way in ("http", "grpc"):
        assert seen[f"{way}_status"] == {"1": {"state": "AVAILABLE", "error_code": 0, "error_message": ""}}, seen
        assert "nobody" in seen[f"{way}_no_model"]
        assert "ModelNotFound" in seen[f"{way}_no_version"]
    metadata = seen["grpc_metadata"]
    assert (metadata["model_version"], metadata["inputs"]["b"]) == (1, {"shape": [-1, 2], "dtype": "DT_INT32"})
    assert (seen["differing"], seen["missing"]) == ([], [])
    assert seen["compared"] > 20


def test_tensorflow_serving_api(told_by: Running) -> None:
    told = told_by(python_of("tensorflow_serving_api", beside_main=True), "tfserving.py")

    assert told.calls == {"predict": ALL, "float_val": ["article"], "regress": ["article"], "classify": ["article"]}
    assert told.seen == {
        "version": 1,
        "article_filtered": ["y"],
        "sums_filtered": ["total"],
        "text_filtered": ["y"],
        "one_for_all": [[3.5, 3.5], [3.5, 3.5]],
        "inputs": {"a": ["float32", [-1, 2]], "b": ["int32", [-1, 2]]},
        "method": "tensorflow/serving/predict",
        "status": [[1, "AVAILABLE", 0]],
        "no_token": "UNAUTHENTICATED",
        "no_model": "NOT_FOUND",
        "no_label": "INVALID_ARGUMENT",
        "multi_inference": "UNIMPLEMENTED",
        "reload": "UNIMPLEMENTED",
        "differing": [],
        "missing": [],
        "compared": told.seen["compared"],
    }
    assert told.seen["compared"] > 30


# --------------------------------------------------------------------------- programs


def test_curl(served: Served, tmp_path: Path) -> None:
    def curl(path: str, *options: str, body: bytes | None = None, token: str = served.rig.host.token) -> tuple[int, bytes]:
        (tmp_path / "body").write_bytes(body or b"")
        command = ["curl", "-sS", "-H", f"Authorization: Bearer {token}", "-w", "%{stderr}%{http_code}", *options]
        command += ["--data-binary", f"@{tmp_path / 'body'}"] if body is not None else []
        done = subprocess.run([*command, served.rig.host.url + path], capture_output=True, timeout=30, check=True)
        return int(done.stderr), done.stdout

    x, expected = INPUTS["article"]["x"], served.expected["article"]["y"]
    document = json.dumps({"instances": x.tolist()}).encode()
    for options, body in (
        ((), document),
        (("-H", "Expect: 100-continue"), document),
        (("-H", "Transfer-Encoding: chunked"), document),
        (("-H", "Content-Encoding: gzip"), gzip.compress(document)),
    ):
        status, answer = curl("/v1/models/article:predict", *options, body=body)
        assert status == 200, answer
        assert is_same(json.loads(answer)["predictions"], expected)
    text = json.dumps({"instances": [[{"b64": base64.b64encode(b"plain").decode()}, "two"]]}).encode()
    assert curl("/v1/models/text:predict", body=text) == (200, b'{"predictions":[["plain","two"]]}')
    status, answer = curl("/v2/models/article/infer", "-H", "Inference-Header-Content-Length: 0", body=x.tobytes())
    assert status == 200
    assert is_same(np.frombuffer(answer[-4 * len(x) :], "<f4").reshape(-1, 1), expected)
    codes = {"/v1/models/article": 200, "/v1/models/article/metadata": 200, "/v2/health/ready": 200, "/v2/models/nobody": 404}
    assert {path: curl(path)[0] for path in codes} == codes
    assert curl("/v1/models/article", token="wrong")[0] == 401


@pytest.mark.parametrize(("protocol", "header"), [("http", "Authorization"), ("grpc", "authorization")])
def test_perf_analyzer(served: Served, protocol: str, header: str) -> None:
    environment = python_of("perf_analyzer").parents[1]
    if ctypes.util.find_library("b64") is None:
        pytest.skip("perf_analyzer of this wheel needs libb64.so.0d; install Debian's libb64-0d")
    host = served.rig.host
    where = host.grpc if protocol == "grpc" else host.url.removeprefix("http://")
    command = [environment / "bin" / "perf_analyzer", "-m", "article", "-b", "4", "-i", protocol, "-u", where, "--request-count", "50"]
    libraries = str(packages_of(environment) / "nvidia" / "cuda_runtime" / "lib")

    def answered() -> int:
        (told,) = served.rig.call("GET", "/v2/models/article/stats").document["model_stats"]
        return int(told["inference_stats"]["success"]["count"])

    before = answered()
    done = subprocess.run(
        [*command, "-H", f"{header}:Bearer {host.token}"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"LD_LIBRARY_PATH": libraries},
    )

    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    counted = dict(re.findall(r"^ *([\w ]+ count): (\d+)$", done.stdout, re.MULTILINE))
    # What it counts on the server, between two looks at the statistics, may begin behind the first of its own 50 or end behind another.
    assert counted["Request count"] == "50", done.stdout
    assert answered() - before >= 50
    assert int(counted["Successful request count"]) > 0, done.stdout
    assert int(counted["Inference count"]) == 4 * int(counted["Successful request count"]), done.stdout
