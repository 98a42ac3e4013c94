"""Explanations of endpoints: a real process, models whose explanations are known exactly, and each way in which one is refused."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiaas_magics.client.serving import tensor_protocol
from tests.backend.serving.support.serving_models import LINEAR_WEIGHTS, echo, linear, matrix, plus, sums, tensor
from tests.backend.serving.support.serving_rig import Answer, Rig
from tests.support.waiting import until

pytestmark = pytest.mark.process

BACKGROUND = np.array([[0.0, 0.0, 0.0], [2.0, 4.0, 6.0]], "float32")
SOON_S = 10.0
ROWS = np.array([[1.0, 2.0, 3.0], [5.0, -1.0, 0.5]], "float32")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("explained")
    with Rig(tmp_path_factory.mktemp("explained-state")) as rig:
        rig.load(linear(folder, "linear", background=BACKGROUND), 3)
        rig.load(linear(folder, "plain"))
        rig.load(sums(folder, "sums"))
        rig.load(echo(folder, "texts", "string"))
        rig.load(matrix(folder, "slow", size=400, steps=60))
        yield rig


def explain(rig: Rig, name: str, instances: Any, **parameters: Any) -> Answer:
    body = {"instances": instances, **({"parameters": parameters} if parameters else {})}
    return rig.call("POST", f"/v1/models/{name}:explain", json.dumps(body).encode())


def expected(rows: np.ndarray, background: np.ndarray, target: int) -> np.ndarray:
    """Shapley values of a linear model, in closed form (Lundberg and Lee 2017, corollary 1)."""
    return (rows - background.mean(axis=0)) * LINEAR_WEIGHTS[:, target]


def test_a_linear_model_is_explained_exactly_beside_its_predictions(served: Rig) -> None:
    answer = explain(served, "linear", ROWS.tolist(), target=1)

    assert answer.status == 200
    assert answer.document["predictions"] == served.predict("linear", {"instances": ROWS.tolist()}).document["predictions"]
    explanations = answer.document["explanations"]
    np.testing.assert_allclose([row["attributions"] for row in explanations], expected(ROWS, BACKGROUND, 1), atol=1e-5)
    np.testing.assert_allclose([row["base"] for row in explanations], (BACKGROUND @ LINEAR_WEIGHTS).mean(axis=0)[1], atol=1e-5)
    np.testing.assert_allclose([row["output"] for row in explanations], (ROWS @ LINEAR_WEIGHTS)[:, 1], atol=1e-5)
    assert [row["target"] for row in explanations] == [1, 1]
    assert answer.document["explainer"]["method"] == "kernel_shap"
    assert answer.document["explainer"]["evaluations"] == 2 + 2 + 2 * (2**3 - 2) * 2


def test_each_row_is_explained_for_its_own_largest_output_unless_a_target_is_named(served: Rig) -> None:
    explanations = explain(served, "linear", ROWS.tolist()).document["explanations"]

    largest = (ROWS @ LINEAR_WEIGHTS).argmax(axis=1)
    assert [row["target"] for row in explanations] == largest.tolist()
    for row, target, explanation in zip(ROWS, largest, explanations, strict=True):
        np.testing.assert_allclose(explanation["attributions"], expected(row[None], BACKGROUND, target)[0], atol=1e-5)


def test_without_a_background_the_sample_rows_stand_in(served: Rig) -> None:
    explanations = explain(served, "plain", ROWS.tolist(), target=0).document["explanations"]

    samples = np.arange(12, dtype="float32").reshape(4, 3)
    np.testing.assert_allclose([row["attributions"] for row in explanations], expected(ROWS, samples, 0), atol=1e-4)


@pytest.mark.parametrize("method", ["occlusion", "permutation_shap", "shap"])
def test_methods_by_name(served: Rig, method: str) -> None:
    answer = explain(served, "linear", ROWS.tolist(), method=method, target=0)

    assert answer.status == 200
    # Of a linear model they all say the same.
    found = [row["attributions"] for row in answer.document["explanations"]]
    np.testing.assert_allclose(found, expected(ROWS, BACKGROUND, 0), atol=1e-4)


def test_versions_are_found_as_for_predictions(served: Rig) -> None:
    body = json.dumps({"instances": ROWS.tolist()}).encode()

    assert served.call("POST", "/v1/models/linear/versions/3:explain", body).status == 200
    assert served.call("POST", "/v1/models/linear/versions/4:explain", body).status == 404
    assert served.call("POST", "/v1/models/linear/labels/stable:explain", body).status == 400
    assert served.call("POST", "/v1/models/nobody:explain", body).status == 404
    assert served.call("POST", "/v2/models/nobody/explain", body).status == 404
    assert served.call("POST", "/v1/models/linear:explain", body, token=None).status == 401


def test_several_inputs_are_explained_by_name(served: Rig) -> None:
    answer = explain(served, "sums", [{"a": [1.0, 2.0], "b": [3, 5]}], output="total", target=0)

    attributions = answer.document["explanations"][0]["attributions"]
    # The samples are 1.5 and 3 everywhere; only the first columns are in the first total.
    np.testing.assert_allclose(attributions["a"], [-0.5, 0.0], atol=1e-5)
    np.testing.assert_allclose(attributions["b"], [0.0, 0.0], atol=1e-5)


def test_binary_tensors_are_explained_by_the_open_inference_protocol(served: Rig) -> None:
    inputs = (tensor("x", "float32", -1, 3),)
    body, headers = tensor_protocol.encode({"x": ROWS}, inputs)

    answer = served.call("POST", "/v2/models/linear/versions/3/explain", body, headers=headers)

    assert answer.status == 200
    assert answer.document["model_version"] == "3"
    outputs = {output["name"]: np.array(output["data"]).reshape(output["shape"]) for output in answer.document["outputs"]}
    assert list(outputs) == ["y", *(f"explanation.{name}" for name in ("attributions.x", "base", "output", "target"))]
    np.testing.assert_allclose(outputs["y"], ROWS @ LINEAR_WEIGHTS, atol=1e-5)
    sums_of_rows = outputs["explanation.attributions.x"].sum(axis=1) + outputs["explanation.base"]
    np.testing.assert_allclose(sums_of_rows, outputs["explanation.output"], atol=1e-5)
    assert answer.document["parameters"]["method"] == "kernel_shap"


def test_methods_without_a_base_value_and_texts_of_different_length_are_plain_json(served: Rig) -> None:
    body, headers = tensor_protocol.encode({"x": ROWS}, (tensor("x", "float32", -1, 3),))
    length = int(headers[tensor_protocol.LENGTH_HEADER])
    head = json.dumps({**json.loads(body[:length]), "parameters": {"method": "occlusion", "faithfulness": True}}).encode()
    headers[tensor_protocol.LENGTH_HEADER] = str(len(head))

    answer = served.call("POST", "/v2/models/linear/explain", head + body[length:], headers=headers)

    assert answer.status == 200
    assert b"NaN" not in answer.body
    assert "explanation.base" not in {output["name"] for output in answer.document["outputs"]}
    assert explain(served, "linear", ROWS.tolist(), method="occlusion").document["explanations"][0]["base"] is None


@pytest.mark.parametrize(
    ("instances", "parameters", "sentence"),
    [
        ([[1.0, 2.0]], {}, "has the shape (any, 3); the request holds (1, 2)"),
        ([], {}, "holds no row"),
        ([[0.0] * 3] * 257, {}, "257 rows are more than the 256 that one request may have explained. Ask for fewer at once"),
        ([[0.0] * 3], {"method": "gradcam"}, "Grad-CAM needs the model itself. Use one of kernel_shap, permutation_shap, occlusion"),
        ([[0.0] * 3], {"method": "magic"}, "There is no method of explanation 'magic'. Use one of"),
        ([[0.0] * 3], {"target": 2}, "the output has 2 columns. Use a target from 0 to 1"),
        ([[0.0] * 3], {"output": "z"}, "linear has no output 'z'. Use one of: y."),
        ([[0.0] * 3], {"samples": 20_000}, "one request may have up to 10000 per row"),
        ([[0.0] * 3], {"depth": 3}, "'parameters' cannot be read: Object contains unknown field `depth`. Use these: method"),
        ([[0.0] * 3], {"timeout_s": 0}, "a request may take up to 600 s"),
    ],
)
def test_what_cannot_be_explained_is_refused_in_a_sentence(served: Rig, instances: Any, parameters: dict[str, Any], sentence: str) -> None:
    answer = explain(served, "linear", instances, **parameters)

    assert answer.status == 400
    assert sentence in answer.error


def test_faithfulness_is_measured_where_it_is_asked_for(served: Rig) -> None:
    measured = explain(served, "linear", ROWS.tolist(), target=1, faithfulness=True).document["explainer"]["faithfulness"]

    # Of a linear model that is explained exactly: parts that are named first move the output more than any others do.
    assert measured["verdict"] in {"holds", "unclear"}
    assert measured["areas"]["deletion"] < measured["areas"]["random"] < measured["areas"]["insertion"]
    assert measured["completeness"] < 1e-5
    assert "faithfulness" not in explain(served, "linear", ROWS.tolist(), target=1).document["explainer"]


def test_text_outputs_are_refused(served: Rig) -> None:
    answer = explain(served, "texts", ["aa bb"])

    assert answer.status == 400
    assert "cannot be explained" in answer.error


def test_an_explanation_has_a_deadline(served: Rig) -> None:
    answer = explain(served, "slow", [[2.0] * 400], method="occlusion", timeout_s=0.05)

    assert answer.status == 504
    assert "timeout of 0.05 s was over" in answer.error


def test_too_much_work_is_refused_before_it_begins(served: Rig) -> None:
    answer = explain(served, "slow", [[2.0] * 400] * 200, method="kernel_shap", samples=10_000)

    assert answer.status == 400
    assert "evaluations of the model, more than the 2,000,000 that one request may have" in answer.error


def open_slow(rig: Rig) -> http.client.HTTPConnection:
    """An explanation that takes a while, on a connection of its own; nothing of its answer is read."""
    connection = http.client.HTTPConnection(*rig.address, timeout=60)
    body = json.dumps({"instances": [[2.0] * 400], "parameters": {"method": "kernel_shap", "samples": 10_000}})
    connection.request("POST", "/v1/models/slow:explain", body, {"Authorization": f"Bearer {rig.host.token}"})
    return connection


def test_a_third_explanation_is_asked_to_come_back_and_one_that_nobody_waits_for_ends(served: Rig) -> None:
    connections = [open_slow(served), open_slow(served)]

    def refused() -> bool:
        answer = explain(served, "plain", ROWS.tolist())
        says = answer.status == 503 and "2 explanations are running. Try again in 1 s." in answer.error
        return says and answer.headers["retry-after"] == "1"

    until(refused, "the third explanation was taken in", SOON_S)
    assert served.predict("plain", {"instances": ROWS.tolist()}).status == 200

    for connection in connections:
        connection.close()
    until(lambda: explain(served, "plain", ROWS.tolist()).status == 200, "explanations that nobody waits for went on", SOON_S)


def test_predictions_are_answered_while_an_explanation_runs(served: Rig) -> None:
    connection = open_slow(served)
    answers: list[int] = []

    def ask() -> None:
        answers.extend(served.predict("plain", {"instances": ROWS.tolist()}).status for _ in range(20))

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(30)
    connection.close()

    assert answers == [200] * 40


def test_explanations_are_counted_apart_from_predictions(rig: Rig, tmp_path: Path) -> None:
    rig.load(plus(tmp_path, "plus", 1.0))

    assert explain(rig, "plus", [[1.0]]).status == 200

    lines = rig.call("GET", "/metrics").body.decode().splitlines()
    assert 'aiaas_explanations_total{endpoint="plus",version="1"} 1' in lines
    assert 'aiaas_requests_total{endpoint="plus",version="1",outcome="answered"} 0' in lines


def test_the_openapi_document_has_both_operations(served: Rig) -> None:
    document = served.call("GET", "/openapi.json").document

    for path in ("/v1/models/{name}:explain", "/v1/models/linear:explain", "/v2/models/{name}/explain"):
        assert "post" in document["paths"][path], path
    body = document["paths"]["/v1/models/linear:explain"]["post"]["requestBody"]["content"]["application/json"]
    assert body["examples"]["rows"]["value"] == {"instances": [[0.0, 0.0, 0.0]]}
    assert explain(served, "linear", body["examples"]["rows"]["value"]["instances"]).status == 200


def test_nothing_heavy_is_imported_for_an_explanation(served: Rig) -> None:
    assert explain(served, "plain", ROWS.tolist()).status == 200

    maps = Path(f"/proc/{served.host.pid}/maps").read_text()
    assert not [name for name in ("tensorflow", "jaxlib", "sklearn", "pandas", "scipy") if f"/{name}/" in maps]
