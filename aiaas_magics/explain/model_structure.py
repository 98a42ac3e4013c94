"""Model structure: inputs in the form that a Keras model takes, and one of its outputs.

Owns the two, for any backend. Differentiating belongs to `model_gradients`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from aiaas_magics.core.errors import UnknownName

INSTEAD: Final = "Use method='kernel_shap' or 'occlusion', which need predictions only."
# Points, raw inputs and the columns of the output, to the output's columns (rows, columns) and one gradient per point.
Differentiate = Callable[[list[np.ndarray], list[np.ndarray], np.ndarray], tuple[np.ndarray, list[np.ndarray]]]


def choose_output(model: Any, outputs: Any, name: str) -> Any:
    """One of a model's outputs: by name, or the first.

    Raises:
        UnknownName: the model has no output of that name.
    """
    if isinstance(outputs, dict):
        names = list(outputs)
    elif isinstance(outputs, (list, tuple)):
        names = list(getattr(model, "output_names", None) or map(str, range(len(outputs))))
    else:
        names = list(getattr(model, "output_names", None) or ("output",))[:1]
        outputs = [outputs]
    if name and name not in names:
        raise UnknownName("output", name, names)
    place = names.index(name) if name else 0
    return outputs[names[place]] if isinstance(outputs, dict) else outputs[place]


def packed(model: Any, inputs: Sequence[Any]) -> Any:
    """A list of inputs, in the order of `model.inputs`, in the structure that the model takes."""
    import keras

    structure = input_structure(model)
    if isinstance(structure, (dict, list, tuple)):
        return keras.tree.pack_sequence_as(structure, list(inputs))
    return inputs[0] if len(inputs) == 1 else list(inputs)


def input_structure(model: Any) -> Any:
    """The inputs as the model was made with; None where it has none: a subclassed model, or one that was never called."""
    try:
        return model.input
    except (AttributeError, ValueError):
        return None
