"""%aiaas_attack: asks of a model whether it tells on its training rows, and how small a change makes it err.

Owns its options and its request. The attacks belong to `attacks`, tables and figures to `trust_outputs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from IPython.core.error import UsageError

from aiaas_magics.client.card import card_records, card_sections
from aiaas_magics.notebook import completion, trust_outputs
from aiaas_magics.notebook.border import Family, magic
from aiaas_magics.notebook.namespace import named
from aiaas_magics.notebook.option_values import epsilons, variable, variables
from aiaas_magics.notebook.options import OUT, UI, option
from aiaas_magics.notebook.views import live


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackRequest:
    model: str | None
    members: tuple[str, ...] | None
    others: tuple[str, ...] | None
    against: str | None
    adversarial: tuple[float, ...]
    out: str | None
    ui: str | None
    help: bool


class AttackMagic(Family):
    """Attacks."""

    @magic(
        AttackRequest,
        option("model", nargs="?", metavar="MODEL", values="model", help="Variable with the compiled model."),
        option(
            "--members",
            type=variables,
            metavar="X,Y",
            values="array",
            help="Variables with rows and targets that the model was trained on: x_train,y_train.",
        ),
        option(
            "--others",
            type=variables,
            metavar="X,Y",
            values="array",
            help="Variables with rows and targets of the same distribution that it never saw: x_test,y_test.",
        ),
        option(
            "--against",
            type=variable,
            metavar="MODEL",
            values="model",
            help="Variable with a second model to compare with, such as one that was trained privately.",
        ),
        option(
            "--adversarial",
            type=epsilons,
            default=(),
            metavar="E",
            help="Also measure the accuracy on rows that an attacker changed by at most E in each number: 0.01,0.03,0.1.",
        ),
        OUT,
        UI,
        needs=("names",),
    )
    def aiaas_attack(self, request: AttackRequest, *, names: dict[str, Any]) -> None:
        """Attack a model in the kernel: membership inference, and on request adversarial rows. Nothing is sent.

        %aiaas_attack model --members x_train,y_train --others x_test,y_test
        %aiaas_attack model --members x_train,y_train --others x_test,y_test --against model_private --adversarial 0.01,0.03
        """
        from aiaas_magics.attacks.attack_run import attack

        if request.model is None:
            raise UsageError(
                "Which model? Name the variable that holds it: %aiaas_attack model --members x_train,y_train --others x_test,y_test."
            )
        if len(request.members or ()) != 2 or len(request.others or ()) != 2:
            raise UsageError("Which rows? Give rows and targets of both: --members x_train,y_train --others x_test,y_test.")
        scope = {**self.shell.user_ns, **names}
        model = named(request.model, scope, completion.is_model, "Keras model")
        against = [(request.against, named(request.against, scope, completion.is_model, "Keras model"))] if request.against else []
        members, others = (
            tuple(named(name, scope, lambda _: True, "array") for name in pair or ()) for pair in (request.members, request.others)
        )
        with live.SlowLine(self.shell, f"Attacking {request.model}") as line:
            attacks = attack(model, members, others, against=against, name=request.model, epsilons=request.adversarial, on_step=line.tell)
        self._put(request.out, attacks)
        facts = [f"{name[0].upper()}{name[1:]}: {fact}." if name != "limits" else fact for name, fact in attacks.facts().items()]
        card_records.of_model(model).sections["attacks"] = card_sections.filled("attacks", facts)
        live.show(self.shell, trust_outputs.attack_bundles(attacks.report, figures=self._draws(self._ui(request.ui))))
