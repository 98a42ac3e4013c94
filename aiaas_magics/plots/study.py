"""The figure of a study: time, throughput and efficiency against the ideal.

Owns the drawing. The laws come from `laws`, the same numbers in words from `plots.text`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from aiaas_magics.laws import ScalingRow, SpeedupPoint, StudyFit, scaling
from aiaas_magics.plots import style, text

WIDTH: Final = 10.4
HEIGHT: Final = 2.45

GREY: Final = "#9AA5AF"
MEASURED: Final[dict[str, Any]] = {"color": style.BLUE, "marker": "o", "markersize": 7, "linestyle": "none", "elinewidth": 1.3}
SHARED: Final[dict[str, Any]] = {
    "color": GREY,
    "marker": "s",
    "markersize": 7,
    "linestyle": "none",
    "elinewidth": 1.3,
    "markerfacecolor": "white",
}
WHISKER: Final[dict[str, Any]] = {"fmt": "none", "ecolor": style.INK, "elinewidth": 1.1, "capsize": 3}
IDEAL: Final[dict[str, Any]] = {"color": style.INK, "linestyle": (0, (5, 3)), "linewidth": 1.2}
LAW: Final[dict[str, Any]] = {"color": style.ORANGE, "linestyle": (0, (1, 1.4)), "linewidth": 1.8}
REFERENCE: Final[dict[str, Any]] = {"color": style.GREEN, "linestyle": (0, (6, 2, 1, 2)), "linewidth": 1.5}


def study_figure(
    points: Sequence[SpeedupPoint],
    fit: StudyFit,
    reference: SpeedupPoint | None,
    hardware: str,
    title: str = "Study",
    *,
    work: str = "one epoch",
    batch: int | None = None,
    parity: str = "",
    simulated: bool = False,
) -> Figure:
    """Measured points with their spread, against T = N/n and P = n*p; efficiency as bars.

    Args:
        points: one a number of workers; those beyond the physical devices are drawn grey.
        reference: plain `fit` on all cores for the same work, drawn as a level line.
        hardware: goes into the caption, with the words "simulated devices" where they are.
        work: what `seconds` is the time of: "one epoch, 336,776 rows".
        parity: a sentence on whether all n computed the same.
    """
    rows = scaling(points)
    caption = text.study_caption(points, hardware, batch=batch, simulated=simulated)
    figure, (time, rate, share) = style.new_figure(
        3,
        title=title,
        subtitle=_subtitle(fit),
        caption=f"{caption} {parity}".strip(),
        width=WIDTH,
        height=HEIGHT,
        keys=_keys(rows, fit, reference),
    )
    _time_panel(time, rows, fit, reference, work)
    _rate_panel(rate, rows, fit, reference)
    _share_panel(share, rows, fit)
    return figure


def _subtitle(fit: StudyFit) -> str:
    verdict = fit.verdict[0].upper() + fit.verdict[1:]
    return f"{verdict}. {text.recommendation(fit)}"


def _time_panel(axes: Axes, rows: Sequence[ScalingRow], fit: StudyFit, reference: SpeedupPoint | None, work: str) -> None:
    style.label(axes, title=f"Time for {work}", x="workers n", y="seconds")
    curve = _fine(rows)
    work_s = rows[0].ideal_s * rows[0].workers
    axes.plot(curve, [work_s / n for n in curve], **IDEAL)
    if fit.fits and fit.amdahl:
        law = fit.amdahl
        axes.plot(curve, [law.one_worker_s * (law.serial_fraction + (1 - law.serial_fraction) / n) for n in curve], **LAW)
    if reference is not None:
        axes.axhline(reference.seconds, **REFERENCE)
    _points(axes, rows, [row.seconds for row in rows], joined=not fit.fits)
    axes.set_ylim(0, 1.12 * max(*(row.seconds * (1 + row.spread) for row in rows), reference.seconds if reference else 0))
    style.count_axis(axes, [row.workers for row in rows])


def _rate_panel(axes: Axes, rows: Sequence[ScalingRow], fit: StudyFit, reference: SpeedupPoint | None) -> None:
    style.label(axes, title="Throughput", x="workers n", y="rows a second")
    curve = _fine(rows)
    one = rows[0].ideal_rows_per_s / rows[0].workers
    axes.plot(curve, [one * n for n in curve], **IDEAL)
    if fit.fits and fit.amdahl:
        law = fit.amdahl
        axes.plot(curve, [one / (law.serial_fraction + (1 - law.serial_fraction) / n) for n in curve], **LAW)
    if reference is not None and reference.rows_per_s > 0:
        axes.axhline(reference.rows_per_s, **REFERENCE)
    _points(axes, rows, [row.rows_per_s for row in rows], joined=not fit.fits)
    highest = max(row.rows_per_s * (1 + row.spread) for row in rows)
    ideal = one * curve[-1]
    axes.set_ylim(0, 1.12 * max(highest, ideal, reference.rows_per_s if reference else 0))
    axes.yaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    style.count_axis(axes, [row.workers for row in rows])


def _share_panel(axes: Axes, rows: Sequence[ScalingRow], fit: StudyFit) -> None:
    style.label(axes, title="Efficiency, speedup / n", x="workers n")
    for position, row in enumerate(rows):
        low, high = row.efficiency_range
        look: dict[str, Any] = {"color": style.BLUE} if row.physical else {"color": "white", "edgecolor": GREY, "hatch": "////"}
        axes.bar(position, row.efficiency, width=0.62, **look)
        axes.errorbar(position, row.efficiency, yerr=[[row.efficiency - low], [high - row.efficiency]], **WHISKER)
        _share_label(axes, position, row, size=9.5 if len(rows) <= 4 else 7.5)
    axes.axhline(1.0, **IDEAL)
    names = [f"{row.workers}\nrecommended" if row.workers == fit.recommended else str(row.workers) for row in rows]
    axes.set_xticks(range(len(rows)), names)
    axes.set_xlim(-0.7, len(rows) - 0.3)
    axes.set_ylim(0, max(1.25, 1.15 * max(row.efficiency_range[1] for row in rows)))
    axes.yaxis.set_major_locator(ticker.MaxNLocator(nbins=5, steps=[1, 2.5, 5, 10]))  # quarters, and wider where a measurement is wild
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))


def _share_label(axes: Axes, position: int, row: ScalingRow, *, size: float) -> None:
    """The number inside its bar, where no line crosses it; above a bar too short to hold it."""
    inside = row.efficiency > 0.3
    axes.text(
        position,
        0.06 if inside else row.efficiency_range[1] + 0.05,
        f"{row.efficiency:.0%}",
        ha="center",
        va="bottom",
        fontsize=size,
        fontweight="bold",
        color="white" if inside and row.physical else style.INK,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5} if inside and not row.physical else None,
    )


def _points(axes: Axes, rows: Sequence[ScalingRow], values: Sequence[float], *, joined: bool) -> None:
    """Markers with their spread. Points are joined by a thin line only where no law's curve does it."""
    pairs = list(zip(rows, values, strict=True))
    real = [pair for pair in pairs if pair[0].physical]
    shared = [pair for pair in pairs if not pair[0].physical]
    for chain, colour in ((real if joined else [], style.BLUE), (real[-1:] + shared if shared else [], GREY)):
        axes.plot([row.workers for row, _ in chain], [value for _, value in chain], color=colour, linewidth=1.0, zorder=2)
    for group, look in ((real, MEASURED), (shared, SHARED)):
        if group:
            axes.errorbar(
                [row.workers for row, _ in group],
                [value for _, value in group],
                yerr=[value * row.spread for row, value in group],
                capsize=3,
                zorder=3,
                **look,
            )


def _fine(rows: Sequence[ScalingRow]) -> list[float]:
    """Enough values of n for a smooth curve, up to the most workers with devices of their own: a law promises nothing beyond."""
    real = [row.workers for row in rows if row.physical] or [rows[0].workers]
    low, high = rows[0].workers, max(*real, rows[0].workers)
    return [low + (high - low) * step / 60 for step in range(61)]


def _keys(rows: Sequence[ScalingRow], fit: StudyFit, reference: SpeedupPoint | None) -> list[Line2D]:
    keys = [style.key("measured", **_only_look(MEASURED)), style.key("ideal  T = N/n,  P = n·p", **IDEAL)]
    if fit.fits and fit.amdahl:
        keys.append(style.key(f"Amdahl, serial {fit.amdahl.serial_fraction:.1%}", **LAW))
    if reference is not None:
        keys.append(style.key("plain fit, all cores", **REFERENCE))
    if any(not row.physical for row in rows):
        keys.append(style.key("workers share devices", **_only_look(SHARED)))
    return keys


def _only_look(look: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in look.items() if name != "elinewidth"}
