"""Errors of the backend: ask whoever runs it, or wait.

Owns the classes and their sentences. Who turns a foreign library's failure into one of them is decided where that library lives.
"""

from __future__ import annotations

from aiaas_magics.core.errors.error_root import AiaasError


class BackendError(AiaasError):
    """The backend cannot do it now."""


class BackendUnreachable(BackendError):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.url = url

    def __str__(self) -> str:
        return f"Could not reach a backend at {self.url}. Check the address, or run %aiaas_connect local to use this machine."


class BackendNotProven(BackendUnreachable):
    """What answers at the backend's address has not shown that it knows the token; it was sent neither token nor data.

    Attributes:
        address: Where it says that it listens, if it does know the token; else "".
    """

    def __init__(self, url: str, address: str = "") -> None:
        AiaasError.__init__(self, url, address)
        self.url, self.address = url, address

    def __str__(self) -> str:
        if self.address:
            return (
                f"The backend behind {self.url} listens at {self.address}, so another program may be in between. Nothing was sent. "
                "Use the same address and port at both ends of a tunnel, and put them in the URL."
            )
        return (
            f"The server at {self.url} could not prove that it knows the token: it is another program, or the token belongs to another "
            "backend. Nothing was sent to it. Set AIAAS_TOKEN to the output of `aiaas token` there, or run %aiaas_connect local to use "
            "this machine."
        )


class WrongProtocol(BackendError):
    """One side speaks TLS and the other does not; nothing was sent. `speaks` is "TLS" or "no TLS", of the other side."""

    def __init__(self, url: str, speaks: str) -> None:
        super().__init__(url, speaks)
        self.url, self.speaks = url, speaks

    def __str__(self) -> str:
        if self.speaks == "TLS":
            return f"The server at {self.url} speaks TLS. Nothing was sent. Use https{self.url.removeprefix('http')} instead."
        return f"The server at {self.url} does not speak TLS. Nothing was sent. Check the port; plain http:// is for this machine only."


class CertificateRefused(BackendError):
    """A certificate that nobody vouches for; nothing was sent. `why` is a clause, `fingerprint` its SHA-256, if it could be seen."""

    def __init__(self, url: str, why: str, fingerprint: str = "") -> None:
        super().__init__(url, why, fingerprint)
        self.url, self.why, self.fingerprint = url, why, fingerprint

    def __str__(self) -> str:
        text = f"The certificate of {self.url} was rejected: {self.why}. Nothing was sent."
        if not self.fingerprint:
            return f"{text} Set AIAAS_CA to the PEM file of the authority that signed it."
        return (
            f"{text}\nIts SHA-256 fingerprint is {self.fingerprint}\nIf `aiaas serve` printed the same fingerprint there, type\n"
            f"    %aiaas_connect {self.url} --fingerprint {self.fingerprint}\n"
            "Or set AIAAS_CA to the PEM file of the authority that signed it."
        )


class CertificateChanged(BackendError):
    """Another certificate than the one that was accepted; nothing was sent."""

    def __init__(self, url: str, pinned: str, presented: str) -> None:
        super().__init__(url, pinned, presented)
        self.url, self.pinned, self.presented = url, pinned, presented

    def __str__(self) -> str:
        return (
            f"{self.url} shows a different certificate from the accepted one. "
            "Nothing was sent: someone may be intercepting the connection.\n"
            f"accepted: {self.pinned}\nseen:     {self.presented}\n"
            f"If the certificate was replaced on purpose, and `aiaas serve` printed the second fingerprint there, type\n"
            f"    %aiaas_connect {self.url} --fingerprint {self.presented}"
        )


class BackendTooSlow(BackendError):
    def __init__(self, url: str, waited_s: float = 0.0) -> None:
        super().__init__(url, waited_s)
        self.url, self.waited_s = url, waited_s

    def __str__(self) -> str:
        return f"{self.url} did not answer within {self.waited_s:g} s. Try again, or check the server with `aiaas status`."


class BackendStopped(BackendError):
    """The server's process is there and was stopped (SIGSTOP), so that it does nothing."""

    def __init__(self, url: str, pid: int) -> None:
        super().__init__(url, pid)
        self.url, self.pid = url, pid

    def __str__(self) -> str:
        return (
            f"The server at {self.url} (process {self.pid}) is stopped (SIGSTOP) and cannot answer. "
            f"Run `kill -CONT {self.pid}` to resume it, or `aiaas stop` to end it."
        )


class BackendRefused(BackendError):
    """The backend understood and said no; the text is the backend's own.

    Attributes:
        retry_after_s: How long it asks to be left alone before the next try; 0 where it does not say.
    """

    def __init__(self, status: int, text: str, retry_after_s: float = 0.0) -> None:
        super().__init__(status, text)
        self.status, self.text, self.retry_after_s = status, text, retry_after_s

    def __str__(self) -> str:
        return self.text or f"The backend answered {self.status} and gave no reason. Check the server with `aiaas status`."


class NotAuthorised(BackendError):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.url = url

    def __str__(self) -> str:
        return f"{self.url} rejected the token. Set AIAAS_TOKEN to the output of `aiaas token` there, then connect again."


class RoleTooLow(BackendError):
    """The token is right, and its role does not include what was asked for. `needed` and `role` are roles, or what a token is for."""

    def __init__(self, needed: str, role: str) -> None:
        super().__init__(needed, role)
        self.needed, self.role = needed, role

    def __str__(self) -> str:
        return (
            f"This takes the role {self.needed!r}, and your token has {self.role!r}. "
            "Use another token, or ask an admin of the backend: `aiaas user role` changes it. %aiaas_status shows who you are."
        )


