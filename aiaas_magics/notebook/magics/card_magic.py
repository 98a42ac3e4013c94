"""%aiaas_card: shows the model card of a model or an endpoint, and keeps it with the endpoint.

Owns its options and its request, and finding the rows that are named. What a card says belongs to `client.card`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError

from aiaas_magics.core.errors import UnknownName
from aiaas_magics.core.model_card import ModelCard
from aiaas_magics.notebook import trust_outputs
from aiaas_magics.notebook.border import Family, magic
from aiaas_magics.notebook.namespace import is_servable, model_of, named
from aiaas_magics.notebook.option_values import variable, whole_number
from aiaas_magics.notebook.options import option
from aiaas_magics.notebook.views import live

if TYPE_CHECKING:
    from aiaas_magics.client.card.evaluation import Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class CardRequest:
    model: str | None
    out: str | None
    rows: str | None
    truth: str | None
    by: str | None
    version: int
    license: str
    use: str
    limits: str
    help: bool

    def __post_init__(self) -> None:
        if (self.rows is None) != (self.truth is None):
            raise UsageError("--rows and --truth belong together: --rows x_test --truth y_test.")
        if self.by is not None and self.rows is None:
            raise UsageError("--by compares groups of rows. Add --rows x_test --truth y_test.")

    @property
    def answers(self) -> dict[str, str]:
        """What only a person can say."""
        return {"license": self.license.lower(), "use": self.use, "limits": self.limits}


class CardMagic(Family):
    """Model cards."""

    @magic(
        CardRequest,
        option("model", nargs="?", metavar="MODEL|ENDPOINT", values="model", help="Variable that holds a model, or name of an endpoint."),
        option("-o", "--out", metavar="FILE", help="Also write the card into this Markdown file."),
        option("--rows", type=variable, metavar="ARRAY", values="array", help="Variable with rows to measure the metrics on."),
        option("--truth", type=variable, metavar="ARRAY", values="array", help="Variable with what is true of these rows."),
        option("--by", metavar="COLUMN", help="Also measure by group of this column of the rows, or variable with one value per row."),
        option(
            "--version",
            type=whole_number(0, 2**31 - 1, "A version"),
            default=0,
            metavar="N",
            help="Version of the endpoint (default: the one that answers).",
        ),
        option("--license", default="", metavar="ID", help="License of the model, such as apache-2.0 or mit."),
        option("--use", default="", metavar="TEXT", help="What the model is for, and who it is not for."),
        option("--limits", default="", metavar="TEXT", help="Where the model fails, and what it was not tested on."),
        needs=("names",),
    )
    def aiaas_card(self, request: CardRequest, *, names: dict[str, Any]) -> None:
        """Show a model's card: what is known of it, and what would fill in the rest.

        The card is Markdown with a YAML head, as Hugging Face has it. Nothing in it is invented: each number was recorded or is
        measured now. An endpoint keeps its card with the version and shows it at its page; `endpoint.card()` fetches it.

            %aiaas_card model --rows x_test --truth y_test --by sex -o README.md
            %aiaas_card churn --license apache-2.0 --use "Ranks customers for a call. Not for prices."
        """
        if request.model is None:
            raise UsageError("Which model? Name a variable or an endpoint: %aiaas_card model, or %aiaas_card churn.")
        scope = {**self.shell.user_ns, **names}
        if request.model in scope and is_servable(scope[request.model]):
            card, reports = self._of_model(request, scope)
        else:
            card, reports = self._of_endpoint(request, scope)
        if request.out is not None:
            self._write(card, request.out)
        live.show(
            self.shell, [trust_outputs.card_bundle(card), *(bundle for report in reports for bundle in trust_outputs.group_bundles(report))]
        )

    def _of_model(self, request: CardRequest, scope: dict[str, Any]) -> tuple[ModelCard, list[Any]]:
        from aiaas_magics.client.card.card_making import card_of_model

        assert request.model is not None
        model = model_of(request.model, scope)
        evaluations = self._evaluations(request, scope, model)
        card = card_of_model(model, shown=request.model, evaluations=evaluations, **request.answers)
        return card, [evaluation.groups for evaluation in evaluations if evaluation.groups is not None]

    def _of_endpoint(self, request: CardRequest, scope: dict[str, Any]) -> tuple[ModelCard, list[Any]]:
        from aiaas_magics.client.card.card_making import card_now

        assert request.model is not None
        try:
            endpoint = self.session.backend.endpoint(request.model)
        except UnknownName:
            if request.model in scope:
                model_of(request.model, scope)  # says what can be named
            raise
        if request.version and request.rows is not None:
            live_number = endpoint.view().routing
            if live_number is None or live_number.live != request.version:
                raise UsageError("--rows measures the version that answers. Leave --version out, or promote that version first.")
        evaluations = self._evaluations(request, scope, endpoint)
        card = card_now(endpoint, version=request.version, evaluations=evaluations, **request.answers)
        endpoint.keep_card(card, request.version)
        return card, [evaluation.groups for evaluation in evaluations if evaluation.groups is not None]

    def _evaluations(self, request: CardRequest, scope: dict[str, Any], model: Any) -> list[Evaluation]:
        if request.rows is None or request.truth is None:
            return []
        from aiaas_magics.client.card.evaluation import evaluate

        rows, truth = (named(name, scope, lambda _: True, "array") for name in (request.rows, request.truth))
        column = None if request.by is None else column_of(request.by, rows, scope)
        with live.SlowLine(self.shell, f"Measuring {request.model} on {request.rows}"):
            return [evaluate(model, rows, truth, data=request.rows, by=column, column=request.by or "")]

    @staticmethod
    def _write(card: ModelCard, out: str) -> None:
        path = Path(out).expanduser()
        try:
            card.save(str(path))
        except OSError as error:
            raise UsageError(f"Could not write {out}: {error.strerror}. Give a file in a folder that you may write.") from error
        print(f"Wrote {path}.")


def column_of(name: str, rows: Any, scope: dict[str, Any]) -> Any:
    """The sensitive column: of the rows, if they are a DataFrame that has it, or else the variable of that name.

    Raises:
        UsageError: there is neither.
    """
    columns = [str(column) for column in getattr(rows, "columns", ())]
    if name in columns:
        return rows[rows.columns[columns.index(name)]]
    if isinstance(rows, dict) and name in rows:
        return rows[name]
    if name in scope:
        return scope[name]
    hint = f"The rows have {', '.join(columns[:12])}." if columns else "The rows have no named columns."
    raise UsageError(f"There is no column or variable {name!r}. {hint} Name one of them, or a variable with one value per row.")
