"""Every exception of the project.

Owns the classes and their sentences. Who raises them, and who turns a foreign
library's failure into one of them, is decided where that library lives.

    AiaasError
    ├── UsageError            type it differently
    │   ├── InvalidSpec           a value that cannot be asked for
    │   ├── InvalidName           a name that is not allowed
    │   ├── UnknownName           a job, endpoint or variable that is not there
    │   ├── NotCompiled           `fit` before `compile`
    │   ├── CannotTravel          an object that cannot be sent to a worker
    │   ├── NotOnJax              a fit that was asked for on JAX and cannot run there
    │   ├── DataMismatch          x, y and weights that do not fit together
    │   ├── DataEnded             batches that a kernel sends do not come any more
    │   ├── JobStillRunning       the model is being trained elsewhere
    │   ├── ChangedTooMuch        fewer bits change a model's answers beyond the limit
    │   ├── ResultMismatch        a result that does not fit the model
    │   └── VersionSkew           the two sides cannot understand each other
    ├── CellError             fix the cell
    │   └── RemoteTrainingError   the user's code raised in a worker
    ├── BackendError          ask whoever runs the backend, or wait
    │   ├── BackendUnreachable    nobody answers
    │   ├── BackendTooSlow        no answer in time
    │   ├── BackendRefused        an answer that says no
    │   ├── NotAuthorised         the token is missing or wrong
    │   ├── NotEnoughDevices      fewer devices than workers
    │   ├── CannotStart           the local server did not come up
    │   ├── StoreNotWritable      the state folder cannot be written
    │   ├── BlobDamaged           bytes that do not match their name
    │   ├── WorkersLost           workers died more often than they may
    │   ├── OutOfMemory           the machine ended a worker for its memory
    │   ├── ProofFailed           the engine's answers differ from Keras'
    │   └── NotScaled             a model could not be opened as often as was asked
    ├── JobCancelled          the user stopped it
    └── AiaasBug              ask us

Arguments go to `super().__init__`, so that pickling works; the text is made in
`__str__`. The second sentence of each text names the next move.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from aiaas_magics.spec import ErrorReport

__all__ = [
    "AiaasBug",
    "AiaasError",
    "BackendError",
    "BackendRefused",
    "BackendTooSlow",
    "BackendUnreachable",
    "BlobDamaged",
    "CannotStart",
    "CannotTravel",
    "CellError",
    "ChangedTooMuch",
    "DataEnded",
    "DataMismatch",
    "InvalidName",
    "InvalidSpec",
    "JobCancelled",
    "JobStillRunning",
    "NotAuthorised",
    "NotCompiled",
    "NotEnoughDevices",
    "NotOnJax",
    "NotScaled",
    "OutOfMemory",
    "ProofFailed",
    "RemoteTrainingError",
    "ResultMismatch",
    "StoreNotWritable",
    "UnknownName",
    "UsageError",
    "VersionSkew",
    "WorkersLost",
]


class AiaasError(Exception):
    """The root: whatever this package raises on purpose."""


class UsageError(AiaasError):
    """What was typed cannot work; nothing was sent, nothing was changed."""


class InvalidSpec(UsageError):
    """A value that cannot be asked for. The argument is the whole sentence, next move included."""


class InvalidName(UsageError):
    """A name that is not allowed for an endpoint, a job or a profile."""

    RULE = "lower-case letters, digits, '.', '_' and '-', starting with a letter or digit, at most 63 characters"

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(kind, name)
        self.kind, self.name = kind, name

    def __str__(self) -> str:
        return f"{self.name[:80]!r} cannot name {self.kind}. Use {self.RULE}."


class UnknownName(UsageError):
    """Nothing of that kind has that name."""

    def __init__(self, kind: str, name: str, known: Sequence[str] = ()) -> None:
        super().__init__(kind, name, known)
        self.kind, self.name, self.known = kind, name, tuple(known)

    def __str__(self) -> str:
        import difflib

        close = difflib.get_close_matches(self.name, self.known, n=1)
        if close:
            return f"There is no {self.kind} {self.name[:80]!r}. Did you mean {close[0]!r}?"
        if self.known:
            shown = ", ".join(sorted(self.known)[:8])
            return f"There is no {self.kind} {self.name[:80]!r}. Use one of: {shown}."
        return f"There is no {self.kind} {self.name[:80]!r}. Use %aiaas_status to see what there is."


class NotCompiled(UsageError, ValueError):
    """`fit` was called on a model without an optimizer and a loss, for which Keras raises a `ValueError`."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model

    def __str__(self) -> str:
        return f"Model {self.model!r} is not compiled. Call model.compile(optimizer=..., loss=...) before fit."


