"""Faithfulness: whether the parts that an explanation names move the output, measured by hiding them.

Owns the deletion and insertion curves (Petsiuk, Das and Saenko 2018, https://arxiv.org/abs/1806.07421) against random orders, and the
verdict. It predicts nothing: like `black_box`, a generator yields batches and is sent their outputs.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Final

import numpy as np

from aiaas_magics.core.explain_settings import METHODS, ExplainSettings
from aiaas_magics.explain import players, row_plans
from aiaas_magics.explain.attributions import Arrays, Attributions, OnProgress, Predict, bytes_per_row, no_progress
from aiaas_magics.explain.black_box import answered
from aiaas_magics.explain.coalitions import Coalitions
from aiaas_magics.explain.players import Game
from aiaas_magics.explain.prediction_batches import PredictBatch, PredictionBatches
from aiaas_magics.explain.row_plans import RowPlan

MOST_STEPS: Final = 20  # points of a curve; guess: enough to see its form
RANDOM_ORDERS: Final = 5  # per row; guess
MOST_ROWS: Final = 50  # guess: the areas' mean is steady by then
COMPLETE: Final = 0.05  # of the mean distance from the base value; guess
SANE: Final = 0.7  # rank correlation with a model of random weights; guess. Adebayo et al. draw no line
ERRORS: Final = 2.0  # standard errors that a difference must exceed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Faithfulness:
    """How the output changes when the parts of rows are hidden in the order that an explanation gives.

    Args:
        fractions: float64 (points,): the part of a row that is hidden (deletion) or shown (insertion), 0 to 1.
        deletion: float64 (rows, points): the output while parts are hidden, the most important first. Low is good.
        insertion: the same while parts are shown, the most important first. High is good.
        random: the same while parts are hidden in random order, mean of `RANDOM_ORDERS`.
        completeness: mean distance of the sum of attributions from the output minus the base value, as a part of the mean distance of the
            outputs from the base value; None for methods that do not promise it.
        sanity: rank correlation with the explanation of the same model with random weights; None where it was not measured.
        evaluations: rows that were predicted for it.
    """

    method: str
    fractions: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray
    random: np.ndarray
    completeness: float | None = None
    sanity: float | None = None
    evaluations: int = 0

    @property
    def deletion_area(self) -> float:
        """Mean area below the deletion curves."""
        return float(self._areas(self.deletion).mean())

    @property
    def insertion_area(self) -> float:
        """Mean area below the insertion curves."""
        return float(self._areas(self.insertion).mean())

    @property
    def random_area(self) -> float:
        """Mean area below the curves of random orders; the same for hiding and for showing."""
        return float(self._areas(self.random).mean())

    @property
    def gains(self) -> np.ndarray:
        """float64 (rows,): by how much each row's two areas are better than at random, in sum."""
        return np.asarray(self._areas(self.insertion) - self._areas(self.deletion))

    @property
    def failures(self) -> tuple[str, ...]:
        """What is wrong, a clause each; empty where nothing is."""
        reasons = []
        if self.verdict == "fails":
            reasons.append("hiding what it names first changes the output no more than hiding parts at random")
        if self.completeness is not None and self.completeness > COMPLETE:
            reasons.append(f"the attributions miss the output by {self.completeness:.0%}")
        if self.sanity is not None and self.sanity > SANE:
            reasons.append(f"a model with random weights gets nearly the same explanation (rank correlation {self.sanity:.2f})")
        return tuple(reasons)

    @property
    def verdict(self) -> str:
        """ "holds", "fails", or "unclear" where the rows disagree by more than the gain."""
        gains = self.gains
        mean = float(gains.mean())
        if not mean > 0:
            return "fails"
        error = float(gains.std(ddof=1)) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
        return "holds" if mean > ERRORS * error else "unclear"

    def _areas(self, curves: np.ndarray) -> np.ndarray:
        return np.asarray(np.trapezoid(curves, self.fractions, axis=1))


FaithfulnessRequests = Generator[PredictBatch, np.ndarray, Faithfulness]


