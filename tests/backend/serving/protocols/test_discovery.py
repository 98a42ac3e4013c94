"""What the server tells about itself: pages, the OpenAPI document, and that both are true."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas_magics.backend.serving.http.compression import LARGE, compressed, encoding_for
from aiaas_magics.backend.serving.http.rest_protocols import ROUTES
from aiaas_magics.backend.serving.models.registry import Registry, Version
from aiaas_magics.backend.serving.protocols import Request, Response
from aiaas_magics.backend.serving.protocols.discovery import discovery_routes, page
from aiaas_magics.backend.serving.protocols.operations import Missed, OperationRoute
from aiaas_magics.backend.serving.protocols.tfserving import tfserving_rest
from aiaas_magics.core import snippets
from tests.backend.serving.support import serving_models
from tests.backend.serving.support.serving_models import spec_of, tensor
from tests.backend.serving.support.serving_rig import Rig

HTML = {"Accept": "text/html,application/xhtml+xml"}


def test_the_root_is_what_kserves_client_asks_for(shared: Rig) -> None:
    answer = shared.call("GET", "/")

    assert answer.document["status"] == "alive"
    assert {"name": "plus", "url": f"{shared.host.url}/endpoints/plus"} in answer.document["endpoints"]


def test_an_endpoint_describes_itself_to_programs(shared: Rig) -> None:
    document = shared.call("GET", "/endpoints/plus").document

    assert (document["name"], document["live"], document["url"]) == ("plus", 3, shared.host.url)
    assert document["inputs"] == [{"name": "x", "dtype": "float32", "shape": [-1, 1], "original": ""}]
    assert [version["state"] for version in document["versions"]] == ["AVAILABLE"]
    assert shared.call("GET", "/endpoints/nobody").status == 404


def example(rig: Rig, client: str, name: str = "sums") -> str:
    calls = rig.call("GET", f"/endpoints/{name}").document["calls"]
    return next(str(call["text"]) for call in calls if call["client"] == client)


@pytest.mark.parametrize("client", ["curl", "Python alone"])
def test_an_example_call_works_as_it_stands(shared: Rig, client: str) -> None:
    text = example(shared, client)
    command = ["sh", "-c", text] if client == "curl" else [sys.executable, "-c", text]

    done = subprocess.run(command, capture_output=True, timeout=60, env={**os.environ, snippets.TOKEN: shared.host.token})

    assert done.returncode == 0, done.stderr
    assert b'"total"' in done.stdout.replace(b"'", b'"')


def test_the_example_for_tritons_client_is_python(shared: Rig) -> None:
    """It is run in the conformance tests, where that client is installed."""
    compile(example(shared, "tritonclient"), "example", "exec")


def test_a_half_has_no_example_in_json(shared: Rig) -> None:
    calls = shared.call("GET", "/endpoints/echo-float16").document["calls"]

    assert [call["client"] for call in calls] == ["tritonclient"]


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))


@pytest.mark.parametrize("path", ["/", "/endpoints/plus"])
def test_a_page_loads_nothing_and_runs_nothing(shared: Rig, path: str) -> None:
    answer = shared.call("GET", path, headers=HTML)

    tags = Tags(answer.body.decode()).tags
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert not {"script", "link", "img", "iframe", "form", "object"} & {tag for tag, _ in tags}
    assert all(not key.startswith("on") and key not in ("src", "style") for _, attributes in tags for key in attributes)
    assert all((attributes.get("href") or "/").startswith("/") for _, attributes in tags)
    assert shared.host.token not in answer.body.decode()


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=40), st.text(alphabet="<>\"'&ab", max_size=20))
def test_whatever_a_model_is_called_stays_text(name: str, other: str) -> None:
    """Names of inputs and outputs are the user's."""
    names = [name + "<script>", other]
    spec = spec_of("m", [tensor(n, "float32", -1, 2) for n in names], [tensor(names[0], "float32", -1)])
    registry = Registry()
    registry.begin(Version(number=1, spec=spec, created_s=0.0))

    response = page.endpoint(discovery_routes.describe(registry, "m", "http://h"))

    plain = page.endpoint(discovery_routes.describe(plain_registry(), "m", "http://h"))
    assert [tag for tag, _ in Tags(response.body.decode()).tags] == [tag for tag, _ in Tags(plain.body.decode()).tags]


