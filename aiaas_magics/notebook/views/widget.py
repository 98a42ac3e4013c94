"""The live view as a widget: one small ES module, no CDN, no build.

Owns the widget class. What it draws is a `Picture`; when it is told and closed is `live`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import anywidget
import traitlets

from aiaas_magics.notebook.views.html import html_of
from aiaas_magics.notebook.views.picture import JobPicture
from aiaas_magics.notebook.views.words import words_of

STATIC: Final = Path(__file__).parent / "static"


class JobWidget(anywidget.AnyWidget):  # type: ignore[misc]
    """Shows a `Picture`. All state is in one trait, since messages sent before a view exists are lost."""

    _esm = STATIC / "job.js"
    _css = STATIC / "job.css"
    picture = traitlets.Dict().tag(sync=True)

    def show(self, picture: JobPicture) -> None:
        self.picture = picture.as_json()

    def bundle(self, picture: JobPicture) -> dict[str, Any]:
        """The widget, and the same as HTML and text for what shows no widgets."""
        data, _ = self._repr_mimebundle_() or ({}, {})
        return {**data, "text/html": html_of(picture), "text/plain": words_of(picture)}
