"""Training record: what a job was trained from and in which environment, as it is stored with the job.

Owns the value and what differs between two. Collecting it belongs to `job_record`, training again from it to `reproduction`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from aiaas_magics.core.execution import Execution
from aiaas_magics.core.spec import Versions
from aiaas_magics.core.value import Value

NOT_INSTALLED: Final = "not installed"


class DataFingerprint(Value, frozen=True, kw_only=True):
    """An array that a fit was given, or that travelled within its model."""

    name: str  # "x", "validation_data[0]"; "in the model" for the model's own
    dtype: str  # numpy's name
    shape: tuple[int, ...]
    sha256: str  # of its .npy file


class TrainingEnvironment(Value, frozen=True, kw_only=True):
    """Where a job was submitted from, and on which backend it runs."""

    python: str  # "3.11.9"
    platform: str  # system and architecture of the kernel: "Linux-6.1-x86_64"
    packages: dict[str, str]  # the kernel's installed distributions, each with its version
    kernel_processor: str
    backend: str  # its name
    hardware: str  # of the backend, one line
    backend_versions: Versions


class TrainingRecord(Value, frozen=True, kw_only=True):
    """What a job was trained from, as its kernel knew it when the job was submitted."""

    created_s: float  # unix time
    where: TrainingEnvironment
    execution: Execution  # as asked for
    workers: int | None  # None: one with every device
    row_seed: int  # below 0: rows come as in plain `fit` with the seed ~row_seed
    random_states: dict[str, str]  # "python", "numpy", "tensorflow", "keras": a hash of each generator's state, or its seed
    model: str
    parameters: int
    payload: str  # SHA-256 of the packed fit call: model, arguments, settings, code
    data: tuple[DataFingerprint, ...]
    code: str = ""  # of the cell; "" from a script
    variables: tuple[str, ...] = ()  # names of the environment variables that were sent
    reads_batches: bool = False  # some data yielded batches instead of being arrays: it has no fingerprint
    is_streamed: bool = False  # some of it came from the kernel, batch by batch, and is kept by nobody


class RecordDifference(Value, frozen=True, kw_only=True):
    """One thing that is another one in the second of two environments."""

    what: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.what}: {self.before or NOT_INSTALLED} then, {self.after or NOT_INSTALLED} now"


def environment_differences(before: TrainingEnvironment, after: TrainingEnvironment) -> tuple[RecordDifference, ...]:
    """What of two environments is not the same: interpreter, machines, versions, packages.

    >>> from aiaas_magics.core.training_record import _changed
    >>> list(map(str, _changed({"numpy": "2.0", "six": "1.0"}, {"numpy": "2.1", "six": "1.0"})))
    ['numpy: 2.0 then, 2.1 now']
    """
    sides = {
        "Python": (before.python, after.python),
        "kernel's system": (before.platform, after.platform),
        "kernel's processor": (before.kernel_processor, after.kernel_processor),
        "backend": (before.backend, after.backend),
        "backend's hardware": (before.hardware, after.hardware),
    }
    own = tuple(RecordDifference(what=what, before=first, after=second) for what, (first, second) in sides.items() if first != second)
    backends = tuple(_changed(_as_mapping(before.backend_versions), _as_mapping(after.backend_versions), suffix=" on the backend"))
    return (*own, *backends, *_changed(before.packages, after.packages))


def _as_mapping(versions: Versions) -> dict[str, str]:
    names = ("python", "keras", "tensorflow", "aiaas_magics")
    return {**{name: getattr(versions, name) for name in names}, **versions.engines}


def _changed(before: Mapping[str, str], after: Mapping[str, str], *, suffix: str = "") -> Iterator[RecordDifference]:
    for name in sorted({*before, *after}):
        if before.get(name, "") != after.get(name, ""):
            yield RecordDifference(what=f"{name}{suffix}", before=before.get(name, ""), after=after.get(name, ""))
