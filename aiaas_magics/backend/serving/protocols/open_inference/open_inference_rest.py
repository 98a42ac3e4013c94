"""Open Inference Protocol v2 over REST, with the binary tensor extension: routes, reading, answering.

Owns paths, status codes, sentences, and reading a request. A decoded request and its answer belong to
`inference_calls`, tensors and documents to `inference_codec`, what is told about models to
`inference_documents`.

Sources: kserve/open-inference-protocol; where it leaves room, Triton (src/http_server.cc and
docs/protocol of https://github.com/triton-inference-server/server). Health answers have a body,
since KServe's client reads it; a model that is not ready is 503, which load balancers understand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np
import orjson
from msgspec import UNSET
from msgspec.structs import replace

from aiaas_magics.backend.serving import protocols
from aiaas_magics.backend.serving.engines import slices_of
from aiaas_magics.backend.serving.models.registry import NotServed, Registry, Version
from aiaas_magics.backend.serving.protocols import BadValue, Plain, PlainForm, Request, Response, error
from aiaas_magics.backend.serving.protocols.explain_calls import ExplanationCall, dumped, method_document, parameters_of, settings_of
from aiaas_magics.backend.serving.protocols.open_inference import inference_codec as tensors
from aiaas_magics.backend.serving.protocols.open_inference import inference_documents as documents
from aiaas_magics.backend.serving.protocols.open_inference.inference_calls import JSON_LENGTH, PLAIN, Documents, InferCall, OutputForm
from aiaas_magics.backend.serving.protocols.open_inference.inference_codec import InferRequest, Input, RequestedOutput
from aiaas_magics.backend.serving.protocols.open_inference.inference_documents import ControlRequest, IndexRequest
from aiaas_magics.backend.serving.protocols.operations import BINARY_TYPE, JSON_TYPE, Missed, Operation, OperationRoute, PathTable
from aiaas_magics.backend.serving.protocols.tfserving import tfserving_json
from aiaas_magics.core.spec import TensorSpec

if TYPE_CHECKING:
    from aiaas_magics.explain.attribution_bytes import ExplainResult

NAME: Final = "open-inference"
TITLE: Final = "Open Inference Protocol"
CURVES: Final = ("fractions", "deletion", "insertion", "random")  # of faithfulness
EXPLANATION: Final = "explanation"  # what the names of an explanation's outputs begin with
OF_INFER: Final = frozenset({"binary_data_output", "timeout"})  # parameters of an inference request
ABOUT: Final = "Version 2, with binary tensors and Triton's repository requests"


def no_route(_method: str, path: str, missed: Missed) -> Response | None:
    """What a request line below `/v2` is answered with that is no operation: 405 for a wrong verb, 404 for no path."""
    if missed.bad_version:
        return error(400, f"Version {missed.bad_version[:100]} is beyond what a version can be.")
    if missed.allowed:
        allowed = ", ".join(missed.allowed)
        return error(405, f"Method Not Allowed. This path takes {allowed}.", ((b"allow", allowed.encode()),))
    if path.lower().split("/")[:2] == ["", "v2"]:
        return error(404, "Not Found. GET /openapi.json has every path.")
    return None


# --------------------------------------------------------------------------- infer


def read(_route: protocols.InferenceRoute, request: Request, version: Version) -> InferCall:
    """The tensors of an inference request.

    Raises:
        BadValue: the request does not fit the version's interface.
    """
    size = json_size(request)
    if size == 0:
        return read_raw(request.body, version)
    if size is None:
        return read_document(request.body, memoryview(b""), version)[1]
    known_documents = version.once(Documents)
    if (call := known_documents.find(request.body, size)) is not None:
        return call
    document = request.body[:size]
    parsed, call = read_document(document, memoryview(request.body)[size:], version)
    known_documents.learn(document, parsed.inputs, call)
    return call


def read_document(document: bytes, binary: memoryview, version: Version) -> tuple[InferRequest, InferCall]:
    """What `document` asks for, with the tensors that are in it or in the bytes behind it."""
    parsed = tensors.parse(document)
    check_parameters(parsed)
    inputs = read_inputs(parsed, binary, version)
    output_forms = wanted_outputs(parsed, version.spec.outputs)
    return parsed, call_of(version, inputs, output_forms, id=parsed.id, timeout_s=timeout_of(parsed))


def plain_form(version: Version) -> PlainForm | None:
    """How `infer` reads documents that came before; None for a model with several inputs or outputs, or with rows of any form."""
    (spec, *more_inputs), documents = version.spec.inputs, version.once(Documents)
    datatype = tensors.DATATYPES.get(spec.dtype)
    if more_inputs or len(version.spec.outputs) > 1 or datatype not in PLAIN or spec.shape[:1] != (-1,) or -1 in spec.shape[1:]:
        return None

    def read(body: bytes, json_bytes: int) -> Plain | None:
        known_document = documents.look_up(body, json_bytes)
        if known_document is None or known_document.rows is None or known_document.timeout_s != math.inf:
            return None
        return body[json_bytes:], known_document.rows, known_document

    def write(output: np.ndarray, requests: Sequence[Plain]) -> Sequence[Response | None]:
        places = slices_of(rows for _, rows, _ in requests)
        return [known_document.write(output[place]) for place, (_, _, known_document) in zip(places, requests, strict=True)]

    return PlainForm(name=spec.name, row=spec.shape[1:], dtype=tensors.LAYOUTS[datatype], read=read, write=write)


def json_size(request: Request) -> int | None:
    """How much of the body is JSON; None is all of it."""
    length = request.header(JSON_LENGTH)
    if length is None:
        return None
    if not length.isdigit() or len(length) > 19 or int(length) > len(request.body):
        raise BadValue(
            f"Inference-Header-Content-Length is the number of bytes of JSON at the body's start, at most its {len(request.body)}; "
            f"got {length[:20].decode('latin-1')!r}"
        )
    return int(length)


def check_parameters(document: InferRequest) -> None:
    for key in document.parameters or ():
        if key.startswith("triton_"):
            raise BadValue(f"Parameter {key[:100]!r} begins with 'triton_', which is reserved")
    described: tuple[Input | RequestedOutput, ...] = (*document.inputs, *(document.outputs or ()))
    for tensor in described:
        if tensor.parameters is not None and tensor.parameters.shared_memory_region is not None:
            raise BadValue("Shared memory is not offered here. Send tensors in the body.")


def read_inputs(document: InferRequest, binary: memoryview, version: Version) -> dict[str, np.ndarray]:
    """Each input by its name, from the document or from the bytes behind it, which lie in the document's order."""
    specs = {spec.name: spec for spec in version.spec.inputs}
    inputs: dict[str, np.ndarray] = {}
    at = 0
    for tensor in document.inputs:
        spec = specs.get(tensor.name)
        if spec is None:
            raise BadValue(f"Unexpected input {tensor.name[:100]!r}; the model has the inputs {tfserving_json.listed(specs)}")
        if tensor.name in inputs:
            raise BadValue(f"Input {tensor.name} comes twice")
        tensors.check_interface(tensor, spec)
        if tensor.binary_size is None:
            inputs[tensor.name] = tensors.decoded(tensors.from_json(tensor, spec), tensor)
            continue
        data = binary[at : at + tensor.binary_size]
        if len(data) != tensor.binary_size or tensor.data is not UNSET:
            raise BadValue(
                f"Input {tensor.name} says {tensor.binary_size} bytes of binary data and no 'data'; "
                f"the body holds {len(binary) - at} for it"
            )
        at += tensor.binary_size
        array = tensors.from_bytes(data, tensor.datatype, tensor.shape, tensor.name)
        inputs[tensor.name] = tensors.decoded(array, tensor)
    if at != len(binary):
        raise BadValue(f"The body holds {len(binary) - at} bytes behind the last input's. Check binary_data_size of the inputs.")
    if len(inputs) != len(specs):
        raise BadValue(f"The model has the inputs {tfserving_json.listed(specs)}; the request holds {tfserving_json.listed(inputs)}")
    return inputs


