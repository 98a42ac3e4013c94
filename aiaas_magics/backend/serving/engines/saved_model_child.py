"""SavedModel child: the process that holds the model, `python -m ...saved_model_child DESCRIPTOR`.

Owns loading and calling it; the only part of serving that imports TensorFlow. Who starts it,
and starts it anew, is `saved_model_engine`. It ends when the other end of its socket closes.

What must not be loaded is refused by `saved_model_check` before.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from aiaas_magics.backend.serving.engines import tensor_frames
from aiaas_magics.backend.serving.engines.saved_model_check import check_saved_model
from aiaas_magics.core import keras_messages

PARENT_S: Final = 1.0  # guess: how often it is looked whether the parent lives
MOST: Final = 300  # guess: characters of a sentence
SIGNATURE: Final = "serving_default"


def main(descriptor: int) -> None:
    threading.Thread(target=end_with, args=(os.getppid(),), name="aiaas-parent", daemon=True).start()
    with socket.socket(fileno=descriptor) as parent:
        say, text, _ = tensor_frames.receive(parent)
        assert say == "load", say
        folder, (inputs, outputs) = msgspec.json.decode(text, type=tuple[str, tuple[list[str], list[str]]])
        try:
            model = Model(Path(folder), inputs, outputs)
        except Exception as error:  # noqa: BLE001 - border: TensorFlow raises anything over a damaged model; the parent gets the sentence
            tensor_frames.send(parent, "unloadable", text=sentence_of(error))
            return
        tensor_frames.send(parent, "ready")
        while True:
            try:
                _, _, tensors = tensor_frames.receive(parent)
            except tensor_frames.BrokenFrame:
                return
            try:
                answer = model.run(tensors)
            except Exception as error:  # noqa: BLE001 - border: the graph raises whatever its inputs made it; the process goes on
                tensor_frames.send(parent, "refused", text=sentence_of(error))
            else:
                tensor_frames.send(parent, "done", tensors=answer)


def end_with(parent: int) -> None:
    """End this process when `parent` is gone: one that computes for ever does not see that its socket is closed."""
    while os.getppid() == parent:
        time.sleep(PARENT_S)
    os._exit(1)


class Model:
    """A loaded SavedModel, called by its serving signature with the interface's names."""

    def __init__(self, folder: Path, inputs: list[str], outputs: list[str]) -> None:
        import tensorflow as tf
        from tensorflow.core.protobuf import saved_model_pb2

        check_saved_model(saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes()))
        self._tf = tf
        self._loaded = tf.saved_model.load(str(folder))  # kept: the signature holds it by a weak reference only
        self._function: Any = self._loaded.signatures[SIGNATURE]
        takes = self._function.structured_input_signature[1]
        self._dtypes = {name: spec.dtype for name, spec in takes.items()}
        self._inputs = _paired(list(takes), inputs, "inputs")
        self._outputs = _paired(list(self._function.structured_outputs), outputs, "outputs")

    def run(self, tensors: dict[str, Any]) -> dict[str, Any]:
        feed = {
            signature_name: self._tf.constant(tensors[name], dtype=self._dtypes[signature_name])
            for name, signature_name in self._inputs.items()
        }
        outputs = self._function(**feed)
        return {ours: outputs[theirs].numpy() for ours, theirs in self._outputs.items()}


def _paired(signature_names: list[str], names: list[str], side: str) -> dict[str, str]:
    """Our name -> the signature's. Exporters rename; then the order decides, and the proof after it."""
    if set(signature_names) == set(names):
        return {name: name for name in names}
    if len(signature_names) != len(names):
        raise ValueError(f"its {side} are {signature_names}, not {names}")
    return dict(zip(names, sorted(signature_names), strict=True))


def sentence_of(error: Exception) -> str:
    """What TensorFlow says, in one line: of a graph that failed what is behind the headings, of anything else the first line."""
    lines = [line.strip() for line in keras_messages.message_of(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:MOST]


if __name__ == "__main__":
    main(int(sys.argv[1]))
