"""Panel widget: a live view in the browser, by one small ES module; no CDN, no build.

Owns the widget class and the joining of a view's module with `panel.js`. What is drawn belongs to the views; when, to `live`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from aiaas_magics.notebook.views.panel import STATIC


def esm_text(module: Path) -> str:
    """`module` with `panel.js` in the place of its import, without comments: the widget's whole script travels to the browser."""
    shared, own = ((STATIC / name).read_text(encoding="utf-8") for name in ("panel.js", module.name))
    own = re.sub(r'^import .* from "./panel.js";\n', "", own, flags=re.MULTILINE)
    return re.sub(r"^ *\/\*\*.*?\*/\n", "", f"{shared}{own}", flags=re.MULTILINE | re.DOTALL)


class PanelWidget(anywidget.AnyWidget):  # type: ignore[misc]
    """Shows one picture by `module`. All state is in one trait, since messages sent before a view exists are lost."""

    _css = STATIC / "panel.css"
    picture = traitlets.Dict().tag(sync=True)

    def __init__(self, module: Path) -> None:
        self._esm = esm_text(module)  # read by the base class, before traits exist
        super().__init__()

    def bundle(self) -> dict[str, Any]:
        """What displays the widget."""
        data, _ = self._repr_mimebundle_() or ({}, {})
        return dict(data)
