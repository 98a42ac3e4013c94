"""Cells made of what cells can be made of: a model, data, a loss, the state of the model, a callback.

Owns the text of each part and of the cell that they make. Which of them come together is `oracle.covering`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "model": ("sequential", "functional", "subclassed", "own train_step", "installed class"),
    "data": ("arrays", "columns", "tf.data", "PyDataset", "generator", "DataFrame"),
    "loss": ("compile", "add_loss", "compute_loss"),
    "state": ("unbuilt", "built", "refitted"),
    "callback": ("predict", "evaluate", "print", "plot", "none"),
}

# A package that is installed beside Keras: its classes travel by name.
PACKAGE: Final = """
import keras

class Backbone(keras.Model):
    def __init__(self, inputs, joined, end, width=3):
        features = keras.layers.Dense(width, "relu", name="inner")(joined)
        super().__init__(inputs, end(keras.layers.Dense(1)(features)))
        self.width = width
"""

IMPORTS: Final = """
import random, keras, numpy as np, pandas as pd, tensorflow as tf, matplotlib.pyplot as plt, a_hub
from keras import layers, ops
x = np.random.default_rng(0).normal(size=(44, 4)).astype("float32"); y = x[:, :1] - x[:, 1:2]
"""

LAYERS: Final = """
class Join(layers.Layer):
    def call(self, columns):
        if not isinstance(columns, dict): return columns
        return ops.concatenate([t if len(t.shape) == 2 else ops.expand_dims(t, -1) for _, t in sorted(columns.items())], -1)
    def compute_output_shape(self, shape):
        return (None, 4)
class Penalty(layers.Layer):
    def call(self, t):
        self.add_loss(ops.mean(t ** 2)); return t
"""

TRAIN_STEP: Final = """
    def train_step(self, data):
        rows, targets = data if isinstance(data, tuple) else (data, None)
        with tf.GradientTape() as tape:
            predicted = self(rows, training=True)
            loss = self.compute_loss(x=rows, y=targets, y_pred=predicted)
        self.optimizer.apply_gradients(zip(tape.gradient(loss, self.trainable_variables), self.trainable_variables))
        return {"loss": loss, "largest": ops.max(predicted), **self.compute_metrics(rows, targets, predicted)}
"""
COMPUTE_LOSS: Final = """
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.mean(ops.abs(y_pred - ops.cast(ops.reshape(y, ops.shape(y_pred)), y_pred.dtype)))
"""
SUBCLASSED: Final = """
    def __init__(self):
        super().__init__()
        self.join, self.inner, self.drop, self.last, self.end = Join(), layers.Dense(3, "relu"), layers.Dropout(0.2), layers.Dense(1), END
        self.calls, self.notes = 0, []
    def call(self, rows, training=False):
        return self.end(self.last(self.drop(self.inner(self.join(rows)), training=training)))
"""

DATA: Final[Mapping[str, str]] = {
    "arrays": "def data(): return dict(x=x, y=y, batch_size=16)",
    "columns": "columns = {name: x[:, at] for at, name in enumerate('abcd')}\ndef data(): return dict(x=columns, y=y, batch_size=16)",
    "tf.data": "dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(16).prefetch(1)\ndef data(): return dict(x=dataset)",
    "PyDataset": """
class Rows(keras.utils.PyDataset):
    def __init__(self):
        super().__init__(); self.passes = 0
    def __len__(self): return 3
    def __getitem__(self, at): return x[16 * at : 16 * at + 16], y[16 * at : 16 * at + 16]
    def on_epoch_end(self): self.passes += 1
dataset = Rows()
def data(): return dict(x=dataset)
""",
    "generator": """
def batches():
    while True:
        for at in range(0, 48, 16): yield x[at : at + 16], y[at : at + 16]
