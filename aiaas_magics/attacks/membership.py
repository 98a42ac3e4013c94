"""Membership: attacks that ask of a row whether a model was trained on it.

Owns the scores and what a score is worth. The attack by the loss is S. Yeom's (S. Yeom, I. Giacomelli, M. Fredrikson, S. Jha, IEEE CSF
2018), that by the confidence A. Salem's (NDSS 2019). The black-box attack of the adversarial-robustness-toolbox is in `art_attack`.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from aiaas_magics.core import roc_curve
from aiaas_magics.core.attack_values import MembershipAttack, RateAt

FALSE_RATES: Final = (0.01, 0.001)
LEAST_ACCUSED: Final = 5  # other rows beyond the threshold: with fewer a rate is a matter of chance; guess


def judged(name: str, members: np.ndarray, others: np.ndarray, *, threshold: float) -> MembershipAttack:
    """What scores are worth that are high for rows which a model was trained on.

    Args:
        members: scores of rows that it was trained on.
        others: scores of rows that it was not.
        threshold: above which the attack itself says "member".
    """
    auc, low, high = roc_curve.area(members, others)
    rates = []
    for false_rate in FALSE_RATES:
        if false_rate * len(others) >= LEAST_ACCUSED:
            share, share_low, share_high = roc_curve.true_rate_at(members, others, false_rate)
            rates.append(RateAt(false_rate=false_rate, true_rate=share, low=share_low, high=share_high))
    return MembershipAttack(
        name=name,
        auc=auc,
        low=low,
        high=high,
        advantage=float((members >= threshold).mean() - (others >= threshold).mean()),
        rates=tuple(rates),
        curve=roc_curve.curve(members, others),
    )


def by_loss(members: np.ndarray, others: np.ndarray) -> MembershipAttack:
    """A row with a loss of at most the mean loss of the training is called a member."""
    return judged("loss", -members, -others, threshold=-float(members.mean()))


def by_confidence(members: np.ndarray, others: np.ndarray) -> MembershipAttack:
    """A row whose answer is sure is called a member; no target is needed.

    Args:
        members, others: outputs of a classifier, of shape `(rows, classes)` or `(rows, 1)`.
    """
    sure = np.split(_confidence(np.concatenate([members, others])), [len(members)])
    return judged("confidence", *sure, threshold=float(sure[0].mean()))


def _confidence(outputs: np.ndarray) -> np.ndarray:
    """The probability of the answered class; of logits what the softmax gives, of a single logit its distance from 0."""
    flat = outputs.reshape(len(outputs), -1).astype(np.float64)
    is_probability = flat.min() >= 0 and flat.max() <= 1 + 1e-6
    if flat.shape[1] == 1:
        return np.maximum(flat[:, 0], 1 - flat[:, 0]) if is_probability else np.abs(flat[:, 0])
    if not is_probability or np.abs(flat.sum(axis=1) - 1).max() > 1e-3:
        flat = np.exp(flat - flat.max(axis=1, keepdims=True))
        flat /= flat.sum(axis=1, keepdims=True)
    largest: np.ndarray = flat.max(axis=1)
    return largest
