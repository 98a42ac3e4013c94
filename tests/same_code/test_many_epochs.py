"""Of thousands of short epochs not each has a row; the words count all of them."""

from __future__ import annotations

from aiaas_magics.core.events import Entry, EpochEnded, Phase, PhaseEntered, StateChanged
from aiaas_magics.core.spec import JobState
from aiaas_magics.core.story import JobStory, fold
from aiaas_magics.notebook.views.job_picture import status_line
from aiaas_magics.plots.history_figure import history_figure
from aiaas_magics.plots.text_twins import history_text


def story(state: JobState) -> JobStory:
    """3,000 epochs of 10 ms, every one of the first 500 told and each 25th of the others."""
    told = [*range(500), *range(500, 2999, 25), 2999]
    events = [
        (0.0, PhaseEntered(phase=Phase.TRAINING)),
        *((0.01 * (n + 1), EpochEnded(epoch=n, epochs=3000, rows=1, seconds=0.01, logs={"loss": 1.0})) for n in told),
        (30.0, StateChanged(state=state)),
    ]
    return fold(Entry(seq=seq, at_s=at_s, attempt=1, rank=0, event=event) for seq, (at_s, event) in enumerate(events, start=1))


def test_the_status_counts_every_epoch_and_the_whole_time() -> None:
    assert status_line(story(JobState.SUCCEEDED)).startswith("succeeded: 3,000 epochs in 30.0 s; loss 1")
    assert status_line(story(JobState.CANCELLED)) == "cancelled after 3,000 epochs"


def test_the_table_and_the_figure_count_every_epoch() -> None:
    rows = story(JobState.SUCCEEDED).rows

    assert "(2,989 epochs in between are not shown)" in history_text(rows)
    words = [text.get_text() for text in history_figure(rows).texts]
    assert any("3,000 epochs; last" in text for text in words), words