def data(): return dict(x=batches(), steps_per_epoch=3)
""",
    "DataFrame": (
        "table, target = pd.DataFrame(x, columns=list('abcd')), pd.DataFrame(y, columns=['target'])\n"
        "def data(): return dict(x=table, y=target, batch_size=16)"
    ),
}

# What is drawn after the fit shows the random states once more, as a user sees them.
DRAWS: Final = """
draws = random.random(), np.random.rand()
other = keras.layers.Dense(2); other.build((None, 3)); initial = np.array(other.kernel)
"""

CALLBACKS: Final[Mapping[str, str]] = {
    "predict": "self.seen = self.model.predict(ROWS, verbose=0)",
    "evaluate": "self.seen = self.model.evaluate(ROWS, y[:5], verbose=0, return_dict=True)",
    "print": "print('epoch', epoch, sorted(logs)); self.model.noted = epoch",
    "plot": "plt.plot([epoch, 2]); plt.show(); self.epochs = [epoch]",
}


def cell_of(parts: Mapping[str, str]) -> dict[str, str]:
    """The texts `before`, `cell` and `after` for `Oracle.run`."""
    rows = "{name: column[:5] for name, column in columns.items()}" if parts["data"] == "columns" else "x[:5]"
    before = [IMPORTS, LAYERS, _model(parts), DATA[parts["data"]], "model = make()"]
    before.append(f"model.compile({_compiled(parts)})")
    if parts["callback"] != "none":
        body = CALLBACKS[parts["callback"]].replace("ROWS", rows)
        before.append(f"class Does(keras.callbacks.Callback):\n    def on_epoch_end(self, epoch, logs=None): {body}\ncallback = Does()")
    if parts["state"] == "built":
        before.append(f"built = model({rows}).shape")
    if parts["state"] == "refitted":
        before.append("model.fit(**data(), shuffle=False, epochs=1, verbose=0)")
    callbacks = "" if parts["callback"] == "none" else ", callbacks=[callback]"
    return {
        "before": "\n".join(before),
        "cell": f"history = model.fit(**data(), shuffle=False, epochs=2, verbose=0{callbacks})",
        "after": f"answer = model.predict({rows}, verbose=0)\n{DRAWS}",
    }


def _compiled(parts: Mapping[str, str]) -> str:
    return "'adam', 'mse', metrics=['mae']" if parts["loss"] == "compile" else "'adam'"


def _model(parts: Mapping[str, str]) -> str:
    """The class `Own` and the function `make`."""
    kind = parts["model"]
    bases = {"sequential": "keras.Sequential", "installed class": "a_hub.Backbone"}
    methods = SUBCLASSED if kind in {"subclassed", "own train_step"} else ""
    if kind == "own train_step":
        methods += TRAIN_STEP
    if parts["loss"] == "compute_loss":
        methods += COMPUTE_LOSS
    own = f"class Own({bases.get(kind, 'keras.Model')}):{methods or ' pass'}\n"
    end = "Penalty()" if parts["loss"] == "add_loss" else "layers.Identity()"
    return own.replace("END", end) + f"def make():\n    {_made(kind, parts, end)}"


def _made(kind: str, parts: Mapping[str, str], end: str) -> str:
    inputs = "{name: keras.Input((1,), name=name) for name in 'abcd'}" if parts["data"] == "columns" else "keras.Input((4,))"
    match kind:
        case "sequential":
            first = "" if parts["state"] == "unbuilt" or parts["data"] == "columns" else "keras.Input((4,)), "
            return f"return Own([{first}Join(), layers.Dense(3, 'relu'), layers.Dropout(0.2), layers.Dense(1), {end}])"
        case "functional":
            return (
                f"inputs = {inputs}\n    inner = layers.Dropout(0.2)(layers.Dense(3, 'relu')(Join()(inputs)))\n"
                f"    return Own(inputs, {end}(layers.Dense(1)(inner)))"
            )
        case "installed class":
            return f"inputs = {inputs}\n    return Own(inputs, Join()(inputs), {end})"
        case _:
            return "return Own()"
