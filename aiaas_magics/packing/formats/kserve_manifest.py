"""KServe manifest: the `InferenceService` of a model, as YAML.

Owns the text (serving.kserve.io/v1beta1). The model's own files belong to `serving_folders`.
"""

from __future__ import annotations

import json
import re
from typing import Final

# ONNX goes to Triton, the runtime of KServe that computes it; a SavedModel to TensorFlow Serving.
RUNTIMES: Final = {
    "onnx": ("onnx", "1", "kserve-tritonserver", "v2"),
    "saved_model": ("tensorflow", "2", "kserve-tensorflow-serving", "v1"),
}
MEMORY: Final = {"onnx": "1Gi", "saved_model": "2Gi"}  # guess: the runtime itself and a small model


def manifest_text(name: str, kind: str, storage_uri: str) -> str:
    """The manifest.

    Args:
        name: the endpoint's.
        kind: "onnx" or "saved_model".
        storage_uri: where the model's folder will be: s3://, gs://, pvc://, hf:// or https://.
    """
    model_format, version, runtime, protocol = RUNTIMES[kind]
    memory = MEMORY[kind]
    return "\n".join(
        (
            "apiVersion: serving.kserve.io/v1beta1",
            "kind: InferenceService",
            "metadata:",
            f"  name: {resource_name(name)}",
            "spec:",
            "  predictor:",
            "    model:",
            "      modelFormat:",
            f"        name: {model_format}",
            f'        version: "{version}"',
            f"      runtime: {runtime}",
            f"      protocolVersion: {protocol}",
            f"      storageUri: {json.dumps(storage_uri)}",
            "      resources:",
            "        requests:",
            '          cpu: "1"',
            f"          memory: {memory}",
            "        limits:",
            '          cpu: "2"',
            f"          memory: {memory}",
            "",
        )
    )


def resource_name(name: str) -> str:
    """A name that Kubernetes takes for a service: lower-case letters, digits and '-', beginning with a letter.

    >>> resource_name("2024.churn_v2")
    'm-2024-churn-v2'
    """
    cleaned = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")[:60]
    return cleaned if cleaned[:1].isalpha() else f"m-{cleaned}".rstrip("-")
