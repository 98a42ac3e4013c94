"""Capture: turns Keras `fit` inside a cell into a fit call, and guards a model while a job trains it.

Owns catching every `fit`. What becomes of it belongs to the caller's
`carry_out`. Making bytes of a fit call belongs to `packing`.

Constructor arguments are not recorded: a fit call travels by the state of its objects
(`packing.fitcall`), so a subclassed model needs neither `get_config` nor its arguments.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from aiaas_magics.core.errors import CannotTravel, DataMismatch, JobStillRunning
from aiaas_magics.packing.checks.fit_checks import JOB_MARK
from aiaas_magics.packing.fitcall.fit_call import FitCall

CarryOut = Callable[[FitCall], Any]

GUARDED: Final = (
    "fit",
    "predict",
    "evaluate",
    "save",
    "save_weights",
    "load_weights",
    "export",
    "train_on_batch",
    "test_on_batch",
    "predict_on_batch",
    "compile",
    "get_weights",
    "set_weights",
)


class KernelTraining:
    """What trained in the kernel while a cell was open: calls by method, with the names of their models."""

    def __init__(self) -> None:
        self._calls: list[tuple[str, str]] = []

    def note(self, method: str, model: Any) -> None:
        self._calls.append((method, str(getattr(model, "name", type(model).__name__))))

    def __bool__(self) -> bool:
        return bool(self._calls)

    def sentence(self) -> str:
        """One sentence with the numbers and names, and the next move."""
        threads = _counted_names([model for method, model in self._calls if method == "fit"])
        batches = _counted_names([model for method, model in self._calls if method == "train_on_batch"])
        parts = [f"{threads[0]} fit{'s' if threads[0] > 1 else ''} of other threads ({threads[1]})"] if threads[0] else []
        parts += [f"{batches[0]} train_on_batch call{'s' if batches[0] > 1 else ''} ({batches[1]})"] if batches[0] else []
        return f"Trained in the kernel: {' and '.join(parts)}. Call fit in the cell's own thread to train on the backend."


def _counted_names(models: list[str]) -> tuple[int, str]:
    names = list(dict.fromkeys(models))
    return len(models), ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


class _Cell:
    """The cell that runs in one thread. While one of its fits is carried out, further ones run in the kernel."""

    def __init__(self, carry_out: CarryOut, *, local_fallback: bool) -> None:
        self._carry_out, self._local_fallback = carry_out, local_fallback
        self.busy = False
        self.in_kernel = KernelTraining()

    def fit(self, original: Callable[..., Any], model: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if self.busy:
            return original(model, *args, **options)
        signature = inspect.signature(original)
        try:
            bound = signature.bind(model, *args, **options)
        except TypeError as error:
            raise TypeError(_wrong_arguments(error, options, signature)) from None
        arguments = dict(list(bound.arguments.items())[1:])
        self.busy = True
        try:
            return self._carry_out(FitCall(model, arguments))
        except Exception as error:
            if not self._local_fallback or not _runs_here_only(error):
                raise
            return original(model, *args, **options)
        finally:
            self.busy = False


_lock: Final = threading.Lock()
_cells: Final[dict[int, _Cell]] = {}  # by thread
_originals: Final[list[Callable[[], None]]] = []  # what puts Keras' own methods back


@contextmanager
def capturing(carry_out: CarryOut, *, local_fallback: bool = False) -> Iterator[KernelTraining]:
    """While open, `fit` of any Keras model in this thread is handed to `carry_out`.

    What `carry_out` returns is what `fit` returns: a `History`, or a `Job`. Other threads,
    and fits that start inside a fit, get Keras' own. With `local_fallback`, a call that
    cannot travel runs in the kernel. The value tells which other threads' fits, and which
    `train_on_batch`, trained in the kernel meanwhile.
    """
    thread = threading.get_ident()
    cell = _Cell(carry_out, local_fallback=local_fallback)
    with _lock:
        before = _cells.get(thread)
        _cells[thread] = cell
        if not _originals:
            _install()
    try:
        yield cell.in_kernel
    finally:
        with _lock:
            del _cells[thread]
            if before is not None:
                _cells[thread] = before
            if not _cells:
                _restore()


def _install() -> None:
    for owner in _owners():
        for name, replacement in (("fit", _captured), ("train_on_batch", _noted)):
            if (original := vars(owner).get(name)) is not None:
                _put(owner, name, replacement, original)


def _restore() -> None:
    while _originals:
        _originals.pop()()


def _put(owner: type, name: str, replacement: Callable[[Callable[..., Any]], Callable[..., Any]], original: Callable[..., Any]) -> None:
    """Let `owner.name`, and whoever took hold of Keras' function before (mlflow's autolog wraps it), come to `replacement`.

    Keras keeps the bare function in a cell of the one that filters tracebacks, which stands in the class.
    """
    inner = _cell_of(original)
    bare = None if inner is None else inner.cell_contents
    method = replacement(original if bare is None else _filtered(bare))
    setattr(owner, name, method)

    def put_back() -> None:
        if vars(owner).get(name) is method:  # and not a wrapper that the cell has put around it
            setattr(owner, name, original)

    _originals.append(put_back)
    if inner is not None and bare is not None:
        inner.cell_contents = replacement(bare)
        _originals.append(functools.partial(setattr, inner, "cell_contents", bare))


def _cell_of(function: Any) -> types.CellType | None:
    """The cell with the function that Keras' filter of tracebacks is around, where `function` is such a filter."""
    bare = getattr(function, "__wrapped__", None)
    return next((cell for cell in getattr(function, "__closure__", None) or () if bare is not None and cell.cell_contents is bare), None)


