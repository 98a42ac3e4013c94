"""ONNX engine: ONNX Runtime; the only home of that library.

Owns sessions: their threads, their errors turned into ours, names matched with the
interface. What a file is checked for first belongs to `onnx_check`.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as native

from aiaas_magics.backend.serving.engines import EngineRefused, EngineTooSlow, Tensors, UnsafeArtefact
from aiaas_magics.backend.serving.engines.deadlines import DEADLINES
from aiaas_magics.backend.serving.engines.onnx_check import check_onnx
from aiaas_magics.core.spec import DeploySpec

# What a session raises for an input that it cannot compute: a wrong shape inside the graph, an index beyond a table.
REFUSALS = (native.InvalidArgument, native.RuntimeException, native.Fail, native.NotImplemented)
UNREADABLE = (*REFUSALS, native.InvalidGraph, native.InvalidProtobuf, native.NoSuchFile, native.NoModel, native.EPFail)
# "/onnxruntime_src/.../element_wise_ops.h:583 void onnxruntime::...(ptrdiff_t) axis == 1 was false. " before what it has to say.
SOURCE = re.compile(r"\S+\.(?:h|hpp|inc|cc|cpp|cu|cuh):\d+ ")
BEHIND_SIGNATURE = re.compile(r"^(?: const\b)?(?: \[with [^]]*\])?(?:.*? was false\.)?\s*")


class OnnxEngine:
    """A session with `threads` threads of its own, which sleep when there is nothing to do."""

    kind = "onnx"

    def __init__(self, spec: DeploySpec, artefact: Path, *, threads: int, compute_s: float = math.inf) -> None:
        self._name, self._compute_s = spec.name, compute_s
        data = artefact.read_bytes()
        check_onnx(data)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        # Without it memory is the system's: what one large request takes is given back. With it, it stays for ever (24 s of one row
        # left 3 GB). Measured on one core: the article's model and tensors up to 8 MB take the same time without; elementwise work on
        # tensors of 32 MB and more, whose pages come anew each time, takes six times as long.
        options.enable_cpu_mem_arena = False
        # Spinning threads take the cores from the next request; measured as tails under load (facts: microsoft/onnxruntime#3099).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session: Any = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except UNREADABLE as error:
            raise UnsafeArtefact(_sentence(error)) from error
        inputs = _by_name([i.name for i in self._session.get_inputs()], [i.name for i in spec.inputs], "inputs")
        outputs = _by_name([o.name for o in self._session.get_outputs()], [o.name for o in spec.outputs], "outputs")
        self._fed = tuple(inputs.items())
        self._names, self._fetched = tuple(outputs), list(outputs.values())
        self._strings = frozenset(i.name for i in spec.inputs if i.dtype == "string")

    def run(self, inputs: Tensors, /) -> dict[str, np.ndarray]:
        feed = {graph_name: inputs[name] for name, graph_name in self._fed}
        for ours, theirs in self._fed if self._strings else ():
            if ours in self._strings:
                feed[theirs] = _text(inputs[ours])
        try:
            outputs = self._session.run(self._fetched, feed) if self._compute_s == math.inf else self._run_limited(feed)
        except REFUSALS as error:
            raise EngineRefused(_sentence(error)) from error
        return dict(zip(self._names, outputs, strict=True))

    def _run_limited(self, feed: dict[str, np.ndarray]) -> Any:
        """With an end after `compute_s`."""
        options = onnxruntime.RunOptions()
        computation = DEADLINES.begin(self._compute_s, lambda: setattr(options, "terminate", True))
        try:
            outputs = self._session.run(self._fetched, feed, options)
        except REFUSALS as error:
            if DEADLINES.finish(computation):
                raise EngineTooSlow(self._name, self._compute_s) from error
            raise
        finally:
            DEADLINES.finish(computation)
        return outputs

    def close(self) -> None:
        self._session = None


def _by_name(graph_names: list[str], names: list[str], side: str) -> dict[str, str]:
    """Our name -> the file's name. Exporters rename; then the order decides, and the proof after it."""
    if set(graph_names) == set(names):
        return {name: name for name in names}
    if len(graph_names) != len(names):
        raise UnsafeArtefact(f"its {side} are {graph_names}, not {names}")
    return dict(zip(names, graph_names, strict=True))


def _text(array: np.ndarray) -> np.ndarray:
    """ONNX Runtime takes strings as `str`."""
    try:
        flat = [value.decode() for value in array.ravel()]
    except UnicodeDecodeError as error:
        raise EngineRefused("a string is not UTF-8") from error
    return np.array(flat, dtype=object).reshape(array.shape)


def _sentence(error: Exception) -> str:
    """What the library says in one line, without its code and without the place in its source, which is nobody's business."""
    text = _without_source(" ".join(str(error).split()))
    return text.rpartition(" : ")[2][:300] or "the engine gave no reason"


def _without_source(text: str) -> str:
    """`text` without the file, the line and the function's signature that stand before what the library has to say."""
    place = SOURCE.search(text)
    if place is None:
        return text
    behind = text[place.end() :]
    behind = behind[max(0, behind.find("(")) :]
    while behind.startswith("("):  # the parameters; of an `operator()` two pairs of parentheses
        behind = _behind_parentheses(behind)
    return text[: place.start()] + BEHIND_SIGNATURE.sub("", behind)


def _behind_parentheses(text: str) -> str:
    """What follows the pair of parentheses that `text` begins with."""
    depth = 0
    for at, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[at + 1 :]
    return ""
