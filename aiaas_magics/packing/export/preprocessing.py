"""Preprocessors that stand before a model: what makes token ids of texts, as a KerasHub task has one.

Owns asking a task for it, and whether it can be served with the model: then what `predict` takes goes into the endpoint. Else the
kernel maps what it sends. Which of the two is decided in `export_request`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from aiaas_magics.packing.data import batch_sources
from aiaas_magics.packing.export import sample_bytes


@dataclass(frozen=True, slots=True)
class Preprocessor:
    """What `predict` of a task does to its input before the model is called."""

    task: Any

    def __call__(self, x: Any) -> Any:
        """What the model is called with for `x`: tensors, also in a graph."""
        prepared = self.task.preprocess_samples(x)
        return prepared[0] if isinstance(prepared, tuple) else prepared  # a language model's gives targets and weights as well

    def arrays(self, x: Any) -> Any:
        """What the model is called with for rows, as arrays."""
        import keras
        import tensorflow as tf

        tensors = keras.tree.map_structure(lambda leaf: tf.constant(sample_bytes.as_text(np.asarray(leaf))), as_rows(x))
        return keras.tree.map_structure(np.asarray, self(tensors))

    def why_not_served(self, x: Any) -> str:
        """Why it cannot be a part of what is served, a clause; "" where it can.

        Args:
            x: rows that it takes.
        """
        import keras
        import tensorflow as tf

        def spec(leaf: Any) -> Any:
            array = sample_bytes.as_text(np.asarray(leaf))
            return tf.TensorSpec((None, *array.shape[1:]), tf.string if array.dtype.kind == "O" else array.dtype)

        try:
            graph = tf.function(self, autograph=False).get_concrete_function(keras.tree.map_structure(spec, as_rows(x))).graph
        except Exception as error:  # noqa: BLE001 - border: the preprocessor is somebody else's code, and may be plain Python
            return f"TensorFlow cannot trace it ({' '.join(str(error).split())[:200].rstrip('.') or type(error).__name__})"
        definition = graph.as_graph_def()
        nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
        functions = {function.signature.name for function in definition.library.function}
        operators = sorted({node.op for node in nodes if node.op not in functions and not is_served(node.op)})
        return f"its operators {', '.join(operators[:4])} are not among those that an endpoint computes" if operators else ""


def is_served(operator: str) -> bool:
    """Whether an endpoint may compute it: one of TensorFlow's own, without Python in it.

    Those of tensorflow_text are none: a server may not have that library, and FastWordpieceTokenizeWithOffsets reads a buffer of the
    model's without checking it, which a server must not do for whoever may deploy.
    """
    import tensorflow as tf

    return hasattr(tf.raw_ops, operator) and operator not in batch_sources.PYTHON_OPS


def preprocessor_of(model: Any) -> Preprocessor | None:
    """The one in front of `model`; None where `predict` takes what the model takes."""
    is_task = callable(getattr(model, "preprocess_samples", None)) and getattr(model, "preprocessor", None) is not None
    return Preprocessor(model) if is_task else None


def as_rows(x: Any) -> Any:
    """`x` with an array in the place of each list of texts and of each column of a DataFrame, which a task's `predict` takes too."""
    if isinstance(x, dict):
        return {name: as_rows(value) for name, value in x.items()}
    if isinstance(x, (list, tuple)):
        if x and all(isinstance(item, (str, bytes)) for item in x):
            return np.array(x, dtype=object)
        return type(x)(as_rows(item) for item in x)
    return np.asarray(x) if hasattr(x, "to_numpy") else x
