"""Study figure: time, throughput and efficiency against the ideal, measured and projected.

Owns the drawing. The laws come from `laws` and `projection`, the same numbers in words from `text_twins`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from aiaas_magics.core.scaling.laws import ScalingRow
from aiaas_magics.core.scaling.projection import ProjectedRow
from aiaas_magics.plots import figure_style, text_twins
from aiaas_magics.plots.text_twins import StudyReport

WIDTH: Final = 10.4
HEIGHT: Final = 2.45

GREY: Final = "#9AA5AF"
MEASURED: Final[dict[str, Any]] = {"color": figure_style.BLUE, "marker": "o", "markersize": 7, "linestyle": "none", "elinewidth": 1.3}
SHARED: Final[dict[str, Any]] = {
    "color": GREY,
    "marker": "s",
    "markersize": 7,
    "linestyle": "none",
    "elinewidth": 1.3,
    "markerfacecolor": "white",
}
WHISKER: Final[dict[str, Any]] = {"fmt": "none", "ecolor": figure_style.INK, "elinewidth": 1.1, "capsize": 3}
IDEAL: Final[dict[str, Any]] = {"color": figure_style.INK, "linestyle": (0, (5, 3)), "linewidth": 1.2}
LAW: Final[dict[str, Any]] = {"color": figure_style.ORANGE, "linestyle": (0, (1, 1.4)), "linewidth": 1.8}
REFERENCE: Final[dict[str, Any]] = {"color": figure_style.GREEN, "linestyle": (0, (6, 2, 1, 2)), "linewidth": 1.5}
PROJECTED: Final[dict[str, Any]] = {
    "color": figure_style.SKY,
    "linestyle": (0, (2.5, 2)),
    "linewidth": 1.4,
    "marker": "o",
    "markersize": 5,
    "markerfacecolor": "white",
}
BAND: Final[dict[str, Any]] = {"color": figure_style.SKY, "alpha": 0.22, "linewidth": 0}

CROWDED: Final = 5  # bars from which on a word does not fit below one, nor a percent sign into it

Value = Callable[[ScalingRow | ProjectedRow], float]


def study_figure(report: StudyReport) -> Figure:
    """Measured points with their spread, against T = N/n and P = n*p (of weak scaling T = T(1)); efficiency as bars.

    Points with more workers than physical devices are gray. Projected points are pale and dashed, with a band.
    """
    caption = (text_twins.study_caption(report), report.parity, report.projection.says if report.projection else "")
    figure, (time, rate, share) = figure_style.new_figure(
        3,
        title=report.title,
        subtitle=_subtitle(report),
        caption=" ".join(part for part in caption if part),
        width=WIDTH,
        height=HEIGHT,
        keys=_keys(report),
    )
    _time_panel(time, report)
    _rate_panel(rate, report)
    _share_panel(share, report)
    return figure_style.plain(figure)


def _subtitle(report: StudyReport) -> str:
    fit = report.fit
    kind = "Weak" if report.weak else "Strong"
    parts = (f"{kind} scaling, {fit.verdict}.", text_twins.recommendation(fit), text_twins.projected_recommendation(report.projection))
    return " ".join(part for part in parts if part)


def _time_panel(axes: Axes, report: StudyReport) -> None:
    figure_style.label(axes, title=f"Time per {report.work}", x="workers n", y="seconds")
    rows = report.rows
    ideal = [(n, rows[0].ideal_s * (1 if report.weak else rows[0].workers / n)) for n in _fine(rows, report.projected)]
    _line(axes, ideal, IDEAL)
    _law(axes, report, lambda n, seconds: seconds)
    # A step of the reference is one of a single worker's batch: beside steps of n batches it would mislead.
    plain_s = report.reference.seconds if report.reference and not report.weak else None
    if plain_s:
        axes.axhline(plain_s, **REFERENCE)
    _projected(axes, report, lambda row: row.seconds, [(row.low_s, row.high_s) for row in report.projected])
    _points(axes, rows, [row.seconds for row in rows], joined=not report.fit.fits)
    tops = [row.seconds * (1 + row.spread) for row in rows] + [row.high_s for row in report.projected] + ([plain_s] if plain_s else [])
    if report.projected and not report.weak:
        _log_axis(axes, [seconds for _, seconds in ideal] + [row.low_s for row in report.projected], tops)
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.set_ylim(0, 1.12 * max(tops))
    _count_axis(axes, report)


def _rate_panel(axes: Axes, report: StudyReport) -> None:
    figure_style.label(axes, title="Throughput", x="workers n", y="rows/s")
    rows = report.rows
    one_rate = rows[0].ideal_rows_per_s / rows[0].workers
    ideal = [(n, one_rate * n) for n in _fine(rows, report.projected)]
    _line(axes, ideal, IDEAL)
    rows_of_one = rows[0].rows_per_s * rows[0].seconds
    _law(axes, report, lambda n, seconds: rows_of_one * (n / rows[0].workers if report.weak else 1) / seconds)
    plain = report.reference.rows_per_s if report.reference else 0
    if plain > 0:
        axes.axhline(plain, **REFERENCE)
    _projected(axes, report, lambda row: row.rows_per_s, [row.rows_per_s_range for row in report.projected])
    _points(axes, rows, [row.rows_per_s for row in rows], joined=not report.fit.fits)
    tops = [*(row.rows_per_s * (1 + row.spread) for row in rows), *(row.rows_per_s_range[1] for row in report.projected), plain]
    if report.projected:
        lows = [row.rows_per_s for row in rows] + [row.rows_per_s_range[0] for row in report.projected]
        _log_axis(axes, lows, [*tops, ideal[-1][1]])
    else:
        axes.set_ylim(0, 1.12 * max(*tops, ideal[-1][1]))
    axes.yaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    _count_axis(axes, report)


def _share_panel(axes: Axes, report: StudyReport) -> None:
    rows: list[ScalingRow | ProjectedRow] = [*report.rows, *report.projected]
    scaled = "scaled speedup / n" if report.weak else "speedup / n"
    crowded = len(rows) >= CROWDED
    marks = "▲ recommended, △ projected" if report.projected else "▲ recommended"
    figure_style.label(axes, title=f"Efficiency, {scaled}", x=f"workers n  ({marks})" if crowded else "workers n")
    for position, row in enumerate(rows):
        low, high = row.efficiency_range
        axes.bar(position, row.efficiency, width=0.62, **_bar_look(row))
        axes.errorbar(position, row.efficiency, yerr=[[row.efficiency - low], [high - row.efficiency]], **WHISKER)
        _share_label(axes, position, row, crowded=crowded)
    axes.axhline(1.0, **IDEAL)
    axes.set_xticks(range(len(rows)), [_bar_name(row, report, crowded=crowded) for row in rows])
    axes.set_xlim(-0.7, len(rows) - 0.3)
    axes.set_ylim(0, max(1.25, 1.15 * max(row.efficiency_range[1] for row in rows)))
    axes.yaxis.set_major_locator(ticker.MaxNLocator(nbins=5, steps=[1, 2.5, 5, 10]))  # quarters, and wider where a measurement is wild
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))
    if report.projected:
        _word(axes, len(report.rows) - 0.4)


def _bar_name(row: ScalingRow | ProjectedRow, report: StudyReport, *, crowded: bool) -> str:
    projected = isinstance(row, ProjectedRow)
    best = report.projection.recommended if projected and report.projection else report.fit.recommended
    mark = ("△" if projected else "▲") if crowded else "recommended"
    return f"{row.workers}\n{mark}" if row.workers == best else str(row.workers)


def _bar_look(row: ScalingRow | ProjectedRow) -> dict[str, Any]:
    if isinstance(row, ProjectedRow):
        return {"facecolor": "#E3F1FA", "edgecolor": figure_style.SKY, "linestyle": (0, (2.5, 2)), "linewidth": 1.1}
    return {"color": figure_style.BLUE} if row.physical else {"color": "white", "edgecolor": GREY, "hatch": "////"}


def _share_label(axes: Axes, position: int, row: ScalingRow | ProjectedRow, *, crowded: bool) -> None:
    """The number inside its bar, where no line crosses it; above a bar too short to hold it."""
    inside = row.efficiency > 0.3
    solid = isinstance(row, ScalingRow) and row.physical
    axes.text(
        position,
        0.06 if inside else row.efficiency_range[1] + 0.05,
        f"{100 * row.efficiency:.0f}" if crowded else f"{row.efficiency:.0%}",
        ha="center",
        va="bottom",
        fontsize=7.5 if crowded else 9.5,
        fontweight="bold" if isinstance(row, ScalingRow) else "normal",
        color="white" if inside and solid else figure_style.INK,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5} if inside and isinstance(row, ScalingRow) and not solid else None,
    )


def _points(axes: Axes, rows: Sequence[ScalingRow], values: Sequence[float], *, joined: bool) -> None:
    """Markers with their spread. Points are joined by a thin line only where no law's curve does it."""
    pairs = list(zip(rows, values, strict=True))
    real = [pair for pair in pairs if pair[0].physical]
    shared = [pair for pair in pairs if not pair[0].physical]
    for chain, colour in ((real if joined else [], figure_style.BLUE), (real[-1:] + shared if shared else [], GREY)):
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


