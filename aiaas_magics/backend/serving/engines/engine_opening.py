"""Engine opening: from an artefact's format to the engine that computes it.

Owns the choice. What an engine promises is in the package, what it does in its module.
"""

from __future__ import annotations

import math
from pathlib import Path

from aiaas_magics.backend.serving.engines import Engine, EngineLost, EngineRefused, UnsafeArtefact
from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.spec import DeploySpec


def open_engine(spec: DeploySpec, artefact: Path, *, threads: int, scratch: Path, compute_s: float = math.inf) -> Engine:
    """An engine with `threads` threads of its own, ready to run; each computation has an end after `compute_s`.

    Raises:
        InvalidSpec: the format is unknown, or the artefact is refused or damaged.
    """
    # Imported here: the libraries take a moment, and a process that serves ONNX needs no other.
    try:
        if spec.format == "onnx":
            from aiaas_magics.backend.serving.engines.onnx_engine import OnnxEngine

            return OnnxEngine(spec, artefact, threads=threads, compute_s=compute_s)
        if spec.format == "saved_model":
            from aiaas_magics.backend.serving.engines.saved_model_engine import SavedModelEngine

            return SavedModelEngine(spec, artefact, threads=threads, scratch=scratch, compute_s=compute_s)
    except (UnsafeArtefact, EngineLost, EngineRefused) as error:
        raise InvalidSpec(f"{spec.name} was not loaded: {error}. Run the cell again to export it anew.") from error
    raise InvalidSpec(f"format={spec.format[:40]!r} is not served here. Use 'onnx' or 'saved_model'.")