def plain_registry() -> Registry:
    registry = Registry()
    inputs = [tensor("a", "float32", -1, 2), tensor("b", "float32", -1, 2)]
    registry.begin(Version(number=1, spec=spec_of("m", inputs, [tensor("c", "float32", -1)]), created_s=0.0))
    return registry


@given(st.lists(st.sampled_from(sorted(serving_models.ONNX_TYPES)), min_size=1, max_size=3), st.lists(st.integers(-1, 20), max_size=3))
def test_an_example_row_fits_its_own_interface(dtypes: list[str], widths: list[int]) -> None:
    inputs = [tensor(f"it's {index}", dtype, -1, *(width or 1 for width in widths)) for index, dtype in enumerate(dtypes)]
    command = snippets.curl("http://h", "m", inputs)
    script = snippets.python("http://h", "m", inputs)

    row = eval(snippets.row_of_zeros(inputs, "python"))
    if "$(" not in command:
        shell = shlex.split(command)
        assert json.loads(shell[shell.index("-d") + 1])["instances"] == [row]
    compile(script, "example", "exec")
    columns = row if len(inputs) > 1 else {inputs[0].name: row}
    for spec in inputs:
        if snippets.takes_json([spec]):
            body = json.dumps({"inputs": {spec.name: [columns[spec.name]]}}).encode()
            tfserving_rest.read_predict(body, [spec])


# --------------------------------------------------------------------------- the OpenAPI document


def openapi_of(rig: Rig) -> dict[str, Any]:
    document: dict[str, Any] = rig.call("GET", "/openapi.json").document
    return document


TABLES = [protocol.PATHS for protocol in ROUTES.protocols]


def test_every_route_is_in_the_document_and_nothing_else(shared: Rig) -> None:
    document = openapi_of(shared)
    documented = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    generic = {
        (method, path) for method, path in documented if not re.search(r"/(models|endpoints)/[^{/]", path) or path.endswith("/stats")
    }

    assert generic == {(line.method, line.template) for table in TABLES for line in table.operations}
    for method, path in documented - generic:
        assert isinstance(ROUTES.find(method, path)[1], OperationRoute)


def test_every_live_model_has_its_own_schema(shared: Rig) -> None:
    schemas = openapi_of(shared)["components"]["schemas"]
    names = [endpoint["name"] for endpoint in shared.call("GET", "/").document["endpoints"]]

    row = schemas["PredictPlusRows"]["properties"]["instances"]["items"]
    assert (row["minItems"], row["maxItems"], row["items"]["type"]) == (1, 1, "number")
    assert {"Infer" + "".join(part.capitalize() for part in name.split("-")) for name in names} <= schemas.keys()


