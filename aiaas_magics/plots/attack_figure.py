"""Attack figure: ROC curves of membership attacks, and accuracy over the size of an adversarial change.

Owns the drawing; the same numbers in words come from `attack_words`.
"""

from __future__ import annotations

from typing import Final

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aiaas_magics.core.attack_values import AttackReport
from aiaas_magics.plots import attack_words, figure_style

WIDTH: Final = 8.8
HEIGHT: Final = 2.9
LEAST_RATE: Final = 1e-3  # of the logarithmic axes: what matters to somebody who is accused is the left edge


def attack_figure(report: AttackReport) -> Figure:
    """The ROC curve of each model's strongest attack on logarithmic axes, with the diagonal of a guess; accuracy over epsilon beside it."""
    has_rows = any(model.adversarial for model in report.models)
    figure, (roc, *more) = figure_style.new_figure(
        2 if has_rows else 1,
        title=attack_words.attack_title(report),
        subtitle=attack_words.attack_line(report),
        caption=" ".join(attack_words.attack_notes(report)[1:]),
        width=WIDTH if has_rows else 0.62 * WIDTH,
        height=HEIGHT,
    )
    _draw_roc(roc, report)
    if more:
        _draw_accuracy(more[0], report)
    return figure_style.plain(figure)


def _draw_roc(axes: Axes, report: AttackReport) -> None:
    axes.plot([LEAST_RATE, 1], [LEAST_RATE, 1], color=figure_style.MUTED, linestyle=(0, (2, 2)), linewidth=1.2, label="a guess")
    for index, model in enumerate(report.models):
        attack = model.strongest
        points = [(false, true) for false, true in attack.curve if false >= LEAST_RATE and true >= LEAST_RATE]
        axes.plot(
            [false for false, _ in points],
            [true for _, true in points],
            color=figure_style.SERIES[index % len(figure_style.SERIES)],
            linestyle=figure_style.DASHES[index % len(figure_style.DASHES)],
            linewidth=1.8,
            label=f"{model.name}: {attack.name}, AUC {attack.auc:.3f}",
        )
    for set_scale, set_limit, axis in ((axes.set_xscale, axes.set_xlim, axes.xaxis), (axes.set_yscale, axes.set_ylim, axes.yaxis)):
        set_scale("log")
        set_limit(LEAST_RATE, 1)
        axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.3g}"))
        axis.set_minor_locator(ticker.NullLocator())
    axes.legend(frameon=False, fontsize=8, labelcolor=figure_style.INK, loc="upper left")
    figure_style.label(axes, title="Membership inference: true positive rate", x="false positive rate")


def _draw_accuracy(axes: Axes, report: AttackReport) -> None:
    for index, model in enumerate(report.models):
        epsilons = [point.epsilon for point in model.adversarial]
        for place, (name, field) in enumerate((("random noise", "noise"), ("FGSM", "fgsm"), ("PGD", "pgd"))):
            axes.plot(
                epsilons,
                [getattr(point, field) for point in model.adversarial],
                color=figure_style.SERIES[index % len(figure_style.SERIES)],
                marker=figure_style.MARKERS[place],
                linestyle=figure_style.DASHES[place],
                linewidth=1.5,
                markersize=4.5,
                label=f"{model.name}: {name}",
            )
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))
    axes.legend(frameon=False, fontsize=8, labelcolor=figure_style.INK, loc="lower left")
    figure_style.label(axes, title="Accuracy on changed rows", x="epsilon: most that a number was changed by")
