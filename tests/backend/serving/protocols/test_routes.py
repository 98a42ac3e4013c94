"""TF Serving's routes and documents on a real server, and curl, unmodified, as a client."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.backend.serving.support.serving_rig import Rig

MALFORMED = [
    ("GET", "/v1/foo"),
    ("POST", "/v1/foo"),
    ("GET", "/v1/models/plus:predict"),
    ("POST", "/v1/models/plus"),
    ("POST", "/v1/models/plus/metadata"),
    ("PUT", "/v1/models/plus:predict"),
    ("DELETE", "/v1/models/plus"),
    ("PATCH", "/v1/models/plus"),
    ("POST", "/v1/models/plus:explode"),
    ("POST", "/v1/models/plus/versions/x:predict"),
    ("POST", "/v1/models/plus/versions/-1:predict"),
    ("POST", "/v1/models/plus/versions/1/labels/a:predict"),
    ("POST", "/v1/models/:predict"),
    ("POST", "/v1/models/plus/../plus:predict"),
    ("GET", "/v1/models/plus/versions/3/"),
    ("GET", "/v1//models/plus"),
    ("GET", "/v1/./models/plus"),
    ("GET", "/v1/models/plus;x/y"),
]


@pytest.mark.parametrize(("method", "path"), MALFORMED)
def test_what_is_no_route_is_400_never_405(shared: Rig, method: str, path: str) -> None:
    answer = shared.call(method, path, b"{}" if method in ("POST", "PUT", "PATCH") else None)

    assert answer.status == 400
    assert answer.document == {"error": f"Malformed request: {method} {path}. GET /openapi.json has every path with its verb."}


@pytest.mark.parametrize("path", ["/v1/models/plus:predict", "/v1/models/plus", "/v2/models/plus/infer", "/v2", "/openapi.json"])
def test_trace_is_405_in_every_protocol(shared: Rig, path: str) -> None:
    """Also at `/v1`, where other wrong verbs are 400 as they are in TensorFlow Serving: no client of it sends this one."""
    answer = shared.call("TRACE", path)

    assert answer.status == 405
    assert answer.headers["allow"] == ("POST" if path.endswith(("predict", "infer")) else "GET")
    assert "Method Not Allowed" in answer.error


@pytest.mark.parametrize("path", ["/v1", "/v3/models", "/favicon.ico"])
def test_outside_the_interface_is_a_bare_404(shared: Rig, path: str) -> None:
    answer = shared.call("GET", path)

    assert (answer.status, answer.body) == (404, b"")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/"])
def test_the_list_of_models_is_not_given_away(shared: Rig, path: str) -> None:
    answer = shared.call("GET", path)

    assert (answer.status, answer.error) == (400, "Missing model name in request.")


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/v1/models/nobody:predict", 404, "Servable not found for request: Latest(nobody)"),
        ("/v1/models/plus/versions/9:predict", 404, "Servable not found for request: Specific(plus, 9)"),
        ("/v1/models/plus/versions/99999999999999999999:predict", 400, "Failed to convert version: 99999999999999999999 to numeric."),
        ("/v1/models/plus/versions/" + "9" * 5000 + ":predict", 400, "Failed to convert version: " + "9" * 100 + " to numeric."),
        ("/v1/models/plus/labels/stable:predict", 400, "Unrecognized servable version label: stable"),
        ("/v1/models/..%2f..%2fetc:predict", 404, "Servable not found for request: Latest(../../etc)"),
        ("/v1/models/%00:predict", 404, "Servable not found for request"),
        ("/v1/models/%ff%fe:predict", 404, "Servable not found for request"),
        ("/v1/models/PLUS:predict", 404, "Servable not found for request: Latest(PLUS)"),
        ("/v1/models/%3Cscript%3E:predict", 404, "Servable not found for request: Latest(<script>)"),
        ("/v1/models/" + "n" * 4000 + ":predict", 404, "Servable not found for request"),
    ],
)
def test_unknown_models_versions_and_labels_are_told_apart(shared: Rig, path: str, status: int, text: str) -> None:
    answer = shared.call("POST", path, b'{"instances": [[1.0]]}')

    assert answer.status == status
    assert text in answer.error


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/plus:predict",
        "/V1/Models/plus:PREDICT",
        "/v1/models/%70lus:predict",
        "/v1/models/plus/versions/3:predict",
        "/v1/models/plus/versions/0:predict",
        "/v1/models/plus:predict?pretty=1",
    ],
)
def test_a_route_may_be_written_in_several_ways(shared: Rig, path: str) -> None:
    assert shared.call("POST", path, b'{"instances": [[1.0]]}').document == {"predictions": [[2.0]]}


@pytest.mark.parametrize("path", ["/v1/models/plus", "/v1/models/plus/versions/3", "/v1/models/plus/versions/0"])
def test_the_status_document_serves_both_protocols(shared: Rig, path: str) -> None:
    assert shared.call("GET", path).document == {
        "name": "plus",
        "ready": True,
        "model_version_status": [{"version": "3", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}],
    }


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/v1/models/nobody", 404, "Could not find any versions of model nobody. GET / lists the endpoints."),
        ("/v1/models/plus/versions/4", 404, "Could not find version 4 of model plus. Ask without a version for all."),
        (
            "/v1/models/plus/labels/stable",
            400,
            "Unrecognized servable version label: stable. Ask without one, or set it with endpoint.label.",
        ),
        ("/v1/models/nobody/metadata", 404, "Servable not found for request: Latest(nobody). GET / lists the endpoints."),
    ],
)
def test_a_status_that_cannot_be_given_is_an_error(shared: Rig, path: str, status: int, text: str) -> None:
    answer = shared.call("GET", path)

    assert (answer.status, answer.error) == (status, text)


def test_metadata_describes_the_interface_as_tf_serving_does(shared: Rig) -> None:
    def info(name: str, dtype: str) -> dict[str, Any]:
        dims = [{"size": "-1", "name": ""}, {"size": "2", "name": ""}]
        return {"dtype": dtype, "tensor_shape": {"dim": dims, "unknown_rank": False}, "name": name}

    answer = shared.call("GET", "/v1/models/sums/metadata")

    assert answer.document == {
        "model_spec": {"name": "sums", "signature_name": "", "version": "1"},
        "metadata": {
            "signature_def": {
                "signature_def": {
                    "serving_default": {
                        "inputs": {"a": info("a", "DT_FLOAT"), "b": info("b", "DT_INT32")},
                        "outputs": {"total": info("total", "DT_FLOAT"), "most": info("most", "DT_FLOAT")},
                        "method_name": "tensorflow/serving/predict",
                    }
                }
            }
        },
    }


def test_curl_predicts_as_the_endpoints_snippet_says(shared: Rig) -> None:
    curl = shutil.which("curl")
    assert curl, "curl is part of what is promised to work"
    command = [curl, "-sS", "-H", f"Authorization: Bearer {shared.host.token}", "-d", '{"instances": [[1.0], [2.0]]}']

    done = subprocess.run([*command, f"{shared.host.url}/v1/models/plus:predict"], check=True, capture_output=True, timeout=30)

    assert json.loads(done.stdout) == {"predictions": [[2.0], [3.0]]}
    assert done.stderr == b""


def test_curl_and_javas_client_are_answered_though_they_offer_another_version_of_http(shared: Rig, tmp_path: Path) -> None:
    url = f"{shared.host.url}/v1/models/plus:predict"
    curl = ["curl", "-sS", "-m", "20", "--http2", "-H", f"Authorization: Bearer {shared.host.token}", "-d", '{"instances": [[1.0]]}']

    done = subprocess.run([*curl, url, url], check=True, capture_output=True, timeout=60)

    assert done.stdout == b'{"predictions":[[2.0]]}' * 2
    java = shutil.which("java")
    if java is None:
        pytest.skip("no Java here")
    (tmp_path / "Ask.java").write_text(JAVA)
    done = subprocess.run([java, str(tmp_path / "Ask.java"), url, shared.host.token], capture_output=True, timeout=120, check=False)
    assert done.stdout == b'200 {"predictions":[[2.0]]}\n' * 2, done.stderr


JAVA = """
import java.net.URI;
import java.net.http.*;

public class Ask {
    public static void main(String[] given) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (int turn = 0; turn < 2; turn++) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(given[0])).header("Authorization", "Bearer " + given[1])
                .timeout(java.time.Duration.ofSeconds(20)).POST(HttpRequest.BodyPublishers.ofString("{\\"instances\\": [[1.0]]}")).build();
            HttpResponse<String> answer = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(answer.statusCode() + " " + answer.body());
        }
    }
}
"""


def test_curl_sends_a_large_body_after_it_was_told_to_go_on(shared: Rig, tmp_path: Any) -> None:
    """Above a megabyte curl asks first ("Expect: 100-continue")."""
    curl = shutil.which("curl")
    assert curl
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"instances": [[1.0]] * 300_000}))

    command = [curl, "-sS", "-H", f"Authorization: Bearer {shared.host.token}", "--data-binary", f"@{body}"]
    done = subprocess.run([*command, f"{shared.host.url}/v1/models/plus:predict"], check=True, capture_output=True, timeout=60)

    assert json.loads(done.stdout) == {"predictions": [[2.0]] * 300_000}
