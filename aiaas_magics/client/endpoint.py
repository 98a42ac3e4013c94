"""A deployed model, as seen from a notebook or a script.

Owns deploying and calling. Exporting belongs to `packing.servable`, proving and serving to
the backend, load generation to `load`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from aiaas_magics import snippets
from aiaas_magics.client.blobs import BlobSender
from aiaas_magics.client.transport import Transport
from aiaas_magics.errors import BackendRefused, DataMismatch
from aiaas_magics.routing import Change, Rollout, Scaling
from aiaas_magics.spec import DeploySpec, EndpointView, TensorSpec, VersionView, checked_name

if TYPE_CHECKING:
    from aiaas_magics.latency import LoadReport


class Endpoint:
    """A model that is served over HTTP, in TensorFlow Serving's REST protocol.

    `url` is the inference server's base address; the token goes into an
    `Authorization: Bearer` header and is never shown by `repr`.
    """

    def __init__(self, transport: Transport, view: EndpointView) -> None:
        self._transport = transport
        self._view = view
        self._calls = Transport(view.url, token=view.token)

    @property
    def name(self) -> str:
        return self._view.name

    @property
    def url(self) -> str:
        return self._view.url

    @property
    def grpc_url(self) -> str:
        """host:port of the same model over gRPC; the token goes into the metadata `authorization: Bearer`."""
        return self._view.grpc

    @property
    def token(self) -> str:
        """The bearer token for predictions. Do not print it in a notebook that is saved."""
        return self._view.token

    @property
    def versions(self) -> tuple[VersionView, ...]:
        return self.view().versions

    @property
    def predict_url(self) -> str:
        return f"{self.url}/v1/models/{self.name}:predict"

    def __repr__(self) -> str:
        return f"<Endpoint {self.name} at {self.predict_url}>"

    def view(self) -> EndpointView:
        self._view = self._transport.get(f"/v1/endpoints/{self.name}", EndpointView)
        return self._view

    def predict(self, x: Any) -> Any:
        """The served model's outputs for `x`, as numpy.

        Args:
            x: One array-like of shape `(rows, ...)`, or a dict of them by input name, or a
                list in the order of the model's inputs. pandas objects are taken as arrays.

        Returns:
            An array of shape `(rows, ...)`, or a dict of them when there are several outputs.

        Raises:
            DataMismatch: what was given does not fit the interface.
            BackendRefused: the server's own sentence.
        """
        body = _encoded({"inputs": self._columns(x)})
        answer = self._calls.exchange("POST", f"/v1/models/{self.name}:predict", content=body)
        outputs = _outputs(answer)
        specs = {spec.name: spec for spec in self._view.outputs}
        if len(specs) == 1 and not isinstance(outputs, Mapping):
            return _array(outputs, next(iter(specs.values())))
        return {name: _array(values, specs[name]) for name, values in outputs.items()}

    def _columns(self, x: Any) -> dict[str, Any]:
        names = [spec.name for spec in self._view.inputs]
        if isinstance(x, Mapping):
            given = dict(x)
        elif isinstance(x, (list, tuple)) and len(names) > 1:
            given = dict(zip(names, x, strict=False))
        else:
            given = {names[0]: x}
        if set(given) != set(names):
            raise DataMismatch(f"{self.name} takes the inputs {names}, not {sorted(given)}. Give a dict with exactly these names.")
        return {spec.name: _plain(given[spec.name], spec) for spec in self._view.inputs}

    def status(self) -> dict[str, Any]:
        """TF Serving's status document, asked from the inference server itself."""
        answer: dict[str, Any] = json.loads(self._calls.exchange("GET", f"/v1/models/{self.name}"))
        return answer

    def promote(self) -> Endpoint:
        """Let the canary answer everything from the next request on; the version before it stays loaded for a rollback."""
        return self._change(Change(action="promote"))

    def rollback(self) -> Endpoint:
        """Take the canary out, or, where there is none, go back to the version before: from the next request on."""
        return self._change(Change(action="rollback"))

    def canary(self, share: float) -> Endpoint:
        """Give the canary this share (0 to 1) of the requests; a larger one takes callers to it and none away."""
        return self._change(Change(action="canary", share=share))

    def label(self, name: str, version: int) -> Endpoint:
        """Let callers ask for `version` by a name (`/v1/models/NAME/labels/LABEL`); a version of 0 takes the name away.

        Raises:
            InvalidSpec: the version is not loaded; the label stays where it was.
        """
        return self._change(Change(action="label", label=name, version=version))

    def scale(self, replicas: int) -> Endpoint:
        """Give each version so many executors, while it answers."""
        self._view = self._transport.post(f"/v1/endpoints/{self.name}/replicas", Scaling(replicas=replicas), EndpointView, answer_s=300.0)
        return self

    def _change(self, change: Change) -> Endpoint:
        self._view = self._transport.post(f"/v1/endpoints/{self.name}/routing", change, EndpointView)
        return self

    def stop(self) -> None:
        """Take the endpoint down, all versions of it."""
        self._transport.delete(f"/v1/endpoints/{self.name}")
        self._calls.close()

    def curl(self) -> str:
        """A command line that calls the endpoint with a row of zeros; it reads the token from $AIAAS_ENDPOINT_TOKEN."""
        return snippets.curl(self.url, self.name, self._view.inputs)

    def snippet(self) -> str:
        """Python that calls the endpoint with the standard library only, with a row of zeros."""
        return snippets.python(self.url, self.name, self._view.inputs)

    def bench(self, *, concurrency: tuple[int, ...] = (1, 2, 4), duration_s: float = 2.0, rows: int = 1) -> LoadReport:
        """Measure the endpoint from a process of its own: latency percentiles and throughput by concurrency."""
        from aiaas_magics.client.load import run_load

        return run_load(self, concurrency=concurrency, duration_s=duration_s, rows=rows)


