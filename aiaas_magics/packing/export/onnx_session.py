"""ONNX session: an ONNX file computed in the kernel, with the engine that will serve it.

Owns the session. It is one of the two homes of ONNX Runtime: answers that are compared, and what fewer bits change, must be those of
the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

Named = Mapping[str, np.ndarray]
Form = Callable[[Named], dict[str, np.ndarray]]


def onnx_form(artefact: bytes) -> Form:
    """An ONNX file as a function, computed as the serving host will compute it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(artefact, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda rows: dict(zip(names, session.run(names, dict(rows)), strict=True))
