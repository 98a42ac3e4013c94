"""Attack values: what attacks on a model found.

Owns the values; the arithmetic of a curve belongs to `roc_curve`, the attacks to the room `attacks`.
"""

from __future__ import annotations

from typing import Final

from aiaas_magics.core.value import Value

# Said with every result.
NO_PROOF: Final = (
    "An AUC near 0.5 says that these attacks fail, not that none succeeds: with shadow models an attacker may find more, and only "
    "differential privacy bounds them all. Members and others must come from one distribution, or the attack tells these apart. "
    "Adversarial accuracy is an upper bound: a stronger attack may bring it lower."
)


class RateAt(Value, frozen=True, kw_only=True):
    """The share of members that an attack finds while it accuses so many of the others, with its 95 % interval."""

    false_rate: float
    true_rate: float
    low: float
    high: float


class MembershipAttack(Value, frozen=True, kw_only=True):
    """How well one attack tells the rows that a model was trained on from others. A guess has an AUC of 0.5."""

    name: str
    auc: float
    low: float  # of the 95 % interval
    high: float
    advantage: float  # the true minus the false positive rate, at the attack's own threshold
    rates: tuple[RateAt, ...]  # at the false positive rates that there are rows enough for
    curve: tuple[tuple[float, float], ...]  # false and true positive rates, ascending

    @property
    def succeeds(self) -> bool:
        """Whether it is better than a guess by more than chance explains."""
        return self.low > 0.5


class AdversarialPoint(Value, frozen=True, kw_only=True):
    """The accuracy of a model on rows that were changed by at most `epsilon` in each number."""

    epsilon: float
    fgsm: float
    pgd: float
    noise: float  # changed by chance and not by an attack: what an attack is compared with


class AttackedModel(Value, frozen=True, kw_only=True):
    """What attacks on one model found. `members` and `others` are the numbers of rows."""

    name: str
    members: int
    others: int
    loss_members: float
    loss_others: float
    accuracy_members: float | None = None  # None: the model classifies nothing
    accuracy_others: float | None = None
    membership: tuple[MembershipAttack, ...] = ()
    adversarial_rows: int = 0
    adversarial: tuple[AdversarialPoint, ...] = ()

    @property
    def strongest(self) -> MembershipAttack:
        """The membership attack with the largest AUC."""
        return max(self.membership, key=lambda attack: attack.auc)

    def facts(self) -> dict[str, str]:
        """What a model card says of it: a name and a sentence each."""
        attack = self.strongest
        guess = "no better than a guess" if not attack.succeeds else "better than a guess"
        facts = {
            "membership inference": f"AUC {attack.auc:.3f} (95 % interval {attack.low:.3f} to {attack.high:.3f}; {attack.name}), {guess}, "
            f"on {self.members:,} members and {self.others:,} other rows"
        }
        facts |= {
            f"membership inference at {rate.false_rate:.1%} false positives": f"{rate.true_rate:.1%} of the members "
            f"(95 % interval {rate.low:.1%} to {rate.high:.1%})"
            for rate in attack.rates
        }
        facts |= {
            f"adversarial accuracy at epsilon {each.epsilon:g}": f"FGSM {each.fgsm:.1%}, PGD {each.pgd:.1%}, random noise {each.noise:.1%}"
            for each in self.adversarial
        }
        return facts | {"limits": NO_PROOF}


class AttackReport(Value, frozen=True, kw_only=True):
    """What attacks on a model found, and on those that it is compared with."""

    models: tuple[AttackedModel, ...]