def _law(axes: Axes, report: StudyReport, value: Callable[[float, float], float]) -> None:
    """The fitted law between the measured points: `value` of n and its seconds."""
    law = report.fit.law
    if report.fit.fits and law:
        _line(axes, [(n, value(n, law.seconds(n))) for n in _fine(report.rows)], LAW)


def _line(axes: Axes, pairs: Sequence[tuple[float, float]], look: dict[str, Any]) -> None:
    axes.plot([x for x, _ in pairs], [y for _, y in pairs], **look)


def _projected(axes: Axes, report: StudyReport, value: Value, band: Sequence[tuple[float, float]]) -> None:
    """Hollow points on a dashed line from the last measured one, within the band."""
    if not report.projected:
        return
    last = [row for row in report.rows if row.physical][-1]
    counts = [last.workers, *(row.workers for row in report.projected)]
    start = value(last)
    lows, highs = zip((start, start), *band, strict=True)
    axes.fill_between(counts, lows, highs, **BAND)
    axes.plot(counts, [start, *map(value, report.projected)], markevery=slice(1, None), **PROJECTED)
    _word(axes, (last.workers * report.projected[0].workers) ** 0.5)


def _word(axes: Axes, x: float) -> None:
    """A line between what was measured and what was not, and the word for it."""
    axes.axvline(x, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
    axes.annotate(
        "projected",
        (x, 1),
        xycoords=("data", "axes fraction"),
        xytext=(4, -2),
        textcoords="offset points",
        ha="left",
        va="top",
        fontsize=8,
        fontstyle="italic",
        color=figure_style.MUTED,
    )


def _log_axis(axes: Axes, lows: Sequence[float], tops: Sequence[float]) -> None:
    """T = N/n and P = n*p are straight lines on it."""
    axes.set_yscale("log")
    axes.set_ylim(0.8 * min(lows), 1.9 * max(tops))
    axes.yaxis.set_major_locator(ticker.LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=8))
    axes.yaxis.set_minor_locator(ticker.NullLocator())


