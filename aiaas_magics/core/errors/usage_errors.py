"""Errors of what was typed: type it differently.

Owns the classes and their sentences. Who raises them is decided where the fault is seen.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiaas_magics.core.errors.error_root import AiaasError


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
        return f"There is no {self.kind} {self.name[:80]!r}. Run %aiaas_status to list what exists."


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
            f"Nothing was deployed: {self.precision} changes {self.what} by {self.by:.3g} on {self.on}, more than the limit of "
            f"{self.limit:g}. {other}, or allow more with --max-change."
        )


class ResultMismatch(UsageError):
    """A result whose variables are not those of the model; the model was left as it is. `how` is a clause."""

    def __init__(self, model: str, how: str, move: str = "Build and compile the model as it was when fit was called.") -> None:
        super().__init__(model, how, move)
        self.model, self.how, self.move = model, how, move

    def __str__(self) -> str:
        return f"The result does not fit model {self.model!r}: {self.how}. {self.move}"


class PrivateNameGone(UsageError):
    """A framework's release without something of its inside that we use. `path` is where it was, `supported` what to install."""

    def __init__(self, framework: str, version: str, path: str, supported: str) -> None:
        super().__init__(framework, version, path, supported)
        self.framework, self.version, self.path, self.supported = framework, version, path, supported

    def __str__(self) -> str:
        return (
            f"{self.framework} {self.version} has no {self.path.replace(':', '.')}, which aiaas_magics builds on. "
            f"Install {self.supported!r}, or a newer aiaas_magics."
        )


class VersionSkew(UsageError):
    """The two sides run versions that cannot exchange a fit call."""

    def __init__(self, what: str, here: str, there: str) -> None:
        super().__init__(what, here, there)
        self.what, self.here, self.there = what, here, there

    def __str__(self) -> str:
        return f"{self.what} is {self.here} here and {self.there} on the backend. Install the same version on both sides."
