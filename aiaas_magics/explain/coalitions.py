"""Coalitions: which players of a row are shown, and what follows from the outputs.

Owns the arithmetic of Kernel SHAP, permutation SHAP and of leaving out one player at a time. It predicts nothing, so that it is tested with
lists; `black_box` predicts.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Final

import numpy as np

EXACT_PLAYERS: Final = 11  # 2,046 coalitions; up to as many players all are evaluated by default and the values are exact
PERMUTATIONS: Final = 10  # as the shap library's default, each walked in both directions
ROUNDING: Final = 1e-12  # of the largest output: what the equations leave of a 0 in float64
DRAWS: Final = 10  # background rows per player of permutation importance; guess


@dataclass(frozen=True, slots=True, eq=False)
class Coalitions:
    """Who is shown, and the weight of each coalition in the regression of Kernel SHAP.

    Args:
        shown: bool (coalitions, players).
        weights: float64 (coalitions,).
        is_exact: whether every coalition is there, so that the Shapley values are exact.
    """

    shown: np.ndarray
    weights: np.ndarray
    is_exact: bool = False


def default_samples(players: int) -> int:
    """Coalitions per row: all of them for few players, otherwise as many as the shap library takes."""
    return 2**players - 2 if players <= EXACT_PLAYERS else 2 * players + 2**11


def kernel_coalitions(players: int, samples: int, rng: np.random.Generator) -> Coalitions:
    """Coalitions for Kernel SHAP (Lundberg and Lee 2017, https://arxiv.org/abs/1705.07874).

    All of them where `samples` allows it. Otherwise sizes are filled from the outside in, as their weight is largest there, and the rest is
    drawn by weight, each coalition with its complement (Covert and Lee 2021, https://arxiv.org/abs/2012.01536).
    """
    samples = samples or default_samples(players)
    if players <= 1:
        return Coalitions(np.zeros((0, players), dtype=bool), np.zeros(0), is_exact=True)
    if players < 31 and 2**players - 2 <= samples:
        return _every_coalition(players)
    return _sampled(players, max(samples, 2), rng)


@functools.lru_cache(maxsize=32)
def _every_coalition(players: int) -> Coalitions:
    codes = np.arange(1, 2**players - 1)
    shown = (codes[:, None] >> np.arange(players)) & 1 == 1
    return Coalitions(shown, np.array([_kernel_weight(players, int(size)) for size in shown.sum(axis=1)]), is_exact=True)


def _kernel_weight(players: int, size: int) -> float:
    return (players - 1) / (math.comb(players, size) * size * (players - size))


def _sampled(players: int, samples: int, rng: np.random.Generator) -> Coalitions:
    """Whole sizes while they fit, then pairs of a coalition and its complement."""
    sizes = np.arange(1, players // 2 + 1)
    mass = (players - 1) / (sizes * (players - sizes))  # of all coalitions of a size
    mass = np.where(2 * sizes == players, mass, 2 * mass)
    mass /= mass.sum()
    shown: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    budget, whole = samples, 0
    for size, share in zip(sizes, mass, strict=True):
        both = math.comb(players, int(size)) * (1 if 2 * size == players else 2)
        if both > budget * share / mass[whole:].sum() + 1e-8:
            break
        rows = _of_size(players, int(size))
        shown.append(rows if 2 * size == players else np.concatenate([rows, ~rows]))
        weights.append(np.full(len(shown[-1]), share / both))
        budget, whole = budget - both, whole + 1
    if whole < len(sizes) and budget >= 2:
        drawn = _drawn_pairs(players, sizes[whole:], mass[whole:] / mass[whole:].sum(), budget // 2, rng)
        unique, counts = np.unique(drawn, axis=0, return_counts=True)
        shown.append(unique)
        weights.append(mass[whole:].sum() * counts / counts.sum())
    return Coalitions(np.concatenate(shown), np.concatenate(weights))


def _of_size(players: int, size: int) -> np.ndarray:
    members = np.array(list(itertools.combinations(range(players), size)))
    rows = np.zeros((len(members), players), dtype=bool)
    np.put_along_axis(rows, members, True, axis=1)
    return rows


def _drawn_pairs(players: int, sizes: np.ndarray, mass: np.ndarray, pairs: int, rng: np.random.Generator) -> np.ndarray:
    """`pairs` coalitions and their complements."""
    size = rng.choice(sizes, size=pairs, p=mass)
    ranks = np.argsort(rng.random((pairs, players)), axis=1)
    rows = np.zeros((pairs, players), dtype=bool)
    np.put_along_axis(rows, ranks, np.arange(players)[None] < size[:, None], axis=1)
    return np.concatenate([rows, ~rows])


def kernel_values(coalitions: Coalitions, values: np.ndarray, *, base: float, output: float) -> np.ndarray:
    """Shapley values of the players: weighted least squares under the constraint that they sum to `output - base`.

    Args:
        values: float64 (coalitions,): the mean output of each coalition.

    >>> every = kernel_coalitions(2, 0, np.random.default_rng(0))
    >>> kernel_values(every, np.array([1.0, 0.0]), base=0.0, output=4.0).tolist()
    [2.5, 1.5]
    """
    players = coalitions.shown.shape[1]
    gain = output - base
    if players <= 1:
        return np.full(players, gain)
    shown = coalitions.shown.astype(np.float64)
    design = shown[:, :-1] - shown[:, -1:]  # the last player is what the constraint leaves
    target = values - base - shown[:, -1] * gain
    weighted = design * coalitions.weights[:, None]
    normal = design.T @ weighted
    others = np.linalg.lstsq(normal, weighted.T @ target, rcond=None)[0]
    solved = np.append(others, gain - others.sum())
    largest = max(float(np.abs(values).max()), abs(base), abs(output))
    return np.where(np.abs(solved) <= ROUNDING * largest, 0.0, solved)


def permutation_orders(players: int, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Orders in which players are shown, int64 (orders, players): each drawn order and its reverse."""
    orders = np.array([rng.permutation(players) for _ in range(samples or PERMUTATIONS)]).reshape(-1, players)
    return np.concatenate([orders, orders[:, ::-1]])


def permutation_coalitions(orders: np.ndarray) -> Coalitions:
    """The players shown after each step of each order, without the first (nobody) and the last (everybody)."""
    count, players = orders.shape
    place = np.argsort(orders, axis=1)
    steps = np.arange(1, players)
    shown = place[:, None, :] < steps[None, :, None]
    return Coalitions(shown.reshape(-1, players), np.ones(count * max(players - 1, 0)))


def permutation_values(orders: np.ndarray, values: np.ndarray, *, base: float, output: float) -> np.ndarray:
    """Shapley values estimated by the mean gain of each player over all orders (Strumbelj and Kononenko 2014)."""
    count = len(orders)
    path = np.concatenate([np.full((count, 1), base), values.reshape(count, -1), np.full((count, 1), output)], axis=1)
    gains = np.diff(path, axis=1)
    placed = np.zeros_like(gains)
    np.put_along_axis(placed, orders, gains, axis=1)
    return np.asarray(placed.mean(axis=0))


def all_but_one(players: int) -> Coalitions:
    """Each player hidden alone."""
    return Coalitions(~np.eye(players, dtype=bool), np.ones(players))
