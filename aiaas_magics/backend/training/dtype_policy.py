"""Dtype policy: set on a model that is built already.

Owns which layers get it, and the loss scaling that float16 needs. The model in the kernel stays as it
was: weights are float32 under these policies, so the result fits.
"""

from __future__ import annotations

from typing import Any

import keras

from aiaas_magics.core.internals.keras_internals import Functional


def set_precision(model: Any, policy: str) -> None:
    """Let `model` compute as the dtype policy `policy` says; "" leaves it as it is.

    As Keras' guide has it, the layers that give the model's outputs compute in float32: a softmax in 16 bits loses small
    probabilities. Layers that do not compute in floating point, and quantized ones, stay as they are.
    """
    if not policy:
        return
    last = {id(operation) for operation in _output_layers(model)}
    for layer in model._flatten_layers():
        if keras.backend.is_float_dtype(layer.compute_dtype or "") and layer.quantization_mode is None:
            layer.dtype_policy = "float32" if id(layer) in last else policy
    optimizer = model.optimizer
    if policy == "mixed_float16" and optimizer is not None and not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        # As `compile` does. The result has the variables of the optimizer inside, which is the kernel's.
        model.optimizer = keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale_optimizer")
        model.optimizer.build(model.trainable_variables)


def _output_layers(model: Any) -> list[Any]:
    graph = getattr(model, "_functional", None) or model
    if not isinstance(graph, Functional):
        return []
    return [tensor._keras_history.operation for tensor in keras.tree.flatten(graph._outputs_struct)]
