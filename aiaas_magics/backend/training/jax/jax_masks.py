"""Masks on JAX: those of a model's outputs, for the metrics of a training step.

Keras keeps a mask as an attribute of the tensor. What comes out of `jax.value_and_grad` are other tensors, without it, so Keras'
own metrics of a training step count the masked positions on JAX, unlike on TensorFlow and unlike its own validation. Here masks
travel beside the outputs. Owns that, and nothing of the step.
"""

from __future__ import annotations

import contextlib
from typing import Any

from aiaas_magics.backend.training.monkeypatch import monkeypatched
from aiaas_magics.core.internals.keras_internals import JAXTrainer, get_keras_mask, set_keras_mask, tree


def keeping_masks() -> contextlib.AbstractContextManager[None]:
    """Inside, steps that are traced give their metrics the masks that the model gave its outputs."""
    loss_of, metrics_of = JAXTrainer.compute_loss_and_updates, JAXTrainer._update_metrics_variables

    def compute_loss_and_updates(model: Any, *args: Any, **options: Any) -> Any:
        loss, (unscaled, outputs, *variables) = loss_of(model, *args, **options)
        return loss, (unscaled, (outputs, [get_keras_mask(output) for output in tree.flatten(outputs)]), *variables)

    def update_metrics_variables(model: Any, metrics: Any, loss: Any, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> Any:
        outputs, masks = y_pred
        for output, mask in zip(tree.flatten(outputs), masks, strict=True):
            if mask is not None:
                set_keras_mask(output, mask)
        return metrics_of(model, metrics, loss, x, y, outputs, sample_weight)

    return monkeypatched(
        (JAXTrainer, "compute_loss_and_updates", compute_loss_and_updates),
        (JAXTrainer, "_update_metrics_variables", update_metrics_variables),
    )
