"""A picture as HTML without any script: for front ends that show no widgets.

Owns the markup. Every string of a picture may come from a job or a server, so every one is escaped.
"""

from __future__ import annotations

from html import escape
from typing import Final

from aiaas_magics.notebook.views.picture import JobPicture
from aiaas_magics.plots import text_twins

INK: Final = "color:var(--jp-ui-font-color1,var(--vscode-foreground,CanvasText))"
DIM: Final = "color:var(--jp-ui-font-color2,var(--vscode-descriptionForeground,GrayText))"
RULE: Final = "rgba(128,128,128,.35)"
FILL: Final = "#0072b2"


def html_of(picture: JobPicture) -> str:
    """The whole view as one block."""
    parts = [
        f'<div style="{INK};background:transparent;max-width:760px;line-height:1.4">',
        f"<div><b>{escape(picture.title)}</b> &nbsp;{escape(picture.state)}</div>",
        _bar(picture),
        f"<div>{escape(picture.status)}</div>",
        _phases(picture),
        _stops(picture),
        _lanes(picture),
        *(f'<div style="border-left:3px solid {RULE};padding-left:8px">{escape(note)}</div>' for note in picture.notices),
        f'<div style="border-left:3px solid #d55e00;padding-left:8px">{escape(picture.error)}</div>' if picture.error else "",
        f'<div style="{DIM}">{escape(picture.hint)}</div>' if picture.hint else "",
        "</div>",
    ]
    return "".join(parts)


def _bar(picture: JobPicture) -> str:
    percent = round(100 * picture.fraction)
    return (
        f'<div role="progressbar" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent}" aria-label="{escape(picture.title)}" '
        f'style="height:6px;margin:6px 0;border-radius:3px;background:{RULE}">'
        f'<div style="height:6px;width:{percent}%;border-radius:3px;background:{FILL}"></div></div>'
    )


def _phases(picture: JobPicture) -> str:
    if not picture.phases:
        return ""
    spans = [
        f"<b>{escape(phase.name)} {escape(text_twins.seconds(phase.seconds))}</b>"
        if phase.running
        else f"{escape(phase.name)} {escape(text_twins.seconds(phase.seconds))}"
        for phase in picture.phases
    ]
    return f'<div style="{DIM};font-size:.92em">{" &rsaquo; ".join(spans)}</div>'


def _stops(picture: JobPicture) -> str:
    if not picture.stops:
        return ""
    marks = {"done": "&check; ", "running": "&#9654; "}
    spans = [f"{marks.get(stop.state, '')}{escape(stop.label)}" for stop in picture.stops]
    return f"<div>{' &nbsp; '.join(spans)}</div>"


def _lanes(picture: JobPicture) -> str:
    if not picture.lanes:
        return ""
    cell = "text-align:left;padding:1px 10px 1px 0;border:0;background:transparent"
    rows = [
        f'<tr style="background:transparent"><th scope="row" style="{cell};font-weight:normal">{escape(lane.name)}</th>'
        + "".join(f'<td style="{cell}">{escape(value)}</td>' for value in (lane.device, lane.state, lane.detail))
        + "</tr>"
        for lane in picture.lanes
    ]
    more = f'<tr><td style="{cell}">and {picture.lanes_left_out} more</td></tr>' if picture.lanes_left_out else ""
    return f'<table style="border-collapse:collapse;font-size:.92em">{"".join(rows)}{more}</table>'