def _filtered(function: Callable[..., Any]) -> Callable[..., Any]:
    from aiaas_magics.core.internals.keras_internals import filter_traceback

    filtered: Callable[..., Any] = filter_traceback(function)
    return filtered


def _owners() -> Iterator[type]:
    """The classes that define `fit`: the Trainer of Keras' backend, and legacy Keras' Model where it is loaded.

    Not `keras.Model`, which has a `fit` of its own only where somebody has put a wrapper there.
    """
    import keras

    yield next(cls for cls in keras.Model.__mro__[1:] if "fit" in vars(cls) and cls.__module__.startswith("keras."))
    legacy = sys.modules.get("tf_keras")
    if legacy is not None:
        yield next(cls for cls in legacy.Model.__mro__ if "fit" in vars(cls))


def _captured(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def fit(self: Any, *args: Any, **options: Any) -> Any:
        cell = _cells.get(threading.get_ident())
        if cell is not None:
            return cell.fit(original, self, args, options)
        for other in list(_cells.values()):
            other.in_kernel.note("fit", self)
        return original(self, *args, **options)

    return fit


def _noted(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def train_on_batch(self: Any, *args: Any, **options: Any) -> Any:
        for cell in list(_cells.values()):
            cell.in_kernel.note("train_on_batch", self)
        return original(self, *args, **options)

    return train_on_batch


def _wrong_arguments(error: TypeError, options: dict[str, Any], signature: inspect.Signature) -> str:
    """As Python says it of a call, with the argument that may have been meant."""
    unknown = next((name for name in options if name not in signature.parameters), "")
    close = difflib.get_close_matches(unknown, signature.parameters, n=1)
    return f"fit() {error}." + (f" Did you mean {close[0]}?" if close else "")


def _runs_here_only(error: Exception) -> bool:
    from aiaas_magics.packing.checks.fit_checks import UnsuitableKeras

    return isinstance(error, (CannotTravel, DataMismatch, UnsuitableKeras))


# --------------------------------------------------------------------------- models being trained elsewhere


class ModelGuard:
    """Refuses work on a model while a job trains it.

    The refusal is an attribute of the model itself, which Python finds before the class's
    method: nothing is patched, nothing is kept here, and other models pay nothing. Its layers
    are marked, so that another model which has some of them is neither deployed nor trained meanwhile.
    """

    def hold(self, model: Any, job: str) -> None:
        """From now on the model's methods raise `JobStillRunning`."""
        for name in GUARDED:
            vars(model)[name] = _Refusal(job, name)
        for layer in model._flatten_layers():
            vars(layer)[JOB_MARK] = job

    def release(self, model: Any) -> None:
        """The model is usable again. May be called twice."""
        for layer in model._flatten_layers():
            vars(layer).pop(JOB_MARK, None)
        for name in GUARDED:
            if isinstance(vars(model).get(name), _Refusal):
                del vars(model)[name]

    def holds(self, model: Any) -> bool:
        return isinstance(vars(model).get("fit"), _Refusal)


class _Refusal:
    def __init__(self, job: str, operation: str) -> None:
        self._job, self._operation = job, operation

    def __call__(self, *args: Any, **options: Any) -> Any:
        raise JobStillRunning(self._job, self._operation)


guard: Final = ModelGuard()
