"""Specifications: the values that client and server exchange.

Owns what is asked (`FitSpec`, `DeploySpec`) and what is answered (`JobView`, `EndpointView`). How workers carry a fit out
belongs to `execution`, what happens in between to `events`, what went wrong to `remote_error`, turning values into bytes to
`wire`.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

from msgspec import field
from msgspec.structs import replace

from aiaas_magics.core.drift.drift_values import DriftReference
from aiaas_magics.core.errors import InvalidName, InvalidSpec
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.explain_settings import ExplainSettings
from aiaas_magics.core.model_card import ModelCard
from aiaas_magics.core.plain_text import visible
from aiaas_magics.core.precision import Precision
from aiaas_magics.core.recording import RecordingPolicy
from aiaas_magics.core.routing import Rollout, Routing
from aiaas_magics.core.value import Value

NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)
FOLDER: Final = re.compile(r"[^/\0][^\0]{0,4000}")
SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


def checked_name(kind: str, name: str) -> str:
    """`name` itself, if it may name `kind`; raises `InvalidName` otherwise."""
    if not NAME.fullmatch(name):
        raise InvalidName(kind, name)
    return name


def checked_job_name(name: str) -> str:
    """`name` itself, if it may name a job: any text that shows as it is. Raises `InvalidSpec` otherwise.

    Asked where a job is handed in, not by `FitSpec`: a server reads its records of before.
    """
    if visible(name) != name or "\n" in name or "\t" in name:
        raise InvalidSpec(f"{name[:80]!r} cannot name a job: it holds a control character. Give another --name, or name the model anew.")
    return name


# --------------------------------------------------------------------------- who and where


class Device(Value, frozen=True, kw_only=True):
    """A GPU, or one core of the CPU."""

    kind: str  # "cpu" | "gpu"
    index: int
    name: str
    simulated: bool = False


class Versions(Value, frozen=True, kw_only=True):
    """What runs on one side. An empty string means: not installed there."""

    python: str
    keras: str
    tensorflow: str
    aiaas_magics: str
    engines: dict[str, str] = field(default_factory=dict)  # the installed training engines, each with its library's version

    def skew(self, other: Versions, *whats: str) -> str | None:
        """The first of `whats` whose x.y is another one `there`; what travels by its inner state needs the same."""
        return next((name for name in whats if getattr(self, name).split(".")[:2] != getattr(other, name).split(".")[:2]), None)


class About(Value, frozen=True, kw_only=True):
    """What a backend says of itself."""

    backend: str  # "local", or the server's host name
    protocol: int  # the number of the protocol that it speaks
    versions: Versions
    devices: tuple[Device, ...]  # those that jobs can get
    hardware: str  # one line for captions: "2 cores, Intel Xeon"
    memory_bytes: int  # of the machine, or of the container
    started_s: float  # unix time
    dropbox: str | None = None  # a folder that a client of the same account may put blobs in

    @property
    def gpus(self) -> bool:
        return any(device.kind == "gpu" for device in self.devices)


# --------------------------------------------------------------------------- what is asked


class FitShape(Value, frozen=True, kw_only=True):
    """How much work a fit call is; for showing and for planning, not for training."""

    rows: int
    global_batch: int
    steps_per_epoch: int
    initial_epoch: int
    epochs: int
    parameters: int
    model: str  # name of the model's class or of the model

    @property
    def steps(self) -> int:
        """Of the whole fit."""
        return max(0, self.epochs - self.initial_epoch) * self.steps_per_epoch


class MeasureSpec(Value, frozen=True, kw_only=True):
    """One point of a study: steady steps, timed, instead of a whole training run.

    `steps` of 0 lets the worker choose as many steps as fit in `budget_s` (at least 3). The result
    holds the weights after `warmup_steps`, to be compared with those of another n;
    `plain` runs the stock `fit` on the arrays themselves with all cores, nothing of ours in between;
    `compare` measures every form of the steps that the execution leaves open: a `Candidate` each, and then the plan.
    """

    steps: int = 0
    warmup_steps: int = 3
    repeats: int = 3
    budget_s: float = 1.0
    plain: bool = False
    compare: bool = False


MOST_RETRIES: Final = 100  # guess: who needs more has another problem


class FitSpec(Value, frozen=True, kw_only=True):
    """One fit call, or one explain call, as submitted.

    `payload` and `arrays` name blobs (SHA-256); the n-th array stands for the n-th
    placeholder inside the payload. `workers` of None means one worker with every device.
    """

    name: str
    payload: str
    arrays: tuple[str, ...]
    shape: FitShape
    versions: Versions
    seed: int  # below 0: see `row_order`
    workers: int | None = None
    oversubscribe: bool = False
    retries: int = 3  # attempts that a lost worker may cost beyond the first
    resume_job: str = ""  # an ended job whose last checkpoint this one goes on from
    execution: Execution = Execution()
    explain: ExplainSettings | None = None  # the call is an explain call, and the result its attributions
    measure: MeasureSpec | None = None
    study: str | None = None
    notes: tuple[str, ...] = ()  # what was announced before the run
    memory_bytes: int = 0  # estimate for one worker, beyond the libraries themselves
    sets_environment: bool = True  # variables travel within the payload
    record: str = ""  # blob: see `TrainingRecord`; "" from a client that keeps none
    folders: tuple[str, ...] = ()  # relative; a worker finds them around it, as callbacks found them beside the notebook

    def __post_init__(self) -> None:
        if not 0 <= self.retries <= MOST_RETRIES:
            raise InvalidSpec(f"retries={self.retries}: between 0 and {MOST_RETRIES} are possible. Leave it out for 3.")
        if self.workers is not None and self.workers < 1:
            raise InvalidSpec(f"workers={self.workers}: at least one worker is needed. Leave --workers out to use every core.")
        if self.execution.strategy == "single" and (self.workers or 1) > 1:
            raise InvalidSpec(f"strategy='single' is one worker, {self.workers} were asked for. Leave one of the two out.")
        if not 0 < len(self.name) <= 100:
            raise InvalidSpec("A job's name has 1 to 100 characters. Give a shorter --name.")
        if any(not FOLDER.fullmatch(folder) or ".." in folder.split("/") for folder in self.folders):
            raise InvalidSpec("A folder of a job is a relative path without '..'. Leave it out.")
        if self.execution.private is not None and self.measure is not None and self.measure.plain:
            raise InvalidSpec("Plain fit, the reference of a study, is not private. Measure without --private.")
        for sha in (self.payload, *self.arrays, *filter(None, (self.record,))):
            if not SHA256.fullmatch(sha):
                raise InvalidSpec(f"{sha[:80]!r} is not a SHA-256. Send the blob first and use the name it got.")


class TensorSpec(Value, frozen=True, kw_only=True):
    """A tensor of an interface. `shape` has -1 for a free dimension; dim 0 is the batch."""

    name: str
    dtype: str  # numpy's name: "float32"
    shape: tuple[int, ...]
    original: str = ""  # its name in Keras, where a signature cannot have that one

    @property
    def dimensions(self) -> tuple[str, ...]:
        """In words: the batch comes first, other free dimensions may have any size."""
        return tuple("rows" if place == 0 and n < 0 else "any" if n < 0 else str(n) for place, n in enumerate(self.shape))


class Signature(Value, frozen=True, kw_only=True):
    """An Ed25519 signature of a deployment; see `integrity`."""

    key: str  # the public key's line as OpenSSH writes it, without a comment
    signature: str  # base64
    signed_s: int  # unix time


class DeploySpec(Value, frozen=True, kw_only=True):
    """A model to be served, as submitted: both blobs were exported where the model lives."""

    name: str
    artefact: str  # blob: an ONNX file, or a zip of a SavedModel
    format: str  # "onnx" | "saved_model"
    samples: str  # blob: safetensors with "input/<name>" and "output/<name>"
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    replicas: int = 1
    most_replicas: int = 0  # the load decides on their number, from `replicas` up to this; 0: it stays
    max_delay_us: int = 0  # how long the first request of a batch may be held back for company
    rollout: Rollout = Rollout()
    precision: Precision = Precision()  # with the tolerance of the proof
    model: str = ""  # what it is called in the notebook, for showing
    origin: str = "Keras"  # what computed the answers of the samples
    example: str = ""  # a row of the sample as JSON, for calls to paste; "" where it is long
    recording: RecordingPolicy | None = None  # None: as the endpoint has it; off for a new one
    reference: DriftReference | None = None  # what its data were like, for drift
    card: ModelCard | None = None  # what is known of the model
    signature: Signature | None = None
    trusted_keys: tuple[str, ...] = ()  # public keys, one of which must have signed this version and the next ones of the endpoint

    def __post_init__(self) -> None:
        checked_name("an endpoint", self.name)
        for name, (least, most) in {"replicas": (1, 64), "most_replicas": (0, 64), "max_delay_us": (0, 1_000_000)}.items():
            if not least <= (value := getattr(self, name)) <= most:
                raise InvalidSpec(f"{name}={value}: between {least} and {most} are possible. Use {least} to start with.")


class RecordingChange(Value, frozen=True, kw_only=True):
    """What is to be recorded of an endpoint from now on.

    Args:
        policy: None leaves it as it is.
        reference: what the data of `version` were like; None leaves those of all versions as they are.
    """

    policy: RecordingPolicy | None = None
    reference: DriftReference | None = None
    version: int = 0

    def applied(self, spec: DeploySpec, version: int) -> DeploySpec:
        """`spec`, that of a version of the endpoint, from now on."""
        is_meant = self.reference is not None and version == self.version
        return replace(spec, recording=self.policy or spec.recording, reference=self.reference if is_meant else spec.reference)


# --------------------------------------------------------------------------- what is answered


class JobState(StrEnum):
    QUEUED = "queued"  # waiting for devices
    RUNNING = "running"  # an attempt is alive
    STOPPING = "stopping"  # asked to stop, workers still alive
    SUCCEEDED = "succeeded"  # finished as asked
    FAILED = "failed"  # gave up; `reason` says why
    CANCELLED = "cancelled"  # stopped because the user asked

    @property
    def final(self) -> bool:
        return self in FINAL_STATES


FINAL_STATES: Final = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


class JobView(Value, frozen=True, kw_only=True):
    """A job as the backend sees it now."""

    id: str
    spec: FitSpec
    state: JobState
    reason: str = ""  # why it waits, failed or was cancelled
    attempt: int = 0  # the latest one; 0 before the first
    created_s: float  # unix time
    started_s: float | None = None  # unix time
    ended_s: float | None = None  # unix time
    last_seq: int = 0  # sequence number of the newest entry of its log
    result: str | None = None  # blob: see `FitResult`
    files: tuple[str, ...] = ()  # relative paths that callbacks wrote
    removed_s: float | None = None  # unix time: when result, files and log were removed to make room
    owner: str = ""  # the user whose token submitted it; "" is the server's own account


class StoragePart(Value, frozen=True, kw_only=True):
    """One kind of thing in a state folder. `freeable_bytes` are what nothing needs."""

    contents: str
    bytes: int
    count: int = 0
    freeable_bytes: int = 0


class StorageView(Value, frozen=True, kw_only=True):
    """What a state folder holds, and the disk that it is on."""

    folder: str
    parts: tuple[StoragePart, ...]
    disk_bytes: int
    free_bytes: int
    keep_free_bytes: int  # of them, what is to stay free


class Freed(Value, frozen=True, kw_only=True):
    """What was given back to the disk."""

    bytes: int
    blobs: int  # how many
    results: int  # of how many jobs


class CheckpointView(Value, frozen=True, kw_only=True):
    """What an ended job left to go on from: the first step that is left to do, and the variables by their names."""

    job: str
    epoch: int
    step: int
    variables: tuple[TensorSpec, ...]


class VersionView(Value, frozen=True, kw_only=True):
    """A version of an endpoint, as the backend sees it now."""

    version: int  # from 1
    state: str  # TF Serving's words: START, LOADING, AVAILABLE, UNLOADING, END
    engine: str  # "onnx" | "saved_model"
    created_s: float  # unix time
    artefact: str  # blob: the exported model
    samples: str = ""  # blob: its sample rows and answers; "" from a server that does not say
    proof: float  # largest absolute difference on the samples: from Keras, or from the reduced form as the kernel computed it
    precision: Precision = Precision()
    replicas: int = 0  # now; 0 from a server that does not say
    withdrawn: bool = False  # its endpoint does not answer until it is loaded again, whatever the state says
    signer: str = ""  # fingerprint of the key that signed it; "" if nobody did
    signed_s: float = 0.0  # unix time
    fault: str = ""  # why it could not be brought back after a restart

    @property
    def shown_state(self) -> str:
        """The state as people read it."""
        return "WITHDRAWN" if self.withdrawn and self.state == "AVAILABLE" else self.state


class EndpointView(Value, frozen=True, kw_only=True):
    """An endpoint as the backend sees it now."""

    name: str
    url: str  # the inference server's base URL, without a trailing slash
    token: str  # bearer token for predictions
    replicas: int  # executors of each version
    versions: tuple[VersionView, ...]
    inputs: tuple[TensorSpec, ...]  # name, dtype and shape of each; -1 is any number of rows
    outputs: tuple[TensorSpec, ...]
    routing: Routing | None = None  # which version is live, previous or canary, and the labels
    model: str = ""  # what the model is called in the notebook
    origin: str = "Keras"  # what computed the answers of the samples
    example: str = ""  # a row of the sample as JSON; "" where it is long
    grpc: str = ""  # host:port of the same models over gRPC
    recording: RecordingPolicy = RecordingPolicy()  # what is kept of requests and answers
    owner: str = ""  # the user who deployed it; "" is the server's own account
    groups: tuple[str, ...] = ()  # whose members may see it and ask it

    @property
    def predict_url(self) -> str:
        """Where its predictions are asked for, in TensorFlow Serving's form."""
        return f"{self.url}/v1/models/{self.name}:predict"

    @property
    def withdrawn(self) -> bool:
        """Whether it was unloaded: its versions are there and answer nobody until it is loaded again."""
        return any(version.withdrawn for version in self.versions)


# --------------------------------------------------------------------------- what went wrong
