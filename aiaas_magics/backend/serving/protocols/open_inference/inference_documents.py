"""Inference documents: what the Open Inference Protocol v2 says of the server and its models.

Owns the documents: server, model metadata, configuration, statistics, repository index. gRPC
tells the same in messages. Which path asks for which belongs to `open_inference_rest`.

Sources: docs/protocol/extension_{model_configuration,model_repository,statistics}.md of
https://github.com/triton-inference-server/server, and its model_config.proto.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final, TypeVar

import msgspec

from aiaas_magics.backend.serving.models.registry import NotServed, Registry, Version
from aiaas_magics.backend.serving.protocols import BadValue
from aiaas_magics.backend.serving.protocols.open_inference.inference_codec import DATATYPES, LAYOUTS, LENGTH
from aiaas_magics.core import settings
from aiaas_magics.core.spec import TensorSpec
from aiaas_magics.core.value import Value

EXTENSIONS: Final = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
PLATFORMS: Final[Mapping[str, str]] = {"onnx": "onnx_onnxv1", "saved_model": "tensorflow_savedmodel"}
BACKENDS: Final[Mapping[str, str]] = {"onnx": "onnxruntime", "saved_model": "tensorflow"}
# Where the configuration has other words than "TYPE_" and the datatype.
CONFIG_TYPES: Final[Mapping[str, str]] = {"BYTES": "TYPE_STRING"}
HEAD_BYTES: Final = 64 * 1024  # guess: what stands before the tensors in a body, their names and shapes in JSON
LARGEST_INT32: Final = 2**31 - 1  # the field's type in gRPC
STATES: Final[Mapping[str, str]] = {"START": "LOADING", "LOADING": "LOADING", "AVAILABLE": "READY", "UNLOADING": "UNLOADING"}


@cache
def server() -> dict[str, object]:
    return {"name": "aiaas_magics", "version": settings.package_version(), "extensions": list(EXTENSIONS)}


# --------------------------------------------------------------------------- readiness


def answers(registry: Registry, name: str, number: int | None) -> bool:
    """Whether the version answers now.

    Raises:
        NotServed: it is not known at all, or has ended.
    """
    if not registry.knows(name, number):
        raise NotServed(name, number)
    try:
        registry.find(name, number)
    except NotServed:
        return False
    return True


def is_ready(registry: Registry) -> bool:
    """Whether no endpoint is still waiting for its first version, or to be brought back."""
    return not registry.expected and all(registry.routing(name) is not None for name in registry.names())


# --------------------------------------------------------------------------- a model


def metadata(registry: Registry, version: Version) -> dict[str, object]:
    spec = version.spec
    numbers = [other.number for other in registry.versions(spec.name) if other.state == "AVAILABLE"]
    return {
        "name": spec.name,
        "versions": [str(number) for number in sorted(numbers)],
        "platform": PLATFORMS.get(spec.format, spec.format),
        "inputs": [described(tensor) for tensor in spec.inputs],
        "outputs": [described(tensor) for tensor in spec.outputs],
    }


def described(tensor: TensorSpec) -> dict[str, object]:
    return {"name": tensor.name, "datatype": DATATYPES.get(tensor.dtype, tensor.dtype.upper()), "shape": list(tensor.shape)}


def largest_batch(version: Version) -> int:
    """How many rows one request may have: as many as go into a body, there is no other limit.

    0, as Triton says it, where rows of requests are never put together. Where a row's length is free the shortest is counted.
    """
    executor = version.executor
    if executor is None or not executor.batch_rows:
        return 0
    row_bytes = sum(_least_bytes(tensor) for tensor in version.spec.inputs)
    return min((version.body_bytes - HEAD_BYTES) // max(1, row_bytes), LARGEST_INT32)


def _least_bytes(tensor: TensorSpec) -> int:
    """Of one row, as a binary tensor."""
    layout = LAYOUTS.get(DATATYPES.get(tensor.dtype, ""))
    return math.prod(max(1, size) for size in tensor.shape[1:]) * (LENGTH.size if layout is None else layout.itemsize)


def config(version: Version) -> dict[str, object]:
    spec, executor, largest = version.spec, version.executor, largest_batch(version)
    document: dict[str, object] = {
        "name": spec.name,
        "platform": PLATFORMS.get(spec.format, spec.format),
        "backend": BACKENDS.get(spec.format, spec.format),
        "max_batch_size": largest,
        "input": [_configured(tensor, batched=largest > 0) for tensor in spec.inputs],
        "output": [_configured(tensor, batched=largest > 0) for tensor in spec.outputs],
        "instance_group": [{"name": spec.name, "kind": "KIND_CPU", "count": version.replicas}],
    }
    if spec.precision.name:
        document["parameters"] = {"precision": {"string_value": spec.precision.name}}
    if largest and executor is not None:
        document["dynamic_batching"] = {
            "preferred_batch_size": [executor.batch_rows],
            "max_queue_delay_microseconds": spec.max_delay_us,
        }
    return document


def _configured(tensor: TensorSpec, *, batched: bool) -> dict[str, object]:
    datatype = DATATYPES.get(tensor.dtype, "INVALID")
    dims = list(tensor.shape[1:] if batched else tensor.shape)
    shape: dict[str, object] = {"dims": dims} if dims else {"dims": [1], "reshape": {"shape": []}}
    return {"name": tensor.name, "data_type": CONFIG_TYPES.get(datatype, f"TYPE_{datatype}"), **shape}


# --------------------------------------------------------------------------- statistics


def statistics(versions: Iterable[Version]) -> dict[str, object]:
    return {"model_stats": [_statistics_of(version) for version in versions]}


def _statistics_of(version: Version) -> dict[str, object]:
    """What was counted, in Triton's words. Times in the engine are summed over batches, so their counts are of batches.

    Copying in and out belongs to the engine's time here; its own time is nothing, as often as batches ran: clients want equal counts.
    """
    stats = version.stats
    batches = sum(spent.count for spent in stats.batches.values())
    return {
        "name": version.spec.name,
        "version": str(version.number),
        "last_inference": int(stats.last_s * 1000),
        "inference_count": stats.rows,
        "execution_count": batches,
        "inference_stats": {
            "success": _spent(stats.requests, stats.latency.total_us * 1000),
            "fail": _spent(stats.failed + stats.refused, 0),
            "queue": _spent(stats.requests, stats.queue_ns),
            "compute_input": _spent(batches, 0),
            "compute_infer": _spent(batches, stats.compute_ns),
            "compute_output": _spent(batches, 0),
            "cache_hit": _spent(0, 0),
            "cache_miss": _spent(0, 0),
        },
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": _spent(spent.count, 0),
                "compute_infer": _spent(spent.count, spent.compute_ns),
                "compute_output": _spent(spent.count, 0),
            }
            for rows, spent in sorted(stats.batches.items())
        ],
    }


def _spent(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}


# --------------------------------------------------------------------------- repository


class IndexRequest(Value, frozen=True, kw_only=True):
    ready: bool = False


class ControlRequest(Value, frozen=True, kw_only=True):
    parameters: dict[str, Any] | None = None


Form = TypeVar("Form", IndexRequest, ControlRequest)


def read(body: bytes, form: type[Form]) -> Form:
    """What a request about the repository says; clients send an empty body for an empty document."""
    try:
        return msgspec.json.decode(body or b"{}", type=form)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadValue(f"The request does not have its form: {error}") from error


def index(registry: Registry, query: IndexRequest) -> list[dict[str, str]]:
    rows = [
        {"name": name, "version": str(version.number), "state": _state(registry, name, version), "reason": version.fault}
        for name in registry.names()
        for version in sorted(registry.versions(name), key=lambda version: version.number)
    ]
    return [row for row in rows if row["state"] == "READY"] if query.ready else rows


def _state(registry: Registry, name: str, version: Version) -> str:
    if version.state == "AVAILABLE" and not answers(registry, name, version.number):
        return "UNAVAILABLE"
    return STATES.get(version.state, "UNAVAILABLE")
