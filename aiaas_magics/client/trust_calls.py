"""Trust calls: what a backend can be asked about a model beyond training and serving it.

Owns these methods of `Backend`: explanations, model cards, reproduction, tracking. Each belongs to a module of its own; here are their
options.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from aiaas_magics.client.open_backend import OpenBackend
from aiaas_magics.client.training.job import Job
from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.explain_settings import ExplainSettings
from aiaas_magics.core.model_card import ModelCard

if TYPE_CHECKING:
    from aiaas_magics.client.explain.explain_job import ExplainJob
    from aiaas_magics.client.serving.endpoint import Endpoint
    from aiaas_magics.client.training.reproduction import Reproduction
    from aiaas_magics.client.training.tracking import TrackedRun
    from aiaas_magics.core.story import JobStory


class TrustCalls(OpenBackend):
    """The part of a `Backend` that is about trusting a model."""

    @abstractmethod
    def endpoint(self, name: str, /) -> Endpoint:
        """As `Backend.endpoint`."""

    def explain(
        self,
        model: Any,
        rows: Any,
        *,
        background: Any = None,
        method: str = "auto",
        samples: int = 0,
        steps: int = 32,
        output: str = "",
        target: int | None = None,
        layer: str = "",
        patch: int = 0,
        seed: int = 0,
        workers: int | None = None,
        name: str | None = None,
        oversubscribe: bool = False,
        retries: int = 3,
        environment: Sequence[str] | None = (),
        class_names: Sequence[str] | None = None,
    ) -> ExplainJob:
        """Have `workers` workers explain what each input contributed to the model's outputs for `rows`. Returns at once.

        An endpoint explains itself: see `Endpoint.explain`.

        Args:
            model: a built Keras model; it need not be compiled.
            rows: the rows to explain, as `predict` takes them: arrays of shape `(rows, ...)` or a DataFrame.
            background: rows of the training data, in the same form, that hidden parts of a row take their values from.
                Kernel SHAP and permutation SHAP need it; None starts gradient methods from zeros.
            method: "auto", "gradients" (or "integrated_gradients"), "gradient_input", "saliency", "smoothgrad",
                "gradcam", "shap" (or "kernel_shap"), "permutation_shap", "occlusion", "permutation", or a method of the
                library shap: "shap_deep", "shap_gradient", "shap_kernel", "shap_permutation", "shap_partition".
            samples: evaluated coalitions per row (SHAP) or noisy copies (SmoothGrad); 0 leaves the number to the method.
            steps: points on the path of integrated gradients.
            output: the name of the output to explain; "" is the first.
            target: the class (column of the output) to explain; None is each row's largest.
            layer: the layer that Grad-CAM looks at; "" is the last convolution.
            patch: the edge of the squares that an image is hidden in, or the length of the windows of a series; 0 chooses.
            seed: makes random draws repeatable.
            workers: the number of workers, which share the rows; None is one worker with every core or GPU.
            name: the job's name; None is the model's name.
            oversubscribe: allow more workers than devices. They share the devices.
            retries: how many more attempts lost workers may cost. Rows that were explained stay explained.
            environment: as in `train`.
            class_names: names of the output's columns, for showing.

        Returns:
            The job. `job.result()` waits and returns the `Explanation`.

        Raises:
            UsageError: rows, background, method and model do not fit together. Nothing was sent.
            NotEnoughDevices: more workers than devices, without `oversubscribe`.
        """
        from aiaas_magics.client.explain.explain_submission import ExplainOptions, submit_explanation

        settings = ExplainSettings(
            method=method, samples=samples, steps=steps, output=output, target=target, layer=layer, patch=patch, seed=seed
        )
        options = ExplainOptions(
            name=name,
            workers=workers,
            oversubscribe=oversubscribe,
            retries=retries,
            environment=None if environment is None else tuple(environment),
            settings=settings,
            class_names=tuple(map(str, class_names or ())),
        )
        return submit_explanation(self, model, rows, background, options)

    def card(
        self,
        model: Any,
        rows: Any = None,
        truth: Any = None,
        *,
        by: Any = None,
        column: str = "",
        license: str = "",
        use: str = "",
        limits: str = "",
    ) -> ModelCard:
        """Make the card of a live model, or of an endpoint, which keeps it. Each number in it was recorded, or is measured now.

        Args:
            model: a Keras model, or the name of an endpoint.
            rows: rows to measure metrics on, as `predict` takes them; None measures nothing.
            truth: what is true of them, with as many rows.
            by: a sensitive column with one value per row; None for no groups.
            column: the column's name.
            license: the model's license as an SPDX id; "" leaves the question open.
            use: what the model is for.
            limits: where it fails.

        Raises:
            UnknownName: the backend has no such endpoint.
            DataMismatch: rows, truth and column do not fit together.
            InvalidSpec: rows without truth, or a license that is none.
        """
        from aiaas_magics.client.card import card_making
        from aiaas_magics.client.card.evaluation import evaluate

        if (rows is None) != (truth is None):
            raise InvalidSpec("rows and truth belong together. Give both, or neither.")
        endpoint = self.endpoint(model) if isinstance(model, str) else None
        measured = [] if rows is None else [evaluate(endpoint or model, rows, truth, by=by, column=column)]
        if endpoint is None:
            return card_making.card_of_model(model, evaluations=measured, license=license, use=use, limits=limits)
        card = card_making.card_now(endpoint, evaluations=measured, license=license, use=use, limits=limits)
        endpoint.keep_card(card)
        return card

    def reproduce(self, job: str, *, on_change: Callable[[JobStory], None] = lambda _: None) -> Reproduction:
        """Train a job again from what the backend kept of it, and compare the trained state.

        The packed fit call, the row order and the form of the steps are those of the first run. The model in this process is not touched.

        Args:
            job: the id of a job that has succeeded.
            on_change: called with the story of the second run at every change.

        Returns:
            Whether every number is bit-equal, else how far each layer is apart, and what of the environment is another one now.

        Raises:
            InvalidSpec: it cannot be trained again: it failed, was fed from a kernel, or its data is not kept any more.
        """
        from aiaas_magics.client.training import reproduction

        return reproduction.reproduce(self, self.job(job), on_change=on_change)

    def track(self, job: Job, uri: str, *, model: Any = None, name: str = "", experiment: str = "") -> TrackedRun:
        """Log a training to an MLflow server: parameters, metrics per epoch, figure, and with `model` its card and the model itself.

        Args:
            job: the job. It is waited for.
            uri: the tracking server, such as "http://127.0.0.1:5000", or what else MLflow takes.
            model: the trained Keras model, to be logged and registered; None logs no model.
            name: the registered model's name; "" is the job's.
            experiment: the experiment; "" is `MLFLOW_EXPERIMENT_NAME`, or "aiaas_magics".

        Returns:
            What was logged, and what was not and why. A server that fails raises nothing.

        Raises:
            InvalidSpec: mlflow is not installed.
        """
        from aiaas_magics.client.training import tracking

        return tracking.track(job, uri, model=model, name=name, experiment=experiment)
