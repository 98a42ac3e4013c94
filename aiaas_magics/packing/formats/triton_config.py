"""Triton configuration: the `config.pbtxt` of a model in a Triton model repository.

Owns the text: names, dtypes, dimensions and dynamic batching (ModelConfig of the Triton Inference Server). Where it is written belongs to
`serving_folders`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aiaas_magics.core.spec import TensorSpec

DTYPES: Final = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "string": "TYPE_STRING",
}
BACKENDS: Final = {"onnx": "onnxruntime", "saved_model": "tensorflow"}
MODELS: Final = {"onnx": "model.onnx", "saved_model": "model.savedmodel"}
MOST_ROWS: Final = 64  # of a batch, as an endpoint of ours takes by default
DELAY_US: Final = 100  # guess: how long a request waits for others, a tenth of what a small model takes


def config_text(name: str, kind: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    """The configuration of a model whose first dimension is the batch.

    Args:
        name: the model's, which is its folder's too.
        kind: "onnx" or "saved_model".
    """
    parts = [f'name: "{name}"', f'backend: "{BACKENDS[kind]}"']
    if kind == "saved_model":
        parts.append('platform: "tensorflow_savedmodel"')
    parts.append(f"max_batch_size: {MOST_ROWS}")
    for side, specs in (("input", inputs), ("output", outputs)):
        tensors = ",\n".join(map(_tensor, specs))
        parts.append(f"{side} [\n{tensors}\n]")
    parts.append(f"dynamic_batching {{\n  max_queue_delay_microseconds: {DELAY_US}\n}}")
    return "\n".join(parts) + "\n"


def _tensor(spec: TensorSpec) -> str:
    """One tensor. Triton knows no tensor without dimensions: one number per row is a dimension of 1, taken off before the model."""
    lines = [f'    name: "{spec.name}"', f"    data_type: {DTYPES[spec.dtype]}"]
    sizes = spec.shape[1:]
    lines.append(f"    dims: [ {', '.join(map(str, sizes or (1,)))} ]")
    if not sizes:
        lines.append("    reshape: { shape: [ ] }")
    body = "\n".join(lines)
    return f"  {{\n{body}\n  }}"
