"""Bundle: the files of a folder that one endpoint is served from without a server and without a notebook.

Owns the names. Writing them belongs to `packing`, serving from them to `backend.serving`.

    endpoint.json         the `DeploySpec`; it names the two others by their SHA-256
    model.onnx            the model, or model.zip with a SavedModel
    samples.safetensors   rows and the model's own answers, for the parity check at each start
"""

from __future__ import annotations

from typing import Final

ENDPOINT: Final = "endpoint.json"
SAMPLES: Final = "samples.safetensors"
MODELS: Final = {"onnx": "model.onnx", "saved_model": "model.zip"}  # by the format of the `DeploySpec`
LEAST_TOKEN: Final = 16  # characters
