"""What private steps on JAX compute, in one process of its own: Keras on JAX there.

python private_jax_cases.py MODEL...     prints one line of JSON: what `test_private_jax_steps` looks at

With --with-jax-privacy also what jax_privacy makes of the same weights and rows.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import keras
import numpy as np
from keras import layers

from aiaas_magics.backend.training.jax.private_jax_steps import PrivateJaxSteps
from tests.backend.training.private_models import convolution, dense, private, several, words

DRAWN = np.array([True] * 7 + [False] * 4)
MODELS = {case.__name__: case for case in (dense, convolution, words, several)}
CLIPS = (0.05, 1e6)  # clips every row, clips none


def state_of(model: Any) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    kinds = (model.trainable_variables, model.non_trainable_variables, model.optimizer.variables, model.metrics_variables)
    trainable, fixed, optimizer, metrics = ([v.value for v in variables] for variables in kinds)
    return trainable, fixed, optimizer, metrics


def built(case: Any) -> tuple[Any, Any]:
    keras.utils.set_random_seed(4)
    model, data = case()
    model.train_on_batch(*data)
    model.reset_metrics()
    return model, keras.tree.map_structure(jax.numpy.asarray, data)


def gap(ours: Any, theirs: Any) -> float:
    """Of norms."""
    distance = np.sqrt(sum(((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2).sum() for a, b in zip(ours, theirs, strict=True)))
    return float(distance / np.sqrt(sum((np.asarray(b, np.float64) ** 2).sum() for b in theirs)))


def by_hand(model: Any, data: Any, *, clip: float) -> list[np.ndarray]:
    """The sum of clipped gradients, one row after the other, by Keras' own function of the loss."""
    trainable, fixed, optimizer, metrics = state_of(model)
    total = [np.zeros(v.shape, np.float64) for v in trainable]
    for row in np.flatnonzero(DRAWN):
        x, y, weight = (*keras.tree.map_structure(lambda leaf, at=row: leaf[at : at + 1], data), None)[:3]
        grads, _ = jax.grad(model.compute_loss_and_updates, has_aux=True)(
            trainable, fixed, metrics, x, y, weight, training=True, optimizer_variables=optimizer
        )
        exact = [np.asarray(grad, np.float64) for grad in grads]
        factor = min(1.0, clip / np.sqrt(sum((grad**2).sum() for grad in exact)))
        total = [before + factor * grad for before, grad in zip(total, exact, strict=True)]
    return total


def sums_of(case: Any, clip: float) -> float:
    model, data = built(case)
    steps = PrivateJaxSteps(model, private(clip=clip))
    sums, _, _ = jax.jit(steps.clipped_sums)(state_of(model), data, jax.numpy.asarray(DRAWN))
    return gap(sums, by_hand(model, data, clip=clip))


def stock_step(case: Any) -> dict[str, float]:
    """How far a step without noise and clipping is from the stock step, in weights and metrics."""
    model, data = built(case)
    batch = keras.tree.map_structure(lambda leaf: leaf[:7], data)
    quiet = PrivateJaxSteps(model, private(clip=1e6, noise=1e-12, batch=7))
    padded = keras.tree.map_structure(lambda leaf: jax.numpy.concatenate([leaf[:7], leaf[:1]]), data)
    ours, state = jax.jit(lambda state: quiet._step(state, lambda at: chunk_of(padded, at), 2, 4))(state_of(model))
    theirs, expected = jax.jit(model.train_step)(state_of(model), batch)
    return {
        "weights": gap(state[0], expected[0]),
        "metrics": max(abs(float(ours[name]) - float(value)) / (1e-6 + abs(float(value))) for name, value in theirs.items()),
        "optimizer": gap(state[2][:1], expected[2][:1]),
    }


def chunk_of(data: Any, at: Any) -> Any:
    mask = jax.numpy.arange(8) < 7
    return keras.tree.map_structure(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, at * 4, 4), (data, mask))


def noise(secret: int) -> np.ndarray:
    """What ten steps that draw nobody add to weights, in units of the promised deviation."""
    fit = private(noise=1.3, clip=0.7, batch=16, secret=secret)
    model = keras.Sequential([layers.Input((40,)), layers.Dense(25)])
    model.compile(keras.optimizers.SGD(1.0), "mse")
    model.train_on_batch(np.zeros((1, 40)), np.zeros((1, 25)))
    steps = PrivateJaxSteps(model, fit)
    nobody = (jax.numpy.zeros((4, 40)), jax.numpy.zeros((4, 25))), jax.numpy.zeros(4, bool)
    step = jax.jit(lambda state: steps._step(state, lambda _: nobody, 1, 4))
    state, added = state_of(model), []
    for _ in range(10):
        _, after = step(state)
        added.append(np.concatenate([np.ravel(b - a) for a, b in zip(state[0], after[0], strict=True)]))
        state = after
    return np.stack(added) / (1.3 * 0.7 / 16)


def of_library(case: Any, clip: float) -> float:
    """How far our clipped sum is from that of jax_privacy, on the same weights and rows."""
    import jax_privacy

    model, data = built(case)
    trainable, fixed, optimizer, metrics = state_of(model)
    x, y, weight = (*data, None)[:3]
    clipped = jax_privacy.clipped_grad(
        model.compute_loss_and_updates, has_aux=True, l2_clip_norm=clip, rescale_to_unit_norm=False, batch_argnums=(3, 4, 5)
    )
    theirs = clipped(trainable, fixed, metrics, x, y, weight, True, optimizer, is_padding_example=jax.numpy.asarray(~DRAWN))[0]
    ours, _, _ = PrivateJaxSteps(model, private(clip=clip)).clipped_sums(state_of(model), data, jax.numpy.asarray(DRAWN))
    return gap(ours, theirs)


def main(*words: str) -> None:
    draws, cases = noise(9), [MODELS[word] for word in words if word in MODELS]
    answer: dict[str, Any] = {
        "sums": {f"{case.__name__} {clip}": sums_of(case, clip) for case in cases for clip in CLIPS},
        "steps": {case.__name__: stock_step(case) for case in cases},
        "noise": {
            "count": draws.size,
            "squares": float((draws**2).sum()),
            "mean": float(draws.mean()),
            "fourth": float((draws**4).mean()),
            "between steps": float(np.abs(np.corrcoef(draws) - np.eye(10)).max()),
            "same secret": float(np.abs(draws - noise(9)).max()),
            "other secret": float(np.corrcoef(draws.ravel(), noise(10).ravel())[0, 1]),
        },
    }
    if "--with-jax-privacy" in words:
        answer["library"] = {f"{case.__name__} {clip}": of_library(case, clip) for case in cases for clip in CLIPS}
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
