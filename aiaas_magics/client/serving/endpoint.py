"""Endpoint: a deployed model, for a notebook or a script.

Owns calling it and changing what answers. Deploying belongs to `deployment`, serving to the backend, load generation to `load_run`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from msgspec.structs import replace

from aiaas_magics.client.serving import caller_rows, tensor_protocol
from aiaas_magics.client.serving.recorded_endpoint import RecordedEndpoint
from aiaas_magics.client.transport import Transport, sibling_url
from aiaas_magics.core import snippets, wire
from aiaas_magics.core.errors import AiaasError, BackendRefused, BackendTooSlow, BackendUnreachable, BlobDamaged
from aiaas_magics.core.explain_settings import ExplainSettings
from aiaas_magics.core.model_card import ModelCard
from aiaas_magics.core.routing import Change, scaling_of
from aiaas_magics.core.scaling.endpoint_samples import Sample, VersionCounts, counts_in, sample_of
from aiaas_magics.core.spec import EndpointView, VersionView

if TYPE_CHECKING:
    from aiaas_magics.core.scaling.load_report import LoadProgress, LoadReport
    from aiaas_magics.explain.explanation import Explanation
    from aiaas_magics.packing.export.accuracy_impact import PrecisionChange
    from aiaas_magics.packing.formats.model_files import ExportedModel

EXPLAIN_GRACE_S: Final = 10.0  # guess: an endpoint that ends an explanation itself says so sooner
PART_BYTES: Final = 16 * 1024 * 1024  # guess: a quarter of the largest body that a server takes by default


class Endpoint(RecordedEndpoint):
    """A model that is served in TensorFlow Serving's protocol and in the Open Inference Protocol v2, over HTTP and gRPC.

    `Backend.deploy` and `Backend.endpoint` make it. `repr` never shows the token.

    Attributes:
        notes: sentences about the version that this object deployed: what it does not do as the model in the kernel
            does.
        change: what fewer bits changed, if this object deployed a version with them; else None.
        preprocess: the preprocessor of a model that was deployed in this kernel and could not be served with it; else None.
    """

    def __init__(
        self,
        transport: Transport,
        view: EndpointView,
        change: PrecisionChange | None = None,
        notes: tuple[str, ...] = (),
        preprocess: Callable[[Any], Any] | None = None,
    ) -> None:
        self._transport = transport
        self.notes = notes  # what to know of the version that this object deployed; why it is no ONNX file among them
        self.change = change  # what fewer bits changed, where this object deployed a version in fewer
        self.preprocess = preprocess  # what this kernel does to rows before it sends them, where a preprocessor could not be served
        self._view = self._checked(view)
        self._calls = Transport(self._view.url, token=view.token, fingerprint=self._transport.fingerprint)
        self._is_stopped = False

    @property
    def name(self) -> str:
        """The endpoint's name."""
        return self._view.name

    @property
    def url(self) -> str:
        """The inference server's base address, without a trailing slash."""
        return self._view.url

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate that was accepted for this backend; "" if an authority vouches for it or there is no TLS."""
        return self._transport.fingerprint

    @property
    def grpc_url(self) -> str:
        """host:port of the same model over gRPC. The token goes into the metadata `authorization: Bearer`."""
        return self._view.grpc

    @property
    def token(self) -> str:
        """The bearer token for predictions. Do not print it in a notebook that you save."""
        return self._view.token

    @property
    def versions(self) -> tuple[VersionView, ...]:
        """The versions now, with state, engine, precision and replicas of each. Asks the backend."""
        return self.view().versions

    @property
    def predict_url(self) -> str:
        """The address for predictions in TensorFlow Serving's form."""
        return self._view.predict_url

    @property
    def backend_url(self) -> str:
        """The base address of the backend's API."""
        return self._transport.url

    @property
    def last_view(self) -> EndpointView:
        """The backend's record of the endpoint as it was when it was last asked for. Asks nobody."""
        return self._view

    def __repr__(self) -> str:
        return f"<Endpoint {self.name} at {self.predict_url}>"

    def view(self) -> EndpointView:
        """Ask the backend for its record of the endpoint.

        Raises:
            UnknownName: the endpoint is gone.
        """
        return self._keep(self._transport.get(f"/v1/endpoints/{self.name}", EndpointView))

    def _keep(self, view: EndpointView) -> EndpointView:
        """Remember what the backend says. An inference process that had to take another port has another token as well."""
        view = self._checked(view)
        if (view.url, view.token) != (self._view.url, self._view.token):
            self._calls = Transport(
                view.url, token=view.token, fingerprint=self._transport.fingerprint
            )  # calls of other threads go on over the one of before
        self._view = view
        return view

    def _checked(self, view: EndpointView) -> EndpointView:
        """`view`, if the endpoint is on the backend's own machine: rows and tokens go nowhere else."""
        url = sibling_url(view.url, self._transport.url)
        host, port = url.partition("://")[2].rpartition(":")[0], view.grpc.rpartition(":")[2]
        return replace(view, url=url, grpc=f"{host}:{port}" if view.grpc else "")

    def predict(self, x: Any) -> Any:
        """Compute the served model's outputs for `x`.

        Tensors travel as bytes (Open Inference Protocol v2), large ones in parts of whole rows. If a server that
        restarts or is busy does not answer, the prediction is repeated for a few seconds.

        Args:
            x: what the model's own `predict` takes: one array-like of shape `(rows, ...)`, or a dict of them by input
                name, nested dicts too, or a list in the order of the model's inputs. Numbers are cast to each input's
                dtype. A missing last axis of 1 is added. pandas objects count as arrays; with several inputs a
                DataFrame is taken by its columns. Texts of a task whose preprocessor is not served are mapped here; a
                dict by the names that are served is not.

        Returns:
            An array of shape `(rows, ...)`, or a dict of arrays by Keras' names if there are several outputs.

        Raises:
            DataMismatch: `x` does not fit the model's inputs.
            BackendRefused: the server refused; the text is its own.
            BackendUnreachable: nobody answers.
        """
        if self.preprocess is not None and not caller_rows.is_named(x, self._view.inputs):
            x = self.preprocess(x)
        columns = caller_rows.columns(self.name, x, self._view.inputs)
        parts = [self._infer(part) for part in _parts(columns)]
        outputs = {name: np.concatenate([part[name] for part in parts]) if len(parts) > 1 else parts[0][name] for name in parts[0]}
        return next(iter(outputs.values())) if len(outputs) == 1 else caller_rows.in_keras_names(outputs, self._view.outputs)

    def explain(
        self,
        x: Any,
        *,
        method: str = "auto",
        samples: int = 0,
        output: str = "",
        target: int | None = None,
        seed: int = 0,
        patch: int = 0,
        faithfulness: bool = True,
        timeout_s: float = 60.0,
        class_names: Sequence[str] | None = None,
    ) -> Explanation:
        """Compute what each input contributed to the served model's outputs for `x`.

        The endpoint needs predictions only for that, and hides parts of a row behind rows of the background that was
        deployed with the model. It explains between predictions, so a job (`Backend.explain`) is faster for many rows.

        Args:
            x: as in `predict`.
            method: "auto", "kernel_shap" (or "shap"), "permutation_shap", "occlusion" or "permutation".
            samples: evaluated coalitions per row; 0 leaves the number to the method.
            output: the name of the output to explain; "" is the first.
            target: the class (column of the output) to explain; None is each row's largest.
            seed: makes random draws repeatable.
            patch: the edge of the squares that an image is hidden in, or the length of the windows of a series; 0 chooses.
            faithfulness: measure also how the output changes when parts of rows are hidden, the most important first.
            timeout_s: how many seconds the endpoint may take, up to 600.
            class_names: names of the output's columns, for showing.

        Returns:
            The explanation, with the attributions of each row in the shape of the row.

        Raises:
            DataMismatch: `x` does not fit the model's inputs.
            InvalidSpec: an option is out of bounds.
            BackendRefused: the endpoint refused: the method needs the model itself, it takes too long, or too many
                explanations run. The text is its own.
        """
        from aiaas_magics.client.serving import endpoint_explanation

        began_s = time.monotonic()
        settings = ExplainSettings(method=method, samples=samples, output=output, target=target, seed=seed, patch=patch)
        rows = self.preprocess(x) if self.preprocess is not None and not caller_rows.is_named(x, self._view.inputs) else x
        columns = caller_rows.columns(self.name, rows, self._view.inputs)
        body, headers = endpoint_explanation.encode(columns, self._view.inputs, settings, timeout_s=timeout_s, faithfulness=faithfulness)
        answer, _ = self._ask(f"/v2/models/{self.name}/explain", body, headers, answer_s=timeout_s + EXPLAIN_GRACE_S)
        explained = endpoint_explanation.decode(answer, self._view.inputs)
        return endpoint_explanation.explanation_of(
            explained, rows, columns, self._view, class_names=tuple(map(str, class_names or ())), seconds=time.monotonic() - began_s
        )

    def _ask(self, path: str, body: bytes, headers: dict[str, str], *, answer_s: float | None = None) -> tuple[bytes, Mapping[str, str]]:
        """The answer to one prediction; where nobody of ours answers, the backend is asked once whether the endpoint has moved."""
        try:
            return self._calls.infer(path, body, headers=headers, answer_s=answer_s)
        except BackendUnreachable:
            before = self._calls
            with contextlib.suppress(AiaasError):
                self.view()
            if self._calls is before:
                raise
            return self._calls.infer(path, body, headers=headers, answer_s=answer_s)

    async def predict_async(self, x: Any) -> Any:
        """Like `predict`, for `await`: other coroutines of the notebook go on meanwhile.

        Args:
            x: as in `predict`.
        """
        return await asyncio.to_thread(self.predict, x)

    def predict_batches(self, batches: Iterable[Any], *, in_flight: int = 4) -> Iterator[Any]:
        """Predict batch after batch, in order, with several requests at once. The batches may be more than fit into memory.

        Args:
            batches: each as `x` in `predict`. A generator is read at most `in_flight` batches ahead.
            in_flight: how many requests may be open at once.

        Returns:
            An iterator over the outputs, one per batch.
        """
        with ThreadPoolExecutor(in_flight) as pool:
            pending: deque[Future[Any]] = deque()
            for batch in batches:
                pending.append(pool.submit(self.predict, batch))
                if len(pending) >= in_flight:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _infer(self, columns: Mapping[str, np.ndarray], version: int = 0) -> dict[str, np.ndarray]:
        body, headers = tensor_protocol.encode(columns, self._view.inputs)
        not_live = f"Endpoint {self.name!r} is not live any more. Deploy a model under that name again."
        if self._is_stopped:
            raise BackendRefused(404, not_live)
        try:
            which = f"/versions/{version}" if version else ""
            answer, answer_headers = self._ask(f"/v2/models/{self.name}{which}/infer", body, headers)
        except BackendRefused as error:
            if error.status != 404:
                raise
            raise BackendRefused(404, not_live) from error
        outputs = tensor_protocol.decode(answer, answer_headers.get(tensor_protocol.LENGTH_HEADER.lower()))
        missing = {spec.name for spec in self._view.outputs} - outputs.keys()
        if missing:
            raise BackendRefused(200, f"The answer has no output {min(missing)!r}. If another model was deployed, get the endpoint anew.")
        return {spec.name: outputs[spec.name] for spec in self._view.outputs}

    def status(self) -> dict[str, Any]:
        """Ask the inference server itself for TensorFlow Serving's status document."""
        answer: dict[str, Any] = json.loads(self._calls.exchange("GET", f"/v1/models/{self.name}"))
        return answer

    def promote(self) -> Endpoint:
        """Make the canary the live version, from the next request on. The version before it stays loaded for a rollback."""
        return self._change(Change(action="promote"))

    def rollback(self) -> Endpoint:
        """Remove the canary, or go back to the version before if there is no canary, from the next request on."""
        return self._change(Change(action="rollback"))

    def canary(self, share: float) -> Endpoint:
        """Change the canary's share. Raising it only moves callers to the canary, never away from it.

        Args:
            share: the share of the callers, between 0 and 1.
        """
        return self._change(Change(action="canary", share=share))

    def label(self, name: str, version: int) -> Endpoint:
        """Let callers ask for a version by a label (`/v1/models/NAME/labels/LABEL`).

        Args:
            name: the label.
            version: the version's number; 0 removes the label.

        Raises:
            InvalidSpec: the version is not loaded. The label stays where it was.
        """
        return self._change(Change(action="label", label=name, version=version))

    def scale(self, replicas: int | str) -> Endpoint:
        """Change how many requests each version can compute at once, without an interruption.

        Args:
            replicas: a number from 1 to 64, "auto", or "auto:1-4" for as many as the load needs between these.

        Raises:
            InvalidSpec: it is none of these.
            NotScaled: the backend could not open as many.
        """
        self._keep(self._transport.post(f"/v1/endpoints/{self.name}/replicas", scaling_of(replicas), EndpointView, answer_s=300.0))
        return self

    def _change(self, change: Change) -> Endpoint:
        self._keep(self._transport.post(f"/v1/endpoints/{self.name}/routing", change, EndpointView))
        return self

    def card(self, version: int = 0) -> ModelCard:
        """Fetch the model card of a version. Its `to_markdown()` is the text.

        Args:
            version: the version's number; 0 is the one that answers.

        Raises:
            UnknownName: there is no such version, or it has no card.
        """
        return self._transport.get(f"/v1/endpoints/{self.name}/cards/{version}", ModelCard)

    def keep_card(self, card: ModelCard, version: int = 0) -> None:
        """Keep another model card for a version, on the backend and at the endpoint's page.

        Args:
            card: the card, at most 256 kB as JSON.
            version: the version's number; 0 is the one that answers.

        Raises:
            UnknownName: there is no such version.
            InvalidSpec: the card is too long.
        """
        self._transport.put(f"/v1/endpoints/{self.name}/cards/{version}", wire.encode(card), type(None))

    def stop(self) -> None:
        """Take the endpoint down, with all its versions."""
        self._transport.delete(f"/v1/endpoints/{self.name}")
        self._calls.close()
        self._is_stopped = True

    def save(self, path: str | Path, *, format: str | None = None) -> ExportedModel:
        """Write the live version to a file or folder. Its answers are compared with those that the model was deployed with.

        Args:
            path: a file that ends with `.onnx`, `.tflite` or `.xml` (OpenVINO), or a folder.
            format: "onnx", "saved_model", "tflite" or "openvino" for a file of the endpoint's name in the folder `path`; "triton",
                "kserve", "tfserving" or "docker" for a folder that such a server starts from. None is what the suffix says.

        Raises:
            CannotExport: the endpoint serves a form of which this one cannot be made, or the file answers differently.
        """
        from aiaas_magics.client.serving import endpoint_export

        return endpoint_export.save(self, path, format=format)

    def artefact(self) -> tuple[VersionView, bytes, bytes]:
        """Fetch the live version with what it serves (an ONNX file, or a zip of a SavedModel) and its samples (safetensors).

        Raises:
            BlobDamaged: bytes changed on the backend's disk.
        """
        view = self.view()
        live = view.routing.live if view.routing is not None else max(version.version for version in view.versions)
        version = next(version for version in view.versions if version.version == live)
        return version, self._blob(version.artefact), self._blob(version.samples) if version.samples else b""

    def _blob(self, sha: str) -> bytes:
        data = self._transport.read(f"/v1/blobs/{sha}")
        if hashlib.sha256(data).hexdigest() != sha:
            raise BlobDamaged(sha, "its bytes changed on the backend's disk")
        return data

    def curl(self) -> str:
        """A curl command that calls the endpoint with a row of the sample (zeros if it is long), and $AIAAS_ENDPOINT_TOKEN."""
        return snippets.curl(self.url, self.name, self._view.inputs, self._view.example)

    def snippet(self) -> str:
        """Python code that calls the endpoint with the standard library only, with a row of the sample (zeros if it is long)."""
        return snippets.python(self.url, self.name, self._view.inputs, self._view.example)

    def bench(
        self,
        *,
        concurrency: tuple[int, ...] = (1, 2, 4),
        duration_s: float = 1.0,
        rows: int = 1,
        rates: tuple[float, ...] | None = None,
        forms: tuple[str, ...] = ("json", "binary"),
        on_progress: Callable[[LoadProgress], None] | None = None,
    ) -> LoadReport:
        """Measure latency and throughput, by number of connections and by offered rate. The load comes from a process of its own.

        Args:
            concurrency: numbers of connections, measured one after the other.
            duration_s: seconds per measurement.
            rows: rows per request.
            rates: offered rates in requests per second, sent on a schedule in the first of `forms`; None goes up from
                a quarter of what the connections reached until answers fall behind; empty measures none.
            forms: how tensors travel: "json" (TensorFlow Serving) and "binary" (Open Inference Protocol v2).
            on_progress: called before each measurement with a `LoadProgress`: its label and what was measured so far.

        Returns:
            The report: percentiles in milliseconds, requests per second, the knee, and R = M/m.

        Raises:
            InvalidSpec: a number that is not possible.
            BackendRefused: every request was refused; the text is the server's own.
        """
        from aiaas_magics.client.card import card_records
        from aiaas_magics.client.load_test.load_run import run_load

        report = run_load(
            self.view(),
            fingerprint=self.fingerprint,
            concurrency=concurrency,
            duration_s=duration_s,
            rows=rows,
            rates=rates,
            forms=forms,
            on_progress=on_progress,
        )
        card_records.of_endpoint(self._transport.url, self.name).bench = report
        return report

    def watch(self, *, every_s: float = 1.0) -> Iterator[Sample | None]:
        """Look at the endpoint again and again, without end.

        Args:
            every_s: seconds between two looks.

        Returns:
            An iterator over what happened between two looks: requests and rows per second, p50 and p99 in
            milliseconds; None if nobody answered.

        Raises:
            UnknownName: the endpoint is gone.
        """
        before, then_s = None, 0.0
        while True:
            counts = self._look()
            now_s = time.monotonic()
            if counts is None:
                yield None
            else:
                if before is not None:
                    yield sample_of(before, counts, at_s=time.time(), seconds=now_s - then_s)
                before, then_s = counts, now_s
            time.sleep(every_s)

    def _look(self) -> dict[int, VersionCounts] | None:
        try:
            counts = counts_in(self._calls.exchange("GET", "/metrics").decode(), self.name)
            if not counts:
                self.view()  # raises where it is gone; else a server that has just begun has it in a moment
            return counts or None
        except (BackendUnreachable, BackendTooSlow):
            return None


def _parts(columns: Mapping[str, np.ndarray]) -> Iterator[Mapping[str, np.ndarray]]:
    """`columns` in parts of whole rows that a request may hold; as they are where they have not the same number of rows."""
    rows = {len(column) for column in columns.values()}
    nbytes = sum(column.nbytes for column in columns.values())
    if nbytes <= PART_BYTES or len(rows) > 1:
        yield columns
        return
    (count,) = rows
    step = max(1, count * PART_BYTES // nbytes)
    for start in range(0, count, step):
        yield {name: column[start : start + step] for name, column in columns.items()}
