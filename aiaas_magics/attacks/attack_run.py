"""Attack run: attacks a model in the kernel, and says what it gave away.

Owns the order: which rows, which attacks, what they find. Each attack belongs to its module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from aiaas_magics.attacks import adversarial_rows, art_attack, membership
from aiaas_magics.attacks.adversarial_rows import Bounds
from aiaas_magics.attacks.attack_gradients import loss_gradient
from aiaas_magics.attacks.model_losses import LabelledRows, class_of, labelled, outputs_and_losses
from aiaas_magics.core.attack_values import AdversarialPoint, AttackedModel, AttackReport, MembershipAttack
from aiaas_magics.core.errors import DataMismatch, InvalidSpec

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MOST_ROWS: Final = 10_000  # guess: of each side; the interval of the AUC is 0.01 wide then
LEAST_ROWS: Final = 20  # of each side; guess
ADVERSARIAL_ROWS: Final = 500  # guess: the accuracy is known to 2 % then


@dataclass(frozen=True, slots=True)
class Attacks:
    """What attacks on one or more models find. `attack` makes it.

    Attributes:
        report: all numbers.
    """

    report: AttackReport

    def to_frame(self) -> pd.DataFrame:
        """A line per model and membership attack.

        Raises:
            InvalidSpec: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise InvalidSpec("A table is a pandas DataFrame, and pandas is not installed. Run %pip install pandas first.") from None
        rows = []
        for model in self.report.models:
            for result in model.membership:
                rates = {f"tpr_at_{rate.false_rate:g}": rate.true_rate for rate in result.rates}
                line = {
                    "model": model.name,
                    "attack": result.name,
                    "auc": result.auc,
                    "low": result.low,
                    "high": result.high,
                }
                rows.append(line | {"advantage": result.advantage} | rates)
        return pd.DataFrame(rows)

    def plot(self) -> Figure:
        """Draw the ROC curves of the membership attacks, and accuracy over epsilon if adversarial rows were asked for."""
        from aiaas_magics.plots.attack_figure import attack_figure

        return attack_figure(self.report)

    def facts(self) -> dict[str, str]:
        """What a model card says of the first model: a name and a sentence each."""
        return self.report.models[0].facts()

    def __str__(self) -> str:
        from aiaas_magics.plots.attack_words import attack_text

        return attack_text(self.report)


