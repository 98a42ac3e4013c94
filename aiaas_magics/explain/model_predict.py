"""Model predict: one function from arrays to an output, for Keras models, estimators and plain functions.

Owns finding that function. A Keras model is called in inference mode and compiled once, which is many times faster than `predict` on small
batches.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.explain.attributions import Predict
from aiaas_magics.explain.model_gradients import ModelGradients, backend_module
from aiaas_magics.explain.model_structure import choose_output, packed


def is_keras(model: Any) -> bool:
    import sys

    keras = sys.modules.get("keras")  # a Keras model cannot be there before Keras is
    return keras is not None and isinstance(model, keras.Model)


def predict_of(model: Any, output: str = "") -> Predict:
    """What predicts: of a Keras model the output of that name, of an estimator its probabilities, or the function itself.

    Raises:
        InvalidSpec: an object that does not predict.
    """
    if is_keras(model):
        return _keras_predict(model, output)
    method = getattr(model, "predict_proba", None) or getattr(model, "predict", None)
    if method is None and callable(model):
        method = model
    if method is None:
        raise InvalidSpec(f"{type(model).__name__} does not predict. Give a Keras model, an estimator or a function from rows to outputs.")

    def predict(inputs: list[np.ndarray]) -> np.ndarray:
        return np.asarray(method(inputs[0] if len(inputs) == 1 else inputs))

    return predict


def _keras_predict(model: Any, output: str) -> Predict:
    import keras

    if keras.backend.backend() not in ("tensorflow", "jax"):

        def predict(inputs: list[np.ndarray]) -> np.ndarray:
            return np.asarray(choose_output(model, model.predict(packed(model, inputs), verbose=0), output))

        return predict
    library = backend_module()
    run = library.outputs_of(model, ModelGradients(model, output, 1).flat)

    def predict_compiled(inputs: list[np.ndarray]) -> np.ndarray:
        return np.asarray(run(inputs))

    return predict_compiled


def has_gradients(model: Any, inputs: list[np.ndarray], output: str) -> bool:
    """Whether each input of a Keras model, or an embedding of it, can be differentiated."""
    if not is_keras(model):
        return False
    try:
        ModelGradients(model, output, 1).prepare(inputs)
    except InvalidSpec:
        return False
    return True