def read_raw(body: bytes, version: Version) -> InferCall:
    """The body is the bytes of the only input, and nothing else; its one free dimension follows from their number."""
    if len(version.spec.inputs) != 1:
        raise BadValue(
            f"A raw body needs a model with one input; this one has {tfserving_json.listed(s.name for s in version.spec.inputs)}"
        )
    (spec,) = version.spec.inputs
    datatype = tensors.DATATYPES.get(spec.dtype)
    if datatype is None:
        raise BadValue(f"Input {spec.name} is of type {spec.dtype}, which this protocol has no datatype for", 501)
    shape = list(spec.shape)
    free = [axis for axis, size in enumerate(shape) if size < 0]
    if datatype == "BYTES":
        free, shape = [], [1 if size < 0 else size for size in shape]
    if len(free) == 2 and free[0] == 0:
        shape[0], free = 1, free[1:]
    if len(free) > 1:
        raise BadValue(f"A raw body needs a shape with one free dimension; input {spec.name} has {tfserving_json.dims(spec.shape)}")
    if free:
        row_bytes = tensors.LAYOUTS[datatype].itemsize * int(np.prod([size for size in shape if size >= 0], dtype=np.int64))
        shape[free[0]] = len(body) // row_bytes
    tensors.check_shape(tuple(shape), spec)
    tensor = tensors.from_bytes(body, datatype, tuple(shape), spec.name)
    return call_of(version, {spec.name: tensor}, tuple(OutputForm(output.name, True) for output in version.spec.outputs))