def deploy(
    transport: Transport,
    blobs: BlobSender,
    model: Any,
    *,
    name: str | None = None,
    replicas: int = 1,
    sample: Any = None,
    max_delay_us: int = 0,
    rollout: Rollout | None = None,
) -> Endpoint:
    """Export, prove, serve. A name that is live already gets its next version, which comes in as `rollout` says."""
    from aiaas_magics.packing import servable

    name = checked_name("an endpoint", name if name is not None else default_name(model))
    exported = servable.export(model, sample)
    spec = DeploySpec(
        name=name,
        artefact=blobs.send_bytes(exported.artefact),
        format=exported.format,
        samples=blobs.send_bytes(exported.samples),
        inputs=exported.inputs,
        outputs=exported.outputs,
        replicas=replicas,
        max_delay_us=max_delay_us,
        rollout=rollout or Rollout(),
        model=str(getattr(model, "name", "")),
    )
    view = transport.post("/v1/endpoints", spec, EndpointView, answer_s=300.0)
    return Endpoint(transport, view)


def default_name(model: Any) -> str:
    """A name for an endpoint from the model's own: "Sequential_1" gives "sequential_1"."""
    cleaned = re.sub(r"[^a-z0-9._-]+", "-", str(getattr(model, "name", "model")).lower()).strip("-._")
    return cleaned[:63] or "model"


def _dtype(spec: TensorSpec) -> Any:
    return np.dtype(object) if spec.dtype == "string" else np.dtype(spec.dtype)


def _plain(values: Any, spec: TensorSpec) -> Any:
    array = np.asarray(values)
    if spec.dtype == "string":
        return array.astype(str).tolist()
    try:
        array = array.astype(spec.dtype, casting="same_kind") if array.dtype.kind != "O" else np.asarray(array.tolist(), spec.dtype)
    except (TypeError, ValueError) as error:
        raise DataMismatch(
            f"Input {spec.name!r} is of dtype {spec.dtype}; {array.dtype} was given. Convert it with .astype({spec.dtype!r})."
        ) from error
    if array.ndim != len(spec.shape) or any(n not in (-1, given) for n, given in zip(spec.shape[1:], array.shape[1:], strict=False)):
        raise DataMismatch(f"Input {spec.name!r} has the shape {_shape(spec)}; {array.shape} was given. Give whole rows, the batch first.")
    return np.ascontiguousarray(array)


def _encoded(body: dict[str, dict[str, Any]]) -> bytes:
    """`body` as JSON. TF Serving reads bare NaN and Infinity, which only the slower writer writes."""
    arrays = [values for values in body["inputs"].values() if isinstance(values, np.ndarray)]
    if all(array.dtype.kind not in "f" or np.isfinite(array).all() for array in arrays):
        return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    return json.dumps(body, default=lambda array: array.tolist()).encode()


def _shape(spec: TensorSpec) -> str:
    return "(" + ", ".join("rows" if i == 0 else "any" if n < 0 else str(n) for i, n in enumerate(spec.shape)) + ")"


def _array(values: Any, spec: TensorSpec) -> np.ndarray:
    return np.asarray(values, dtype=_dtype(spec))


def _outputs(answer: bytes) -> Any:
    """The "outputs" of a column-format answer; bare NaN and Infinity are TF Serving's, so the standard parser reads those."""
    try:
        return orjson.loads(answer)["outputs"]
    except orjson.JSONDecodeError:
        return json.loads(answer)["outputs"]
    except KeyError as error:
        raise BackendRefused(200, "The endpoint's answer has no outputs. Is it an aiaas_magics endpoint?") from error
