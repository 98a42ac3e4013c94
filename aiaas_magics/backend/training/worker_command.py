"""Worker command and worker lines: the values in the files of an attempt's folder.

Owns the two values. Writing and reading the files belongs to `workers`.
"""

from __future__ import annotations

from aiaas_magics.core.events import AnyEvent
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.explain_settings import ExplainSettings
from aiaas_magics.core.spec import MeasureSpec
from aiaas_magics.core.value import Value


class WorkerCommand(Value, frozen=True, kw_only=True):
    """Everything that one rank of one attempt needs to know."""

    job: str
    attempt: int
    rank: int
    ranks: int
    attempt_dir: str
    job_dir: str
    payload: str  # path of the blob
    arrays: tuple[str, ...]  # paths of the blobs, `.npy` files
    checks: tuple[str, ...] = ()  # XXH3 of the payload and of each array; "" where it is not known
    seed: int
    cores: tuple[int, ...] = ()  # to pin to; empty: do not pin
    gpus: tuple[int, ...] = ()  # the only ones to see; empty: none
    devices: int = 1  # that this process drives: GPUs, or simulated ones where there are none
    execution: Execution = Execution()
    resume_from: str | None = None  # a checkpoint's folder
    explain: ExplainSettings | None = None
    measure: MeasureSpec | None = None
    reduce_name: str = ""  # names the shared memory of this attempt
    folders: tuple[str, ...] = ()  # to make in the working directory
    sets_environment: bool = True  # variables come with the payload, which count when TensorFlow starts
    choices: str = ""  # the folder of what was measured before


class WorkerLine(Value, frozen=True, kw_only=True):
    """One line of an event file."""

    at_s: float
    event: AnyEvent