class CannotTravel(UsageError):
    """An object of the fit call that cannot be sent to a worker."""

    def __init__(self, path: str, why: str, next_move: str) -> None:
        super().__init__(path, why, next_move)
        self.path, self.why, self.next_move = path, why, next_move

    def __str__(self) -> str:
        return (
            f"{self.path} cannot be sent to a worker: {self.why}. {self.next_move} Or add --local-fallback to run this fit in the kernel."
        )


class NotOnJax(UsageError):
    """JAX was asked for, and this fit cannot run on it, or would not compute the same."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"This fit cannot run on JAX: {self.why}. Leave --engine and --strategy out to train on TensorFlow."


class DataMismatch(UsageError, ValueError):
    """x, y and weights that do not fit together: a `ValueError` in Keras. The argument is the whole sentence, next move included."""


class DataEnded(UsageError):
    """Batches that a kernel sends do not come any more. The argument is the whole sentence, next move included."""


class JobStillRunning(UsageError):
    """The model is being trained by a job whose result was not taken yet."""

    def __init__(self, job: str, wanted: str) -> None:
        super().__init__(job, wanted)
        self.job, self.wanted = job, wanted

    def __str__(self) -> str:
        return f"{self.wanted} on a model that job {self.job} is still training. Call job.result() first, or job.cancel()."


class ChangedTooMuch(UsageError):
    """Fewer bits change a model's answers beyond the limit; nothing was sent. `what` is what was judged, `on` the rows."""

    def __init__(self, precision: str, what: str, by: float, limit: float, on: str) -> None:
        super().__init__(precision, what, by, limit, on)
        self.precision, self.what, self.by, self.limit, self.on = precision, what, by, limit, on

    def __str__(self) -> str:
        other = {"int4": "Use --precision int8", "int8": "Use --precision float16"}.get(self.precision, "Leave --precision out")
        return (
            f"Nothing was deployed: {self.precision} changes {self.what} by {self.by:.3g} on {self.on}, and {self.limit:g} is the most. "
            f"{other}, or allow more with --max-change."
        )


class ResultMismatch(UsageError):
    """A result whose variables are not those of the model; the model was left as it is. `how` is a clause."""

    def __init__(self, model: str, how: str) -> None:
        super().__init__(model, how)
        self.model, self.how = model, how

    def __str__(self) -> str:
        return f"The result does not fit model {self.model!r}: {self.how}. Build and compile the model as it was when fit was called."


class VersionSkew(UsageError):
    """The two sides run versions that cannot exchange a fit call."""

    def __init__(self, what: str, here: str, there: str) -> None:
        super().__init__(what, here, there)
        self.what, self.here, self.there = what, here, there

    def __str__(self) -> str:
        return f"{self.what} is {self.here} here and {self.there} on the backend. Install the same version on one of the two sides."


class CellError(AiaasError):
    """The user's own code is at fault."""