def wanted_outputs(document: InferRequest, specs: tuple[TensorSpec, ...]) -> tuple[OutputForm, ...]:
    """The outputs to answer with. What is said of an output wins over what is said of all."""
    binary = (document.parameters or {}).get("binary_data_output", False)
    if type(binary) is not bool:
        raise BadValue(f"Parameter 'binary_data_output' is true or false, got {tfserving_json.shown(binary)}")
    if not document.outputs:
        return tuple(OutputForm(spec.name, binary) for spec in specs)
    names = {spec.name for spec in specs}
    output_forms: dict[str, OutputForm] = {}
    for output in document.outputs:
        if output.name not in names:
            raise BadValue(f"Unexpected output {output.name[:100]!r}; the model has the outputs {tfserving_json.listed(names)}")
        if output.name in output_forms:
            raise BadValue(f"Output {output.name} is asked for twice")
        output_forms[output.name] = OutputForm(output.name, is_binary(output, otherwise=binary))
    return tuple(output_forms.values())


def is_binary(output: RequestedOutput, *, otherwise: bool) -> bool:
    if output.parameters is None:
        return otherwise
    if output.parameters.classification is not None:
        raise BadValue("Parameter 'classification' is not offered here. Ask for the scores, or use TensorFlow Serving's :classify.")
    return otherwise if output.parameters.binary_data is None else output.parameters.binary_data


def timeout_of(document: InferRequest) -> float:
    """Triton's parameter "timeout": microseconds until the request need not be computed any more; 0 is for ever."""
    timeout_us = (document.parameters or {}).get("timeout", 0)
    if type(timeout_us) is not int or not 0 <= timeout_us < 2**63:
        raise BadValue(f"Parameter 'timeout' is a number of microseconds, got {tfserving_json.shown(timeout_us)}")
    return timeout_us / 1e6 if timeout_us else math.inf


def call_of(
    version: Version,
    inputs: Mapping[str, np.ndarray],
    output_forms: tuple[OutputForm, ...],
    *,
    id: str | None = None,
    timeout_s: float = math.inf,
) -> InferCall:
    rows = protocols.rows_of(inputs, version.spec.inputs)
    return InferCall(
        model=version.spec.name, version=version.number, id=id, tensors=inputs, rows=rows, output_forms=output_forms, timeout_s=timeout_s
    )


# --------------------------------------------------------------------------- explain


