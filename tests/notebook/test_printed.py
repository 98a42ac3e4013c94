"""Which lines of workers a cell shows, and how many."""

from __future__ import annotations

import base64

import pytest

from aiaas_magics.core.errors import UnknownName
from aiaas_magics.core.events import Entry, FigureShown, Output
from aiaas_magics.core.printout import ENDING, OWN_PREFIX, Printout, counted, differing
from aiaas_magics.notebook.views import printed
from aiaas_magics.notebook.views.printed import CellLines


def printout(*texts: tuple[int, str] | str, attempt: int = 1) -> Printout:
    """Of worker 0, where no rank is named."""
    told = [(0, text) if isinstance(text, str) else text for text in texts]
    made = Printout()
    made.add([Entry(seq=n + 1, at_s=1.0, attempt=attempt, rank=rank, event=Output(text=text)) for n, (rank, text) in enumerate(told)])
    return made


def drawn(attempt: int, number: int) -> bytes:
    """What a backend has as figures; after the second of them it has none any more."""
    if number > 2:
        raise UnknownName("figure", f"{attempt}-{number}")
    return b"PNG of %d-%d" % (attempt, number)


def test_figures_stand_between_the_lines_and_one_that_is_gone_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(printed, "CELL_FIGURES", 3)
    monkeypatch.setattr(printed, "display", lambda bundle, raw: print(base64.b64decode(bundle["image/png"]).decode()))
    events = [Output(text="before"), *(FigureShown(number=n) for n in (1, 2, 3, 4, 5)), Output(text="after")]
    made = Printout()
    made.add([Entry(seq=n + 1, at_s=1.0, attempt=2, rank=0, event=event) for n, event in enumerate(events)])
    made.add([Entry(seq=9, at_s=1.0, attempt=2, rank=1, event=FigureShown(number=1))])

    CellLines().show(made, "7", drawn)

    shown = capsys.readouterr().out.splitlines()
    assert shown[:3] == ["before", "PNG of 2-1", "PNG of 2-2"]
    assert shown[3].startswith("(Figure 3 is not shown: ")
    assert shown[4:] == ["(Only the first 3 figures are shown.)", "after"]


def test_lines_come_once_and_in_order_with_their_blank_ones() -> None:
    made = printout("one\n\ntwo", "", "three")

    assert made.take() == ["one", "", "two", "", "three"]
    assert made.take() == []
    assert made.lines == 5


@pytest.mark.parametrize(
    "line",
    [
        "E0000 00:00:1796013957.313740   20895 cuda_platform.cc:52] failed call to cuInit: UNKNOWN ERROR (303)",
        "2026-11-30 04:45:58.292511: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on.",
        "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
        "To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow.",
        "WARNING:tensorflow:5 out of the last 5 calls to <function f> triggered tf.function retracing.",
        f"{OWN_PREFIX}not on JAX: a layer of TensorFlow's",
    ],
)
def test_what_a_plain_fit_would_not_have_shown_stays_in_the_log(line: str) -> None:
    assert printout(f"before\n{line}\nafter").take() == ["before", "after"]


@pytest.mark.parametrize("line", ["WARNING:tensorflow:Layer lstm will not use cuDNN", "E = mc2", "2026-11-30 04:45:58 of the user's", "I0"])
def test_lines_that_look_like_it_are_shown(line: str) -> None:
    assert printout(line).take() == [line]


def test_the_traceback_that_the_cell_raises_is_not_shown_twice_and_the_next_attempt_speaks_again() -> None:
    made = printout(f"before\n{ENDING}\nTraceback (most recent call last):", "ValueError: no")
    made.add([Entry(seq=9, at_s=2.0, attempt=2, rank=0, event=Output(text="again"))])

    assert made.take() == ["before", "again"]


def test_other_workers_are_told_only_where_their_lines_differ_in_more_than_time() -> None:
    made = printout((1, "1/1 - 0s - 40ms/step"), "1/1 - 1s - 2.5us/step", (2, "same"), "same", (3, "mine"), (1, f"{ENDING}\nalone"))

    assert made.take() == ["1/1 - 1s - 2.5us/step", "same"]
    assert made.ranks_that_differ() == [3]
    assert differing([3], "7") == "Worker 3 printed different lines; %aiaas_logs 7 shows them"
    assert differing(range(1, 12), "7") == "Workers 1, 2, 3, 4, 5, 6, 7, 8 and more printed different lines; %aiaas_logs 7 shows them"
    assert differing([], "7") == ""


def test_where_lines_are_not_shown_they_are_counted() -> None:
    assert counted(printout("one"), "7") == "The workers printed 1 line; %aiaas_logs 7 shows them"
    assert counted(printout("one\ntwo"), "7") == "The workers printed 2 lines; %aiaas_logs 7 shows them"
    assert counted(printout((1, "one")), "7") == ""


def test_a_flood_is_cut_with_one_word_for_all_fits_of_the_cell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printed, "CELL_LINES", 3)
    lines = CellLines()

    lines.show(printout("a\nb"), "7", drawn)
    lines.show(printout("c\nd\ne"), "8", drawn)
    lines.end(printout("f"), "9", drawn, succeeded=True)

    assert capsys.readouterr().out == ("a\nb\nc\n(The cell shows only part of the output; %aiaas_logs 8 --lines 100000 shows the rest.)\n")


def test_one_line_that_is_too_long_is_a_flood_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printed, "CELL_CHARACTERS", 10)

    CellLines().show(printout("short\n" + "x" * 11), "7", drawn)

    first, word = capsys.readouterr().out.splitlines()
    assert first == "short"
    assert "%aiaas_logs 7" in word


def test_control_characters_of_workers_become_visible(capsys: pytest.CaptureFixture[str]) -> None:
    CellLines().show(printout("a\x1b]0;OWNED\x07b\rc"), "7", drawn)

    assert capsys.readouterr().out == "a\\x1b]0;OWNED\\x07b\\x0dc\n"


def test_workers_of_a_job_that_was_ended_are_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    CellLines().end(printout((1, "further")), "7", drawn, succeeded=False)

    assert capsys.readouterr().out == ""