class RemoteTrainingError(CellError):
    """The user's code raised in a worker. `report` holds the frames; nothing was unpickled.

    It is also an instance of the Python class that was raised, so that `except ValueError` of a cell catches it as it
    catches what plain `fit` raises.
    """

    def __new__(cls, report: ErrorReport) -> Self:
        caught_as = next((name for name in report.bases or (report.type,) if name in _CAUGHT_AS), "")
        both = _remote_class(caught_as) if cls is RemoteTrainingError else cls
        return super(RemoteTrainingError, both).__new__(both, report)  # type: ignore[return-value]

    def __init__(self, report: ErrorReport) -> None:
        super().__init__(report)
        self.report = report

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteTrainingError, (self.report,)

    def __str__(self) -> str:
        return (
            f"{self.report.type}: {self.report.message}\n"
            f"(raised on {self.report.where()}). {remote_move(self.report)}; the model in the kernel is unchanged."
        )


def remote_move(report: ErrorReport) -> str:
    """What to do about an error of the user's code in a worker, as a clause."""
    if (name := report.missing_variable) is not None:
        return f"Workers have the backend's environment: send the kernel's variable with --env {name}, after %env {name}=value"
    return "Fix the cell and run it again"


# Those that a class of ours can be as well. Others want arguments (UnicodeDecodeError), end the kernel (SystemExit),
# or cannot be made together with a class of Python's (MemoryError).
_CAUGHT_AS: Final[Mapping[str, type[BaseException]]] = {
    cls.__name__: cls
    for cls in (
        *(ValueError, TypeError, RuntimeError, NotImplementedError, RecursionError, ArithmeticError, FloatingPointError, OverflowError),
        *(ZeroDivisionError, AssertionError, AttributeError, NameError, UnboundLocalError, LookupError, IndexError, KeyError),
        *(OSError, FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError, TimeoutError),
        *(ConnectionError, BrokenPipeError, ConnectionRefusedError, ConnectionResetError, ConnectionAbortedError),
        *(ImportError, ModuleNotFoundError, EOFError, BufferError, StopIteration, KeyboardInterrupt, Warning, UserWarning),
    )
}


@functools.cache
def _remote_class(name: str) -> type[RemoteTrainingError]:
    """RemoteTrainingError, and Python's class of that name as well."""
    if not name:
        return RemoteTrainingError
    return type(RemoteTrainingError.__name__, (RemoteTrainingError, _CAUGHT_AS[name]), {"__module__": __name__})


class BackendError(AiaasError):
    """The backend cannot do it now."""


class BackendUnreachable(BackendError):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.url = url

    def __str__(self) -> str:
        return f"Nobody answers at {self.url}. Check the address, or use %aiaas_connect local for this machine."


class BackendTooSlow(BackendError):
    def __init__(self, url: str, waited_s: float = 0.0) -> None:
        super().__init__(url, waited_s)
        self.url, self.waited_s = url, waited_s

    def __str__(self) -> str:
        return f"{self.url} did not answer within {self.waited_s:g} s. Try again, or look at its log with `aiaas status`."


class BackendRefused(BackendError):
    """The backend understood and said no; the text is the backend's own.

    Attributes:
        retry_after_s: How long it asks to be left alone before the next try; 0 where it does not say.
    """

    def __init__(self, status: int, text: str, retry_after_s: float = 0.0) -> None:
        super().__init__(status, text)
        self.status, self.text, self.retry_after_s = status, text, retry_after_s

    def __str__(self) -> str:
        return self.text or f"The backend answered {self.status} and gave no reason. Look at its log with `aiaas status`."


class NotAuthorised(BackendError):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.url = url

    def __str__(self) -> str:
        return f"{self.url} does not accept this token. Set AIAAS_TOKEN to the token that `aiaas token` prints there, then connect again."


class NotEnoughDevices(BackendError):
    """The backend is healthy but does not have this many devices."""

    def __init__(self, wanted: int, there_are: int, backend: str) -> None:
        super().__init__(wanted, there_are, backend)
        self.wanted, self.there_are, self.backend = wanted, there_are, backend

    def __str__(self) -> str:
        return (
            f"{self.wanted} workers were asked for and {self.backend} has {self.there_are} devices. "
            f"Use --workers {self.there_are}, or add --oversubscribe to share devices."
        )