def read_explain(_route: OperationRoute, request: Request, version: Version) -> ExplanationCall:
    """The rows of an explain request, which are those of an inference request; how they are explained stands in its "parameters".

    This operation is ours: the protocol has none. The answer is JSON, whatever form outputs are asked for in.

    Raises:
        BadValue: the rows do not fit the version's interface, or the parameters are not possible.
    """
    size = json_size(request)
    document, binary = (request.body, memoryview(b"")) if size is None else (request.body[:size], memoryview(request.body)[size:])
    parsed, call = read_document(document, binary, version)
    own = {name: value for name, value in (parsed.parameters or {}).items() if name not in OF_INFER}
    parameters = parameters_of(own)
    return ExplanationCall(
        version=version,
        tensors=call.tensors,
        rows=call.rows,
        settings=settings_of(parameters, version),
        measures=parameters.faithfulness,
        timeout_s=min(parameters.timeout_s, call.timeout_s),
        write=partial(write_explained, call, version.spec.inputs),
    )


def write_explained(call: InferCall, inputs: Sequence[TensorSpec], outputs: Mapping[str, np.ndarray], explained: ExplainResult) -> bytes:
    """The answer to an inference request, with the explanations as further outputs."""
    attributions = explained.attributions
    # Behind a shorter text's last word there is no attribution; "" among the tokens says so, and JSON has no word for NaN.
    explanations: dict[str, np.ndarray] = {
        f"{EXPLANATION}.attributions.{spec.name}": np.nan_to_num(values) if attributions.tokens else values
        for spec, values in zip(inputs, attributions.values, strict=True)
    }
    if not np.isnan(attributions.base).all():
        explanations[f"{EXPLANATION}.base"] = attributions.base
    explanations |= {f"{EXPLANATION}.output": attributions.outputs, f"{EXPLANATION}.target": attributions.targets}
    if attributions.tokens:
        explanations[f"{EXPLANATION}.tokens"] = padded_tokens(attributions.tokens)
    if explained.faithfulness is not None:
        explanations |= {f"{EXPLANATION}.faithfulness.{name}": getattr(explained.faithfulness, name) for name in CURVES}
    names = (*(form.name for form in call.output_forms), *explanations)
    forms = tuple(OutputForm(name, binary=False) for name in names)
    body = replace(call, output_forms=forms, document=None).response({**outputs, **explanations}).body
    return b'%b,"parameters":%b}' % (body[:-1], dumped(method_document(explained)))


def padded_tokens(tokens: Sequence[Sequence[str]]) -> np.ndarray:
    """The words of each row, with "" behind those of a shorter one."""
    array = np.full((len(tokens), max(map(len, tokens))), "", dtype=object)
    for row, words in enumerate(tokens):
        array[row, : len(words)] = words
    return array


# --------------------------------------------------------------------------- everything else


def look(registry: Registry, route: protocols.InferenceRoute, request: Request) -> Response:
    """The answer to a request that computes nothing."""
    assert isinstance(route, OperationRoute)
    try:
        return _LOOKS[route.action](registry, route, request)
    except NotServed:
        return not_ready(route) if registry.knows(route.name, route.version) else not_found(route)
    except BadValue as fault:
        return error(fault.status, fault.text)


def not_found(route: protocols.InferenceRoute) -> Response:
    version = f" version {route.version}" if route.version else ""
    return error(404, f"Request for unknown model: '{route.name[:100]}'{version} is not found. GET / lists the endpoints.")


def not_ready(route: protocols.InferenceRoute) -> Response:
    return error(503, f"Model '{route.name[:100]}' is not ready. Try again in a moment.", ((b"retry-after", b"1"),))


def unknown_label(label: str) -> Response:
    return error(404, f"Unknown label: {label[:100]}")


def _ready(registry: Registry, _route: OperationRoute, _request: Request) -> Response:
    ready = documents.is_ready(registry)
    return _health(ready, {"live": True, "ready": ready})


def _model_ready(registry: Registry, route: OperationRoute, _request: Request) -> Response:
    ready = documents.answers(registry, route.name, route.version)
    return _health(ready, {"name": route.name, "ready": ready})


def _health(ready: bool, document: Mapping[str, object]) -> Response:
    """A model that is not there is no error of the caller's: the body says so, in the form that clients read."""
    if ready:
        return Response(200, orjson.dumps(document))
    return Response(503, orjson.dumps({**document, "error": "not ready"}), ((b"retry-after", b"1"),))


