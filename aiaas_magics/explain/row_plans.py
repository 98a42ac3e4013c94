"""Row plans: what is evaluated for one row, and what its outputs say.

Owns the choice of coalitions by method, the row's own random numbers, and solving. Batches belong to `prediction_batches`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aiaas_magics.core.explain_settings import ExplainSettings
from aiaas_magics.explain import coalitions, players
from aiaas_magics.explain.coalitions import Coalitions
from aiaas_magics.explain.players import Game


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What an explained output should be.

    Args:
        value: the output itself, or with `is_class` whether the explained class is the true one: 1 or 0.
    """

    value: float
    is_class: bool

    def losses(self, outputs: np.ndarray) -> np.ndarray:
        """Squared error, or cross-entropy of the probability that the true class has."""
        if not self.is_class:
            return np.asarray((outputs - self.value) ** 2)
        chance = outputs if self.value == 1 else 1 - outputs
        return np.asarray(-np.log(np.clip(chance, 1e-7, 1.0)))  # 1e-7: Keras' epsilon for the same loss


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowPlan:
    """What is evaluated for one row.

    Args:
        target: the column of the flattened output.
        base: mean output with every player hidden; NaN where the method has none.
        output: the row's own output.
    """

    method: str
    game: Game
    coalitions: Coalitions
    target: int
    base: float
    output: float
    orders: np.ndarray | None = None
    label: Label | None = None

    def solve(self, values: np.ndarray) -> np.ndarray:
        """Contributions of the active players; `values` is float64 (coalitions, stand-ins)."""
        if self.orders is not None:
            return coalitions.permutation_values(self.orders, values.mean(axis=1), base=self.base, output=self.output)
        if self.method == "kernel_shap":
            return coalitions.kernel_values(self.coalitions, values.mean(axis=1), base=self.base, output=self.output)
        if self.method == "occlusion":
            return np.asarray(self.output - values.mean(axis=1))
        if self.label is None:
            return np.asarray(np.abs(values - self.output).mean(axis=1))
        return np.asarray(self.label.losses(values).mean(axis=1) - self.label.losses(np.array(self.output)))


def plan_row(game: Game, settings: ExplainSettings, *, target: int, base: float, output: float, label: Label | None = None) -> RowPlan:
    """The coalitions that the method evaluates for one row."""
    method, count = settings.resolved_method, len(game.active)
    rng = row_generator(game.row, settings.seed)
    orders = None
    if method == "kernel_shap":
        chosen = coalitions.kernel_coalitions(count, settings.samples, rng)
    elif method == "permutation_shap":
        orders = coalitions.permutation_orders(count, settings.samples, rng)
        chosen = coalitions.permutation_coalitions(orders)
    else:
        chosen = coalitions.all_but_one(count)
    return RowPlan(method=method, game=game, coalitions=chosen, target=target, base=base, output=output, orders=orders, label=label)


def coalition_count(count: int, settings: ExplainSettings) -> int:
    """Most coalitions that a row of `count` players takes."""
    match settings.resolved_method:
        case "kernel_shap":
            most = settings.samples or coalitions.default_samples(count)
            return min(most, max(2**count - 2, 0)) if count < 31 else most
        case "permutation_shap":
            return 2 * (settings.samples or coalitions.PERMUTATIONS) * max(count - 1, 0)
        case _:
            return count


def row_generator(row: Sequence[np.ndarray], seed: int) -> np.random.Generator:
    """The random numbers of one row: the same in any batch, in any place."""
    digest = hashlib.blake2b(digest_size=8)
    for cell in row:
        array = np.asarray(cell)
        digest.update(array.dtype.str.encode() + repr(array.shape).encode())
        digest.update(repr(array.item()).encode() if players.is_text(array) else np.ascontiguousarray(array).tobytes())
    return np.random.default_rng([seed, int.from_bytes(digest.digest(), "little")])


def labels_of(labels: np.ndarray | None, outputs: np.ndarray, *, columns: int) -> list[Label | None]:
    """What each explained output should be.

    Args:
        labels: classes or values (rows,), or one-hot rows.
        outputs: float64 (rows,), each row's explained output; with several columns that of its true class.
    """
    if labels is None:
        return [None] * len(outputs)
    flat = np.asarray(labels).reshape(len(outputs), -1)
    are_chances = bool(((outputs >= 0) & (outputs <= 1)).all())
    if columns > 1:
        return [Label(value=1.0, is_class=are_chances)] * len(outputs)
    is_class = are_chances and bool(np.isin(flat[:, 0], (0, 1)).all())
    return [Label(value=float(value), is_class=is_class) for value in flat[:, 0]]
