"""Which figures a worker keeps, and how many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from aiaas_magics.backend.training import shown_figures
from aiaas_magics.backend.training.shown_figures import ShownFigures
from aiaas_magics.core.events import FigureShown
from tests.backend.training.tensorflow.test_multi_step import Told


def kept(folder: Path, *, rank: int = 0) -> tuple[ShownFigures, Told]:
    told = Told()
    return ShownFigures(folder / "figures", told, attempt=2, rank=rank), told  # type: ignore[arg-type]


def curve(**size: Any) -> Figure:
    figure = Figure(figsize=(1, 1), **size)
    figure.subplots().plot([1, 2])
    return figure


def test_worker_0_keeps_what_is_shown_and_others_keep_nothing(tmp_path: Path) -> None:
    ours, told = kept(tmp_path)
    theirs, nothing = kept(tmp_path / "other", rank=1)

    for one in (ours, theirs):
        one.keep(curve())

    assert told == [FigureShown(number=1)]
    assert (tmp_path / "figures" / "2-1.png").read_bytes().startswith(b"\x89PNG")
    assert nothing == []
    assert not (tmp_path / "other").exists()


def test_too_many_figures_and_one_that_is_too_large_are_left_out_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shown_figures, "MOST_FIGURES", 2)
    ours, told = kept(tmp_path)
    with monkeypatch.context() as small:
        small.setattr(shown_figures, "MOST_FIGURE_BYTES", 100)
        ours.keep(curve())
    for _ in range(3):
        ours.keep(curve())

    assert told == [FigureShown(number=2)]
    large, many = capsys.readouterr().out.splitlines()
    assert large == "(Figure 1 has 0.0 MB and is left out: use a smaller dpi or figsize.)"
    assert many == "(More than 2 figures were shown; the rest is left out.)"


def test_a_figure_that_cannot_be_drawn_when_the_training_is_done_does_not_cost_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from matplotlib import pyplot

    before = pyplot.get_backend()
    monkeypatch.setattr(shown_figures, "current", kept(tmp_path)[0])
    pyplot.switch_backend(shown_figures.BACKEND)
    try:
        pyplot.title("$\\no_such$")
        shown_figures.show_open()
    finally:
        pyplot.close("all")
        pyplot.switch_backend(before)

    assert "no_such" in capsys.readouterr().err