class CannotStart(BackendError):
    """A process of ours did not come up. `log_tail` is what it said last."""

    def __init__(self, what: str, why: str, log: str) -> None:
        super().__init__(what, why, log)
        self.what, self.why, self.log = what, why, log

    def __str__(self) -> str:
        return f"{self.what} did not start: {self.why}. Look at its log, {self.log}, or run `aiaas serve` in a terminal."


class StoreNotWritable(BackendError):
    def __init__(self, folder: str, why: str) -> None:
        super().__init__(folder, why)
        self.folder, self.why = folder, why

    def __str__(self) -> str:
        return f"The state folder {self.folder} cannot be written: {self.why}. Set AIAAS_HOME to a folder of yours."


class BlobDamaged(BackendError):
    def __init__(self, sha: str, why: str) -> None:
        super().__init__(sha, why)
        self.sha, self.why = sha, why

    def __str__(self) -> str:
        return f"Blob {self.sha[:12]} is damaged: {self.why}. Run the cell again to send it anew."


class WorkersLost(BackendError):
    def __init__(self, job: str, how: str, attempts: int) -> None:
        super().__init__(job, how, attempts)
        self.job, self.how, self.attempts = job, how, attempts

    def __str__(self) -> str:
        return (
            f"Job {self.job} failed after {self.attempts} attempts: {self.how}. See %aiaas_logs {self.job} for what the workers said last."
        )


class OutOfMemory(BackendError, MemoryError):
    def __init__(self, job: str, rank: int, detail: str) -> None:
        super().__init__(job, rank, detail)
        self.job, self.rank, self.detail = job, rank, detail

    def __str__(self) -> str:
        return (
            f"Worker {self.rank} of job {self.job} ran out of memory ({self.detail}). "
            "Use a smaller batch_size, --accumulate K (the same batch in K parts), fewer workers, or a machine with more memory."
        )


class ProofFailed(BackendError):
    """The engine's answers on the sample inputs differ from Keras' own."""

    def __init__(self, name: str, engine: str, largest: float | None, detail: str) -> None:
        # `largest` is None where no number says it: another shape, NaN on one side only, no answer at all.
        super().__init__(name, engine, largest, detail)
        self.name, self.engine, self.largest, self.detail = name, engine, largest, detail

    def __str__(self) -> str:
        by = "" if self.largest is None else f" by {self.largest:.3g}"
        return (
            f"{self.name} was not deployed: the {self.engine} engine differs from Keras{by} ({self.detail}). "
            "Deploy the part of the model before what differs there, or report the model to us."
        )


class NotScaled(BackendError):
    """An endpoint keeps the executors that it had: one of the new ones could not be opened."""

    def __init__(self, name: str, replicas: int, version: int, why: str) -> None:
        super().__init__(name, replicas, version, why)
        self.name, self.replicas, self.version, self.why = name, replicas, version, why

    def __str__(self) -> str:
        return (
            f"{self.name} answers with the executors that it had: version {self.version} could not be opened {self.replicas} times. "
            f"Use fewer replicas, or deploy the model anew. The reason: {self.why}"
        )


class JobCancelled(AiaasError):
    """The job ended because the user asked for it."""

    def __init__(self, job: str) -> None:
        super().__init__(job)
        self.job = job

    def __str__(self) -> str:
        return f"Job {self.job} was cancelled; the model in the kernel is unchanged. Run the cell again to start over."


class AiaasBug(AiaasError):
    """Something that must not happen, with what is needed to find out why."""

    def __str__(self) -> str:
        return f"{' '.join(map(str, self.args))}. This is a bug in aiaas_magics: please report it with this text."
