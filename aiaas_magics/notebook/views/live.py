"""Live view: moves while something runs, and is static afterwards.

Owns the one thread that redraws, its pace, and the freezing: at the end static outputs take the place of the live one,
so that a saved notebook needs no kernel, no widget and no script. What is drawn belongs to the `View` of each kind.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Generic, Protocol, Self, TypeVar

from IPython.display import display

from aiaas_magics.core.errors import AiaasBug
from aiaas_magics.notebook.views.panel import PanelPicture

Bundle = dict[str, Any]
P = TypeVar("P", bound=PanelPicture)
P_in = TypeVar("P_in", bound=PanelPicture, contravariant=True)

PACE_S: Final = 0.25  # Jupyter Server limits output to 1000 messages a second by default; eyes need four
TICK_S: Final = 1.0  # a phase's seconds go on while nothing happens
SLOW_S: Final = 3.0  # guess: what takes less needs no words, and would flicker
HINT: Final = "To stop: interrupt the kernel (■)."
JOIN_S: Final = 2.0  # guess: a redraw takes milliseconds, a stuck front end should not hold the cell


class View(Protocol[P_in]):
    """How one kind of picture is drawn, three times the same: by a script, as HTML, in words.

    Promises, tested for every view in tests/notebook/test_views.py:

    * `esm` is an ES module that draws the model's `picture`, as `as_json` makes it, and returns its own clean-up.
    * `html` escapes every string of the picture; it needs no script.
    * `words` says everything that `html` shows. `news` is what is worth a line of a log since the picture `before`.
    """

    esm: Path

    def html(self, picture: P_in, /) -> str: ...
    def words(self, picture: P_in, /) -> str: ...
    def news(self, picture: P_in, before: P_in | None, /) -> list[str]: ...


class Painter(Protocol[P_in]):
    """Draws pictures in one kind of front end.

    Promises: `paint` may come any number of times after `open`, always from one thread;
    `close` leaves only `bundles` behind, and no widget.
    """

    def open(self, picture: P_in, /) -> None: ...
    def paint(self, picture: P_in, /) -> None: ...
    def close(self, bundles: Sequence[Bundle], /) -> None: ...


class WidgetPainter(Generic[P]):
    def __init__(self, view: View[P]) -> None:
        from aiaas_magics.notebook.views.widget import PanelWidget

        self._view, self._widget = view, PanelWidget(view.esm)
        self._handle: Any = None

    def open(self, picture: P) -> None:
        self._widget.picture = picture.as_json()
        # The widget, and the same as HTML and text for what shows no widgets.
        bundle = {**self._widget.bundle(), **snapshot(self._view, picture)}
        self._handle = display(bundle, raw=True, display_id=True)

    def paint(self, picture: P) -> None:
        self._widget.picture = picture.as_json()

    def close(self, bundles: Sequence[Bundle]) -> None:
        replace_output(self._handle, bundles)
        self._widget.layout.close()
        self._widget.close()


class HtmlPainter(Generic[P]):
    def __init__(self, view: View[P]) -> None:
        self._view = view
        self._handle: Any = None

    def open(self, picture: P) -> None:
        self._handle = display(snapshot(self._view, picture), raw=True, display_id=True)

    def paint(self, picture: P) -> None:
        self._handle.update(snapshot(self._view, picture), raw=True)

    def close(self, bundles: Sequence[Bundle]) -> None:
        replace_output(self._handle, bundles)


class TextPainter(Generic[P]):
    """Lines of a log while it runs, the text of the static outputs at the end."""

    def __init__(self, view: View[P]) -> None:
        self._view = view
        self._before: P | None = None

    def open(self, picture: P) -> None:
        self._before = picture

    def paint(self, picture: P) -> None:
        for line in self._view.news(picture, self._before):
            print(line, flush=True)
        self._before = picture

    def close(self, bundles: Sequence[Bundle]) -> None:
        for bundle in bundles:
            print(bundle["text/plain"], flush=True)


class NoPainter(Generic[P]):
    def __init__(self, view: View[P]) -> None: ...
    def open(self, picture: P) -> None: ...
    def paint(self, picture: P) -> None: ...
    def close(self, bundles: Sequence[Bundle]) -> None: ...


def snapshot(view: View[P], picture: P) -> Bundle:
    """The picture as it stands, for what shows no widgets."""
    return {"text/html": view.html(picture), "text/plain": view.words(picture)}


def replace_output(handle: Any, bundles: Sequence[Bundle]) -> None:
    """The first bundle takes the live output's place, the others follow it; none leaves an output that shows nothing."""
    first, *other_outputs = bundles or [{}]
    if handle is not None:
        handle.update(first, raw=True)
    for bundle in other_outputs:
        display(bundle, raw=True)