def _statistics(registry: Registry, route: OperationRoute, _request: Request) -> Response:
    """Of every version that answers: one of a model, all of it, or all of all models."""
    if route.version:
        return _json(documents.statistics([registry.find(route.name, route.version)]))
    names = [route.name] if route.name else registry.names()
    return _json(documents.statistics(version for name in names for version in registry.versions(name) if version.state == "AVAILABLE"))


def _load(registry: Registry, route: OperationRoute, request: Request) -> Response:
    if documents.read(request.body, ControlRequest).parameters:
        raise BadValue("Models come here by a deploy; 'config' and 'file:' are not taken. Send no parameters.")
    registry.restore(route.name)
    return _json({"name": route.name, "load": True})


def _unload(registry: Registry, route: OperationRoute, request: Request) -> Response:
    documents.read(request.body, ControlRequest)  # its one parameter is "unload_dependents"; nothing depends on another here
    registry.withdraw(route.name)
    return _json({"name": route.name, "unload": True})


def _json(document: object) -> Response:
    return Response(200, orjson.dumps(document))


_LOOKS: Final[Mapping[str, Callable[[Registry, OperationRoute, Request], Response]]] = MappingProxyType(
    {
        "server": lambda *_: _json(documents.server()),
        "live": lambda *_: _json({"live": True}),
        "ready": _ready,
        "model_ready": _model_ready,
        "metadata": lambda registry, route, _: _json(documents.metadata(registry, registry.find(route.name, route.version))),
        "config": lambda registry, route, _: _json(documents.config(registry.find(route.name, route.version))),
        "statistics": _statistics,
        "all_statistics": _statistics,
        "load": _load,
        "unload": _unload,
        "index": lambda registry, _, request: _json(documents.index(registry, documents.read(request.body, IndexRequest))),
    }
)

WHICH: Final = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
SERVER: Final = "What this server is, and the extensions that it speaks"
INFER: Final = "Outputs for inputs, as JSON or as binary tensors"
EXPLAIN: Final = "Outputs for inputs, and what each input contributed to them, as JSON"
UNLOAD: Final = "Withdraw a model: it stays loaded and does not answer"
BOTH: Final = (JSON_TYPE, BINARY_TYPE)
PATHS: Final = PathTable(
    (
        Operation("GET", "/v2", "server", SERVER, answer="Server", any_token=True),
        Operation("GET", "/v2/", "server", SERVER, answer="Server", id="server_with_slash", any_token=True),
        Operation("GET", "/v2/health/live", "live", "Whether the server runs", any_token=True),
        Operation("GET", "/v2/health/ready", "ready", "Whether every model has a version that answers", any_token=True),
        Operation("GET", "/v2/models/stats", "all_statistics", "Counts and times of every model", answer="Statistics"),
        Operation(
            "POST",
            "/v2/repository/index",
            "index",
            "Every version of every model, and its state",
            body="RepositoryQuery",
            body_required=False,
            answer="Repository",
        ),
        Operation(
            "POST",
            "/v2/repository/models/{name}/load",
            "load",
            "Let a withdrawn model answer again",
            manages=True,
            body="Control",
            body_required=False,
        ),
        Operation("POST", "/v2/repository/models/{name}/unload", "unload", UNLOAD, manages=True, body="Control", body_required=False),
        *(
            operation
            for which in WHICH
            for operation in (
                Operation("GET", which, "metadata", "The model's inputs and outputs", answer="Metadata"),
                Operation("GET", f"{which}/ready", "model_ready", "Whether the model answers"),
                Operation("GET", f"{which}/config", "config", "The model's configuration, as Triton words it"),
                Operation("GET", f"{which}/stats", "statistics", "Counts and times of the model", answer="Statistics"),
                Operation(
                    "POST",
                    f"{which}/infer",
                    "infer",
                    INFER,
                    infers=True,
                    body="Infer",
                    answer="InferAnswer",
                    takes=BOTH,
                    gives=BOTH,
                    plain_form=plain_form,
                ),
                Operation(
                    "POST",
                    f"{which}/explain",
                    "infer_explain",
                    EXPLAIN,
                    infers=True,
                    body="InferExplain",
                    answer="InferExplainAnswer",
                    takes=BOTH,
                    read_stream=read_explain,
                ),
            )
        ),
    )
)
