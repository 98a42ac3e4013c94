"""Border: where a typed line becomes a request, and our errors become what IPython shows.

Owns the `magic` decorator and `Family`, the base class of each file in `magics/`. Options belong to `options`,
loading to `extension`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from IPython.core.error import UsageError
from IPython.core.magic import Magics, output_can_be_silenced
from IPython.core.magic_arguments import magic_arguments
from traitlets import Unicode

from aiaas_magics.core import errors
from aiaas_magics.notebook import options, tracebacks
from aiaas_magics.notebook.options import HELP, option
from aiaas_magics.notebook.session import Session
from aiaas_magics.notebook.views import live

if TYPE_CHECKING:
    from aiaas_magics.client.serving.endpoint import Endpoint

R = TypeVar("R")
Method = Callable[..., Any]
# What a method may need beside its request: the line as it was typed, the cell below it, the caller's local variables.
Need = Literal["line", "cell", "names"]


class Family(Magics):  # type: ignore[misc]
    """Magics that belong together, one class per file of `magics/`. All families share one session."""

    ui = Unicode("", help="How progress is shown: auto, widget, html, text or none; empty means AIAAS_UI or auto.").tag(config=True)

    def __init__(self, shell: Any, **kwargs: Any) -> None:
        super().__init__(shell, **kwargs)
        self.session = Session()

    def _ui(self, kind: str | None) -> str:
        return live.choose(self.shell, kind or self.ui or None)

    def _put(self, name: str | None, value: Any) -> None:
        if name is not None:
            self.shell.user_ns[name] = value

    def _endpoint(self, name: str | None, magic_name: str) -> Endpoint:
        """The endpoint that was named.

        Raises:
            UsageError: none was.
            UnknownName: there is none of this name.
        """
        if name is None:
            raise UsageError(f"Which endpoint? Name it: %{magic_name} churn. %aiaas_status lists them.")
        return self.session.backend.endpoint(name)

    def _draws(self, kind: str) -> bool:
        """Whether the static outputs of a view of this `kind` have figures."""
        return kind in {"widget", "html"} or (kind == "none" and live.shows_pictures(self.shell))

    def _leave(self, view: live.LiveView[Any], kind: str, bundles: Sequence[live.Bundle]) -> None:
        """What a magic answers stays, also where no progress was wanted."""
        view.freeze(bundles)
        if kind == "none":
            live.show(self.shell, bundles)


def magic(request: type[Any], *stack: option, needs: tuple[Need, ...] = (), is_cell_magic: bool = False) -> Callable[[Method], Method]:
    """Make a method of a `Family` the magic of its name.

    Args:
        request: the frozen value that a line is parsed into; `help` is one of its fields.
        stack: the options, in the order of the help; -h is added.
        needs: what `method` takes as keyword arguments beside the request.
        is_cell_magic: whether it may stand above a cell (%%), as well as on a line. A final ";" then silences its value.
    """

    def decorate(method: Method) -> Method:
        bordered = border(request, needs=needs)(method)
        for declared in reversed((*stack, HELP)):
            bordered = declared(bordered)
        bordered.magic_kinds = ("line", "cell") if is_cell_magic else ("line",)  # type: ignore[attr-defined]
        if is_cell_magic:
            output_can_be_silenced(bordered)
        return magic_arguments()(bordered)  # type: ignore[no-any-return]

    return decorate


def border(request: type[R], *, needs: tuple[Need, ...] = ()) -> Callable[[Method], Method]:
    """Parse the line into `request`, answer -h, and turn our errors into what IPython shows.

    Typing mistakes become IPython's own `UsageError`, exactly that class: one line, no
    traceback, and Run All stops. Everything else of ours is shown as one block (`tracebacks.show_blocks`).
    """

    def decorate(method: Method) -> Method:
        @functools.wraps(method)
        def bordered(self: Family, line: str, cell: str | None = None, local_ns: dict[str, Any] | None = None) -> Any:
            decorated = getattr(type(self), method.__name__)
            parsed = options.read(decorated, line, request)
            if parsed.help:  # type: ignore[attr-defined]
                print(decorated.__doc__)
                return None
            surroundings: dict[Need, Any] = {"line": line, "cell": cell, "names": local_ns or {}}
            try:
                return method(self, parsed, **{need: surroundings[need] for need in needs})
            except errors.UsageError as error:
                if tracebacks.cell_frames(error.__traceback__, self.shell):
                    raise
                raise UsageError(str(error)) from None
            except KeyboardInterrupt as error:
                if hasattr(error, "_render_traceback_"):
                    raise
                raise tracebacks.Interrupted(f"Interrupted %{method.__name__}.") from None

        bordered.needs_local_scope = "names" in needs  # type: ignore[attr-defined]
        return bordered

    return decorate
