"""A story as a picture, and the picture as HTML and words."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import pytest
from msgspec.structs import replace

from aiaas_magics.core.errors import AiaasBug
from aiaas_magics.core.events import (
    AttemptStarted,
    Crashed,
    Entry,
    EpochEnded,
    Notice,
    Phase,
    PhaseEntered,
    StateChanged,
    StepsDone,
    WorkerLost,
    WorkerStarted,
)
from aiaas_magics.core.remote_error import ErrorReport
from aiaas_magics.core.scaling.endpoint_samples import Sample
from aiaas_magics.core.scaling.load_report import LoadPoint, LoadProgress
from aiaas_magics.core.spec import JobState
from aiaas_magics.core.story import JobStory, fold
from aiaas_magics.notebook.views import lines as fit_lines
from aiaas_magics.notebook.views import live
from aiaas_magics.notebook.views.endpoint_panel import EndpointPanel, EndpointPicture, endpoint_picture
from aiaas_magics.notebook.views.job_panel import JobPanel, LiveJob
from aiaas_magics.notebook.views.job_picture import JobPicture, StudyStop, job_picture
from aiaas_magics.notebook.views.lines import LinesPainter
from aiaas_magics.notebook.views.load_panel import LoadPanel, LoadPicture, load_picture
from aiaas_magics.notebook.views.panel import PanelPicture

html_of, words_of, news = JobPanel().html, JobPanel().words, JobPanel().news
EVIL = "<script>alert('x')</script>\"&"


def story_of(*events: Any, start: JobStory | None = None) -> JobStory:
    """One event a second, from second 100 on; an event may be (rank, event)."""
    told = [event if isinstance(event, tuple) else (0, event) for event in events]
    return fold([Entry(seq=n + 1, at_s=100.0 + n, attempt=1, rank=rank, event=event) for n, (rank, event) in enumerate(told)], start)


def running(*more: Any) -> JobStory:
    return story_of(
        StateChanged(state=JobState.RUNNING),
        AttemptStarted(ranks=2, from_epoch=0),
        (0, WorkerStarted(pid=11, device="core 0")),
        (1, WorkerStarted(pid=12, device="core 1")),
        PhaseEntered(phase=Phase.TRAINING),
        EpochEnded(epoch=0, epochs=4, rows=1000, seconds=2.0, logs={"loss": 0.9, "accuracy": 0.5}),
        StepsDone(epoch=1, step=5, steps=10, rows=500, seconds=1.0, logs={"loss": 0.7}),
        *more,
    )


def shown(story: JobStory, **more: Any) -> JobPicture:
    return job_picture(story, title="Job 7", now_s=story.at_s, **more)


def test_a_running_job_says_epoch_step_loss_rate_and_time_left() -> None:
    seen = shown(running())

    assert seen.status == "epoch 2 of 4 · step 5 of 10 · loss 0.7 · 500 rows/s · 5.00 s left"
    assert seen.fraction == pytest.approx(1.5 / 4)
    assert [(lane.name, lane.device) for lane in seen.lanes] == [("worker 0", "core 0"), ("worker 1", "core 1")]
    assert seen.curves[0].points == ((1.0, 0.9), (1.5, 0.7))


def test_a_waiting_job_says_why_it_waits() -> None:
    seen = shown(story_of((None, PhaseEntered(phase=Phase.WAITING, detail="2 cores are held by job 6"))))

    assert seen.status == "waiting: 2 cores are held by job 6"
    assert seen.phases[0].running


def test_the_running_phase_counts_on_from_the_clock_of_this_machine() -> None:
    story = story_of(PhaseEntered(phase=Phase.STARTING), PhaseEntered(phase=Phase.COMPILING))

    seen = job_picture(story, title="Job 7", now_s=111.0)

    assert [(phase.name, phase.seconds, phase.running) for phase in seen.phases] == [("starting", 1.0, False), ("compiling", 10.0, True)]


def test_a_phase_entered_twice_is_one_box_with_both_times() -> None:
    story = story_of(PhaseEntered(phase=Phase.STARTING), PhaseEntered(phase=Phase.TRAINING), PhaseEntered(phase=Phase.STARTING))

    seen = job_picture(story, title="Job 7", now_s=105.0)

    assert [(phase.name, phase.seconds) for phase in seen.phases] == [("starting", 4.0), ("training", 1.0)]


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ((StateChanged(state=JobState.SUCCEEDED),), "succeeded: 1 epoch in 2.00 s; loss 0.9, accuracy 0.5"),
        ((StateChanged(state=JobState.FAILED, reason="worker 1 was lost"),), "failed: worker 1 was lost"),
        ((StateChanged(state=JobState.CANCELLED),), "cancelled after 1 epoch"),
        ((StateChanged(state=JobState.STOPPING),), "stopping"),
    ],
)
def test_every_ending_is_said_in_words(events: tuple[Any, ...], said: str) -> None:
    assert shown(running(*events)).status == said


def test_a_lost_worker_and_an_error_name_the_worker() -> None:
    report = ErrorReport(type="ValueError", message="bad shape\nmore", ranks=(1,))
    seen = shown(running((1, WorkerLost(how="killed by signal 9")), (1, Crashed(report=report))))

    assert seen.lanes[1].state == "lost"
    assert seen.error == "ValueError: bad shape (on worker 1)"


def test_what_a_job_failed_with_is_said_once() -> None:
    report = ErrorReport(type="ValueError", message="bad shape\nmore", ranks=(1,))
    seen = shown(running((1, Crashed(report=report)), StateChanged(state=JobState.FAILED, reason="ValueError: bad shape\nmore")))

    assert seen.status == "failed: ValueError: bad shape (on worker 1)"
    assert words_of(seen).count("bad shape") == 2, "in the status and in the worker's own lane"


def test_many_workers_are_counted_instead_of_drawn() -> None:
    seen = shown(story_of(AttemptStarted(ranks=20, from_epoch=0)))

    assert len(seen.lanes) == 16
    assert seen.lanes_left_out == 4
    assert "and 4 more" in html_of(seen)
    assert "and 4 more workers" in words_of(seen)


def test_a_long_curve_is_thinned_and_keeps_its_last_point() -> None:
    epochs = [EpochEnded(epoch=n, epochs=2000, rows=1, seconds=1.0, logs={"loss": float(n)}) for n in range(1000)]

    (curve,) = shown(story_of(*epochs)).curves

    assert len(curve.points) <= 301
    assert curve.points[-1] == (1000.0, 999.0)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)


def test_everything_that_comes_from_a_job_is_escaped() -> None:
    report = ErrorReport(type=EVIL, message=EVIL, ranks=(0,))
    story = running((0, WorkerStarted(pid=1, device=EVIL)), Notice(text=EVIL), (0, Crashed(report=report)))
    seen = job_picture(story, title=EVIL, now_s=0.0, hint=EVIL, stops=[StudyStop(label=EVIL, state="running")])

    tags = Tags()
    tags.feed(html_of(seen))

    assert "script" not in tags.tags
    assert EVIL in words_of(seen)


def test_html_has_a_progressbar_with_its_value() -> None:
    markup = html_of(shown(running()))

    assert 'role="progressbar"' in markup
    assert 'aria-valuenow="38"' in markup


def test_words_carry_everything_that_the_view_shows() -> None:
    told = words_of(shown(running(Notice(text="Resumed from epoch 1.")), hint="To stop: interrupt."))

    for expected in ("Job 7: epoch 2 of 4", "worker 1  core 1", "note: Resumed from epoch 1.", "training", "To stop: interrupt."):
        assert expected in told


def test_a_log_gets_a_line_for_a_new_phase_an_epoch_and_a_notice_but_not_for_a_step() -> None:
    before = shown(running())

    step = shown(running(StepsDone(epoch=1, step=6, steps=10, rows=600, seconds=1.2, logs={"loss": 0.6})))
    epoch = shown(running(EpochEnded(epoch=1, epochs=4, rows=1000, seconds=2.0, logs={"loss": 0.6})))
    notice = shown(running(Notice(text="Careful.")))

    assert news(step, before) == []
    assert len(news(epoch, before)) == 1
    assert news(notice, before) == ["  note: Careful."]


# --------------------------------------------------------------------------- an endpoint that is watched, and a load run


def sample(**changes: Any) -> Sample:
    values = {"at_s": 100.0, "seconds": 1.0, "requests_per_s": 800.0, "rows_per_s": 3200.0, "failed_per_s": 0.0, "refused_per_s": 0.0}
    values |= {"p50_ms": 0.7, "p99_ms": 2.1, "wait_ms": 0.2, "batch_rows": 6.4, "by_version": {1: 720.0, 2: 80.0}}
    return Sample(**{**values, **changes})  # type: ignore[arg-type]


def watched(*samples: Sample | None) -> EndpointPicture:
    return endpoint_picture("churn", samples, total=4, every_s=0.5, hint="To stop: interrupt.")


def test_a_watched_endpoint_says_its_numbers_its_versions_and_how_far_the_watch_is() -> None:
    seen = watched(sample(), sample(at_s=101.0, requests_per_s=900.0))

    assert (seen.title, seen.state, seen.fraction, seen.elapsed) == ("Endpoint churn", "answering", 0.5, "1.00 s of 2.00 s")
    assert seen.rates[0].points == ((0.0, 800.0), (1.0, 900.0))
    assert [(curve.name, curve.points[-1]) for curve in seen.latencies] == [("p50", (1.0, 0.7)), ("p99", (1.0, 2.1))]
    assert [(tile.label, tile.value) for tile in seen.tiles[:2]] == [("requests/s", "900"), ("p50", "0.7 ms")]
    assert [version.name for version in seen.versions] == ["version 1", "version 2"]


@pytest.mark.parametrize(
    ("samples", "state", "status"),
    [
        ((), "starting", "waiting for the first sample"),
        ((None,), "unreachable", "the endpoint does not answer"),
        ((sample(requests_per_s=0.0, by_version={}),), "idle", "no requests in the last 1.00 s"),
    ],
)
def test_an_endpoint_without_answers_says_which_kind_of_silence_it_is(samples: Any, state: str, status: str) -> None:
    seen = watched(*samples)

    assert (seen.state, seen.status) == (state, status)
    assert not seen.versions


POINT = LoadPoint(
    **{"form": "json", "seconds": 1.0, "requests": 2000, "rows": 2000, "errors": {}, "requests_per_s": 2000.0, "rows_per_s": 2000.0},
    **{"p50_ms": 0.5, "p90_ms": 0.8, "p99_ms": 1.5, "p999_ms": 3.0, "max_ms": 9.0, "concurrency": 1},
)


def loaded(**changes: Any) -> LoadPicture:
    values = {"label": "2 connections, json", "number": 1, "total": 4, "waiting": ("interface alone, json",), "points": (POINT,)}
    return load_picture("churn", LoadProgress(**{**values, **changes}))


def test_a_load_run_has_a_row_for_each_measurement_done_running_and_waiting() -> None:
    seen = loaded()

    assert [(one.label, one.state) for one in seen.measurements] == [
        ("1 connection, json", "done"),
        ("2 connections, json", "running"),
        ("interface alone, json", "waiting"),
    ]
    assert seen.measurements[0].cells == ("2,000", "0.5 ms", "1.5 ms", "0")
    assert (seen.fraction, seen.status) == (0.25, "measuring: 2 connections, json")
    assert seen.throughput[0].points == ((1.0, 2000.0),)


def test_a_load_run_that_fails_leaves_what_it_has_measured(recorder: Recorder) -> None:
    with contextlib.suppress(ZeroDivisionError), live.LiveView("widget", LoadPanel(), lambda: load_picture("churn", None)) as view:
        view.draw(loaded)
        raise ZeroDivisionError

    (left,) = recorder.left
    assert left["text/plain"].splitlines() == [
        "Endpoint churn under load: ended early (measuring: 2 connections, json)",
        "  1 connection, json: requests/s 2,000, p50 0.5 ms, p99 1.5 ms, errors 0",
    ]


def test_a_percentile_that_too_few_answers_lie_beyond_has_an_empty_cell() -> None:
    assert loaded(points=(replace(POINT, requests=20),)).measurements[0].cells[2] == ""


VIEWS: list[tuple[Any, PanelPicture, PanelPicture]] = [
    (JobPanel(), shown(running()), shown(running(Notice(text="Careful.")))),
    (EndpointPanel(), watched(sample()), watched(sample(), None)),
    (LoadPanel(), loaded(points=()), loaded(label="interface alone, json", number=2)),
]


@pytest.mark.parametrize(("view", "first", "second"), VIEWS, ids=["job", "endpoint", "load"])
def test_every_view_keeps_its_promises(view: Any, first: PanelPicture, second: PanelPicture) -> None:
    for picture in (first, second):
        words, markup = view.words(picture), view.html(picture)
        assert picture.title in words
        assert picture.status in words
        assert 'role="progressbar"' in markup
        assert json.loads(json.dumps(picture.as_json()))["title"] == picture.title
    assert view.esm.exists()
    assert view.news(second, first), "something happened"
    assert not view.news(second, second)


@pytest.mark.parametrize(
    ("view", "picture"),
    [
        (EndpointPanel(), endpoint_picture(EVIL, [sample(), sample(at_s=101.0)], total=2, every_s=1.0, hint=EVIL)),
        (LoadPanel(), load_picture(EVIL, LoadProgress(label=EVIL, number=0, total=1, waiting=(EVIL,), points=(POINT,)), hint=EVIL)),
    ],
    ids=["endpoint", "load"],
)
def test_everything_that_comes_from_an_endpoint_is_escaped(view: Any, picture: Any) -> None:
    tags = Tags()
    tags.feed(view.html(picture))

    assert "script" not in tags.tags
    assert EVIL in view.words(picture)


# --------------------------------------------------------------------------- the thread that redraws


class Recorder:
    """A front end that remembers."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.painted = threading.Event()
        self.left: list[live.Bundle] = []

    def open(self, picture: JobPicture) -> None:
        self.calls.append("open")

    def paint(self, picture: JobPicture) -> None:
        self.calls.append(picture.status)
        self.painted.set()

    def close(self, bundles: Sequence[live.Bundle]) -> None:
        self.calls.append("close")
        self.left = list(bundles)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    front_end = Recorder()
    monkeypatch.setattr(live, "painter", lambda kind, view: front_end)
    return front_end


