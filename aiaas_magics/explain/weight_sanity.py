"""Weight sanity: whether an explanation depends on what the model has learned (Adebayo et al. 2018, https://arxiv.org/abs/1810.03292).

Owns the model with random weights and the comparison. The model gets its own weights back, whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from aiaas_magics.explain.agreement_of_methods import flat_rows, mean_agreement, rank_correlation
from aiaas_magics.explain.attributions import Attributions

MODELS: Final = 3  # of random weights; guess


def weight_sanity(model: Any, attributions: Attributions, explain: Callable[[], Attributions]) -> float:
    """Mean rank correlation of the sizes of attributions with those of models with random weights: near 0 is good, near 1 means that the
    explanation shows the input and not the model.

    Args:
        model: a Keras model.
        attributions: of some rows, by the model as it is.
        explain: explains the same rows and targets by the same method with the weights that the model has at that moment.
    """
    own = np.abs(flat_rows(attributions))
    agreements = []
    for seed in range(MODELS):
        with random_weights(model, seed):
            drawn = np.abs(flat_rows(explain()))
        agreements += [rank_correlation(one_row, other_row) for one_row, other_row in zip(own, drawn, strict=True)]
    return mean_agreement(np.array(agreements))


@contextmanager
def random_weights(model: Any, seed: int) -> Iterator[None]:
    """Every trainable weight drawn anew with its own mean and deviation, for the length of the block."""
    rng = np.random.default_rng(seed)
    trained = [np.asarray(variable) for variable in model.trainable_variables]
    try:
        for variable, value in zip(model.trainable_variables, trained, strict=True):
            drawn = rng.normal(value.mean(), value.std() or 0.05, value.shape)  # 0.05: Keras' RandomNormal, for what is constant
            variable.assign(drawn.astype(value.dtype))
        yield
    finally:
        for variable, value in zip(model.trainable_variables, trained, strict=True):
            variable.assign(value)
