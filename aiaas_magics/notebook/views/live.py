"""A view that is live while a job runs and plain when it is over.

Owns the one thread that redraws, its pace, and the freezing: at the end the live output is
replaced by static ones, so that a saved notebook needs no kernel, no widget and no script.
What is shown comes from `picture`; the static outputs from `present`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Protocol, Self

from IPython.display import display

from aiaas_magics.core.errors import AiaasBug
from aiaas_magics.core.story import JobStory
from aiaas_magics.notebook.views import words
from aiaas_magics.notebook.views.html import html_of
from aiaas_magics.notebook.views.picture import JobPicture, StudyStop, picture

Bundle = dict[str, Any]

PACE_S: Final = 0.25  # Jupyter Server limits output to 1000 messages a second by default; eyes need four
TICK_S: Final = 1.0  # a phase's seconds go on while nothing happens
SLOW_S: Final = 3.0  # guess: what takes less needs no words, and would flicker
JOIN_S: Final = 2.0  # guess: a redraw takes milliseconds, a stuck front end should not hold the cell


class Painter(Protocol):
    """Draws pictures in one kind of front end.

    Promises: `paint` may come any number of times after `open`, always from one thread;
    `close` leaves only `bundles` behind, and no widget.
    """

    def open(self, picture: JobPicture) -> None: ...
    def paint(self, picture: JobPicture) -> None: ...
    def close(self, bundles: Sequence[Bundle]) -> None: ...


class WidgetPainter:
    def __init__(self) -> None:
        from aiaas_magics.notebook.views.widget import JobWidget

        self._widget = JobWidget()
        self._handle: Any = None

    def open(self, picture: JobPicture) -> None:
        self._widget.show(picture)
        self._handle = display(self._widget.bundle(picture), raw=True, display_id=True)

    def paint(self, picture: JobPicture) -> None:
        self._widget.show(picture)

    def close(self, bundles: Sequence[Bundle]) -> None:
        replace_output(self._handle, bundles)
        self._widget.layout.close()
        self._widget.close()


class HtmlPainter:
    def __init__(self) -> None:
        self._handle: Any = None

    def open(self, picture: JobPicture) -> None:
        self._handle = display(snapshot(picture), raw=True, display_id=True)

    def paint(self, picture: JobPicture) -> None:
        self._handle.update(snapshot(picture), raw=True)

    def close(self, bundles: Sequence[Bundle]) -> None:
        replace_output(self._handle, bundles)


class TextPainter:
    """Lines of a log: a new state, phase or epoch makes one; at the end the tables."""

    def __init__(self) -> None:
        self._before: JobPicture | None = None

    def open(self, picture: JobPicture) -> None:
        self._before = picture

    def paint(self, picture: JobPicture) -> None:
        for line in words.news(picture, self._before):
            print(line, flush=True)
        self._before = picture

    def close(self, bundles: Sequence[Bundle]) -> None:
        for bundle in bundles:
            print(bundle["text/plain"], flush=True)


class NoPainter:
    def open(self, picture: JobPicture) -> None: ...
    def paint(self, picture: JobPicture) -> None: ...
    def close(self, bundles: Sequence[Bundle]) -> None: ...


def snapshot(picture: JobPicture) -> Bundle:
    """The picture as it stands, for what shows no widgets."""
    return {"text/html": html_of(picture), "text/plain": words.words_of(picture)}


def replace_output(handle: Any, bundles: Sequence[Bundle]) -> None:
    """The first bundle takes the live output's place, the others follow it; none leaves an output that shows nothing."""
    first, *others = bundles or [{}]
    if handle is not None:
        handle.update(first, raw=True)
    for bundle in others:
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


class ChangingLine:
    """A line that says what is done now, bounded by `with`; at the end what was given to `freeze` takes its place.

    A terminal gets each as a line of its own.
    """

    def __init__(self, ip: Any, title: str) -> None:
        self._ip, self._title = ip, title
        self._handle = display(self._bundle("starting"), raw=True, display_id=True) if shows_pictures(ip) else None
        self._bundles: Sequence[Bundle] = ()

    def _bundle(self, what: str) -> Bundle:
        return {"text/plain": f"{self._title}: {what}"}

    def tell(self, what: str) -> None:
        self.show(self._bundle(what))

    def show(self, bundle: Bundle) -> None:
        """`bundle` for the line."""
        if self._handle is not None:
            self._handle.update(bundle, raw=True)
        else:
            print(bundle["text/plain"], flush=True)

    def freeze(self, bundles: Sequence[Bundle]) -> None:
        self._bundles = bundles

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._handle is not None:
            replace_output(self._handle, self._bundles or [self._bundle("ended early")])
        else:
            show(self._ip, self._bundles)


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


def choose(ip: Any, wanted: str | None) -> str:
    """The kind of view: what was asked for, else AIAAS_UI, else what this front end can show.

    A front end cannot be asked whether it shows widgets, so "auto" means: a widget in a
    kernel that has the libraries, lines of text elsewhere.
    """
    kind = wanted or os.environ.get("AIAAS_UI", "") or "auto"
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


def painter(kind: str) -> Painter:
    makers: dict[str, type[Painter]] = {"widget": WidgetPainter, "html": HtmlPainter, "text": TextPainter, "none": NoPainter}
    return makers[kind]()


class LiveView:
    """A job's view, bounded by `with`. `tell` is cheap and may come from any one thread.

    However the block ends, what stays is static: the bundles given to `freeze`, or the last
    picture where none were given. Of a block that fails before the backend has said anything, nothing stays.
    """

    def __init__(self, kind: str, *, title: str, hint: str = "", paint: Painter | None = None) -> None:
        self._painter = paint or painter(kind)
        self.shows_figures = kind in {"widget", "html"}
        self._title, self._hint = title, hint
        self._story, self._stops, self._measuring = JobStory(), tuple[StudyStop, ...](), False
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
        if error is not None and self._bundles is None:
            self._hint = ""  # nothing is left to interrupt
            if not self._story.last_seq:
                self._bundles = []
        last = self._picture()
        self._painter.paint(last)
        self._painter.close(self._bundles if self._bundles is not None else [snapshot(last)])

    def tell(self, story: JobStory, *, title: str | None = None, stops: Sequence[StudyStop] = (), measuring: bool = False) -> None:
        """The newest state of things."""
        self._title = title or self._title
        self._story, self._stops, self._measuring = story, tuple(stops), measuring
        self._changed.set()

    def freeze(self, bundles: Sequence[Bundle]) -> None:
        """What stays when the block ends; each bundle carries `text/plain`."""
        self._bundles = bundles

    @property
    def story(self) -> JobStory:
        """What was told last."""
        return self._story

    def _picture(self) -> JobPicture:
        return picture(self._story, title=self._title, now_s=time.time(), hint=self._hint, stops=self._stops, measuring=self._measuring)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._changed.wait(TICK_S)
            self._changed.clear()
            if self._stopping.is_set():
                return
            try:
                self._painter.paint(self._picture())
            except Exception as error:  # noqa: BLE001 - border: a front end that went away must not end the job
                print(f"aiaas_magics: the live view stopped ({error}); the job goes on.", file=sys.stderr)
                return
            self._stopping.wait(PACE_S)
