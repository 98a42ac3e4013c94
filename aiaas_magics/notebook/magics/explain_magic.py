"""%aiaas_explain: explains what a model or an endpoint says for some rows.

Owns its options and its request. Computing belongs to `client.explain` and to endpoints, the outputs to `present_explanations`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError

from aiaas_magics.client.card import card_records, card_sections
from aiaas_magics.client.card.card_records import CardRecord
from aiaas_magics.core.explain_settings import METHOD_CHOICES
from aiaas_magics.notebook import completion, present, present_explanations, tracebacks, trust_outputs
from aiaas_magics.notebook.border import Family, magic
from aiaas_magics.notebook.namespace import named
from aiaas_magics.notebook.option_values import RowsOf, Workers, job_name, names, rows_of, variable, whole_number, workers
from aiaas_magics.notebook.options import OUT, UI, option
from aiaas_magics.notebook.present_explanations import ExplainTime
from aiaas_magics.notebook.views import live
from aiaas_magics.notebook.views.job_panel import LiveJob

if TYPE_CHECKING:
    from aiaas_magics.client.explain.explain_job import ExplainJob
    from aiaas_magics.client.serving.endpoint import Endpoint
    from aiaas_magics.explain.explanation import Explanation


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainMagicRequest:
    model: str | None
    rows: RowsOf | None
    background: str | None
    method: str
    target: int | None
    output: str
    classes: tuple[str, ...]
    samples: int
    steps: int
    layer: str
    patch: int
    seed: int
    workers: Workers | None
    oversubscribe: bool
    by: str | None
    truth: str | None
    name: str | None
    out: str | None
    ui: str | None
    help: bool

    def __post_init__(self) -> None:
        if (self.by is None) != (self.truth is None):
            raise UsageError("--by shows metrics by group, for which --truth says what is true. Give both: --by sex --truth y_test.")

    @property
    def settings(self) -> dict[str, Any]:
        """What a job and an endpoint both take."""
        return {
            **{name: getattr(self, name) for name in ("method", "target", "output", "samples", "patch", "seed")},
            "class_names": self.classes,
        }


class ExplainMagic(Family):
    """Explanations."""

    @magic(
        ExplainMagicRequest,
        option("model", nargs="?", metavar="MODEL", values="explainable", help="Variable that holds the model, or name of an endpoint."),
        option(
            "-r",
            "--rows",
            type=rows_of,
            metavar="ROWS",
            values="array",
            help="Rows to explain: a variable, or some rows of it: x_test[:20].",
        ),
        option(
            "-b",
            "--background",
            type=variable,
            metavar="ARRAY",
            values="array",
            help="Variable with training data, which hidden parts of a row take their values from. An endpoint has its own.",
        ),
        option(
            "-m",
            "--method",
            choices=METHOD_CHOICES,
            default="auto",
            metavar="M",
            help="auto (by model and data), gradients, saliency, smoothgrad, gradcam, shap, permutation_shap, occlusion, permutation, or a "
            "method of the library shap (shap_deep). An endpoint takes shap, permutation_shap, occlusion and permutation.",
        ),
        option(
            "-t",
            "--target",
            type=whole_number(0, 2**31 - 1, "A class"),
            metavar="K",
            help="Class (column of the output) to explain (default: the largest of each row).",
        ),
        option("--output", default="", metavar="NAME", help="Output to explain, of a model with several (default: the first)."),
        option("--classes", type=names, default=(), metavar="A,B", help="Names of the classes, for showing."),
        option(
            "--samples",
            type=whole_number(0, 1_000_000, "A number of samples"),
            default=0,
            metavar="S",
            help="Evaluated coalitions per row (SHAP), or noisy copies (SmoothGrad). Default: chosen by the method.",
        ),
        option(
            "--steps",
            type=whole_number(1, 4096, "A number of steps"),
            default=32,
            metavar="S",
            help="Points on the path of integrated gradients (default 32).",
        ),
        option("--layer", default="", metavar="NAME", help="Layer that Grad-CAM looks at (default: the last convolution)."),
        option(
            "--patch",
            type=whole_number(0, 65_536, "An edge"),
            default=0,
            metavar="P",
            help="Edge in pixels of the squares that hide parts of an image, or length of the windows of a series.",
        ),
        option("--seed", type=whole_number(0, 2**31 - 1, "A seed"), default=0, metavar="S", help="Seed of random draws (default 0)."),
        option(
            "-n",
            "--workers",
            type=workers,
            metavar="N",
            values="workers",
            help="Number of workers, which share the rows: 2, or 1,2 to compare their times, or max. Default: one with every core or GPU.",
        ),
        option("--oversubscribe", action="store_true", help="Allow more workers than devices."),
        option(
            "--by",
            metavar="COLUMN",
            values="array",
            help="Also show metrics for each group of this column (of the frame, or a variable), over all rows of the variable of --rows.",
        ),
        option("--truth", type=variable, metavar="ARRAY", values="array", help="Variable with what is true, for --by."),
        option("--name", type=job_name, metavar="NAME", help="Name of the job (default: the model's name)."),
        OUT,
        UI,
        needs=("names",),
    )
    def aiaas_explain(self, request: ExplainMagicRequest, *, names: dict[str, Any]) -> None:
        """Explain what each input contributed to a model's outputs, and measure how far that can be trusted.

        Workers of the backend explain the rows of a model. An endpoint explains rows itself, between its predictions. -o assigns the
        Explanation: `to_frame()`, `plot()`, `compare(other)`.

            %aiaas_explain model --rows x_test[:20] --background x_train
            %aiaas_explain model --rows x_test[:20] --method gradcam --workers 2
            %aiaas_explain churn --rows x_test[:3]
            %aiaas_explain model --rows x_test[:20] --background x_train --by sex --truth y_test

        An interrupt cancels the job.
        """
        if request.model is None or request.rows is None:
            raise UsageError("Which model, and which rows? Name both: %aiaas_explain model --rows x_test[:20].")
        scope = {**self.shell.user_ns, **names}
        value: Any = scope.get(request.model)
        whole = named(request.rows.name, scope, lambda _: True, "array")
        rows = request.rows.of(whole)
        background = None if request.background is None else named(request.background, scope, lambda _: True, "array")
        if completion.is_model(value):
            self._explain_model(request, value, rows, background)
        elif request.model not in scope:
            value = self._endpoint(request.model, "aiaas_explain")
            self._explain_endpoint(request, value, rows)
        elif isinstance(value, _endpoint_class()):
            self._explain_endpoint(request, value, rows)
        else:
            named(request.model, scope, completion.is_model, "Keras model")  # raises, with the models that there are
        if request.by is not None and request.truth is not None:
            truth = named(request.truth, scope, lambda _: True, "array")
            self._show_groups(request, value, whole, truth, group_column(request.by, whole, scope))

    def _show_groups(self, request: ExplainMagicRequest, model: Any, rows: Any, truth: Any, groups: Any) -> None:
        from aiaas_magics.explain import model_inputs, model_structure
        from aiaas_magics.explain.group_metrics import group_metrics

        if completion.is_model(model):
            arrays = model_inputs.model_rows(model, rows).arrays
            answers = model_structure.choose_output(model, model.predict(model_structure.packed(model, arrays), verbose=0), request.output)
        else:
            answers = model.predict(rows)
            answers = answers[request.output or next(iter(answers))] if isinstance(answers, dict) else answers
        report = group_metrics(truth, answers, groups, column=request.by or "")
        live.show(self.shell, trust_outputs.group_bundles(report, figures=live.shows_pictures(self.shell)))

    def _explain_endpoint(self, request: ExplainMagicRequest, endpoint: Endpoint, rows: Any) -> None:
        unused = [flag for flag, is_set in self._of_jobs(request).items() if is_set]
        if unused:
            raise UsageError(f"{', '.join(unused)} is for models, and {endpoint.name} is an endpoint. Leave it out.")
        with live.SlowLine(self.shell, f"Explaining rows on endpoint {endpoint.name}") as line:
            line.tell("computing between its predictions")
            explanation = endpoint.explain(rows, **request.settings)
        self._show(request, explanation, card_records.of_endpoint(endpoint.backend_url, endpoint.name))

    @staticmethod
    def _of_jobs(request: ExplainMagicRequest) -> dict[str, bool]:
        """Options that an endpoint does not take, and whether they were given."""
        return {
            "--background": request.background is not None,
            "--workers": request.workers is not None,
            "--oversubscribe": request.oversubscribe,
            "--name": request.name is not None,
            "--layer": bool(request.layer),
        }

    def _explain_model(self, request: ExplainMagicRequest, model: Any, rows: Any, background: Any) -> None:
        backend = self.session.backend
        points: tuple[int | None, ...] = (None,)
        if request.workers is not None:
            points = (len(backend.about().devices),) if request.workers.most else request.workers.points
        jobs, explanations = [], []
        ui = self._ui(request.ui)
        for count in points:
            with LiveJob(ui, title=request.name or "Explanation") as shown:
                job = backend.explain(
                    model,
                    rows,
                    background=background,
                    steps=request.steps,
                    layer=request.layer,
                    workers=count,
                    name=request.name,
                    oversubscribe=request.oversubscribe,
                    **request.settings,
                )
                self.session.remember(job)
                explanations.append(self._taken(job, shown))
                jobs.append(job)
                shown.freeze(present_explanations.job_bundles(job.view(), job.story(), backend.about().hardware))
        if len(jobs) > 1:
            times = [ExplainTime(workers=each.workers, rows=each.rows, seconds=each.seconds) for each in explanations]
            difference = present_explanations.largest_difference(explanations)
            live.show(self.shell, [present_explanations.times_table(times, difference=difference, hardware=backend.about().hardware)])
        # Keras numbers models, and the variable has the name that its user gave it.
        self._show(request, replace(explanations[-1], model=str(request.model)), card_records.of_model(model))

    def _taken(self, job: ExplainJob, shown: LiveJob) -> Explanation:
        """Follow the job in its view, and take its result."""
        try:
            explanation: Explanation = job.take(lambda story: shown.tell(story, title=present.job_title(job.view())))
        except KeyboardInterrupt:
            job.cancel()
            raise tracebacks.Interrupted(f"Interrupted: job {job.id} was cancelled.") from None
        return explanation

    def _show(self, request: ExplainMagicRequest, explanation: Explanation, record: CardRecord) -> None:
        self._put(request.out, explanation)
        record.sections["explanations"] = card_sections.explanations_section(explanation)
        live.show(self.shell, [explanation._repr_mimebundle_()])


def group_column(name: str, rows: Any, scope: dict[str, Any]) -> Any:
    """The column of the frame `rows` with this name, or the variable.

    Raises:
        UsageError: there is neither.
    """
    columns = [str(column) for column in getattr(rows, "columns", ())]
    if name in columns:
        return rows[rows.columns[columns.index(name)]]
    if name in scope:
        return scope[name]
    has = f"the frame has {', '.join(columns[:8])}" if columns else "the rows are no frame with columns"
    raise UsageError(f"{name!r} is no column ({has}) and no variable. Name a column, or a variable with a value for each row.")


def _endpoint_class() -> type[Endpoint]:
    from aiaas_magics.client.serving.endpoint import Endpoint

    return Endpoint
