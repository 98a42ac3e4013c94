"""Keras settings: the global ones of Keras and TensorFlow that a fit depends on, read in the kernel and set in a worker.

Owns the list of them. Environment variables belong to `core.environment`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def current_settings() -> dict[str, Any]:
    """Keras' global settings that a fit depends on."""
    import keras
    import tensorflow as tf

    from aiaas_magics.core.internals.keras_internals import backend_config as config
    from aiaas_magics.core.internals.tensorflow_internals import is_op_determinism_enabled

    return {
        "floatx": keras.config.floatx(),
        "epsilon": keras.config.epsilon(),
        "image_data_format": keras.config.image_data_format(),
        "dtype_policy": keras.config.dtype_policy(),
        "max_epochs": config.max_epochs(),
        "max_steps_per_epoch": config.max_steps_per_epoch(),
        "deterministic": is_op_determinism_enabled(),
        "functions_run_eagerly": tf.config.functions_run_eagerly(),
    }


def apply_settings(settings: Mapping[str, Any]) -> None:
    """The kernel's settings, in a worker."""
    import keras

    from aiaas_magics.core.internals.keras_internals import backend_config as config

    keras.config.set_floatx(settings["floatx"])
    keras.config.set_epsilon(settings["epsilon"])
    keras.config.set_image_data_format(settings["image_data_format"])
    keras.config.set_dtype_policy(settings["dtype_policy"])
    config.set_max_epochs(settings["max_epochs"])
    config.set_max_steps_per_epoch(settings["max_steps_per_epoch"])
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    if settings["deterministic"]:
        tf.config.experimental.enable_op_determinism()
    if settings["functions_run_eagerly"]:
        tf.config.run_functions_eagerly(True)


def global_seed() -> Any:
    """The generator that draws for random ops without a seed, when it was used already."""
    from aiaas_magics.core.internals.keras_internals import GLOBAL_SEED_GENERATOR, global_state

    return global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)


def set_global_seed(seed: Any) -> None:
    """In a worker, the kernel's generator; None where it was not used there."""
    if seed is None:
        return
    from aiaas_magics.core.internals.keras_internals import GLOBAL_SEED_GENERATOR, global_state

    global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, seed)