def show(ip: Any, bundles: Sequence[Bundle]) -> None:
    """Static outputs: displayed in a notebook, printed in a terminal."""
    for bundle in bundles:
        if shows_pictures(ip):
            display(bundle, raw=True)
        else:
            print(bundle["text/plain"])


def shows_pictures(ip: Any) -> bool:
    """Whether this is a kernel, whose front end draws; a terminal gets text."""
    return getattr(ip, "kernel", None) is not None


class SlowLine:
    """A line that says what is done now, bounded by `with`, shown only where that takes longer than `after_s`. Nothing stays of it.

    A terminal gets each as a line of its own.
    """

    def __init__(self, ip: Any, title: str, *, after_s: float = SLOW_S) -> None:
        self._ip, self._title = ip, title
        self._lock, self._step, self._is_due, self._is_over = threading.Lock(), "", False, False
        self._handle: Any = None
        self._timer = threading.Timer(after_s, self._show)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._timer.cancel()
        with self._lock:
            self._is_over = True
            replace_output(self._handle, [])

    def tell(self, step: str) -> None:
        """What is done next."""
        with self._lock:
            self._step = step
            if self._is_due and not self._is_over:
                self._draw()

    def _show(self) -> None:
        with self._lock:
            self._is_due = not self._is_over
            if self._is_due and self._step:
                self._draw()

    def _draw(self) -> None:
        bundle = {"text/plain": f"{self._title}: {self._step} ..."}
        if not shows_pictures(self._ip):
            print(bundle["text/plain"], flush=True)
        elif self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def choose(ip: Any, ui: str | None) -> str:
    """The kind of view: what was asked for, else AIAAS_UI, else what this front end can show.

    A front end cannot be asked whether it shows widgets, so "auto" means: a widget in a
    kernel that has the libraries, lines of text elsewhere.
    """
    kind = ui or os.environ.get("AIAAS_UI", "") or "auto"
    if kind in {"none", "text"}:
        return kind
    if not shows_pictures(ip):
        return "text"
    if kind == "html":
        return "html"
    return "widget" if _can_make_widgets() else "html"


def _can_make_widgets() -> bool:
    try:
        import anywidget  # noqa: F401
    except ImportError:
        return False
    return True


def painter(kind: str, view: View[P]) -> Painter[P]:
    makers: dict[str, Callable[[View[P]], Painter[P]]] = {
        "widget": WidgetPainter,
        "html": HtmlPainter,
        "text": TextPainter,
        "none": NoPainter,
    }
    return makers[kind](view)


class LiveView(Generic[P]):
    """Draws pictures of something that runs, bounded by `with`.

    However the block ends, what stays is static: the bundles given to `freeze`, or the last
    picture where none were given. Of a block that fails before it drew anything worth keeping, nothing stays.

    Args:
        kind: widget, html, text or none; `choose` finds it.
        view: how a picture is drawn.
        picture: makes the first picture.
        paint: a painter in the place of the one for `kind`.
    """

    def __init__(self, kind: str, view: View[P], picture: Callable[[], P], *, paint: Painter[P] | None = None) -> None:
        self._view, self._painter = view, paint or painter(kind, view)
        self.shows_figures = kind in {"widget", "html"}
        self._picture, self._is_worth_keeping = picture, False
        self._bundles: Sequence[Bundle] | None = None
        self._stopping, self._changed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="aiaas-view", daemon=True)

    def __enter__(self) -> Self:
        self._painter.open(self._picture())
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopping.set()
        self._changed.set()
        self._thread.join(JOIN_S)
        if self._thread.is_alive():
            raise AiaasBug(f"the view's thread still runs {JOIN_S} s after it was stopped")
        if error is not None and self._bundles is None and not self._is_worth_keeping:
            self._bundles = []
        last = self._picture() if self._bundles is not None else self._picture().at_end()
        self._painter.paint(last)
        self._painter.close(self._bundles if self._bundles is not None else [snapshot(self._view, last)])

    def draw(self, picture: Callable[[], P], *, keep: bool = True) -> None:
        """The newest state of things. Cheap: `picture` is called when it is time to draw. May come from any one thread.

        `keep` says whether the picture is worth keeping should the block fail.
        """
        self._picture, self._is_worth_keeping = picture, keep
        self._changed.set()

    def freeze(self, bundles: Sequence[Bundle]) -> None:
        """What stays when the block ends; each bundle carries `text/plain`."""
        self._bundles = bundles

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._changed.wait(TICK_S)
            self._changed.clear()
            if self._stopping.is_set():
                return
            try:
                self._painter.paint(self._picture())
            except Exception as error:  # noqa: BLE001 - border: a front end that went away must not end the run
                print(f"aiaas_magics: the live view stopped ({error}); the run goes on.", file=sys.stderr)
                return
            self._stopping.wait(PACE_S)
