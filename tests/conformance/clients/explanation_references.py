"""Our attributions beside those of xplique, tf-keras-vis and saliency, of the same small network: largest differences, as JSON.

Run by `test_explanations.py` with the environment `explanation_references`.
"""

from __future__ import annotations

import json
import sys

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from aiaas_magics.core.explain_settings import ExplainSettings
from aiaas_magics.explain.black_box import black_box_attributions
from aiaas_magics.explain.gradcam import enlarged
from aiaas_magics.explain.gradient import gradient_attributions

keras.utils.set_random_seed(3)
MODEL = keras.Sequential(
    [
        keras.Input((12, 12, 2)),
        layers.Conv2D(4, 3, activation="softplus"),
        layers.MaxPool2D(),
        layers.Conv2D(6, 3, activation="softplus", name="last"),
        layers.Flatten(),
        layers.Dense(3),
    ]
)
IMAGES = np.random.default_rng(0).random((3, 12, 12, 2)).astype(np.float32)
TARGET = 2


def ours(method: str, **options: object) -> np.ndarray:
    settings = ExplainSettings(method=method, target=TARGET, **options)  # type: ignore[arg-type]
    return gradient_attributions(MODEL, [IMAGES], None, settings).values[0]


def apart(first: np.ndarray, second: np.ndarray) -> float:
    """The largest difference, as a part of the largest value."""
    return float(np.abs(first - second).max() / np.abs(second).max())


def by_xplique() -> dict[str, float]:
    from xplique.attributions import GradCAM, GradientInput, IntegratedGradients, Occlusion, Saliency

    targets = tf.one_hot([TARGET] * len(IMAGES), 3)
    whole = {"reducer": None}
    settings = ExplainSettings(method="occlusion", target=TARGET, patch=4)
    hidden = black_box_attributions(lambda inputs: MODEL(inputs[0]).numpy(), [IMAGES], [np.zeros_like(IMAGES[:1])], settings).values[0]
    squares = Occlusion(MODEL, patch_size=4, patch_stride=4, occlusion_value=0.0).explain(IMAGES, targets).numpy()
    path = IntegratedGradients(MODEL, steps=400, baseline_value=0.0, **whole).explain(IMAGES, targets).numpy()
    cam = GradCAM(MODEL, conv_layer="last").explain(IMAGES, targets).numpy()
    return {
        "saliency": apart(ours("saliency"), np.abs(Saliency(MODEL, **whole).explain(IMAGES, targets).numpy())),
        "gradient_input": apart(ours("gradient_input"), GradientInput(MODEL, **whole).explain(IMAGES, targets).numpy()),
        "integrated_gradients": apart(ours("integrated_gradients", steps=64), path),
        "gradcam": apart(scaled(ours("gradcam").sum(axis=-1)), scaled(cam.reshape(3, 12, 12))),
        "occlusion": apart(scaled(hidden.sum(axis=-1)), scaled(squares.reshape(3, 12, 12))),
    }


def scaled(maps: np.ndarray) -> np.ndarray:
    """Each map by its largest value: xplique divides some of its own by the number of masks."""
    return maps / np.abs(maps).max(axis=(1, 2), keepdims=True)


def by_tf_keras_vis() -> dict[str, float]:
    from tf_keras_vis.gradcam import Gradcam
    from tf_keras_vis.saliency import Saliency
    from tf_keras_vis.utils.scores import CategoricalScore

    score = CategoricalScore([TARGET] * len(IMAGES))
    cam = Gradcam(MODEL, clone=False)(score, IMAGES, penultimate_layer="last", normalize_cam=False, expand_cam=False)
    gradients = Saliency(MODEL, clone=False)(score, IMAGES, keepdims=True, normalize_map=False)
    return {
        "gradcam": apart(ours("gradcam").sum(axis=-1), enlarged(np.asarray(cam), (12, 12))),
        "saliency": apart(ours("saliency"), np.abs(np.asarray(gradients))),
    }


def by_saliency() -> dict[str, float]:
    import saliency.core as saliency

    def call(images: np.ndarray, call_model_args: object = None, expected_keys: object = None) -> dict[str, np.ndarray]:
        rows = tf.convert_to_tensor(np.asarray(images, dtype=np.float32))
        with tf.GradientTape() as tape:
            tape.watch(rows)
            outputs = MODEL(rows)[:, TARGET]
        return {saliency.INPUT_OUTPUT_GRADIENTS: tape.gradient(outputs, rows).numpy()}

    path = saliency.IntegratedGradients()
    nothing = np.zeros_like(IMAGES[0])
    masks = np.stack([path.GetMask(image, call, x_steps=800, x_baseline=nothing, batch_size=200) for image in IMAGES])
    plain = np.stack([saliency.GradientSaliency().GetMask(image, call) for image in IMAGES])
    return {
        "integrated_gradients": apart(ours("integrated_gradients", steps=64), masks),
        "saliency": apart(ours("saliency"), np.abs(plain)),
    }


if __name__ == "__main__":
    libraries = {"xplique": by_xplique, "tf_keras_vis": by_tf_keras_vis, "saliency": by_saliency}
    print(json.dumps({name: libraries[name]() for name in sys.argv[1:] or libraries}))
