"""A picture in words: for terminals, logs, and as the text twin of every other view."""

from __future__ import annotations

from aiaas_magics.core.spec import FINAL_STATES
from aiaas_magics.notebook.views.picture import JobPicture
from aiaas_magics.plots import text_twins


def words_of(picture: JobPicture) -> str:
    """Everything the view shows, on a few lines."""
    lines = [f"{picture.title}: {picture.status}"]
    if picture.stops:
        lines.append("  " + ", ".join(f"{stop.label} ({stop.state})" for stop in picture.stops))
    if picture.phases:
        lines.append("  " + " > ".join(f"{phase.name} {text_twins.seconds(phase.seconds)}" for phase in picture.phases))
    lines += ["  " + "  ".join(filter(None, (lane.name, lane.device, lane.state, lane.detail))) for lane in picture.lanes]
    if picture.lanes_left_out:
        lines.append(f"  and {picture.lanes_left_out} more workers")
    lines += [f"  note: {note}" for note in picture.notices]
    lines += [f"  {line}" for line in (picture.error, picture.hint) if line]
    return "\n".join(lines)


def news(picture: JobPicture, before: JobPicture | None) -> list[str]:
    """What is worth a line of a log since `before`: a new state, phase or stop, an epoch's end, a notice."""
    lines = []
    key, key_before = _place(picture), _place(before) if before else None
    if key != key_before:
        lines.append(f"{picture.title}: {picture.status}")
    seen = before.notices if before else ()
    lines += [f"  note: {note}" for note in picture.notices if note not in seen]
    if picture.error and not (before and before.error):
        lines.append(f"  {picture.error}")
    return lines


def _place(picture: JobPicture) -> tuple[object, ...]:
    over = picture.state in FINAL_STATES
    running = "" if over else next((phase.name for phase in picture.phases if phase.running), "")
    epochs = max((int(curve.points[-1][0]) for curve in picture.curves if curve.points), default=0)
    stop = next((stop.label for stop in picture.stops if stop.state == "running"), "")
    return picture.state, running, epochs, stop
