"""The models that are measured, with data of the right shape. Each call makes a fresh one."""

from __future__ import annotations

from typing import Any

import numpy as np


def article() -> Any:
    """The article's example: 100 numbers in, one probability out."""
    import keras
    from keras.layers import Dense

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((100,)), Dense(64, activation="relu"), Dense(32, activation="relu"), Dense(1, activation="sigmoid")]
    )
    model.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])
    return model


def cnn() -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


MLP_SIZES = (784, 2048, 1760, 10)


def mlp() -> Any:
    """5.2 million parameters: much to exchange for little to compute."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    inputs, *hidden, outputs = MLP_SIZES
    model = keras.Sequential(
        [layers.Input((inputs,)), *(layers.Dense(n, activation="relu") for n in hidden), layers.Dense(outputs, activation="softmax")]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def lstm() -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    model = keras.Sequential([layers.Input((20, 8)), layers.LSTM(32), layers.Dense(1, activation="sigmoid")])
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    return model


def transformer() -> Any:
    """One block of two heads over 20 positions."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    given = x = layers.Input((20, 32))
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 16)(x, x))
    x = layers.LayerNormalization()(x + layers.Dense(32)(layers.Dense(64, activation="gelu")(x)))
    model = keras.Model(given, layers.Dense(1, activation="sigmoid")(layers.GlobalAveragePooling1D()(x)))
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    return model


def data(model: Any, rows: int) -> tuple[Any, Any]:
    """Random rows for `model`: x float32; y numbers of classes, or a column of 0 and 1 for a single output."""
    random = np.random.default_rng(0)
    x, outputs = random.random((rows, *model.input_shape[1:]), dtype=np.float32), model.output_shape[-1]
    return x, random.integers(0, outputs, rows) if outputs > 1 else (x.reshape(rows, -1)[:, :10].sum(1, keepdims=True) > 5).astype("f4")


ALL = {make.__name__: make for make in (article, cnn, mlp, lstm, transformer)}
