"""Figures are functions of numbers: what is drawn, what is said, and that nothing global is touched."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.strategies import floats, integers, lists
from matplotlib.figure import Figure
from matplotlib.text import Text
from msgspec.structs import replace

from aiaas_magics.attacks.membership import judged
from aiaas_magics.core.attack_values import AdversarialPoint, AttackedModel, AttackReport
from aiaas_magics.core.drift.drift_features import features_of
from aiaas_magics.core.drift.drift_report import compared, reference_of
from aiaas_magics.core.drift.drift_values import DriftReport
from aiaas_magics.core.scaling.endpoint_samples import EndpointWatch, Sample
from aiaas_magics.core.scaling.laws import SpeedupPoint, fit_study
from aiaas_magics.core.scaling.load_report import Answers, LoadPoint, LoadReport, RatePoint
from aiaas_magics.core.scaling.projection import StepPoint, project
from aiaas_magics.core.story import EpochRow
from aiaas_magics.plots.attack_figure import attack_figure
from aiaas_magics.plots.attack_words import attack_text
from aiaas_magics.plots.drift_figure import drift_figure
from aiaas_magics.plots.drift_words import drift_text
from aiaas_magics.plots.endpoint_figure import watched_figure
from aiaas_magics.plots.figure_style import as_png
from aiaas_magics.plots.history_figure import history_figure
from aiaas_magics.plots.load_figure import latency_figure
from aiaas_magics.plots.privacy_figure import BudgetPoint, price_line, privacy_figure
from aiaas_magics.plots.study_figure import PROJECTED, study_figure
from aiaas_magics.plots.text_twins import StudyReport, history_text, latency_text, sample_line, study_text, watched_text

POINTS = [
    SpeedupPoint(workers=1, seconds=8.0, spread=0.02, rows_per_s=1000),
    SpeedupPoint(workers=2, seconds=4.2, spread=0.03, rows_per_s=1905),
    SpeedupPoint(workers=4, seconds=4.1, spread=0.1, rows_per_s=1950, physical=False),
]
REFERENCE = SpeedupPoint(workers=2, seconds=5.1, rows_per_s=1569)


def report(points: list[SpeedupPoint], hardware: str = "2 cores", *, weak: bool = False, **more: Any) -> StudyReport:
    return StudyReport(points=tuple(points), fit=fit_study(points, weak=weak), hardware=hardware, weak=weak, **more)


def words_of(figure: Figure) -> str:
    """Every text in a figure, legends and titles included."""
    return "\n".join(text.get_text() for text in figure.findobj(Text))


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
    figure = study_figure(report(POINTS, "2 cores, Xeon", reference=REFERENCE, title="Study churn", batch=4096, simulated=True))

    said = words_of(figure)

    for expected in (
        "2 cores, Xeon",
        "4,096",
        "plain fit, all cores",
        "n=4 exceeds the number of physical devices",
        "simulated devices",
        "T = N/n",
    ):
        assert expected in said.replace("\n", " ")


def test_a_study_has_three_panels_with_a_bar_for_each_number_of_workers() -> None:
    figure = study_figure(report(POINTS))

    time, throughput, share = figure.axes

    assert [axes.get_xlabel() for axes in (time, throughput, share)] == ["workers n"] * 3
    assert [round(bar.get_height(), 3) for bar in share.patches] == [1.0, 0.952, 0.488]
    assert len({bar.get_hatch() for bar in share.patches}) == 2, "the bar of shared devices looks different"


@pytest.mark.parametrize("weak", [False, True], ids=["strong", "weak"])
def test_what_is_projected_looks_different_and_is_named_in_every_panel(weak: bool) -> None:
    timed = {"exchange_s": 0.02, "exchanges": 1, "latency_s": 0.001, "transfer_s": 0.01}
    steps = [StepPoint(workers=1, rows=8, seconds=1.0), StepPoint(workers=2, rows=8, seconds=1.1 if weak else 0.6, **timed)]
    measured = [SpeedupPoint(workers=step.workers, seconds=step.seconds, rows_per_s=step.rows / step.seconds) for step in steps]

    figure = study_figure(report(measured, weak=weak, projection=project(steps, weak=weak)))

    for panel in figure.axes:
        assert [text.get_text() for text in panel.texts].count("projected") == 1
    time, rate, share = figure.axes
    for panel in (time, rate):
        assert panel.get_xscale() == "log"
        assert list(panel.get_xticks()) == [1, 2, 4, 8, 16, 32, 64]
        [dashed] = [line for line in panel.lines if line.get_color() == PROJECTED["color"]]
        assert dashed.get_linestyle() == "--"
        assert list(dashed.get_xdata()) == [2, 4, 8, 16, 32, 64], "from the last measured one on"
        assert len(panel.collections) >= 1, "the band"
    assert [bar.get_linestyle() == "solid" for bar in share.patches] == [True] * 2 + [False] * 5
    assert len({bar.get_facecolor() for bar in share.patches}) == 2
    assert ("T = T(1)" if weak else "T = N/n") in words_of(figure)
    assert "the same interconnect" in words_of(figure).replace("\n", " ")


def test_no_text_of_a_projected_study_leaves_the_picture_or_covers_another() -> None:
    figure = study_figure(
        report(
            POINTS,
            "a machine with a long name, 2 cores, Xeon",
            reference=REFERENCE,
            projection=project([StepPoint(workers=n, rows=8, seconds=t) for n, t in ((1, 8.0), (2, 4.2), (3, 3.0))]),
            parity="Parity: fine.",
            simulated=True,
        )
    )
    as_png(figure)

    whole = figure.bbox
    boxes = [text.get_window_extent() for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    legend = figure.legends[0].get_window_extent()
    assert all(whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1 for box in [*boxes, legend])
    for panel in figure.axes:
        own = [text.get_window_extent() for text in (*panel.texts, *panel.get_xticklabels(), *panel.get_yticklabels(), panel.xaxis.label)]
        shown = [box for box in own if box.width and panel.bbox.x0 - 60 < box.x0 < panel.bbox.x1 + 60]
        assert not [(a, b) for place, a in enumerate(shown) for b in shown[:place] if a.overlaps(b)]


def test_the_law_is_drawn_only_where_it_fits() -> None:
    slower = [SpeedupPoint(workers=1, seconds=1.0, rows_per_s=2), SpeedupPoint(workers=2, seconds=1.6, rows_per_s=1)]

    said = words_of(study_figure(report(slower)))

    assert "Amdahl, serial" not in said
    assert "does not fit" in said


@pytest.mark.timeout(60)
def test_one_wild_measurement_does_not_fill_the_axis_with_ticks() -> None:
    """Efficiency far above 1: a tick every 25 % would be over a million, and drawing them takes minutes."""
    points = [
        SpeedupPoint(workers=2**n, seconds=t, rows_per_s=1 / t, spread=0.1, physical=n < 1) for n, t in enumerate((9999.0, 0.02, 9999.0))
    ]

    figure = study_figure(report(points))

    assert len(figure.axes[2].get_yticks()) <= 12
    assert as_png(figure).startswith(b"\x89PNG")


def test_the_efficiency_axis_counts_in_quarters() -> None:
    figure = study_figure(report(POINTS))

    assert [round(tick, 2) for tick in figure.axes[2].get_yticks()][:6] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]


@settings(max_examples=4)
@given(times=lists(floats(1e-3, 1e4), min_size=1, max_size=5), physical=integers(0, 5))
def test_any_study_can_be_drawn_and_told(times: list[float], physical: int) -> None:
    points = [SpeedupPoint(workers=2**n, seconds=t, rows_per_s=1 / t, spread=0.1, physical=n < physical) for n, t in enumerate(times)]

    png = as_png(study_figure(report(points)))
    told = study_text(report(points))

    assert png.startswith(b"\x89PNG")
    assert "Recommended" in told


def test_a_study_in_words_carries_every_number_of_the_figure() -> None:
    told = study_text(report(POINTS, "2 cores, Xeon", reference=REFERENCE, title="Study churn", batch=4096, parity="Parity: fine."))

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
    assert rate.get_ylabel() == "requests/s"


def rate_point(offered: float, answered: float, p99_ms: float, **changes: object) -> RatePoint:
    same = load_point(1, 10 * int(answered), requests_per_s=answered, p99_ms=p99_ms, **changes)
    taken = {name: getattr(same, name) for name in Answers.__struct_fields__}
    return RatePoint(offered_per_s=offered, late_ms=0.01, **taken)


RATES = (rate_point(100, 100, 1.0), rate_point(200, 200, 1.2), rate_point(300, 300, 4.0), rate_point(400, 310, 300.0, errors={"late": 9}))


def test_rates_have_a_panel_with_the_knee_and_the_part_that_stays_behind() -> None:
    points = (load_point(1), load_point(4, 3000), load_point(4, 6000, form="binary", p50_ms=0.2))
    report = LoadReport(endpoint="churn", rows=1, hardware="2 cores", points=points, rates=RATES)

    figure = latency_figure(report)

    said = words_of(figure)
    assert len(figure.axes) == 3
    assert "knee, 200 requests/s" in said
    assert "falls behind" in said
    assert "measured, binary" in said
    told = latency_text(report)
    assert "answers kept up with at most 300 requests/s (p99 4 ms). The knee is at 200 requests/s" in told
    assert "binary reaches 2x the throughput of json with 4 connections (median 0.2 ms vs 0.4 ms)." in told


def test_a_percentile_that_too_few_answers_lie_beyond_is_neither_drawn_nor_said() -> None:
    few = LoadReport(endpoint="churn", rows=1, hardware="", points=(load_point(1, 150), load_point(2, 150)))

    drawn = {line.get_label(): line.get_ydata() for line in latency_figure(few).axes[0].get_lines()}

    assert np.isfinite(drawn["p90"]).all()
    assert np.isnan(drawn["p99"]).all()
    assert "slowest 9 ms" in latency_text(few)
    assert ", p99 " not in latency_text(few)


def test_a_knee_is_named_only_where_it_was_passed() -> None:
    def report(*rates: RatePoint) -> LoadReport:
        return LoadReport(endpoint="churn", rows=1, hardware="2 cores", points=(load_point(1),), rates=rates)

    assert report(*RATES).knee == RATES[1]
    assert report(*RATES[:2]).knee is None
    assert report().knee is None
    assert "kept up with every offered rate, up to 200 requests/s" in latency_text(report(*RATES[:2]))
    assert "fell behind at every offered rate" in latency_text(report(RATES[3]))


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
    assert "HTTP 503: 7" in told


def watched_sample(at_s: float, **by_version: float) -> Sample:
    rate = sum(by_version.values())
    versions = {int(name[1:]): share for name, share in by_version.items()}
    zero = {"failed_per_s": 0.0, "refused_per_s": 0.0, "wait_ms": 0.05, "batch_rows": 3.0}
    times = {"p50_ms": 0.4, "p99_ms": 2.0} if rate else {"p50_ms": 0.0, "p99_ms": 0.0}
    return Sample(at_s=at_s, seconds=1.0, requests_per_s=rate, rows_per_s=rate, by_version=versions, **zero, **times)


def test_a_watched_endpoint_is_drawn_with_the_share_of_each_version() -> None:
    samples = (watched_sample(1.0, v1=100.0), watched_sample(2.0), watched_sample(3.0, v1=60.0, v2=20.0))
    watched = EndpointWatch(endpoint="churn", samples=samples, unanswered=1, ended="Ended by an interrupt.")

    said = words_of(watched_figure(watched))

    assert "version 1: 75%, version 2: 25%" in said
    assert "3 samples, 2 with answers" in said
    assert "1 sample got no answer" in said
    told = watched_text(watched)
    assert "median" in told
    assert "Ended by an interrupt." in told
    for nothing in (EndpointWatch(endpoint="churn"), EndpointWatch(endpoint="churn", samples=(watched_sample(1.0),))):
        assert as_png(watched_figure(nothing)).startswith(b"\x89PNG")
        assert "No request was answered" in watched_text(nothing)


@pytest.mark.parametrize(
    ("wrong", "line", "note"),
    [
        ({}, "no requests in the last 1.00 s", "1 sample, no requests."),
        ({"failed_per_s": 2.0}, "no answers; 2 failed/s", "1 sample, 0 with answers."),
        ({"refused_per_s": 3.0}, "no answers; 3 refused/s", "1 sample, 0 with answers."),
    ],
)
def test_an_idle_endpoint_does_not_look_like_an_outage(wrong: dict[str, float], line: str, note: str) -> None:
    sample = replace(watched_sample(1.0), **wrong)

    assert sample_line(sample) == line
    assert note in watched_text(EndpointWatch(endpoint="churn", samples=(sample,)))


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

    assert "(29 epochs in between are not shown)" in told
    assert "\n40 " in told


@pytest.mark.parametrize("rows", [[], [epoch(0)]])
def test_a_history_of_nothing_can_be_drawn(rows: list[EpochRow]) -> None:
    assert as_png(history_figure(rows, "churn")).startswith(b"\x89PNG")


def drift_report(*, rows_now: int = 1000, shift: float = 1.0) -> DriftReport:
    draw = np.random.default_rng(1)
    then, now = draw.normal(size=(4000, 5)), draw.normal(size=(rows_now, 5))
    now[:, 2] += shift
    reference = reference_of(features_of("input", {"x": then}), rows=4000, origin="the data of the deployment")
    return compared("churn", 2, reference, features_of("input", {"x": now}), rows=rows_now, since_s=1.6e9, until_s=1.6e9 + 60)


def test_drift_is_drawn_with_the_customary_limits_the_level_of_chance_and_the_worst_feature() -> None:
    found = drift_report()

    figure = drift_figure(found)

    index, shares = figure.axes
    assert [bar.get_width() for bar in index.patches] == [feature.psi for feature in found.features]
    limits = [line.get_xdata()[0] for line in index.lines if line.get_marker() == "None"]
    assert limits == [0.1, 0.25]
    assert shares.get_title(loc="left") == "x[2]: share of rows per bin"
    assert len(shares.patches) == 2 * len(found.features[0].bins)
    assert len({bar.get_hatch() for bar in shares.patches}) == 2, "then and now differ without colour"
    assert "1 of 5 features shifted: x[2]" in words_of(figure)


def test_drift_in_words_carries_what_the_figure_shows() -> None:
    found = drift_report()

    text = drift_text(found)

    for feature in found.features:
        assert f"{feature.psi:.3f}" in text
        assert f"{feature.noise:.3f}" in text
    for name in found.features[0].bins:
        assert name in text
    assert "against 4,000 rows of the data of the deployment" in text


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (drift_report(rows_now=30, shift=0.0), "Too few rows to say"),
        (drift_report(shift=0.0), "No feature has a PSI of 0.1 or more."),
        (DriftReport(endpoint="churn", version=1, rows_then=0, rows_now=0), "Nothing is recorded of version 1."),
        (DriftReport(endpoint="churn", version=1, rows_then=0, rows_now=9), "came without a reference"),
    ],
)
def test_what_drift_cannot_say_is_said(found: DriftReport, said: str) -> None:
    assert said in drift_text(found)
    assert as_png(drift_figure(found)).startswith(b"\x89PNG")


def attacked_model(name: str, shift: float) -> AttackedModel:
    draw = np.random.default_rng(1)
    scores = draw.normal(shift, 1, 800), draw.normal(0, 1, 1000)
    points = [AdversarialPoint(epsilon=epsilon, fgsm=0.9 - 2 * epsilon, pgd=0.9 - 3 * epsilon, noise=0.9) for epsilon in (0.0, 0.1, 0.2)]
    return AttackedModel(
        name=name,
        members=800,
        others=1000,
        loss_members=0.1,
        loss_others=0.5,
        accuracy_members=0.99,
        accuracy_others=0.88,
        membership=(judged("loss", *scores, threshold=0.0),),
        adversarial_rows=500,
        adversarial=tuple(points),
    )


def test_attacks_are_drawn_with_the_guess_and_said_with_what_they_do_not_prove() -> None:
    found = AttackReport(models=(attacked_model("model", 1.0), attacked_model("private", 0.0)))

    figure = attack_figure(found)

    roc, accuracy = figure.axes
    assert (roc.get_xscale(), roc.get_yscale()) == ("log", "log")
    assert [line.get_label().partition(":")[0] for line in roc.lines] == ["a guess", "model", "private"]
    assert len({(line.get_linestyle(), line.get_marker(), line.get_color()) for line in accuracy.lines}) == 6
    said, text = words_of(figure).replace("\n", " "), attack_text(found)
    for expected in (
        "model: the attack by loss tells members from others",
        "private: no attack is better than a guess",
        "only differential",
    ):
        assert expected in said
        assert expected in text.replace("\n", " ")
    for model in found.models:
        assert f"{model.strongest.auc:.3f}" in text
    assert "a guess" in text
    assert as_png(attack_figure(AttackReport(models=(replace(found.models[0], adversarial=()),)))).startswith(b"\x89PNG")


@pytest.mark.process
def test_drawing_touches_no_pyplot_and_the_text_twins_no_matplotlib() -> None:
    probe = """
