"""Schema-driven fuzzing of the real process: requests that its own OpenAPI document allows, and requests that it forbids."""

from __future__ import annotations

import re
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance
from serving_rig import Rig

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
NAMES: dict[str, list[Any]] = {"name": ["plus", "sums", "echo-string", "echo-int8", "nobody"], "version": [0, 1, 3]}
SHAPE = {"type": "array", "items": {"enum": [1, 2]}, "minItems": 1, "maxItems": 2}
DATA = {"type": "array", "items": {"type": ["number", "string", "boolean"]}, "maxItems": 4}
SETTINGS = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))


def operations(rig: Rig) -> list[Any]:
    """What the document has, with names that are there: a request for nobody is refused before anything reads it."""
    document = rig.call("GET", "/openapi.json").document
    others = re.compile(r"/models/(?!\{|plus\b|sums\b)")
    # Unloading is asked for elsewhere: after it nothing here would be answered any more.
    document["paths"] = {path: item for path, item in document["paths"].items() if not others.search(path) and "unload" not in path}
    for operation in (operation for item in document["paths"].values() for operation in item.values()):
        operation["parameters"] = [
            {**given, "schema": {"enum": NAMES[given["name"]]}} for given in operation.get("parameters", ()) if given["name"] in NAMES
        ]
        operation.get("requestBody", {"content": {}})["content"].pop("application/octet-stream", None)
    tensor = document["components"]["schemas"]["Infer"]["properties"]["inputs"]["items"]["properties"]
    tensor |= {"name": {"enum": ["x", "a", "b"]}, "shape": SHAPE, "data": DATA}
    del tensor["parameters"]
    return [found.ok() for found in schemathesis.openapi.from_dict(document).get_all_operations()]


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_no_request_that_the_document_describes_breaks_the_server(shared: Rig, mode: GenerationMode) -> None:
    pid, asked, statuses = shared.host.pid, 0, set()

    def ask(case: Any) -> None:
        nonlocal asked
        answer = case.call(base_url=shared.host.url, headers={"Authorization": f"Bearer {shared.host.token}"})
        case.validate_response(answer, checks=CHECKS)
        assert b"Traceback" not in answer.content
        assert shared.host.token.encode() not in answer.content
        statuses.add(answer.status_code)
        asked += 1

    for operation in operations(shared):
        examples = 30 if operation.body else 2  # what has no body has little to say
        settings(SETTINGS, max_examples=examples)(given(operation.as_strategy(generation_mode=mode))(ask))()

    assert shared.host.pid == pid
    assert asked > 100
    assert {200, 400, 404} <= statuses