def measure_faithfulness(
    predict: Predict,
    inputs: Arrays,
    background: Arrays | None,
    attributions: Attributions,
    settings: ExplainSettings,
    on_progress: OnProgress = no_progress,
) -> Faithfulness:
    """Hide and show the parts of rows in the order of their attributions, and at random.

    Args:
        predict: as for `black_box_attributions`; the output that was explained.
        inputs: the rows that were explained; the first `MOST_ROWS` are measured.
        background: hidden entries take its typical row: the mean of floats, the most frequent integer. Zeros without one.
    """
    return answered(faithfulness_requests(inputs, background, attributions, settings), predict, on_progress)


def faithfulness_requests(
    inputs: Arrays, background: Arrays | None, attributions: Attributions, settings: ExplainSettings
) -> FaithfulnessRequests:
    """The batches of `measure_faithfulness`: yields each, is sent its outputs, and returns what was measured."""
    few = [np.asarray(array)[:MOST_ROWS] for array in inputs]
    stand_in = players.typical_row(background, few) or [np.zeros_like(array[:1]) for array in few]
    games = players.games_of(players.players_of(few, patch=1), few, stand_in)
    signed = METHODS[attributions.method].signed
    plans, steps = [], MOST_STEPS
    fractions = np.linspace(0, 1, steps + 1)
    for row, game in enumerate(games):
        orders = [np.argsort(-importance_of(game, attributions, row), kind="stable")]
        rng = row_plans.row_generator(game.row, settings.seed)
        orders += [rng.permutation(game.total) for _ in range(RANDOM_ORDERS)]
        plans.append(
            _CurvePlan(
                method="curve",
                game=game,
                coalitions=_hiding(game, orders, fractions),
                target=int(attributions.targets[row]),
                base=0.0,
                output=float(attributions.outputs[row]),
            )
        )
    batches = PredictionBatches(len(games), settings.rows_per_batch(bytes_per_row(few)))
    outputs = yield from batches.solved(plans)
    curves = np.stack(outputs).reshape(len(games), 2 + RANDOM_ORDERS, steps + 1)
    if not signed:  # a part that speaks against the output is important as well: what counts is how far the output moves
        explained = attributions.outputs[: len(games), None, None].astype(np.float64)
        curves = explained - np.abs(curves - explained)
    return Faithfulness(
        method=attributions.method,
        fractions=fractions,
        deletion=curves[:, 0],
        insertion=curves[:, 1],
        random=curves[:, 2:].mean(axis=1),
        completeness=completeness_of(attributions),
        evaluations=batches.evaluations,
    )


class _CurvePlan(RowPlan):
    """A plan whose solution is the outputs themselves."""

    def solve(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values.mean(axis=1))


def completeness_of(attributions: Attributions) -> float | None:
    """Mean completeness error as a part of the mean distance from the base value; None without that promise."""
    errors = attributions.completeness_errors
    if errors is None:
        return None
    distance = float(np.abs(attributions.outputs.astype(np.float64) - attributions.base).mean())
    return float(errors.mean()) / distance if distance > 0 else float(errors.mean())


def importance_of(game: Game, attributions: Attributions, row: int) -> np.ndarray:
    """float64 (players of the game,): the sum of each one's attributions; places of an image and moments of a series are players here."""
    numeric = np.zeros(game.players.count)
    words: list[np.ndarray] = []
    for group, values in zip(game.players.groups, attributions.values, strict=True):
        if group is None:
            words.append(np.nan_to_num(values[row]))
        else:
            numeric += np.bincount(group.ravel(), weights=values[row].ravel().astype(np.float64), minlength=game.players.count)
    spoken = [np.resize(text, len(own)) for text, own in zip(words, (own for own in game.words if own is not None), strict=True)]
    return np.concatenate([numeric, *spoken])


def _hiding(game: Game, orders: list[np.ndarray], fractions: np.ndarray) -> Coalitions:
    """Coalitions of the curves: hidden in the first order, shown in it, hidden in each random order."""
    hidden_counts = np.round(fractions * game.total).astype(int)
    first, *others = (np.argsort(order) for order in orders)  # each player's place in the order
    shown = [
        first[None] >= hidden_counts[:, None],
        first[None] < hidden_counts[:, None],
        *(places[None] >= hidden_counts[:, None] for places in others),
    ]
    return Coalitions(np.concatenate(shown)[:, game.active], np.ones(len(shown) * len(fractions)))
