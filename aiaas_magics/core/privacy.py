"""Differential privacy of a training: what was asked for, and what has been spent.

Owns the values and how they are read from text. The arithmetic of epsilon belongs to `privacy_accountant`, clipping and noise to
the engines, what may not be trained privately to `packing.checks.private_checks`.
"""

from __future__ import annotations

import math
from typing import Final

from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.value import Value

EXAMPLE: Final = "epsilon=2,delta=1e-5"
CLIP: Final = 1.0  # Abadi et al. 2016 try 0.5 to 5; with gradients of one row, 1 is what most libraries begin with
MOST_EPSILON: Final = 100.0  # guess: beyond that, no noise that an accountant can tell from none
MOST_NOISE: Final = 1e3  # guess: a model that nothing can be learned by
EPSILON_LOG: Final = "privacy_epsilon"  # in `History`, events and callbacks


class PrivateSteps(Value, frozen=True, kw_only=True):
    """Steps of DP-SGD: each takes each row with probability `sampling`, and adds Gaussian noise of `noise` times the clipping norm."""

    sampling: float
    noise: float
    steps: int


class Privacy(Value, frozen=True, kw_only=True):
    """Training by DP-SGD (Abadi et al., "Deep Learning with Differential Privacy", 2016), as asked for.

    Two data sets are neighbors if one has a row more. Each step takes each row independently (Poisson sampling), computes the
    gradient of each taken row, clips it to L2 norm `clip`, adds them up, adds Gaussian noise and divides by `batch_size`.

    Args:
        epsilon: the budget of this fit, above 0; 0 where `noise` is given instead.
        delta: the probability that is left over, above 0 and below 1; less than 1 / rows is usual.
        clip: the L2 norm that the gradient of a row is clipped to.
        noise: the noise multiplier: standard deviation of the noise on the sum, divided by `clip`. 0 has it calibrated from `epsilon`.
        earlier: private steps that the model has made in earlier fits; `privacy_epsilon` counts them too.
        noise_seed: for tests only: who knows it can take the noise off. None draws a secret one in the worker.

    Raises:
        InvalidSpec: values that give no guarantee.
    """

    delta: float
    epsilon: float = 0.0
    clip: float = CLIP
    noise: float = 0.0
    earlier: tuple[PrivateSteps, ...] = ()
    noise_seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise InvalidSpec(f"delta={self.delta:g} gives no guarantee. Use a value above 0 and below 1 / rows, such as delta=1e-5.")
        if not 0 < self.clip < math.inf:
            raise InvalidSpec(f"clip={self.clip:g} cannot clip a gradient. Use a norm above 0, such as clip=1.0.")
        if self.noise and not 0 < self.noise <= MOST_NOISE:
            raise InvalidSpec(f"noise={self.noise:g} is no noise multiplier. Use a value above 0, such as noise=1.1, or epsilon instead.")
        if not self.noise and not 0 < self.epsilon <= MOST_EPSILON:
            raise InvalidSpec(
                f"epsilon={self.epsilon:g} is no budget. Use a value above 0 and at most {MOST_EPSILON:g}, such as epsilon=2."
            )


class PrivacySpent(Value, frozen=True, kw_only=True):
    """The guarantee that a trained model has: (`epsilon`, `delta`) for adding or removing one row of its training data.

    `fits` are the private steps that it is made of, one entry per fit. It says nothing of metrics, validation rows or preprocessing.
    """

    epsilon: float
    delta: float
    clip: float
    fits: tuple[PrivateSteps, ...]
    sampling: str = "Poisson"
    accountant: str = "PLD (connect-the-dots), add or remove one row"


def privacy_of(text: str) -> Privacy:
    """The value that `epsilon=2,delta=1e-5[,clip=1.0]` or `noise=1.1,delta=1e-5` stands for.

    Raises:
        InvalidSpec: with what was written.

    >>> privacy_of("epsilon=2,delta=1e-5").clip
    1.0
    """
    values: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in ("epsilon", "delta", "clip", "noise") or name in values:
            raise InvalidSpec(f"{part[:40]!r} is not a part of --private. Write {EXAMPLE}, with clip=1.0 or noise=1.1 where you want them.")
        try:
            values[name] = float(value)
        except ValueError:
            raise InvalidSpec(f"{part[:40]!r} has no number. Write {EXAMPLE}.") from None
    if "delta" not in values:
        raise InvalidSpec(f"--private {text[:60]} has no delta. Write {EXAMPLE}; delta is less than 1 / rows.")
    if ("epsilon" in values) == ("noise" in values):
        raise InvalidSpec(f"--private takes epsilon (noise follows) or noise (epsilon follows), one of the two. Write {EXAMPLE}.")
    if values.get("noise") == 0:
        raise InvalidSpec("noise=0 gives no guarantee. Use a value above 0, such as noise=1.1, or epsilon instead.")
    return Privacy(delta=values["delta"], epsilon=values.get("epsilon", 0.0), clip=values.get("clip", CLIP), noise=values.get("noise", 0.0))


def sampling_of(rows: int, batch: int) -> float:
    """The probability with which each step takes each row."""
    return min(1.0, batch / rows)
