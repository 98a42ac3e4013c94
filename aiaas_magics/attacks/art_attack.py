"""ART attack: the black-box membership attack of the adversarial-robustness-toolbox, where it is installed (the extra `attacks`).

Owns the only use of that library. An attack model learns from half of the rows what outputs and loss of members look like, and is judged
on the other half.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from aiaas_magics.attacks.membership import judged
from aiaas_magics.attacks.model_losses import LabelledRows
from aiaas_magics.core.attack_values import MembershipAttack
from aiaas_magics.core.errors import InvalidSpec

NAME = "black box (ART)"


def is_installed() -> bool:
    return importlib.util.find_spec("art") is not None


def black_box(model: Any, members: LabelledRows, others: LabelledRows, *, classes: int, seed: int = 0) -> MembershipAttack:
    """The attack with a random forest.

    Args:
        members, others: rows with their classes, whole numbers from 0.
        classes: how many there are.

    Raises:
        InvalidSpec: the library is not installed.
    """
    if not is_installed():
        raise InvalidSpec("The black-box attack needs the adversarial-robustness-toolbox. Run %pip install 'aiaas_magics[attacks]'.")
    from art.attacks.inference.membership_inference import MembershipInferenceBlackBox
    from art.estimators.classification import BlackBoxClassifier

    def predict(x: np.ndarray) -> np.ndarray:
        outputs = np.asarray(model.predict(x, batch_size=256, verbose=0)).reshape(len(x), -1)
        return np.hstack([1 - outputs, outputs]) if outputs.shape[1] == 1 else outputs

    classifier = BlackBoxClassifier(predict, input_shape=members.x.shape[1:], nb_classes=classes)
    draw = np.random.default_rng(seed)
    halves = [_halves(rows, draw) for rows in (members, others)]
    (member_learn, member_test), (other_learn, other_test) = halves
    attack = MembershipInferenceBlackBox(classifier, attack_model_type="rf")
    state = np.random.get_state()  # the forest draws from the global generator, which is the user's
    try:
        np.random.seed(seed)
        attack.fit(x=member_learn.x, y=member_learn.y, test_x=other_learn.x, test_y=other_learn.y)
        scores = [attack.infer(rows.x, rows.y, probabilities=True).reshape(len(rows), -1)[:, -1] for rows in (member_test, other_test)]
    finally:
        np.random.set_state(state)
    return judged(NAME, *(score.astype(np.float64) for score in scores), threshold=0.5)


def _halves(rows: LabelledRows, draw: np.random.Generator) -> tuple[LabelledRows, LabelledRows]:
    order = draw.permutation(len(rows))
    return rows.first(order[: len(rows) // 2]), rows.first(order[len(rows) // 2 :])
