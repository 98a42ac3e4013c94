"""Adversarial rows: rows that were changed a little so that a model errs.

Owns the attacks: the fast gradient sign method (FGSM: I. Goodfellow, J. Shlens, C. Szegedy, ICLR 2015) and projected gradient descent
(PGD: A. Madry et al., ICLR 2018), both within a distance of epsilon in each number (the maximum norm).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from aiaas_magics.attacks.attack_gradients import Gradient
from aiaas_magics.attacks.model_losses import BATCH, LabelledRows

STEPS: Final = 20
STEP_SHARE: Final = 2.5  # of epsilon over the steps, as Madry's: a step may go there and back


@dataclass(frozen=True, slots=True)
class Bounds:
    """The smallest and the largest number that a row may have."""

    low: float
    high: float


def fgsm(gradient: Gradient, rows: LabelledRows, epsilon: float, bounds: Bounds) -> np.ndarray:
    """Rows that went `epsilon` along the sign of the loss' gradient, within `bounds`."""
    return _by_batches(rows, lambda x, y: _within(x + epsilon * np.sign(gradient(x, y)), x, epsilon, bounds))


def pgd(gradient: Gradient, rows: LabelledRows, epsilon: float, bounds: Bounds, *, steps: int = STEPS, seed: int = 0) -> np.ndarray:
    """Rows that went `steps` small steps along the sign of the gradient, from a random place and never more than `epsilon` away."""
    draw = np.random.default_rng(seed)

    def attacked(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        moved = _within(x + draw.uniform(-epsilon, epsilon, x.shape).astype(x.dtype), x, epsilon, bounds)
        for _ in range(steps):
            moved = _within(moved + STEP_SHARE * epsilon / steps * np.sign(gradient(moved, y)), x, epsilon, bounds)
        return moved

    return _by_batches(rows, attacked)


def noisy(rows: LabelledRows, epsilon: float, bounds: Bounds, *, seed: int = 0) -> np.ndarray:
    """Rows whose numbers went `epsilon` up or down by chance."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], rows.x.shape).astype(rows.x.dtype)
    return _within(rows.x + epsilon * signs, rows.x, epsilon, bounds)


def _within(moved: np.ndarray, x: np.ndarray, epsilon: float, bounds: Bounds) -> np.ndarray:
    near = np.clip(moved, x - epsilon, x + epsilon)
    bounded: np.ndarray = np.clip(near, bounds.low, bounds.high).astype(x.dtype)
    return bounded


def _by_batches(rows: LabelledRows, attack: Gradient) -> np.ndarray:
    parts = [attack(rows.x[begin : begin + BATCH], rows.y[begin : begin + BATCH]) for begin in range(0, len(rows), BATCH)]
    return np.concatenate(parts)
