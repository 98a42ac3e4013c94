"""Card making: collects what is known of a model or an endpoint, and makes its card.

Owns where entry fact comes from. Its words belong to `card_sections`, what was seen before to `card_records`, the form to
`core.model_card`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from aiaas_magics.client.card import card_records, card_sections
from aiaas_magics.client.card.card_records import CardRecord
from aiaas_magics.client.card.evaluation import Evaluation
from aiaas_magics.core.errors import UnknownName
from aiaas_magics.core.model_card import CardSection, ModelCard
from aiaas_magics.core.spec import EndpointView, VersionView

if TYPE_CHECKING:
    from aiaas_magics.packing.export.accuracy_impact import PrecisionChange
    from aiaas_magics.packing.live.model_summary import ModelSummary


class CardHolder(Protocol):
    """What a card is asked of and kept at: an `Endpoint`."""

    change: PrecisionChange | None
    notes: tuple[str, ...]

    @property
    def name(self) -> str: ...
    @property
    def backend_url(self) -> str: ...
    @property
    def last_view(self) -> EndpointView: ...

    def view(self) -> EndpointView: ...
    def card(self, version: int = 0) -> ModelCard: ...
    def keep_card(self, card: ModelCard, version: int = 0) -> None: ...


def card_of_model(
    model: Any,
    *,
    name: str = "",
    shown: str = "",
    evaluations: Sequence[Evaluation] = (),
    license: str = "",
    use: str = "",
    limits: str = "",
) -> ModelCard:
    """The card of a live model.

    Args:
        model: a Keras model, or another model that can be deployed.
        name: the card's name; "" is the model's own.
        shown: what the magics call the model; "" is `name`.
        evaluations: measurements of this model.
        license: an SPDX id; "" leaves the question open.
        use: what the model is for.
        limits: where it fails.
    """
    from aiaas_magics.packing.live.model_summary import summary_of
    from aiaas_magics.packing.live.model_variables import steps_made

    summary = summary_of(model)
    own_name = name or (summary.name if summary is not None else str(model) if isinstance(model, str) else type(model).__name__)
    sections = _of_record(card_records.of_model(model), shown or own_name, steps=None if summary is None else steps_made(model))
    if summary is not None:
        sections.append(card_sections.model_section(summary))
    return _card(
        own_name,
        [*sections, *_answers(use, limits, license)],
        evaluations,
        shown=shown or own_name,
        library="keras" if summary is not None else "",
        task=_task(summary, evaluations),
        license=license,
    )


def card_of_endpoint(
    view: EndpointView,
    version: VersionView,
    *,
    record: CardRecord | None = None,
    stored: ModelCard | None = None,
    change: PrecisionChange | None = None,
    notes: Sequence[str] = (),
    evaluations: Sequence[Evaluation] = (),
    license: str = "",
    use: str = "",
    limits: str = "",
) -> ModelCard:
    """The card of one version of an endpoint: what is measured of it now, joined with the card that it was deployed with.

    Args:
        view: the endpoint.
        version: the version that the card is of.
        record: what was measured of the endpoint in this process.
        stored: the card that travelled with the version.
        change: what fewer bits changed.
        notes: sentences on what the endpoint does not do as the model does.
        evaluations: measurements of this version.
        license: as in `card_of_model`.
        use: as in `card_of_model`.
        limits: as in `card_of_model`.
    """
    sections = [] if record is None else _of_record(record, view.name)
    sections += [
        card_sections.serving_section(version, inputs=view.inputs, outputs=view.outputs, origin=view.origin, notes=notes),
        card_sections.integrity_section(version),
        *([card_sections.precision_section(change)] if change is not None else []),
    ]
    card = _card(
        view.name,
        [*sections, *_answers(use, limits, license)],
        evaluations,
        shown=view.name,
        task=_task(None, evaluations),
        license=license,
    )
    return card.joined(stored)


def card_now(
    endpoint: CardHolder,
    *,
    version: int = 0,
    evaluations: Sequence[Evaluation] = (),
    license: str = "",
    use: str = "",
    limits: str = "",
) -> ModelCard:
    """The card of an endpoint's version with what this process has measured since it was deployed. Nothing is kept.

    Args:
        endpoint: the endpoint.
        version: its number; 0 is the one that answers.
        evaluations: measurements of this version.
        license: as in `card_of_model`.
        use: as in `card_of_model`.
        limits: as in `card_of_model`.

    Raises:
        UnknownName: there is no such version.
    """
    view = endpoint.view()
    number = version or (view.routing.live if view.routing is not None else max(entry.version for entry in view.versions))
    shown = next((entry for entry in view.versions if entry.version == number), None)
    if shown is None:
        raise UnknownName("version", f"{view.name} {number}", tuple(f"{view.name} {entry.version}" for entry in view.versions))
    try:
        stored: ModelCard | None = endpoint.card(number)
    except UnknownName:
        stored = None
    is_live = view.routing is None or number == view.routing.live  # a load test measures the version that answers
    record = card_records.of_endpoint(endpoint.backend_url, view.name) if is_live else None
    return card_of_endpoint(
        view,
        shown,
        record=record,
        stored=stored,
        change=endpoint.change,
        notes=endpoint.notes,
        evaluations=evaluations,
        license=license,
        use=use,
        limits=limits,
    )


def _card(
    name: str,
    sections: Sequence[CardSection],
    evaluations: Sequence[Evaluation],
    *,
    shown: str,
    license: str,
    task: str,
    library: str = "",
) -> ModelCard:
    """Every section in its place; those that nobody filled say what would."""
    by_key = {section.key: section for section in (*sections, *_of_evaluations(evaluations))}
    ordered = [by_key.pop(key, card_sections.empty(key, shown)) for key in card_sections.SECTIONS]
    return ModelCard(
        name=name,
        library=library,
        task=task,
        license=license,
        tags=() if task == "other" else (task,),
        metrics=tuple(metric for evaluation in evaluations for metric in evaluation.metrics),
        sections=(*ordered, *by_key.values()),
        at_s=time.time(),
    )


def _of_record(record: CardRecord, shown: str, *, steps: int | None = None) -> list[CardSection]:
    sections = list(record.sections.values())
    if record.training is not None:
        sections += [
            card_sections.data_section(record.training),
            card_sections.training_section(record.training, steps=steps),
            card_sections.privacy_section(record.training, shown),
        ]
    if record.study is not None:
        sections.append(card_sections.study_section(record.study))
    if record.bench is not None:
        sections.append(card_sections.bench_section(record.bench))
    return sections


def _of_evaluations(evaluations: Sequence[Evaluation]) -> list[CardSection]:
    if not evaluations:
        return []
    newest = evaluations[-1]
    sections = [card_sections.evaluation_section(newest.values, rows=newest.rows, data=newest.data)]
    reports = [evaluation.groups for evaluation in evaluations if evaluation.groups is not None]
    return [*sections, *([card_sections.groups_section(reports)] if reports else [])]


def _answers(use: str, limits: str, license: str) -> list[CardSection]:
    """What only a person can say."""
    answers = {"use": use, "limits": limits, "license": license}
    return [card_sections.filled(key, [text]) for key, text in answers.items() if text]


def _task(summary: ModelSummary | None, evaluations: Sequence[Evaluation]) -> str:
    """The Hub's id of the task, where the data tells it: rows of one axis are a table, of three axes with few channels an image."""
    kind = {"binary": "classification", "classes": "classification", "numbers": "regression"}.get(
        evaluations[-1].task if evaluations else ""
    )
    axes = evaluations[-1].axes if evaluations else 0
    if kind and axes == 1:
        return f"tabular-{kind}"
    if kind == "classification" and axes == 3:
        return "image-classification"
    return "other"
