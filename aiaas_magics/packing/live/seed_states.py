"""Seed states: what Keras' global generator of random numbers holds now.

Owns reading it. Sending it to a worker belongs to `keras_settings`.
"""

from __future__ import annotations

import numpy as np


def keras_state() -> bytes:
    """The state of the generator that draws for random ops without a seed; empty where it was not used yet."""
    from aiaas_magics.core.internals.keras_internals import GLOBAL_SEED_GENERATOR, global_state

    generator = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    return b"" if generator is None else np.asarray(generator.state.numpy()).tobytes()
