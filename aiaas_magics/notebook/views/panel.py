"""A panel: the frame that all live views share, as HTML without any script and in words.

Owns title, state, bar, status line and notes. What stands between them belongs to the view of each kind of panel:
`job_panel`, `endpoint_panel`, `load_panel`. Every string may come from a job or a server, so every one is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, Final, Self

STATIC: Final = Path(__file__).parent / "static"
INK: Final = "color:var(--jp-ui-font-color1,var(--vscode-foreground,CanvasText))"
DIM: Final = "color:var(--jp-ui-font-color2,var(--vscode-descriptionForeground,GrayText))"
RULE: Final = "rgba(128,128,128,.35)"
FILL: Final = "#0072b2"
CELL: Final = "text-align:left;padding:1px 10px 1px 0;border:0;background:transparent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A line of a chart. `unit` follows its numbers."""

    name: str
    points: tuple[tuple[float, float], ...]
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelPicture:
    """What every panel shows. `fraction` is between 0 and 1; `final` ends the browser's clock."""

    title: str
    state: str
    status: str
    fraction: float
    notices: tuple[str, ...] = ()
    error: str = ""
    hint: str = ""
    final: bool = False

    def as_json(self) -> dict[str, Any]:
        """What travels to the widget."""
        return asdict(self)

    def at_end(self) -> Self:
        """What stays of the last picture if nothing else takes its place: nothing is left to interrupt."""
        return replace(self, hint="")


def panel_html(picture: PanelPicture, *body: str) -> str:
    """The whole panel as one block, with `body` (markup) below the status."""
    parts = [
        f'<div style="{INK};background:transparent;max-width:760px;line-height:1.4">',
        f"<div><b>{escape(picture.title)}</b> &nbsp;{escape(picture.state)}</div>",
        _bar(picture),
        f"<div>{escape(picture.status)}</div>",
        *body,
        *(f'<div style="border-left:3px solid {RULE};padding-left:8px">{escape(note)}</div>' for note in picture.notices),
        f'<div style="border-left:3px solid #d55e00;padding-left:8px">{escape(picture.error)}</div>' if picture.error else "",
        f'<div style="{DIM}">{escape(picture.hint)}</div>' if picture.hint else "",
        "</div>",
    ]
    return "".join(parts)


def _bar(picture: PanelPicture) -> str:
    percent = round(100 * picture.fraction)
    return (
        f'<div role="progressbar" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent}" aria-label="{escape(picture.title)}" '
        f'style="height:6px;margin:6px 0;border-radius:3px;background:{RULE}">'
        f'<div style="height:6px;width:{percent}%;border-radius:3px;background:{FILL}"></div></div>'
    )


def small_table(rows: Sequence[Sequence[str]], *, head: Sequence[str] = ()) -> str:
    """Rows of escaped cells without lines; the first cell names its row."""
    top = f"<tr>{''.join(_head_cell(name) for name in head)}</tr>" if head else ""
    body = (
        f'<tr style="background:transparent"><th scope="row" style="{CELL};font-weight:normal">{escape(first)}</th>'
        + "".join(f'<td style="{CELL}">{escape(value)}</td>' for value in cells)
        + "</tr>"
        for first, *cells in rows
    )
    return f'<table style="border-collapse:collapse;font-size:.92em">{top}{"".join(body)}</table>'


def _head_cell(name: str) -> str:
    return f'<th scope="col" style="{CELL};{DIM};font-weight:normal">{escape(name)}</th>'


def panel_words(picture: PanelPicture, *body: str) -> str:
    """The whole panel on a few lines, with the lines of `body` below the status."""
    lines = [f"{picture.title}: {picture.status}"]
    lines += [f"  {line}" for line in body if line]
    lines += [f"  note: {note}" for note in picture.notices]
    lines += [f"  {line}" for line in (picture.error, picture.hint) if line]
    return "\n".join(lines)


def new_notes(picture: PanelPicture, before: PanelPicture | None) -> list[str]:
    """Lines for the notices and the error that were not there `before`."""
    earlier = before.notices if before else ()
    lines = [f"  note: {note}" for note in picture.notices if note not in earlier]
    if picture.error and not (before and before.error):
        lines.append(f"  {picture.error}")
    return lines
