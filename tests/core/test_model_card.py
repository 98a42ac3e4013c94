"""A model card as text: nothing in a name is Markdown, HTML or YAML, and Hugging Face's own reader takes it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis.strategies import text

from aiaas_magics.core import wire
from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.model_card import CardMetric, CardSection, CardTable, ModelCard

EVIL = 'x" \n- y: <script>alert(1)</script> | `rm` $\\alpha$ [a](javascript:b) ![](c)'


def card(**changes: Any) -> ModelCard:
    values: dict[str, Any] = {
        "name": "churn",
        "library": "keras",
        "task": "tabular-classification",
        "license": "apache-2.0",
        "tags": ("tabular-classification",),
        "metrics": (CardMetric(name="accuracy", value=0.91, data="x_test"), CardMetric(name="loss", value=float("nan"), data="x_test")),
        "sections": (
            CardSection(
                key="model", title="Model", sentences=("A net.",), tables=(CardTable(header=("layer", "type"), rows=(("dense", "Dense"),)),)
            ),
            CardSection(key="bench", title="Load test", fill="Measure with `%aiaas_bench churn`."),
        ),
        "at_s": 1.0,
    }
    return ModelCard(**values | changes)


def head_of(markdown: str) -> dict[str, Any]:
    _, head, _ = markdown.split("---\n", 2)
    read: dict[str, Any] = yaml.safe_load(head)
    return read


def test_the_head_is_yaml_with_the_hubs_keys() -> None:
    head = head_of(card().to_markdown())

    assert head["license"] == "apache-2.0"
    assert head["library_name"] == "keras"
    assert head["tags"] == ["aiaas_magics", "tabular-classification"]
    (result,) = head["model-index"][0]["results"]
    assert result["task"] == {"type": "tabular-classification"}
    assert result["metrics"] == [{"type": "accuracy", "value": 0.91, "name": "accuracy"}], "NaN is no result"


def test_an_empty_section_says_what_fills_it() -> None:
    body = card().to_body()

    assert "## Load test\n\n*Not filled in.* Measure with `%aiaas_bench churn`." in body
    assert "| dense | Dense |" in body


def test_hugging_face_reads_the_card_with_its_results() -> None:
    hub = pytest.importorskip("huggingface_hub", reason="the extra `references` is not installed")

    read = hub.ModelCard(card().to_markdown())

    assert read.data.license == "apache-2.0"
    assert read.data.library_name == "keras"
    (result,) = read.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("accuracy", 0.91, "x_test")
    assert read.text.strip().startswith("# Model card: churn")


def test_a_card_without_license_and_metrics_is_read_too() -> None:
    hub = pytest.importorskip("huggingface_hub", reason="the extra `references` is not installed")

    read = hub.ModelCard(card(license="", metrics=(), library="").to_markdown())

    assert read.data.license is None
    assert read.data.eval_results is None


def test_names_cannot_become_markup_or_yaml() -> None:
    evil = card(
        name=EVIL,
        library=EVIL,
        tags=(EVIL,),
        metrics=(CardMetric(name=EVIL, value=1.0, data=EVIL),),
        sections=(
            CardSection(
                key="model", title=EVIL, sentences=(EVIL,), tables=(CardTable(header=(EVIL, "b"), rows=((EVIL, EVIL),), caption=EVIL),)
            ),
        ),
    )

    markdown = evil.to_markdown()

    body = markdown.split("---\n", 2)[2]
    assert "<script" not in body
    assert "](javascript" not in body.replace("\\]", "")
    head = head_of(markdown)
    assert head.keys() == {"license", "library_name", "tags", "metrics", "model-index"}
    assert len(head["tags"]) == 2
    assert "`" not in body.replace("\\`", ""), "a name begins no code"
    (row,) = [line for line in body.splitlines() if line.startswith("| x") and line.count("javascript") == 2]
    assert row.replace("\\|", "").count("|") == 3, "a name ends no cell"


@given(text(max_size=60))
def test_any_name_stays_one_yaml_string(name: str) -> None:
    head = head_of(card(name="n", tags=(name,), library=name or "keras").to_markdown())

    assert isinstance(head["tags"][1], str)
    assert isinstance(head["library_name"], str)


def test_a_newer_card_keeps_what_only_the_older_one_knows() -> None:
    newer = card(
        license="",
        library="",
        task="other",
        metrics=(CardMetric(name="accuracy", value=0.95, data="x_test"),),
        sections=(
            CardSection(key="model", title="Model", fill="deploy"),
            CardSection(key="bench", title="Load test", sentences=("Fast.",)),
        ),
    )

    joined = newer.joined(card())

    assert joined.section("model") == card().section("model")
    assert [section.sentences for section in joined.sections if section.key == "bench"] == [("Fast.",)]
    assert joined.license == "apache-2.0"
    assert joined.task == "tabular-classification"
    assert [(metric.name, metric.value) for metric in joined.metrics if metric.name == "accuracy"] == [("accuracy", 0.95)]
    assert newer.joined(None) is newer


def test_a_card_travels_and_refuses_a_license_that_is_none() -> None:
    assert wire.decode(wire.encode(card(metrics=())), ModelCard) == card(metrics=())
    with pytest.raises(InvalidSpec, match="no license id"):
        card(license="all rights\nreserved")
