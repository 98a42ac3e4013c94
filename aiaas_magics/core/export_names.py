"""Export names: what `%aiaas_export` takes after `--to` and `--for`, and what it refuses with a sentence.

Owns the names. Writing belongs to `packing.formats`, whose tables have a row for each.
"""

from __future__ import annotations

from typing import Final

MODEL_FORMATS: Final = ("onnx", "saved_model", "keras", "tflite", "openvino", "huggingface")
SERVERS: Final = ("triton", "kserve", "tfserving", "docker")
# Formats that people ask for and that nothing here writes, each with what to do.
REFUSED: Final = {
    "tfjs": (
        "There is no converter to TensorFlow.js that is kept for Keras 3: tensorflowjs had its last release in October 2024 and needs "
        "Keras 2. Use --to onnx and ONNX Runtime Web in the browser, or --to tflite."
    ),
}
