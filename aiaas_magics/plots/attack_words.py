"""Attack words: what attacks on a model found, in words and cells, for the table and as the figure's text twin.

Owns the sentences; the numbers belong to `core.attack_values`, the drawing to `attack_figure`.
"""

from __future__ import annotations

from typing import Final

from aiaas_magics.core.attack_values import NO_PROOF, AttackedModel, AttackReport
from aiaas_magics.plots import text_twins

HEADER: Final = ("model", "attack", "AUC", "95 % interval", "advantage", "TPR at 1 % FPR", "TPR at 0.1 % FPR", "")
ADVERSARIAL_HEADER: Final = ("model", "epsilon", "random noise", "FGSM", "PGD")
GUESS: Final = ("a guess", "", "0.500", "", "0.000", "1.0%", "0.1%", "")


def attack_title(report: AttackReport) -> str:
    return "Attacks on " + " and ".join(model.name for model in report.models)


def attack_rows(report: AttackReport) -> list[tuple[str, ...]]:
    """The cells of each membership attack, under `HEADER`; a guess at the end, to compare with."""
    rows = []
    for model in report.models:
        for attack in model.membership:
            rates = {rate.false_rate: f"{rate.true_rate:.1%}" for rate in attack.rates}
            rows.append(
                (
                    model.name,
                    attack.name,
                    f"{attack.auc:.3f}",
                    f"{attack.low:.3f} to {attack.high:.3f}",
                    f"{attack.advantage:.3f}",
                    rates.get(0.01, "too few rows"),
                    rates.get(0.001, "too few rows"),
                    "tells members" if attack.succeeds else "no better than a guess",
                )
            )
    return [*rows, GUESS]


def adversarial_rows(report: AttackReport) -> list[tuple[str, ...]]:
    """The cells of each epsilon, under `ADVERSARIAL_HEADER`."""
    return [
        (model.name, f"{point.epsilon:g}", f"{point.noise:.1%}", f"{point.fgsm:.1%}", f"{point.pgd:.1%}")
        for model in report.models
        for point in model.adversarial
    ]


def attack_line(report: AttackReport) -> str:
    """The result in a sentence."""
    return " ".join(_sentence(model) for model in report.models)


def _sentence(model: AttackedModel) -> str:
    attack = model.strongest
    if not attack.succeeds:
        return f"{model.name}: no attack is better than a guess (largest AUC {attack.auc:.3f})."
    return f"{model.name}: the attack by {attack.name} tells members from others (AUC {attack.auc:.3f})."


def attack_notes(report: AttackReport) -> list[str]:
    gaps = [
        f"{model.name}: accuracy {model.accuracy_members:.1%} on members, {model.accuracy_others:.1%} on others"
        for model in report.models
        if model.accuracy_members is not None and model.accuracy_others is not None
    ]
    gaps = gaps or [f"{model.name}: loss {model.loss_members:.3g} on members, {model.loss_others:.3g} on others" for model in report.models]
    first = report.models[0]
    rows = f"{first.members:,} members and {first.others:,} others" + (
        f"; adversarial accuracy on {first.adversarial_rows:,} of the others" if first.adversarial_rows else ""
    )
    return [attack_line(report), f"{'; '.join(gaps)}. Attacked with {rows}.", NO_PROOF]


def attack_text(report: AttackReport) -> str:
    """`attack_figure` in words."""
    parts = [attack_title(report), text_twins.table(HEADER, attack_rows(report))]
    if points := adversarial_rows(report):
        parts += ["", "Accuracy on rows that were changed by at most epsilon", text_twins.table(ADVERSARIAL_HEADER, points)]
    return "\n".join((*parts, *attack_notes(report)))
