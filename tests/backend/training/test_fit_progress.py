"""What a fit tells of itself: enough to follow it, never more than a log can keep."""

from __future__ import annotations

from types import SimpleNamespace

from aiaas_magics.backend.training.fit_progress import EPOCHS_TOLD, TELL_S, Progress
from aiaas_magics.core.events import EpochEnded, Event


class Told(list[Event]):
    send = list.append


def told_of(epochs: int, *, each_s: float) -> list[int]:
    """The epochs that are told of `epochs` that take `each_s` each."""
    told, now = Told(), [0.0]
    progress = Progress(told, plan=lambda: None, notices=False, clock=lambda: now[0])  # type: ignore[arg-type]
    progress.set_params({"epochs": epochs})
    progress._model = SimpleNamespace(stop_training=False)
    for epoch in range(epochs):
        progress.on_epoch_begin(epoch)
        now[0] += each_s
        progress.on_epoch_end(epoch, {"loss": 1.0})
    return [event.epoch for event in told if isinstance(event, EpochEnded)]


def test_every_epoch_is_told_while_they_can_be_followed() -> None:
    assert told_of(EPOCHS_TOLD, each_s=1e-3) == list(range(EPOCHS_TOLD))
    assert told_of(2 * EPOCHS_TOLD, each_s=TELL_S * 1.01) == list(range(2 * EPOCHS_TOLD))


def test_of_a_million_short_epochs_some_are_told_and_the_last() -> None:
    told = told_of(1_000_000, each_s=1e-3)

    assert told[-1] == 999_999
    assert len(told) < EPOCHS_TOLD + 1_000_000 * 1e-3 / TELL_S + 2
