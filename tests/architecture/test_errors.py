"""Every exception survives a trip between processes and names the next move."""

from __future__ import annotations

import pickle
import re

import pytest

from aiaas_magics.core import errors
from aiaas_magics.core.remote_error import ErrorReport

ARGUMENTS: dict[str, tuple[object, ...]] = {
    "AiaasBug": ("the store has no row for job 7",),
    "BackendNotProven": ("http://127.0.0.1:1", "127.0.0.1:2"),
    "BackendRefused": (503, ""),
    "BackendStopped": ("http://127.0.0.1:1", 4711),
    "BackendTooSlow": ("http://127.0.0.1:1", 5.0),
    "BackendUnreachable": ("http://127.0.0.1:1",),
    "BlobDamaged": ("ab" * 32, "its bytes have another hash"),
    "CannotStart": ("The local server", "it ended with code 1", "server.log"),
    "CannotTravel": ("callbacks[1].log", "it is an open file", "Open it in on_train_begin instead."),
    "CertificateChanged": ("https://gpu-box:8443", "AB:CD", "EF:01"),
    "CertificateRefused": ("https://gpu-box:8443", "it has expired", "AB:CD"),
    "ChangedTooMuch": ("int4", "accuracy", 0.04, 0.01, "2,000 rows of validation data"),
    "DataEnded": ("Nothing was heard for 60 s from the kernel. Leave it running.",),
    "DataMismatch": ("x has 3 rows and y has 4. Give both the same number of rows.",),
    "InvalidName": ("an endpoint", "../x"),
    "InvalidSpec": ("workers=0: at least one worker is needed. Leave --workers out to use every core.",),
    "JobCancelled": ("7",),
    "JobStillRunning": ("7", "predict"),
    "NotAuthorised": ("http://127.0.0.1:1",),
    "NotCompiled": ("sequential",),
    "NotEnoughDevices": (4, 2, "local"),
    "NotOnEngine": (
        "JAX",
        "Model has its own train_step, written for TensorFlow",
    ),
    "NotScaled": ("churn", 4, 2, "no memory is left"),
    "OutOfMemory": ("7", 1, "killed by signal 9, the machine's out-of-memory count rose"),
    "PrivateNameGone": ("keras", "3.17.0", "keras.src.trainers.epoch_iterator:EpochIterator", "keras<3.16,>=3.15.1"),
    "ProofFailed": ("churn", "onnx", 0.25, "output 'y', row 3"),
    "QuotaExceeded": ("waiting jobs", 10, 11),
    "RecordsUnreadable": ("state", "the file is damaged (file is not a database)"),
    "RemoteTrainingError": (ErrorReport(type="ValueError", message="bad", ranks=(0, 1)),),
    "ResultRemoved": ("7", "the newest 100, and those of the last 30 days"),
    "ResultMismatch": ("sequential", "it has 6 variables and the result 8"),
    "SignatureRefused": ("churn", "it is not signed"),
    "RoleTooLow": ("user", "viewer"),
    "StoreNotWritable": ("state", "read-only file system"),
    "UnknownName": ("job", "8", ("7", "9")),
    "UntrustedAddress": ("http://127.0.0.1:1/elsewhere", "https://gpu-box:8443"),
    "VersionSkew": ("keras", "3.15.1", "3.14.0"),
    "WorkersLost": ("7", "worker 1 was killed by signal 9", 4),
    "WrongProtocol": ("http://127.0.0.1:8443", "TLS"),
}
FAMILIES = {"AiaasError", "BackendError", "CellError", "UsageError"}
MOVES = ["Add", "Build", "Call", "Check", "Choose", "Close", "Convert", "Did", "Fix", "Give", "Install", "Leave", "Load", "Look", "Open"]
MOVES += ["type", "Run", "See", "Send", "Set", "Stop", "Try", "Type", "Use", "Wait", "Write", "add", "report"]
NEXT_MOVE = re.compile(rf"\b({'|'.join(MOVES)})\b")


def test_every_class_is_listed_here() -> None:
    assert set(ARGUMENTS) | FAMILIES == set(errors.__all__)


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_an_error_survives_pickling_and_names_a_next_move(name: str) -> None:
    error = getattr(errors, name)(*ARGUMENTS[name])

    again = pickle.loads(pickle.dumps(error))

    assert type(again) is type(error)
    assert str(again) == str(error)
    assert NEXT_MOVE.search(str(error)), str(error)
