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

    def __init__(self, kind: str, name: str, names: Sequence[str] = ()) -> None:
        super().__init__(kind, name, names)
        self.kind, self.name, self.names = kind, name, tuple(names)

    def __str__(self) -> str:
        import difflib

        close = difflib.get_close_matches(self.name, self.names, n=1)
        if close:
            return f"There is no {self.kind} {self.name[:80]!r}. Did you mean {close[0]!r}?"
        if self.names:
            shown = ", ".join(sorted(self.names)[:8])
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


class NotOnEngine(UsageError):
    """An engine was asked for by name, and this fit cannot run on it, or would not compute the same."""

    def __init__(self, engine: str, why: str) -> None:
        super().__init__(engine, why)
        self.engine, self.why = engine, why

    def __str__(self) -> str:
        return f"This fit cannot run on {self.engine}: {self.why}. Leave --engine and --strategy out to train on TensorFlow."


class DataMismatch(UsageError, ValueError):
    """x, y and weights that do not fit together: a `ValueError` in Keras. The argument is the whole sentence, next move included."""


class DataEnded(UsageError):
    """Batches that a kernel sends do not come any more. The argument is the whole sentence, next move included."""


class JobStillRunning(UsageError):
    """The model is being trained by a job whose result was not taken yet."""

    def __init__(self, job: str, action: str) -> None:
        super().__init__(job, action)
        self.job, self.action = job, action

    def __str__(self) -> str:
        return f"{self.action} on a model that job {self.job} is still training. Call job.result() first, or job.cancel()."


class ChangedTooMuch(UsageError):
    """Fewer bits change a model's answers beyond the limit; nothing was sent. `what` is what was judged, `on` the rows."""

    def __init__(self, precision: str, measure: str, by: float, limit: float, on: str) -> None:
        super().__init__(precision, measure, by, limit, on)
        self.precision, self.measure, self.by, self.limit, self.on = precision, measure, by, limit, on

    def __str__(self) -> str:
        other = {"int4": "Use --precision int8", "int8": "Use --precision float16"}.get(self.precision, "Leave --precision out")
        return (
            f"Nothing was deployed: {self.precision} changes {self.measure} by {self.by:.3g} on {self.on}, more than the limit of "
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

    def __init__(self, library: str, local_version: str, remote_version: str) -> None:
        super().__init__(library, local_version, remote_version)
        self.library, self.local_version, self.remote_version = library, local_version, remote_version

    def __str__(self) -> str:
        versions = f"{self.library} is {self.local_version} here and {self.remote_version} on the backend."
        return f"{versions} Install the same version on both sides."
