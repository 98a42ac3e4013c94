"""Models that are exported in tests: one of each kind of network, and rows for those that take no fractions."""

from __future__ import annotations

from typing import Any

import numpy as np

PLAIN = "mlp"  # the case that every run takes; the others are for `make nightly`


def mlp() -> Any:
    import keras
    from keras import layers

    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(16, activation="gelu"), layers.BatchNormalization(), layers.Dense(2, activation="softmax")],
        name="mlp",
    )


def cnn() -> Any:
    import keras
    from keras import layers

    convolutions = [layers.Conv2D(8, 3, activation="relu"), layers.SeparableConv2D(8, 3), layers.MaxPool2D()]
    return keras.Sequential(
        [keras.Input((12, 12, 3)), *convolutions, layers.GlobalAveragePooling2D(), layers.Dense(3, activation="softmax")], name="cnn"
    )


def several_inputs() -> Any:
    import keras
    from keras import layers

    age, city = keras.Input((4,), name="age"), keras.Input((3,), name="city")
    score = layers.Dense(2, name="score")(layers.Concatenate()([age, city]))
    return keras.Model(
        {"age": age, "city": city}, {"score": score, "risk": layers.Dense(1, activation="sigmoid", name="risk")(age)}, name="several"
    )


def lstm() -> Any:
    import keras
    from keras import layers

    return keras.Sequential([keras.Input((7, 3)), layers.LSTM(5), layers.Dense(1)], name="lstm")


def preprocessing() -> Any:
    import keras
    from keras import layers

    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(3.0, 2.0, (100, 5)).astype("float32"))
    return keras.Sequential([keras.Input((5,)), normalization, layers.Dense(1)], name="preprocessing")


def indices() -> Any:
    import keras
    from keras import layers

    places = keras.Input((2,), dtype="int32")
    return keras.Model(places, layers.Dense(1)(layers.Flatten()(layers.Embedding(10, 4)(places))), name="indices")


MODELS = {
    "mlp": mlp,
    "cnn": cnn,
    "several": several_inputs,
    "lstm": lstm,
    "preprocessing": preprocessing,
    "indices": indices,
}
SAMPLES = {"indices": np.random.default_rng(0).integers(0, 10, (20, 2)).astype("int32")}