def test_a_view_draws_what_it_was_told_and_leaves_what_it_was_given(recorder: Recorder) -> None:
    with LiveJob("widget", title="Job 7") as view:
        view.tell(running())
        assert recorder.painted.wait(10)
        view.freeze([{"text/plain": "the table"}])

    assert recorder.calls[0] == "open"
    assert recorder.calls[-1] == "close"
    assert recorder.left == [{"text/plain": "the table"}]
    assert not [thread for thread in threading.enumerate() if thread.name == "aiaas-view"]


def test_a_view_that_was_given_nothing_leaves_its_last_picture_as_html_and_words(recorder: Recorder) -> None:
    with contextlib.suppress(ZeroDivisionError), LiveJob("widget", title="Job 7") as view:
        view.tell(running())
        raise ZeroDivisionError

    (left,) = recorder.left
    assert set(left) == {"text/html", "text/plain"}
    assert "epoch 2 of 4" in left["text/plain"]


def test_a_front_end_that_breaks_does_not_end_the_job(recorder: Recorder, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    broken = threading.Event()

    def fail(picture: JobPicture) -> None:
        if not broken.is_set():
            broken.set()
            raise OSError("the browser went away")

    monkeypatch.setattr(recorder, "paint", fail)
    with LiveJob("widget", title="Job 7") as view:
        view.tell(running())
        assert broken.wait(10)
        view._thread.join(10)

    assert "the run goes on" in capsys.readouterr().err


def test_a_thread_that_hangs_is_reported(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, release = threading.Event(), threading.Event()

    def hang(picture: JobPicture) -> None:
        stuck.set()
        release.wait(30)

    monkeypatch.setattr(recorder, "paint", hang)
    monkeypatch.setattr(live, "JOIN_S", 0.05)
    try:
        view = LiveJob("widget", title="Job 7").__enter__()
        view.tell(running())
        assert stuck.wait(10)
        with pytest.raises(AiaasBug, match="still runs"):
            view.__exit__(None, None, None)
    finally:
        release.set()


@pytest.mark.parametrize(
    ("wanted", "variable", "expected"), [(None, "", "text"), ("none", "", "none"), (None, "none", "none"), ("widget", "", "text")]
)
def test_outside_a_kernel_a_view_is_text_or_nothing(
    wanted: str | None, variable: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIAAS_UI", variable)

    assert live.choose(None, wanted) == expected


@pytest.mark.parametrize(
    ("wanted", "variable", "expected"), [(None, "", "widget"), ("html", "", "html"), (None, "html", "html"), ("auto", "html", "widget")]
)
def test_in_a_kernel_a_view_is_what_was_asked_for_or_a_widget(
    wanted: str | None, variable: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIAAS_UI", variable)

    class Shell:
        kernel = object()

    assert live.choose(Shell(), wanted) == expected


# --------------------------------------------------------------------------- many fits in one cell


class Output:
    """What a front end holds: outputs, of which the last may be updated."""

    def __init__(self) -> None:
        self.bundles: list[dict[str, str]] = []

    def display(self, bundle: dict[str, str], **options: Any) -> Output:
        self.bundles.append(bundle)
        return self

    def update(self, bundle: dict[str, str], **options: Any) -> None:
        self.bundles[-1] = bundle


def test_many_fits_share_one_output_with_a_line_each_and_the_running_one_last(monkeypatch: pytest.MonkeyPatch) -> None:
    output = Output()
    monkeypatch.setattr(fit_lines, "display", output.display)
    painter = LinesPainter(draws=True)

    painter.open(shown(running()))
    painter.close([{"text/plain": f"Fit 3 · {EVIL}\n  note: Careful."}])
    painter.open(shown(running()))

    (bundle,) = output.bundles
    assert bundle["text/plain"].splitlines() == [f"Fit 3 · {EVIL}", "  note: Careful.", f"Job 7: {shown(running()).status}"]
    tags = Tags()
    tags.feed(bundle["text/html"])
    assert "script" not in tags.tags

    painter.close([])
    assert output.bundles[0]["text/plain"].splitlines() == [f"Fit 3 · {EVIL}", "  note: Careful."]


def test_of_very_many_fits_the_newest_lines_stay_and_the_rest_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    output = Output()
    monkeypatch.setattr(fit_lines, "display", output.display)
    painter = LinesPainter(draws=True)

    for n in range(130):
        painter.close([{"text/plain": f"Fit {n}"}])

    lines = output.bundles[0]["text/plain"].splitlines()
    assert (lines[0], lines[1], lines[-1], len(lines)) == ("(30 earlier lines)", "Fit 30", "Fit 129", 101)


def test_in_a_terminal_a_fit_that_has_ended_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    painter = LinesPainter(draws=False)

    painter.open(shown(running()))
    painter.close([{"text/plain": "Fit 3: done"}])

    assert capsys.readouterr().out == "Fit 3: done\n"


def test_a_line_about_what_takes_long_is_printed_where_it_takes_long(capsys: pytest.CaptureFixture[str]) -> None:
    with live.SlowLine(None, "Deploying m", after_s=0.0) as line:
        line._timer.join()
        line.tell("writing it as ONNX")
    line.tell("over")

    with live.SlowLine(None, "Deploying m", after_s=3600.0) as line:
        line.tell("quick")

    assert capsys.readouterr().out.splitlines() == ["Deploying m: writing it as ONNX ..."]
