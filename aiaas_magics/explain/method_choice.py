"""Method choice: what `auto` stands for, by model and data, and why.

Owns the decision. Finding out whether a model has gradients belongs to whoever has the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from aiaas_magics.core.explain_settings import AUTO, METHODS, ExplainSettings
from aiaas_magics.explain import black_box, coalitions, players
from aiaas_magics.explain.attributions import Arrays

MOST_EVALUATIONS: Final = 20_000_000  # guess: some minutes for a small model
MANY_PLAYERS: Final = 64  # guess: beyond it one player's Shapley value drowns in the noise of sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodChoice:
    """A method, and the sentence that says why it was taken."""

    method: str
    why: str


def choose_method(inputs: Arrays, background: Arrays | None, settings: ExplainSettings, *, has_gradients: bool) -> MethodChoice:
    """The method that `settings` name, or that "auto" stands for.

    Args:
        has_gradients: whether the model is at hand and each of its inputs, or an embedding of it, can be differentiated.

    >>> choose_method([np.zeros((2, 4))], [np.zeros((9, 4))], ExplainSettings(), has_gradients=True).method
    'kernel_shap'
    """
    if settings.method != AUTO:
        return MethodChoice(method=settings.resolved_method, why="")
    count = player_count(inputs, settings)
    texts = any(players.is_text(array) for array in inputs)
    deep = any(array.ndim > 2 for array in inputs)
    if not deep and not texts and count <= coalitions.EXACT_PLAYERS and background is not None:
        shap = settings.with_method("kernel_shap")
        if black_box.planned_evaluations(inputs, background, shap) <= MOST_EVALUATIONS:
            return _choice("kernel_shap", f"with {count} columns every coalition can be evaluated, so the Shapley values are exact")
    if has_gradients:
        return _choice("integrated_gradients", "the model has gradients, and whether these attributions sum to the output can be checked")
    if deep:
        return _choice("occlusion", f"only predictions are to be had, and hiding {count} parts takes {count} evaluations per row")
    if count <= MANY_PLAYERS:
        return _choice("kernel_shap", f"only predictions are to be had, and {count} {'words' if texts else 'columns'} are few enough")
    return _choice("permutation_shap", f"only predictions are to be had, and {count} {'words' if texts else 'columns'} are many")


def player_count(inputs: Arrays, settings: ExplainSettings) -> int:
    """Players of the longest row."""
    words = [max(len(players.words_of(np.asarray(cell).item())) for cell in array) for array in inputs if players.is_text(array)]
    return players.players_of(inputs, patch=settings.patch).count + sum(words)


def _choice(method: str, why: str) -> MethodChoice:
    return MethodChoice(method=method, why=f"auto chose {METHODS[method].title}: {why}.")
