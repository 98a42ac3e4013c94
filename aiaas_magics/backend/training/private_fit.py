"""Private fit: what DP-SGD needs to know of one `fit` in a worker, on any engine.

Owns the secret, the sizes and the callback that says what was spent. Clipping and noise belong to the engines
(`private_jax_steps`, `private_tensorflow_steps`), epsilon to `core.privacy_accountant`.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, field
from typing import Any, Final

import keras
from msgspec.structs import replace

from aiaas_magics.backend.training.comm.process_group import ProcessGroup
from aiaas_magics.backend.training.private_sampling import PoissonSampling
from aiaas_magics.backend.training.unpacked_fit import Unpacked
from aiaas_magics.backend.training.worker_command import WorkerCommand
from aiaas_magics.core import privacy_accountant
from aiaas_magics.core.privacy import EPSILON_LOG, Privacy, PrivateSteps, sampling_of
from aiaas_magics.packing.data.batch_shapes import shape_rows, training_rows

CHUNK_ELEMENTS: Final = 2**24  # numbers that the gradients of one chunk's rows may have: 64 MiB in single precision (guess)
SEED_STRIDE: Final = 0x9E3779B1  # 2**32 / golden ratio: other random numbers (dropout) for each row, far from those of its neighbors
CHUNKS: Final = 4  # a batch falls into so many, so that the last, half-filled one costs an eighth (guess)
LEAST_CHUNK: Final = 16  # fewer rows per call cost more in calls than they spare in padding (guess)
WORD_BITS: Final = 48  # a broadcast carries a float, which holds 53 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateFit:
    """One `fit` by DP-SGD.

    Args:
        secret: draws and noise follow from it. It is no seed of the user's: who knows it can take the noise off.
        rows: of the training data.
        batch: rows that a step is expected to draw; the noisy sum of clipped gradients is divided by it.
        chunk: rows whose gradients one rank holds at a time.
    """

    privacy: Privacy
    secret: int = field(repr=False)
    rows: int
    batch: int
    chunk: int
    first_epoch: int

    @property
    def deviation(self) -> float:
        """Of the noise on the sum of clipped gradients."""
        return self.privacy.noise * self.privacy.clip

    @property
    def sampling(self) -> PoissonSampling:
        return PoissonSampling(secret=self.secret, chunk=self.chunk)

    @property
    def noise_key(self) -> tuple[int, int]:
        """Two words of 31 bits for a generator of noise, apart from the draws'."""
        mixed = (self.secret * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) % 2**64 ^ (self.secret >> 64)
        return mixed >> 33, mixed & 0x7FFF_FFFF

    def spent(self, steps: int) -> float:
        """Epsilon after so many steps of this fit, with those of earlier fits."""
        own_steps = PrivateSteps(sampling=sampling_of(self.rows, self.batch), noise=self.privacy.noise, steps=steps)
        return privacy_accountant.epsilon_of([*self.privacy.earlier, own_steps], self.privacy.delta)


def private_fit(command: WorkerCommand, call: Unpacked, group: ProcessGroup | None) -> PrivateFit | None:
    """What `command` asks of its `fit`; None where that is not private. Every rank calls it."""
    privacy = command.execution.private
    if privacy is None:
        return None
    rows = training_rows(call.arguments)
    batch = min(rows, shape_rows(call.arguments))
    if not privacy.noise:  # who submits a job without a kernel of ours may leave it to us
        first, last = int(call.arguments.get("initial_epoch") or 0), int(call.arguments.get("epochs", 1))
        steps = max(1, last - first) * int(call.arguments.get("steps_per_epoch") or math.ceil(rows / batch))
        noise = privacy_accountant.noise_for(privacy.epsilon, privacy.delta, sampling=sampling_of(rows, batch), steps=steps)
        privacy = replace(privacy, noise=noise)
    parameters = sum(math.prod(variable.shape) for variable in call.model.trainable_variables)
    together = command.execution.runs_on.has_one_program  # its processes compute each chunk together
    devices = command.devices * (command.ranks if together else 1)
    return PrivateFit(
        privacy=privacy,
        secret=_secret(privacy, group),
        rows=rows,
        batch=batch,
        chunk=chunk_rows(batch if together else -(-batch // command.ranks), parameters=parameters, devices=devices),
        first_epoch=int(call.arguments.get("initial_epoch") or 0),
    )


def chunk_rows(batch: int, *, parameters: int, devices: int = 1) -> int:
    """How many rows' gradients are held at once: a part of the batch, and no more than memory should be asked for.

    Args:
        batch: rows expected.
        devices: that share each chunk; the answer is a multiple.

    >>> chunk_rows(256, parameters=10_000)
    64
    """
    fits = max(1, CHUNK_ELEMENTS // max(1, parameters))
    rows = min(fits, max(LEAST_CHUNK, -(-batch // CHUNKS)))
    return -(-rows // devices) * devices


def _secret(privacy: Privacy, group: ProcessGroup | None) -> int:
    """From the operating system, and the same on every rank; a test's own where it has given one."""
    if privacy.noise_seed is not None:
        return privacy.noise_seed
    words = [secrets.randbits(WORD_BITS) for _ in range(3)]
    if group is not None:
        words = [int(group.broadcast(float(word), site=f"private-{place}")) for place, word in enumerate(words)]
    return sum(word << WORD_BITS * place for place, word in enumerate(words))


class PrivacyLog(keras.callbacks.Callback):  # type: ignore[misc]
    """Puts the epsilon that was spent so far into the logs of each epoch. First in the list of callbacks, so that all others see it.

    It counts by the epoch's number, not by what this process has done: a resumed training goes on counting.
    """

    def __init__(self, fit: PrivateFit) -> None:
        super().__init__()
        self._fit = fit

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if logs is not None:
            steps = (epoch + 1 - self._fit.first_epoch) * int(self.params.get("steps") or 0)
            logs[EPSILON_LOG] = self._fit.spent(steps)
