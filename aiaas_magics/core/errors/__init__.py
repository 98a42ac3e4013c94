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
    │   ├── NotOnEngine           a fit that was asked for on an engine and cannot run there
    │   ├── DataMismatch          x, y and weights that do not fit together
    │   ├── DataEnded             batches that a kernel sends do not come any more
    │   ├── JobStillRunning       the model is being trained elsewhere
    │   ├── ChangedTooMuch        fewer bits change a model's answers beyond the limit
    │   ├── ResultMismatch        a result that does not fit the model
    │   ├── PrivateNameGone       a framework's release that we do not fit
    │   └── VersionSkew           the two sides cannot understand each other
    ├── CellError             fix the cell
    │   └── RemoteTrainingError   the user's code raised in a worker
    ├── BackendError          ask whoever runs the backend, or wait
    │   ├── BackendUnreachable    nobody answers
    │   │   └── BackendNotProven      another program answers
    │   ├── WrongProtocol         TLS on one side only
    │   ├── CertificateRefused    nobody vouches for the certificate
    │   ├── CertificateChanged    another certificate than the accepted one
    │   ├── BackendTooSlow        no answer in time
    │   ├── BackendStopped        its process was stopped (SIGSTOP)
    │   ├── BackendRefused        an answer that says no
    │   ├── UntrustedAddress      the backend names another machine
    │   ├── NotAuthorised         the token is missing or wrong
    │   ├── RoleTooLow            the token is right, its role does not include that
    │   ├── QuotaExceeded         more than a user may have
    │   ├── NotEnoughDevices      fewer devices than workers
    │   ├── CannotStart           the local server did not come up
    │   ├── StoreNotWritable      the state folder cannot be written
    │   ├── RecordsUnreadable     the server's records are damaged, or of a newer version
    │   ├── ResultRemoved         a result that was removed to make room
    │   ├── BlobDamaged           bytes that do not match their name
    │   ├── WorkersLost           workers died more often than they may
    │   ├── OutOfMemory           the machine ended a worker for its memory
    │   ├── ProofFailed           the engine's answers differ from Keras'
    │   ├── SignatureRefused      a deployment that no trusted key has signed
    │   └── NotScaled             fewer replicas could start than were asked for
    ├── JobCancelled          the user stopped it
    └── AiaasBug              ask us

Arguments go to `super().__init__`, so that pickling works; the text is made in
`__str__`. The second sentence of each text names the next move.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiaas_magics.core.errors.backend_errors import (
    BackendError,
    BackendNotProven,
    BackendRefused,
    BackendStopped,
    BackendTooSlow,
    BackendUnreachable,
    BlobDamaged,
    CannotStart,
    CertificateChanged,
    CertificateRefused,
    NotAuthorised,
    NotEnoughDevices,
    NotScaled,
    OutOfMemory,
    ProofFailed,
    QuotaExceeded,
    RecordsUnreadable,
    ResultRemoved,
    RoleTooLow,
    SignatureRefused,
    StoreNotWritable,
    UntrustedAddress,
    WorkersLost,
    WrongProtocol,
)
from aiaas_magics.core.errors.cell_errors import CellError, RemoteTrainingError
from aiaas_magics.core.errors.error_root import AiaasBug, AiaasError, JobCancelled
from aiaas_magics.core.errors.usage_errors import (
    CannotTravel,
    ChangedTooMuch,
    DataEnded,
    DataMismatch,
    InvalidName,
    InvalidSpec,
    JobStillRunning,
    NotCompiled,
    NotOnEngine,
    PrivateNameGone,
    ResultMismatch,
    UnknownName,
    UsageError,
    VersionSkew,
)

__all__ = [
    "AiaasBug",
    "AiaasError",
    "BackendError",
    "BackendNotProven",
    "BackendRefused",
    "BackendStopped",
    "BackendTooSlow",
    "BackendUnreachable",
    "BlobDamaged",
    "CannotStart",
    "CannotTravel",
    "CellError",
    "CertificateChanged",
    "CertificateRefused",
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
    "NotOnEngine",
    "NotScaled",
    "OutOfMemory",
    "PrivateNameGone",
    "ProofFailed",
    "QuotaExceeded",
    "RecordsUnreadable",
    "RemoteTrainingError",
    "ResultMismatch",
    "ResultRemoved",
    "RoleTooLow",
    "SignatureRefused",
    "StoreNotWritable",
    "UnknownName",
    "UntrustedAddress",
    "UsageError",
    "VersionSkew",
    "WorkersLost",
    "WrongProtocol",
]


def rebuilt(kind: str, args: Sequence[object]) -> AiaasError | None:
    """The error of the other side, which sent the name of its class and its arguments; None where that is none of ours."""
    if kind not in __all__:
        return None
    try:
        error = globals()[kind](*args)
        str(error)
    except Exception:  # noqa: BLE001 - border: what the other side sent may be anything, and a class may do anything with it
        return None
    return error if isinstance(error, AiaasError) else None
