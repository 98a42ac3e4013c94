"""Trust outputs: MIME bundles of what is recorded of an endpoint, its drift, attacks on a model, metrics by group and model cards.

Owns these static outputs, in the form that `present` has for all of them. Words and figures belong to `plots`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiaas_magics.core.attack_values import AttackReport
from aiaas_magics.core.drift.drift_values import DriftReport
from aiaas_magics.core.group_report import GroupReport
from aiaas_magics.core.model_card import ModelCard
from aiaas_magics.core.recording import RecordingCounts
from aiaas_magics.core.spec import EndpointView
from aiaas_magics.notebook import present
from aiaas_magics.notebook.present import Bundle
from aiaas_magics.plots import attack_words, drift_words, group_text, text_twins

if TYPE_CHECKING:
    from aiaas_magics.attacks.attack_run import Attacks
    from aiaas_magics.client.serving.drift import Drift


def recording_bundle(view: EndpointView, counts: RecordingCounts) -> Bundle:
    """What is recorded of an endpoint, and what was not."""
    facts = [("records", str(counts.policy)), ("requests", f"{counts.requests:,}"), ("rows", f"{counts.rows:,}")]
    facts += [("size", text_twins.size(counts.bytes))]
    if counts.oldest_s is not None and counts.newest_s is not None:
        facts += [("oldest", drift_words.moment(counts.oldest_s)), ("newest", drift_words.moment(counts.newest_s))]
    facts += [("dropped", f"{counts.dropped:,} while too many waited to be written")] if counts.dropped else []
    facts += [("too large", f"{counts.too_large:,}; a larger size than {counts.policy} would take them")] if counts.too_large else []
    notes = [drift_words.RECORDED if counts.policy.is_on else drift_words.NOT_RECORDED.format(name=view.name)]
    return present.table_bundle(("endpoint", view.name), facts, notes=notes)


def drift_bundle(drift: Drift) -> Bundle:
    """For `drift` as the last expression of a cell."""
    return drift_table(drift.report)


def drift_table(report: DriftReport) -> Bundle:
    rows, notes = drift_words.drift_rows(report), drift_words.drift_notes(report)
    return present.table_bundle(drift_words.HEADER, rows, caption=drift_words.drift_title(report), notes=notes)


def drift_bundles(report: DriftReport, *, figures: bool = True) -> list[Bundle]:
    """The table of an endpoint's drift and its figure."""
    bundles = [drift_table(report)]
    if not figures or not report.features:
        return bundles
    from aiaas_magics.plots.drift_figure import drift_figure

    return [*bundles, present.figure_bundle(drift_figure(report), drift_words.drift_text(report))]


def attack_bundles(report: AttackReport, *, figures: bool = True) -> list[Bundle]:
    """The tables of attacks on models, and the figure."""
    title, rows, notes = attack_words.attack_title(report), attack_words.attack_rows(report), attack_words.attack_notes(report)
    bundles = [present.table_bundle(attack_words.HEADER, rows, caption=title, notes=notes)]
    if points := attack_words.adversarial_rows(report):
        caption = "Accuracy on rows that were changed by at most epsilon"
        bundles.append(present.table_bundle(attack_words.ADVERSARIAL_HEADER, points, caption=caption))
    if not figures:
        return bundles
    from aiaas_magics.plots.attack_figure import attack_figure

    return [*bundles, present.figure_bundle(attack_figure(report), attack_words.attack_text(report))]


def attacks_bundle(attacks: Attacks) -> Bundle:
    """For `attacks` as the last expression of a cell."""
    return present.joined(attack_bundles(attacks.report, figures=False))


def group_bundles(report: GroupReport, *, figures: bool = True) -> list[Bundle]:
    """Metrics by group: the table and the figure."""
    header, rows, notes = group_text.group_header(report), group_text.group_rows(report), group_text.group_notes(report)
    bundles = [present.table_bundle(header, rows, caption=group_text.group_title(report), notes=["Brackets are 95 % intervals.", *notes])]
    if not figures:
        return bundles
    from aiaas_magics.plots.group_figure import group_figure

    return [*bundles, present.figure_bundle(group_figure(report), group_text.group_text(report))]


def card_bundle(card: ModelCard) -> Bundle:
    """A model card as rendered Markdown, and with its head in words."""
    return {"text/markdown": card.to_body(), "text/plain": card.to_markdown()}
