"""Cards made of a real training, a real deployment and real measurements: each number in them is one that was recorded."""

from __future__ import annotations

import hashlib
import io
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aiaas_magics
from aiaas_magics.client.card import card_records, card_sections
from aiaas_magics.client.card.card_making import card_now, card_of_model
from aiaas_magics.client.card.evaluation import evaluate
from aiaas_magics.client.serving import signing_keys
from aiaas_magics.client.serving.endpoint import Endpoint
from aiaas_magics.core.errors import DataMismatch, InvalidSpec, SignatureRefused, UnknownName
from aiaas_magics.core.model_card import CardSection, ModelCard
from aiaas_magics.core.story import EpochRow
from tests.contracts.recipes import small_model, table

pytestmark = pytest.mark.process


@dataclass(frozen=True)
class Trained:
    """A model that a job trained, its endpoint and the job's history."""

    backend: aiaas_magics.Backend
    model: Any
    endpoint: Endpoint
    history: dict[str, list[float]]
    job: str


@pytest.fixture(scope="module")
def trained() -> Iterator[Trained]:
    x, y = table()
    model = small_model()
    with aiaas_magics.connect() as backend:
        job = backend.train(model, x, y, epochs=2, batch_size=64, seed=5)
        history = job.result(120).history
        endpoint = backend.deploy(model, name="carded")
        yield Trained(backend, model, endpoint, history, job.id)
        endpoint.stop()


def words(section: CardSection | None) -> str:
    assert section is not None
    return " ".join([*section.sentences, *(cell for table in section.tables for row in table.rows for cell in row)])


def npy_hash(array: np.ndarray) -> str:
    file = io.BytesIO()
    np.save(file, array)
    return hashlib.sha256(file.getvalue()).hexdigest()


def fetch(url: str, token: str, accept: str) -> str:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}", "Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(answer.read().decode())


def test_a_trained_models_card_holds_the_record_of_its_job(trained: Trained) -> None:
    card = card_of_model(trained.model)

    training, data = words(card.section("training")), words(card.section("data"))
    assert f"Job {trained.job} " in training
    assert "2 epochs" in training
    assert all(f"{value:.4g}" in training for value in trained.history["loss"])
    assert "512 training rows" in data
    assert "float32 (512, 8)" in data
    hashes = {row[0]: row[3] for row in card.section("data").tables[0].rows}  # type: ignore[union-attr]
    assert hashes == {name: npy_hash(array) for name, array in zip("xy", table(), strict=True)}
    assert "161 parameters" in words(card.section("model"))
    assert "binary_crossentropy" in words(card.section("model"))


def test_large_arrays_have_the_hashes_of_their_blobs(trained: Trained) -> None:
    x, y = table(rows=4096)
    model = small_model()

    trained.backend.train(model, x, y, epochs=1, batch_size=512).result(120)

    hashes = {row[0]: row[3] for row in card_of_model(model).section("data").tables[0].rows}  # type: ignore[union-attr]
    assert hashes == {"x": npy_hash(x), "y": npy_hash(y)}, "x travels as a blob, y within the payload"


def test_what_nobody_knows_is_a_question_or_a_command_and_no_value(trained: Trained) -> None:
    card = card_of_model(trained.model, shown="model")

    empty = {section.key: section.fill for section in card.sections if section.is_empty}

    assert empty.keys() == {
        *("use", "limits", "license", "study", "evaluation", "groups", "serving", "precision", "bench", "explanations", "privacy"),
        *("integrity", "attacks"),
    }
    assert "?" in empty["license"]
    assert "%aiaas_card model --rows x_test" in empty["evaluation"]
    assert card.license == ""


def test_training_outside_of_the_job_is_said(trained: Trained) -> None:
    x, y = table()
    model = small_model()
    trained.backend.train(model, x, y, epochs=1, batch_size=64).result(120)
    assert "outside of this job" not in words(card_of_model(model).section("training"))

    model.fit(x, y, epochs=1, batch_size=64, verbose=0)

    assert "outside of this job: its optimizer has made 16 steps, 8 when" in words(card_of_model(model).section("training"))


def test_the_card_travels_with_the_version_and_stands_on_its_page(trained: Trained) -> None:
    endpoint = trained.backend.endpoint("carded")  # as from another kernel

    card = endpoint.card()

    assert f"Job {trained.job} " in words(card.section("training"))
    assert endpoint.versions[0].artefact in words(card.section("integrity"))
    assert "Version 1, served by onnx" in words(card.section("serving"))
    markdown = fetch(f"{endpoint.url}/endpoints/carded/card", endpoint.token, "text/markdown")
    assert markdown == card.to_markdown()
    assert markdown == fetch(f"{endpoint.url}/endpoints/carded/versions/1/card", endpoint.token, "*/*")
    page = fetch(f"{endpoint.url}/endpoints/carded", endpoint.token, "text/html")
    assert "<h3>Training</h3>" in page
    assert f"Job {trained.job} " in page
    assert "<h3>Training</h3>" in fetch(f"{endpoint.url}/endpoints/carded/card", endpoint.token, "text/html")


