"""The OpenAPI document as generators of clients read it: names, unions, examples, and a client that was made of it."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aiaas_magics.backend.serving.http.rest_protocols import ROUTES
from aiaas_magics.backend.serving.models.registry import Registry, Version
from aiaas_magics.backend.serving.protocols.discovery import openapi, openapi_models
from aiaas_magics.core.routing import Routing
from aiaas_magics.core.spec import DeploySpec
from tests.backend.serving.support.serving_models import spec_of, tensor
from tests.backend.serving.support.serving_rig import Rig

PROTOCOLS = (ROUTES.protocols[-1], *ROUTES.protocols[:-1])
NUMBERS = tensor("y", "float32", -1, 3)
# Names that differ in what a generator leaves out, that are words of the document, and that are no ASCII.
ODD = [
    spec_of("net.v2", [tensor("größe/0:a b", "float32", -1, 2, 3), tensor("größe.0", "int64", -1)], [NUMBERS]),
    spec_of("net_v2", [tensor("x", "string", -1)], [tensor("y", "string", -1, 1)]),
    spec_of("net-v2", [tensor("价格", "int32", -1, -1), tensor("价", "bool", -1)], [NUMBERS]),
    spec_of("1net", [tensor("a/b", "float32", -1, 1), tensor("a.b", "float64", -1), tensor("A_b", "uint8", -1)], [NUMBERS]),
    spec_of("version", [tensor("x", "float32", 4, 2)], [tensor("y", "float32", 4)]),
    spec_of("simple", [tensor("b64", "string", -1, 1)], [NUMBERS]),
    spec_of("simple-rows", [tensor("self", "float32", -1, 2), tensor("class", "float32", -1, 200)], [NUMBERS]),
    spec_of("half", [tensor("x", "float16", -1, 2)], [tensor("y", "float16", -1)]),
]


def document_of(*specs: DeploySpec) -> dict[str, Any]:
    """The document of a server with these models."""
    registry = Registry()
    for spec in specs:
        version = Version(number=1, spec=spec, created_s=0.0)
        registry.begin(version)
        registry.ready(version)
        registry.route(spec.name, Routing(live=1))
    document: dict[str, Any] = json.loads(json.dumps(openapi.document(PROTOCOLS, registry, "http://127.0.0.1:8501")))
    return document


def operations_of(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def objects_in(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        yield part
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from objects_in(inner)


def test_every_operation_has_a_name_that_a_function_may_have() -> None:
    ids = [operation["operationId"] for _, _, operation in operations_of(document_of(*ODD))]

    assert [id for id in ids if not re.fullmatch("[a-z][a-z0-9_]*", id)] == []
    assert len({id.replace("_", "") for id in ids}) == len(ids)
    assert {"predict", "predict_version", "predict_simple", "infer_simple", "predict_net_v2", "predict_net_v2_2", "predict_1net"} <= {*ids}


def test_a_model_whose_name_is_safe_keeps_it_beside_others() -> None:
    paths = document_of(*ODD)["paths"]

    assert paths["/v1/models/net_v2:predict"]["post"]["operationId"] == "predict_net_v2"
    assert paths["/v1/models/net-v2:predict"]["post"]["operationId"] == "predict_net_v2_2"


def test_every_component_has_a_name_that_a_class_may_have() -> None:
    names = list(document_of(*ODD)["components"]["schemas"])

    assert [name for name in names if not re.fullmatch("[A-Z][A-Za-z0-9_]*", name)] == []
    assert len({openapi_models.folded(name) for name in names}) == len(names)


def test_every_branch_of_a_union_is_a_component_with_a_name() -> None:
    document = document_of(*ODD)
    branches = [branch for part in objects_in(document) for union in ("anyOf", "oneOf", "allOf") for branch in part.get(union, ())]

    assert len(branches) > 30
    assert [branch for branch in branches if branch.keys() != {"$ref"}] == []


def test_a_class_has_no_two_fields_that_a_generator_takes_for_one() -> None:
    """An array of `a/b` and `a.b` is in Python `ab` twice, which cannot be imported."""
    for part in document_of(*ODD)["components"]["schemas"].values():
        fields = (
            [openapi_models.folded(name) for name in part["properties"]] if part.get("type") == "object" and "properties" in part else []
        )
        assert len(set(fields)) == len(fields), part


def test_a_model_without_a_form_in_json_has_no_path_that_takes_json() -> None:
    paths = document_of(*ODD)["paths"]
    schemas = document_of(*ODD)["components"]["schemas"]

    assert "/v1/models/half:predict" not in paths
    assert "/v2/models/half/infer" in paths
    assert "InferHalfXBinary" in schemas
    assert "InferHalfXJson" not in schemas


@pytest.mark.nightly  # 5 s: the validator's import and its schema
def test_the_document_is_valid_for_openapis_own_schema() -> None:
    from openapi_spec_validator import validate

    validate(document_of(*ODD))


@pytest.mark.parametrize("name", ["plus", "sums", "lookup", "echo-string", "echo-int8", "echo-float32", "scalar"])
def test_every_example_of_a_request_is_of_the_documented_form_and_is_answered(shared: Rig, name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    document = shared.call("GET", "/openapi.json").document
    tried = set()

    for path, method, operation in operations_of(document):
        if f"/models/{name}" not in path or "requestBody" not in operation:
            continue
        content = operation["requestBody"]["content"]["application/json"]
        for kind, example in content["examples"].items():
            tried.add(kind)
            jsonschema.validate(example["value"], {**content["schema"], "components": document["components"]})
            assert shared.call(method.upper(), path, json.dumps(example["value"]).encode()).status == 200, (path, example)
    assert {"rows", "columns", "json"} <= tried


@pytest.mark.parametrize(
    ("body", "is_allowed"),
    [
        ({"inputs": [{"name": "a", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}, False),
        ({"inputs": [{"name": "a", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}] * 2}, False),
        ({"inputs": [{"name": "a", "datatype": "FP32", "shape": [1, 2]}, {"name": "b", "datatype": "INT32", "shape": [1, 2]}]}, False),
        ({"instances": [{"a": [1, 2], "b": [1, 2]}], "inputs": {"a": [[1, 2]], "b": [[1, 2]]}}, False),
        ({"instances": [{"a": [1, 1e39], "b": [1, 2]}]}, False),
        ({"instances": [{"a": [1, 2, 3], "b": [1, 2]}]}, False),
        ({"instances": [{"a": [1, 1e38], "b": [1, 2]}]}, True),
    ],
)
def test_what_the_server_refuses_the_document_does_not_allow(shared: Rig, body: dict[str, Any], is_allowed: bool) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    document = shared.call("GET", "/openapi.json").document
    path = "/v2/models/sums/infer" if "datatype" in str(body) else "/v1/models/sums:predict"
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]

    assert jsonschema.Draft202012Validator({**schema, "components": document["components"]}).is_valid(body) == is_allowed
    assert (shared.call("POST", path, json.dumps(body).encode()).status == 200) == is_allowed


# --------------------------------------------------------------------------- a generated client


def generated(document: dict[str, Any], folder: Path, name: str) -> str:
    """The package of a client that `openapi-python-client` makes; whatever it warns of is a failure."""
    from openapi_python_client import generate
    from openapi_python_client.config import Config, ConfigFile, MetaType

    source = folder / f"{name}.json"
    source.write_text(json.dumps(document))
    settings = ConfigFile(post_hooks=[])  # ruff makes it prettier, not better
    config = Config.from_sources(settings, MetaType.NONE, source, "utf-8", overwrite=False, output_path=folder / name)
    assert generate(config=config) == []
    return name


def imported(package: str) -> list[str]:
    """The names of its modules, all imported."""
    import pkgutil

    modules = [module.name for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")]
    for module in modules:
        importlib.import_module(module)
    return modules


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that Python imports from; what was imported from there is forgotten."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.partition(".")[0].startswith("generated"):
            del sys.modules[name]


@pytest.mark.nightly
def test_a_generated_python_client_has_a_module_for_every_operation(packages: Path) -> None:
    document = document_of(*ODD)

    modules = imported(generated(document, packages, "generated_odd"))

    assert {operation["operationId"] for _, _, operation in operations_of(document)} <= {name.rpartition(".")[2] for name in modules}


@pytest.mark.nightly
def test_a_generated_python_client_asks_a_real_server(shared: Rig, packages: Path) -> None:
    package = generated(shared.call("GET", "/openapi.json").document, packages, "generated_client")
    imported(package)
    client = importlib.import_module(package).AuthenticatedClient(base_url=shared.host.url, token=shared.host.token)
    models = importlib.import_module(f"{package}.models")

    def module(name: str) -> Any:
        return next(sys.modules[one] for one in sys.modules if one.startswith(f"{package}.api.") and one.endswith(f".{name}"))

    with client:
        rows = module("predict_plus").sync(client=client, body=models.PredictPlusRows(instances=[[1.0], [2.0]]))
        named = module("predict_sums").sync(
            client=client, body=models.PredictSumsNamedRows(instances=[models.PredictSumsRow(a=[1.0, 2.0], b=[3, 4])])
        )
        generic = module("predict").sync("plus", client=client, body=models.PredictColumns(inputs=[[1.0]]))
        infer = module("infer_plus").sync(
            client=client,
            body=models.InferPlus(inputs=[models.InferPlusXJson(name="x", datatype="FP32", shape=[1, 1], data=[1.0])]),
        )
        refused = module("predict_plus").sync(client=client, body=models.PredictPlusRows(instances=[[1.0, 2.0]]))
        status = module("status").sync("plus", client=client)
        metrics = module("metrics").sync_detailed(client=client)

    assert rows.predictions == [[2.0], [3.0]]
    assert named.predictions == [{"total": [4.0, 6.0], "most": [3.0, 4.0]}]
    assert generic.outputs == [[2.0]]
    assert infer.outputs[0].data == [2.0]
    assert isinstance(refused, models.Error)
    assert status.model_version_status[0].state == "AVAILABLE"
    assert metrics.status_code == 200