def test_the_document_is_openapi_and_its_references_lead_somewhere(shared: Rig) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    document = openapi_of(shared)
    schemas = document["components"]["schemas"]

    assert document["openapi"].startswith("3.1")
    for reference in re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)):
        assert reference.removeprefix("#/components/schemas/") in schemas
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(
    ("method", "path", "body", "schema"),
    [
        ("POST", "/v1/models/plus:predict", {"instances": [[1.0]]}, "PredictAnswer"),
        ("POST", "/v1/models/plus:predict", {"inputs": [[1.0]]}, "PredictAnswer"),
        ("POST", "/v1/models/plus:regress", {"examples": [{"x": 1.0}]}, "RegressAnswer"),
        ("GET", "/v1/models/plus", None, "Status"),
        ("GET", "/v1/models/plus/metadata", None, "Signatures"),
        ("GET", "/v1/models/nobody", None, "Error"),
        ("GET", "/v2", None, "Server"),
        ("GET", "/v2/models/plus", None, "Metadata"),
        ("GET", "/v2/models/nobody", None, "Error"),
        ("POST", "/v2/repository/index", {}, "Repository"),
        (
            "POST",
            "/v2/models/plus/infer",
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}]},
            "InferAnswer",
        ),
    ],
)
def test_bodies_and_answers_have_the_documented_form(shared: Rig, method: str, path: str, body: Any, schema: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    document = openapi_of(shared)

    answer = shared.call(method, path, json.dumps(body).encode() if body is not None else None)

    jsonschema.validate(answer.document, {**document["components"]["schemas"][schema], "components": document["components"]})
    documented = document["paths"].get(path, {}).get(method.lower())
    if documented and body is not None:
        asked = documented["requestBody"]["content"]["application/json"]["schema"]
        jsonschema.validate(body, {**asked, "components": document["components"]})


# --------------------------------------------------------------------------- tables of paths


SEGMENT = st.text(alphabet="abv12%._-: {}", max_size=6)


@given(st.lists(SEGMENT, max_size=7).map("/".join), st.sampled_from(["GET", "POST", "PUT"]))
def test_any_path_is_found_or_missed(path: str, method: str) -> None:
    for table in TABLES:
        assert isinstance(table.find(method, path), (OperationRoute, Missed))


@pytest.mark.parametrize("line", [line for table in TABLES for line in table.operations], ids=lambda line: f"{line.method} {line.template}")
def test_every_line_of_a_table_is_found_by_its_own_path(line: Any) -> None:
    path = line.template.format(name="ready", version="7", label="best%20one")

    _, found = ROUTES.find(line.method, path)

    assert isinstance(found, OperationRoute)
    assert found.action == line.action
    assert found.version == (7 if "{version}" in line.template else None)
    assert found.label == ("best one" if "{label}" in line.template else None)


@pytest.mark.parametrize(("path", "action"), [("/infer", "infer"), ("/ready", "model_ready"), ("/versions/1", "metadata")])
def test_a_model_may_be_called_like_a_word_of_the_protocol(path: str, action: str) -> None:
    method = "POST" if action == "infer" else "GET"

    assert ROUTES.find(method, f"/v2/models/stats{path}")[1].action == action


# --------------------------------------------------------------------------- answers made smaller


def test_a_large_answer_is_compressed_for_who_asks(shared: Rig) -> None:
    body = json.dumps({"instances": [[1.0, 2.0]] * 20_000}).encode()
    plain = shared.call("POST", "/v1/models/echo-float32:predict", body)

    packed = shared.call("POST", "/v1/models/echo-float32:predict", body, headers={"Accept-Encoding": "gzip, deflate"})

    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["vary"] == "accept-encoding"
    assert gzip.decompress(packed.body) == plain.body


def test_lengths_in_a_compressed_binary_answer_are_those_before(shared: Rig) -> None:
    array = np.zeros((LARGE, 2), np.float32)
    entry = {"name": "x", "datatype": "FP32", "shape": [LARGE, 2], "parameters": {"binary_data_size": array.nbytes}}
    head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Accept-Encoding": "deflate"}

    answer = shared.call("POST", "/v2/models/echo-float32/infer", head + array.tobytes(), headers=headers)

    whole = zlib.decompress(answer.body)
    assert answer.headers["content-encoding"] == "deflate"
    assert whole[int(answer.headers["inference-header-content-length"]) :] == array.tobytes()


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        (None, None),
        (b"", None),
        (b"identity", None),
        (b"br, zstd", None),
        (b"gzip", "gzip"),
        (b"GZIP;q=0.5, deflate", "gzip"),
        (b"gzip;q=0, deflate;q=1.0", "deflate"),
        (b"gzip;q=0.000", None),
        (b"deflate , identity", "deflate"),
        (b"gzip;q=", None),
        (b"\xff\xfe,gzip", "gzip"),
    ],
)
def test_the_encoding_is_one_that_the_caller_named(accepted: bytes | None, encoding: str | None) -> None:
    headers = () if accepted is None else ((b"accept-encoding", accepted),)
    request = Request(method="POST", path="/", headers=headers)

    assert encoding_for(request, Response(200, bytes(LARGE))) == encoding
    assert encoding_for(request, Response(200, bytes(LARGE - 1))) is None


def test_what_does_not_shrink_goes_as_it_is() -> None:
    response = Response(200, os.urandom(LARGE))

    assert compressed(response, "gzip") is response