import sys
from aiaas_magics.core.scaling.laws import SpeedupPoint, fit_study
from aiaas_magics.plots import text_twins
points = (SpeedupPoint(workers=1, seconds=2.0), SpeedupPoint(workers=2, seconds=1.0))
report = text_twins.StudyReport(points=points, fit=fit_study(points), hardware="here")
text_twins.study_text(report)
assert "matplotlib" not in sys.modules
from aiaas_magics.plots.study_figure import study_figure
from aiaas_magics.plots.figure_style import as_png
as_png(study_figure(report))
assert "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False, timeout=120)

    assert done.returncode == 0, done.stderr


def test_a_figure_is_opaque_white_in_any_theme() -> None:
    figure = study_figure(report(POINTS))

    assert figure.get_facecolor() == (1.0, 1.0, 1.0, 1.0)
    assert all(axes.get_facecolor() == (1.0, 1.0, 1.0, 1.0) for axes in figure.axes)


NO_FORMULA = r"$\notacommand{$ and $x_1^2$ \\ %"


def test_a_name_is_no_formula() -> None:
    """Names of metrics, jobs and endpoints are the user's or a backend's; mathtext raised over them, after the training."""
    epochs = [EpochRow(epoch=epoch, seconds=1.0, rows=10, logs={f"loss {NO_FORMULA}": 1.0, NO_FORMULA: 0.5}) for epoch in range(3)]
    watched = EndpointWatch(endpoint=NO_FORMULA, samples=(), unanswered=0)
    load = LoadReport(endpoint=NO_FORMULA, rows=1, hardware=NO_FORMULA, points=())
    study = report(POINTS, hardware=NO_FORMULA)

    figures = [
        history_figure(epochs, title=NO_FORMULA, caption=NO_FORMULA),
        watched_figure(watched),
        latency_figure(load, NO_FORMULA),
        study_figure(study),
    ]

    for figure in figures:
        assert as_png(figure).startswith(b"\x89PNG")
        texts = [drawn.get_text() for drawn in figure.findobj(Text)]
        assert any("notacommand" in text for text in texts)


BUDGETS = [
    BudgetPoint(epsilon=1.0, scores=(0.70, 0.74, 0.72)),
    BudgetPoint(epsilon=4.0, scores=(0.85, 0.86, 0.88)),
    BudgetPoint(epsilon=None, scores=(0.95, 0.96, 0.97)),
]


def test_the_price_of_privacy_is_the_median_of_the_runs_beside_training_without_it() -> None:
    figure = privacy_figure(BUDGETS, metric="accuracy", caption="2 cores")
    (axes,) = figure.axes

    assert axes.containers[0].lines[0].get_xydata().tolist() == [[1.0, 0.72], [4.0, 0.86]]
    assert axes.lines[-1].get_ydata() == [0.96, 0.96]
    assert "without privacy" in words_of(figure)
    assert "2 cores" in words_of(figure)
    assert price_line(BUDGETS, "accuracy") == "accuracy epsilon 1: 0.72, epsilon 4: 0.86, without privacy: 0.96"


@pytest.mark.parametrize("points", [[], BUDGETS[2:], BUDGETS[:1]])
def test_few_budgets_can_be_drawn(points: list[BudgetPoint]) -> None:
    assert as_png(privacy_figure(points, metric="accuracy")).startswith(b"\x89PNG")
