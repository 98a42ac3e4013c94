"""Figures are functions of numbers: what is drawn, what is said, and that nothing global is touched."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis.strategies import floats, integers, lists
from matplotlib.figure import Figure

from aiaas_magics.latency import LoadPoint, LoadReport
from aiaas_magics.laws import SpeedupPoint, fit_study
from aiaas_magics.plots.history import history_figure
from aiaas_magics.plots.latency import latency_figure
from aiaas_magics.plots.study import study_figure
from aiaas_magics.plots.style import as_png
from aiaas_magics.plots.text import history_text, latency_text, study_text
from aiaas_magics.story import EpochRow

POINTS = [
    SpeedupPoint(workers=1, seconds=8.0, spread=0.02, rows_per_s=1000),
    SpeedupPoint(workers=2, seconds=4.2, spread=0.03, rows_per_s=1905),
    SpeedupPoint(workers=4, seconds=4.1, spread=0.1, rows_per_s=1950, physical=False),
]
REFERENCE = SpeedupPoint(workers=2, seconds=5.1, rows_per_s=1569)


def words_of(figure: Figure) -> str:
    """Every text in a figure, legends and titles included."""
    import matplotlib.text

    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def load_point(concurrency: int, requests: int = 1000, **changes: object) -> LoadPoint:
    values: dict[str, object] = {
        "concurrency": concurrency,
        "seconds": 2.0,
        "requests": requests,
        "rows": requests,
        "errors": {},
        "requests_per_s": requests / 2,
        "rows_per_s": requests / 2,
        "p50_ms": 0.4,
        "p90_ms": 0.6,
        "p99_ms": 1.5,
        "p999_ms": 4.0,
        "max_ms": 9.0,
    }
    return LoadPoint(**{**values, **changes})  # type: ignore[arg-type]


def test_a_study_says_hardware_batch_reference_and_that_devices_are_shared_or_simulated() -> None:
    figure = study_figure(POINTS, fit_study(POINTS), REFERENCE, "2 cores, Xeon", "Study churn", batch=4096, simulated=True)

    said = words_of(figure)

    for expected in (
        "2 cores, Xeon",
        "4,096",
        "plain fit, all cores",
        "n=4 is more than the physical devices",
        "simulated devices",
        "T = N/n",
    ):
        assert expected in said.replace("\n", " ")


def test_a_study_has_three_panels_with_a_bar_for_each_number_of_workers() -> None:
    figure = study_figure(POINTS, fit_study(POINTS), None, "2 cores")

    time, throughput, share = figure.axes

    assert [axes.get_xlabel() for axes in (time, throughput, share)] == ["workers n"] * 3
    assert [round(bar.get_height(), 3) for bar in share.patches] == [1.0, 0.952, 0.488]
    assert len({bar.get_hatch() for bar in share.patches}) == 2, "the bar of shared devices looks different"


def test_the_law_is_drawn_only_where_it_fits() -> None:
    slower = [SpeedupPoint(workers=1, seconds=1.0, rows_per_s=2), SpeedupPoint(workers=2, seconds=1.6, rows_per_s=1)]

    said = words_of(study_figure(slower, fit_study(slower), None, "2 cores"))

    assert "Amdahl, serial" not in said
    assert "does not fit" in said


@pytest.mark.timeout(60)
def test_one_wild_measurement_does_not_fill_the_axis_with_ticks() -> None:
    """Efficiency far above 1: a tick every 25 % would be over a million, and drawing them takes minutes."""
    points = [
        SpeedupPoint(workers=2**n, seconds=t, rows_per_s=1 / t, spread=0.1, physical=n < 1) for n, t in enumerate((9999.0, 0.02, 9999.0))
    ]

    figure = study_figure(points, fit_study(points), None, "hardware")

    assert len(figure.axes[2].get_yticks()) <= 12
    assert as_png(figure).startswith(b"\x89PNG")


def test_the_efficiency_axis_counts_in_quarters() -> None:
    figure = study_figure(POINTS, fit_study(POINTS), None, "2 cores")

    assert [round(tick, 2) for tick in figure.axes[2].get_yticks()][:6] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]


@settings(max_examples=4, deadline=None)
@given(times=lists(floats(1e-3, 1e4), min_size=1, max_size=5), physical=integers(0, 5))
def test_any_study_can_be_drawn_and_told(times: list[float], physical: int) -> None:
    points = [SpeedupPoint(workers=2**n, seconds=t, rows_per_s=1 / t, spread=0.1, physical=n < physical) for n, t in enumerate(times)]

    png = as_png(study_figure(points, fit_study(points), None, "hardware"))
    told = study_text(points, fit_study(points), None, "hardware")

    assert png.startswith(b"\x89PNG")
    assert "Recommended" in told


def test_a_study_in_words_carries_every_number_of_the_figure() -> None:
    told = study_text(POINTS, fit_study(POINTS), REFERENCE, "2 cores, Xeon", "Study churn", batch=4096, parity="Parity: fine.")

    for expected in (
        "8.00 s",
        "4.20 s",
        "4.00 s",
        "1,905",
        "1.90x",
        "95%",
        "±3.0%",
        "5.10 s",
        "Parity: fine.",
        "4 (shared devices)",
        "Xeon",
    ):
        assert expected in told


def test_latency_is_drawn_on_a_logarithmic_axis_with_a_curve_for_each_percentile() -> None:
    report = LoadReport(endpoint="churn", rows=1, hardware="2 cores", points=(load_point(1), load_point(4, 3000)))

    latency, rate = latency_figure(report).axes

    assert latency.get_yscale() == "log"
    assert [line.get_label() for line in latency.lines] == ["p50", "p90", "p99", "p99.9"]
    assert len({line.get_marker() for line in latency.lines}) == 4
    assert len({str(line.get_linestyle()) + str(line._dash_pattern) for line in latency.lines}) == 4  # type: ignore[attr-defined]
    assert rate.get_ylabel() == "requests a second"


def test_a_load_run_without_an_answer_is_still_drawn_and_said() -> None:
    report = LoadReport(
        endpoint="churn",
        rows=1,
        hardware="2 cores",
        points=(load_point(1, 0, errors={"http 503": 7}, p50_ms=0.0, p90_ms=0.0, p99_ms=0.0, p999_ms=0.0, max_ms=0.0),),
    )

    assert as_png(latency_figure(report)).startswith(b"\x89PNG")
    told = latency_text(report)
    assert "No request was answered" in told
    assert "7 http 503" in told


def epoch(number: int, **logs: float) -> EpochRow:
    return EpochRow(epoch=number, seconds=1.5, rows=3000, logs=logs)


def test_history_draws_loss_and_metrics_apart_and_validation_dashed() -> None:
    rows = [epoch(n, loss=1 / (n + 1), accuracy=0.5, val_loss=1.1 / (n + 1), val_accuracy=0.4) for n in range(3)]

    loss, metrics = history_figure(rows, "churn").axes

    assert [line.get_label() for line in loss.lines] == ["loss", "val_loss"]
    assert [line.get_label() for line in metrics.lines] == ["accuracy", "val_accuracy"]
    assert loss.lines[0].get_linestyle() != loss.lines[1].get_linestyle()


def test_a_loss_that_became_nan_is_left_out_of_the_curve_but_not_of_the_words() -> None:
    rows = [epoch(0, loss=1.0), epoch(1, loss=math.nan)]

    figure = history_figure(rows, "churn")

    assert list(figure.axes[0].lines[0].get_ydata()) == [1.0]
    assert "nan" in history_text(rows)


def test_a_long_history_in_words_says_what_it_leaves_out() -> None:
    told = history_text([epoch(n, loss=float(n)) for n in range(40)])

    assert "(29 epochs between are left out)" in told
    assert "\n40 " in told


@pytest.mark.parametrize("rows", [[], [epoch(0)]])
def test_a_history_of_nothing_can_be_drawn(rows: list[EpochRow]) -> None:
    assert as_png(history_figure(rows, "churn")).startswith(b"\x89PNG")


def test_drawing_touches_no_pyplot_and_the_text_twins_no_matplotlib() -> None:
    probe = """
import sys
from aiaas_magics.laws import SpeedupPoint, fit_study
from aiaas_magics.plots import text
points = [SpeedupPoint(workers=1, seconds=2.0), SpeedupPoint(workers=2, seconds=1.0)]
text.study_text(points, fit_study(points), None, "here")
assert "matplotlib" not in sys.modules
from aiaas_magics.plots.study import study_figure
from aiaas_magics.plots.style import as_png
as_png(study_figure(points, fit_study(points), None, "here"))
assert "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False, timeout=120)

    assert done.returncode == 0, done.stderr


def test_a_figure_is_opaque_white_in_any_theme() -> None:
    figure = study_figure(POINTS, fit_study(POINTS), None, "2 cores")

    assert figure.get_facecolor() == (1.0, 1.0, 1.0, 1.0)
    assert all(axes.get_facecolor() == (1.0, 1.0, 1.0, 1.0) for axes in figure.axes)