def _count_axis(axes: Axes, report: StudyReport) -> None:
    figure_style.count_axis(axes, sorted({row.workers for row in report.rows} | {row.workers for row in report.projected}))


def _fine(rows: Sequence[ScalingRow], projected: Sequence[ProjectedRow] = ()) -> list[float]:
    """Enough values of n for a smooth curve, up to the most workers with devices of their own: a law promises nothing beyond."""
    low = rows[0].workers
    high = max([low, *(row.workers for row in rows if row.physical), *(row.workers for row in projected)])
    return [low * float(high / low) ** (step / 60) for step in range(61)]


def _keys(report: StudyReport) -> list[Line2D]:
    ideal = "ideal  T = T(1),  P = n·p" if report.weak else "ideal  T = N/n,  P = n·p"
    keys = [figure_style.key("measured", **_only_look(MEASURED)), figure_style.key(ideal, **IDEAL)]
    if report.fit.fits and report.fit.law:
        name = "Gustafson" if report.weak else "Amdahl"
        keys.append(figure_style.key(f"{name}, serial {report.fit.law.serial_fraction:.1%}", **LAW))
    if report.projected:
        keys.append(figure_style.key("projected, 90% band", **PROJECTED))
    if report.reference is not None:
        keys.append(figure_style.key("plain fit, all cores", **REFERENCE))
    if any(not row.physical for row in report.rows):
        keys.append(figure_style.key("workers share devices", **_only_look(SHARED)))
    return keys


def _only_look(look: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in look.items() if name != "elinewidth"}