def attack(
    model: Any,
    members: Any,
    others: Any,
    *,
    against: Sequence[tuple[str, Any]] = (),
    name: str = "",
    epsilons: Sequence[float] = (),
    bounds: tuple[float, float] | None = None,
    black_box: bool | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Attacks:
    """Ask of a model whether it tells on the rows that it was trained on, and how small a change makes it err.

    Args:
        model: a compiled Keras model of one output.
        members: `(x, y)` that it was trained on, arrays of shape `(rows, ...)`; up to 10,000 rows are used.
        others: `(x, y)` of the same distribution that it never saw.
        against: names and models that are attacked in the same way, to compare with: one that was trained privately, say.
        name: of the model, for tables; "" is its own.
        epsilons: how much each number of a row may change for adversarial rows, in the units of x.
        bounds: the smallest and the largest number that a row may have; None takes those of `others`.
        black_box: whether the attack of the adversarial-robustness-toolbox is made too; None: where it is installed.
        on_step: called with what is done next, in words.

    Raises:
        DataMismatch: the data are not pairs of arrays, or have fewer than 20 rows.
        InvalidSpec: a model of several outputs, or adversarial rows of a model that classifies nothing or takes whole numbers.
        NotCompiled: the model has no loss.
    """
    inside, outside = labelled(members, "members"), labelled(others, "others")
    for rows, side in ((inside, "members"), (outside, "others")):
        if len(rows) < LEAST_ROWS:
            raise DataMismatch(f"{side} have {len(rows)} rows, and {LEAST_ROWS} are the least that say anything. Give more.")
    if any(not 0 < epsilon < np.inf for epsilon in epsilons):
        raise InvalidSpec(f"epsilons={list(epsilons)}: each is a number above 0, in the units of x. Use 0.03 to start with.")
    inside, outside = _some(inside), _some(outside)
    models = [(name or str(getattr(model, "name", "model")), model), *against]
    reports = []
    for label, target in models:
        on_step(f"attacking {label}")
        reports.append(_attacked(label, target, inside, outside, tuple(sorted(set(epsilons))), bounds, black_box))
    return Attacks(AttackReport(models=tuple(reports)))


def _some(rows: LabelledRows) -> LabelledRows:
    places = (np.arange(min(len(rows), MOST_ROWS)) * len(rows)) // min(len(rows), MOST_ROWS)
    return rows.first(places)


def _attacked(
    label: str,
    model: Any,
    inside: LabelledRows,
    outside: LabelledRows,
    epsilons: Sequence[float],
    bounds: tuple[float, float] | None,
    black_box: bool | None,
) -> AttackedModel:
    (inside_outputs, inside_losses), (outside_outputs, outside_losses) = (outputs_and_losses(model, rows) for rows in (inside, outside))
    inside_classes, outside_classes = class_of(model, inside.y, inside_outputs), class_of(model, outside.y, outside_outputs)
    reports: list[MembershipAttack] = [membership.by_loss(inside_losses, outside_losses)]
    if inside_classes is not None and outside_classes is not None:
        reports.append(membership.by_confidence(inside_outputs, outside_outputs))
        if black_box or (black_box is None and art_attack.is_installed()):
            classes = max(2, inside_outputs.reshape(len(inside), -1).shape[1])
            by_side = ((inside, inside_classes[0]), (outside, outside_classes[0]))
            sides = [LabelledRows(rows.x, truth.astype(np.int64)) for rows, truth in by_side]
            reports.append(art_attack.black_box(model, *sides, classes=classes))
    return AttackedModel(
        name=label,
        members=len(inside),
        others=len(outside),
        loss_members=float(inside_losses.mean()),
        loss_others=float(outside_losses.mean()),
        accuracy_members=None if inside_classes is None else float((inside_classes[0] == inside_classes[1]).mean()),
        accuracy_others=None if outside_classes is None else float((outside_classes[0] == outside_classes[1]).mean()),
        membership=tuple(reports),
        adversarial_rows=min(len(outside), ADVERSARIAL_ROWS) if epsilons else 0,
        adversarial=_adversarial(model, outside, epsilons, bounds) if epsilons else (),
    )


def _adversarial(
    model: Any, outside: LabelledRows, epsilons: Sequence[float], bounds: tuple[float, float] | None
) -> tuple[AdversarialPoint, ...]:
    if outside.x.dtype.kind != "f":
        raise InvalidSpec(f"The rows are of dtype {outside.x.dtype}. Adversarial rows change numbers a little, which takes floats: cast x.")
    rows = outside.first(np.arange(min(len(outside), ADVERSARIAL_ROWS)))
    low, high = bounds if bounds is not None else (float(outside.x.min()), float(outside.x.max()))
    limits, gradient = Bounds(low, high), loss_gradient(model)

    def accuracy(x: np.ndarray) -> float:
        outputs = np.asarray(model.predict(x, batch_size=256, verbose=0))
        classes = class_of(model, rows.y, outputs)
        if classes is None:
            raise InvalidSpec(f"Model {model.name!r} classifies nothing, so that it has no adversarial accuracy. Leave --adversarial out.")
        return float((classes[0] == classes[1]).mean())

    clean = accuracy(rows.x)
    points = [
        AdversarialPoint(
            epsilon=epsilon,
            fgsm=accuracy(adversarial_rows.fgsm(gradient, rows, epsilon, limits)),
            pgd=accuracy(adversarial_rows.pgd(gradient, rows, epsilon, limits)),
            noise=accuracy(adversarial_rows.noisy(rows, epsilon, limits)),
        )
        for epsilon in epsilons
    ]
    return (AdversarialPoint(epsilon=0.0, fgsm=clean, pgd=clean, noise=clean), *points)