def test_an_endpoints_card_grows_by_what_is_measured_and_each_version_has_its_own(trained: Trained) -> None:
    x, y = table(rows=200, seed=9)
    endpoint = trained.backend.endpoint("carded")
    report = endpoint.bench(concurrency=(1,), duration_s=0.2, rates=(), forms=("json",))
    sex = np.where(np.arange(200) % 2, "f", "m")

    measured = evaluate(endpoint, x, y, data="x_test", by=sex, column="sex")
    endpoint.keep_card(card_now(endpoint, evaluations=[measured], use="Tests only. <b>Not</b> for people.", license="mit"))

    card = trained.backend.endpoint("carded").card()
    accuracy = float(np.mean((endpoint.predict(x)[:, 0] >= 0.5) == y))
    assert dict(measured.values)["accuracy"] == pytest.approx(accuracy)
    assert f"{accuracy:.4g}" in words(card.section("evaluation"))
    assert "f" in words(card.section("groups"))
    assert f"{report.points[0].requests:,}" in words(card.section("bench"))
    assert f"Job {trained.job} " in words(card.section("training")), "what the first card knew stays"
    assert card.license == "mit"
    assert card.task == "tabular-classification"
    page = fetch(f"{endpoint.url}/endpoints/carded", endpoint.token, "text/html")
    assert "&lt;b&gt;Not&lt;/b&gt; for people" in page
    assert "<b>Not</b>" not in page

    trained.backend.deploy(small_model(seed=4), name="carded", sample=x[:8])

    second = trained.backend.endpoint("carded")
    assert second.card(1) == card
    assert second.card().section("bench").is_empty, "the load test was of the version before"  # type: ignore[union-attr]
    assert second.card().section("training").is_empty  # type: ignore[union-attr]
    assert "Tests only" in words(second.card().section("use")), "an answer holds until another one is given"
    second.rollback()


def test_a_signed_deployment_says_so_on_its_card_and_page(trained: Trained, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    key = signing_keys.make(tmp_path / "key")

    endpoint = trained.backend.deploy(trained.model, name="signed", sign=tmp_path / "key", require_signed=key.public)

    assert endpoint.versions[0].signer == key.fingerprint
    assert key.fingerprint in words(endpoint.card().section("integrity"))
    assert key.fingerprint in fetch(f"{endpoint.url}/endpoints/signed", endpoint.token, "text/html")
    with pytest.raises(SignatureRefused, match="not signed"):
        trained.backend.deploy(trained.model, name="signed")
    endpoint.stop()


def test_a_keras_models_own_metrics_are_measured_too(trained: Trained) -> None:
    x, y = table(rows=100, seed=3)
    before = trained.model.get_weights()

    measured = evaluate(trained.model, x, y)

    expected = trained.model.evaluate(x, y, verbose=0, return_dict=True)
    values = dict(measured.values)
    assert values["accuracy (compiled)"] == pytest.approx(expected["accuracy"])
    assert values["loss (compiled)"] == pytest.approx(expected["loss"], rel=1e-5)
    assert values["accuracy"] == pytest.approx(expected["accuracy"])
    assert all(np.array_equal(a, b) for a, b in zip(before, trained.model.get_weights(), strict=True))


def test_cards_that_are_not_there_or_too_long_are_refused(trained: Trained) -> None:
    with pytest.raises(UnknownName, match="9"):
        trained.endpoint.card(9)
    with pytest.raises(UnknownName):
        card_now(trained.endpoint, version=9)
    long = ModelCard(name="carded", sections=(CardSection(key="use", title="Use", sentences=("x" * 300_000,)),))
    with pytest.raises(InvalidSpec, match="256 are kept"):
        trained.endpoint.keep_card(long)
    with pytest.raises(DataMismatch, match="no predict"):
        evaluate(object(), [1], [1])


def test_a_script_makes_the_same_cards(trained: Trained) -> None:
    x, y = table(rows=64, seed=2)

    of_model = trained.backend.card(trained.model, x, y, license="mit")
    of_endpoint = trained.backend.card("carded", limits="None known.")

    assert of_model.license == "mit"
    assert "64 rows" in words(of_model.section("evaluation"))
    assert "None known." in words(trained.endpoint.card().section("limits"))
    assert trained.endpoint.card() == of_endpoint
    with pytest.raises(InvalidSpec, match="belong together"):
        trained.backend.card(trained.model, x)


def test_a_card_is_a_file(trained: Trained, tmp_path: Path) -> None:
    card = card_of_model(trained.model)

    card.save(str(tmp_path / "README.md"))

    assert hashlib.sha256((tmp_path / "README.md").read_bytes()).digest() == hashlib.sha256(card.to_markdown().encode()).digest()


def test_what_others_found_out_of_a_model_stands_on_its_card(trained: Trained) -> None:
    """An explanation and an attack hand in their sections."""

    class Explanation:
        method, rows, verdict, text = "occlusion", 20, "Faithful: deletion 0.2 against 0.5 at random.", "\n\n".join(map(str, range(40)))

    model = small_model()
    record = card_records.of_model(model)
    record.sections["explanations"] = card_sections.explanations_section(Explanation())
    record.sections["attacks"] = card_sections.filled("attacks", ["Membership inference: AUC 0.51."])

    card = card_of_model(model)

    assert "Method occlusion, 20 rows." in words(card.section("explanations"))
    assert words(card.section("explanations")).endswith("19 Faithful: deletion 0.2 against 0.5 at random.")
    assert "AUC 0.51" in words(card.section("attacks"))
    assert card_of_model(small_model()).section("attacks").is_empty  # type: ignore[union-attr]


@pytest.mark.parametrize("epochs", [1, 20, 21, 500])
def test_long_curves_are_thinned_with_their_ends(epochs: int) -> None:
    rows = [EpochRow(epoch=place, seconds=1.0, rows=1, logs={}) for place in range(epochs)]

    shown = card_sections.thinned(rows, 20)

    assert len(shown) == min(epochs, 20)
    assert (shown[0], shown[-1]) == (rows[0], rows[-1])