class QuotaExceeded(BackendError):
    """A user's quota does not allow it. `what` is a plural noun, `limit` the quota, `would_be` what it would have come to."""

    def __init__(self, what: str, limit: float, would_be: float) -> None:
        super().__init__(what, limit, would_be)
        self.what, self.limit, self.would_be = what, limit, would_be

    def __str__(self) -> str:
        return (
            f"Your quota on this backend is {self.limit:,.15g} {self.what}, and this would make {self.would_be:,.15g}. "
            "Wait for jobs to end, remove what you no longer need, or ask an admin: `aiaas user quota` changes it."
        )


class UntrustedAddress(BackendError):
    """Where a backend says that its endpoints answer is not its own machine; nothing was sent there."""

    def __init__(self, named: str, url: str) -> None:
        super().__init__(named, url)
        self.named, self.url = named, url

    def __str__(self) -> str:
        return (
            f"The backend at {self.url} says that its endpoints are at {self.named[:80]!r}, which is a different scheme or machine. "
            "Nothing was sent there. Check who runs this backend, or connect to it at the address that it names."
        )


class NotEnoughDevices(BackendError):
    """The backend is healthy but does not have this many devices."""

    def __init__(self, requested: int, there_are: int, backend: str) -> None:
        super().__init__(requested, there_are, backend)
        self.requested, self.there_are, self.backend = requested, there_are, backend

    def __str__(self) -> str:
        return (
            f"{self.backend} has {self.there_are} devices, fewer than the {self.requested} workers requested. "
            f"Use --workers {self.there_are}, or add --oversubscribe to share devices."
        )


class CannotStart(BackendError):
    """A process of ours did not come up. `log_tail` is what it said last."""

    def __init__(self, subject: str, why: str, log: str) -> None:
        super().__init__(subject, why, log)
        self.subject, self.why, self.log = subject, why, log

    def __str__(self) -> str:
        return f"{self.subject} did not start: {self.why}. Check its log, {self.log}, or run `aiaas serve` in a terminal."


class StoreNotWritable(BackendError):
    def __init__(self, folder: str, why: str) -> None:
        super().__init__(folder, why)
        self.folder, self.why = folder, why

    def __str__(self) -> str:
        if "space" in self.why or "full" in self.why or "quota" in self.why:
            return (
                f"The state folder {self.folder} has no room: {self.why}. "
                "Run %aiaas_storage --free to remove what nothing needs, or set AIAAS_HOME to a folder with more space."
            )
        return f"The state folder {self.folder} cannot be written: {self.why}. Set AIAAS_HOME to a folder that you own."


class RecordsUnreadable(BackendError):
    """The records of a state folder are damaged, or of a newer version; nothing in them was changed. `why` has them as its subject."""

    def __init__(self, folder: str, why: str) -> None:
        super().__init__(folder, why)
        self.folder, self.why = folder, why

    def __str__(self) -> str:
        return (
            f"The records in {self.folder} cannot be used: {self.why}. "
            f"Set them aside with `aiaas storage --set-aside-records --state {self.folder}`, which forgets jobs and endpoints but deletes "
            "nothing. Or use the version that wrote them."
        )


class ResultRemoved(BackendError):
    """A job whose result was removed to make room."""

    def __init__(self, job: str, retention: str) -> None:
        super().__init__(job, retention)
        self.job, self.retention = job, retention

    def __str__(self) -> str:
        return f"The result of job {self.job} was removed to make room: kept are {self.retention}. Run the cell again to retrain."


class BlobDamaged(BackendError):
    """Bytes on the backend that are not those that were sent; nothing was trained on them."""

    def __init__(self, sha: str, why: str) -> None:
        super().__init__(sha, why)
        self.sha, self.why = sha, why

    def __str__(self) -> str:
        return f"Blob {self.sha[:12]} is damaged: {self.why}. Run the cell again to send it again."


class WorkersLost(BackendError):
    def __init__(self, job: str, how: str, attempts: int) -> None:
        super().__init__(job, how, attempts)
        self.job, self.how, self.attempts = job, how, attempts

    def __str__(self) -> str:
        return (
            f"Job {self.job} failed after {self.attempts} attempts: {self.how}. Run %aiaas_logs {self.job} to see the workers' last output."
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
    """The engine's answers on the sample inputs differ from Keras' own, or from those of `origin` where there is no Keras model."""

    def __init__(self, name: str, engine: str, largest: float | None, detail: str, origin: str = "Keras") -> None:
        # `largest` is None where no number says it: another shape, NaN on one side only, no answer at all.
        super().__init__(name, engine, largest, detail, origin)
        self.name, self.engine, self.largest, self.detail, self.origin = name, engine, largest, detail, origin

    def __str__(self) -> str:
        by = "" if self.largest is None else f" by {self.largest:.3g}"
        return (
            f"{self.name} was not deployed: the {self.engine} engine differs from {self.origin}{by} ({self.detail}). "
            "Deploy the part of the model before the layer that differs, or report the model to us."
        )


class SignatureRefused(BackendError):
    """A deployment whose signature is missing, wrong, or of a key that is not trusted; it was not loaded. `why` is a clause."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(name, why)
        self.name, self.why = name, why

    def __str__(self) -> str:
        return f"{self.name} was not loaded: {self.why}. Use %aiaas_deploy --sign KEY with a key that is trusted there."


class NotScaled(BackendError):
    """An endpoint keeps the replicas that it had, because one of the new ones could not start."""

    def __init__(self, name: str, replicas: int, version: int, why: str) -> None:
        super().__init__(name, replicas, version, why)
        self.name, self.replicas, self.version, self.why = name, replicas, version, why

    def __str__(self) -> str:
        return (
            f"{self.name} keeps its present replicas: could not start {self.replicas} replicas of version {self.version}. "
            f"Use fewer replicas, or deploy the model again. Reason: {self.why}"
        )
