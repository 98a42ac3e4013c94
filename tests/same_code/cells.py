"""Cells of other people's notebooks that plain Keras runs, each with what it needs and with what is announced to differ.

`tests/same_code/test_as_plain.py` runs each plainly and under the magic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

BEFORE: Final = """
import os, random, logging, warnings, keras, numpy as np, tensorflow as tf, matplotlib.pyplot as plt
from keras import layers, ops
rows = np.random.default_rng(0)
x = rows.normal(size=(96, 4)).astype("float32"); y = (x.sum(1, keepdims=True) > 0).astype("float32")
def mk(**options):
    m = keras.Sequential([keras.Input((4,)), layers.Dense(3, "relu"), layers.Dense(1, "sigmoid")])
    m.compile(**{"optimizer": "adam", "loss": "binary_crossentropy", **options}); return m
fit = dict(shuffle=False, verbose=0)
"""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A cell; `announced` maps a pattern of a difference's place to what is said of it before or below the run."""

    cell: str
    before: str = ""
    after: str = ""
    options: str = "-n 1"
    fails: bool = False  # plainly too
    needs: tuple[str, ...] = ()  # modules that not every environment has
    announced: Mapping[str, str] = field(default_factory=dict)


BATCHES: Final = """
class Batches(keras.callbacks.Callback):
    def __init__(self): super().__init__(); self.numbers = []
    def on_train_batch_begin(self, batch, logs=None): self.numbers.append(["begin", batch])
    def on_train_batch_end(self, batch, logs=None): self.numbers.append(["end", batch])
"""

CELLS: Final[Mapping[str, Sample]] = {
    "predict at the end of epochs and of training": Sample(
        cell="""
class Look(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None): self.p = self.model.predict(x[:2], verbose=0)
    def on_train_end(self, logs=None): self.last = self.model.predict(tf.data.Dataset.from_tensor_slices(x).batch(32), verbose=0)
look, m = Look(), mk()
m.fit(x, y, epochs=2, callbacks=[look], **fit)
"""
    ),
    "a GAN that is not built": Sample(
        cell="""
class Gan(keras.Model):
    def __init__(self):
        super().__init__(); self.d = keras.Sequential([keras.Input((4,)), layers.Dense(4)])
    def train_step(self, q):
        with tf.GradientTape() as t: loss = tf.reduce_mean((self.d(q) - q) ** 2)
        self.optimizer.apply_gradients(zip(t.gradient(loss, self.d.trainable_variables), self.d.trainable_variables)); return {"loss": loss}
m = Gan(); m.compile("adam"); h = m.fit(tf.data.Dataset.from_tensor_slices(x).batch(16), verbose=0)
"""
    ),
    "what an eager train_step counts": Sample(
        cell="""
class Counting(keras.Sequential):
    seen = 0
    def train_step(self, data): self.seen += len(data[0]); return super().train_step(data)
m = Counting([layers.Dense(1)]); m.compile("sgd", "mse", run_eagerly=True); m.fit(x, y, **fit)
"""
    ),
    "columns of a dataset": Sample(
        cell="""
i = keras.Input((1,), name="a"); m = keras.Model({"a": i}, layers.Dense(1)(i)); m.compile("sgd", "mse")
m.fit(tf.data.Dataset.from_tensor_slices(({"a": x[:, 0]}, y)).batch(8), epochs=2, verbose=0)
"""
    ),
    "texts of a dataset": Sample(
        before="""
texts = np.array(['good film', 'bad film', 'bad bad', 'good good'] * 6)
t = layers.TextVectorization(8, output_sequence_length=3); t.adapt(texts)
""",
        cell="""
i = keras.Input((1,), dtype="string")
m = keras.Model(i, layers.Dense(1, "sigmoid")(layers.Flatten()(layers.Embedding(8, 2)(t(i)))))
m.compile("adam", "binary_crossentropy", metrics=["accuracy"])
m.fit(tf.data.Dataset.from_tensor_slices((texts, y[:24])).batch(8), epochs=2, verbose=0)
""",
    ),
    "ImageDataGenerator.flow": Sample(
        cell="""
images = rows.normal(size=(36, 8, 8, 1)).astype("float32")
g = tf.keras.preprocessing.image.ImageDataGenerator(samplewise_center=True).flow(images, y[:36], batch_size=8, shuffle=False)
m = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(1)]); m.compile("sgd", "mse")
h = m.fit(g, epochs=2, **fit)
"""
    ),
    "add_loss alone": Sample(
        cell="""
class Act(layers.Layer):
    def call(self, t): self.add_loss(ops.mean(t ** 2)); return t
m = keras.Sequential([keras.Input((4,)), layers.Dense(1), Act()]); m.compile("sgd"); m.fit(x, **fit)
"""
    ),
    "a VAE with a sampling layer": Sample(
        cell="""
class Sampling(layers.Layer):
    def __init__(self): super().__init__(); self.seed = keras.random.SeedGenerator(1337)
    def call(self, pair):
        mean, log = pair; return mean + ops.exp(0.5 * log) * keras.random.normal(ops.shape(mean), seed=self.seed)
class VAE(keras.Model):
    def __init__(self):
        super().__init__(); self.mean, self.log, self.sampling, self.decoder = layers.Dense(2), layers.Dense(2), Sampling(), layers.Dense(4)
        self.total, self.kl = keras.metrics.Mean(name="loss"), keras.metrics.Mean(name="kl")
    @property
    def metrics(self): return [self.total, self.kl]
    def train_step(self, data):
        with tf.GradientTape() as tape:
            mean, log = self.mean(data), self.log(data)
            kl = ops.mean(ops.sum(-0.5 * (1 + log - ops.square(mean) - ops.exp(log)), axis=1))
            loss = kl + ops.mean((self.decoder(self.sampling((mean, log))) - data) ** 2)
        self.optimizer.apply_gradients(zip(tape.gradient(loss, self.trainable_weights), self.trainable_weights))
        self.total.update_state(loss); self.kl.update_state(kl)
        return {one.name: one.result() for one in self.metrics}
m = VAE(); m.compile(keras.optimizers.Adam(0.01)); h = m.fit(x, epochs=2, batch_size=32, **fit)
"""
    ),
    "prints and plots of callbacks": Sample(
        cell="""
class Say(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None): plt.plot([1, 2]); plt.show(); print("epoch", epoch, sorted(logs))
    def on_train_batch_end(self, batch, logs=None): print("batch", batch)
mk().fit(x, y, epochs=2, callbacks=[Say(), keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (1 + epoch), verbose=1)], **fit)
"""
    ),
    "verbose callbacks of Keras": Sample(
        cell="""
several = [keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=0, min_delta=9.0, verbose=1),
           keras.callbacks.EarlyStopping(monitor="val_loss", patience=1, min_delta=9.0, restore_best_weights=True, verbose=1),
           keras.callbacks.ModelCheckpoint("best.keras", monitor="val_loss", save_best_only=True, verbose=1)]
m = mk(); h = m.fit(x, y, epochs=6, validation_split=0.25, callbacks=several, **fit)
"""
    ),
    "a strategy's scope around compile only": Sample(
        cell="""
s = tf.distribute.MirroredStrategy(["CPU:0"])
with s.scope(): m = mk()
m.fit(x, y, **fit)
"""
    ),
    "shuffled rows of a seeded notebook": Sample(
        cell="""
keras.utils.set_random_seed(3)
m = mk(); h = m.fit(x, y, batch_size=20, epochs=3, validation_split=0.2, verbose=0); m.fit(x, y, verbose=0)
"""
    ),
    "shuffled rows of a seeded notebook, two workers": Sample(
        options="-n 2",
        cell="""
keras.utils.set_random_seed(3)
m = mk(optimizer="sgd"); h = m.fit(x, y, batch_size=20, epochs=3, steps_per_epoch=3, verbose=0)
""",
    ),
    "a seeded loop over models": Sample(
        cell="""
keras.utils.set_random_seed(3)
h = [mk().fit(x, y, **fit).history["loss"] for _ in range(2)]
"""
    ),
    "lists of callbacks and of the notebook": Sample(
        before="losses = []",
        cell="""
class Lists(keras.callbacks.Callback):
    def __init__(self): super().__init__(); self.shapes, self.losses = [], []
    def on_train_batch_end(self, batch, logs=None): self.losses.append(logs["loss"]); losses.append(batch)
    def on_epoch_end(self, epoch, logs=None): self.shapes.append(tuple(self.model(x[:2]).shape))
lists = Lists(); mk().fit(x, y, callbacks=[lists], **fit)
""",
        announced={r"^values.losses:": "'losses'"},
    ),
    "an empty dataset": Sample(cell="m = mk(); m.fit(tf.data.Dataset.from_tensor_slices((x[:0], y[:0])).batch(8), verbose=0)"),
    "TensorBoard twice": Sample(
        needs=("tensorboard",),
        cell="""
tb = keras.callbacks.TensorBoard("logs", update_freq="batch"); m = mk()
m.fit(x, y, callbacks=[tb], **fit)
m.fit(x, y, callbacks=[tb], validation_data=(x, y), **fit)
""",
    ),
    "TensorBoard's projector": Sample(
        needs=("tensorboard",),
        cell="""
m = keras.Sequential([keras.Input((3,)), layers.Embedding(5, 2, name="words"), layers.Flatten(), layers.Dense(1)]); m.compile("sgd", "mse")
board = keras.callbacks.TensorBoard("d", embeddings_freq=1, embeddings_metadata={"words": "words.tsv"})
m.fit(np.ones((8, 3), "int32"), np.ones((8, 1)), callbacks=[board], **fit)
config = open("d/projector_config.pbtxt").read()
""",
    ),
    "one variable, run eagerly, two workers": Sample(
        options="-n 2",
        cell="""
m = keras.Sequential([keras.Input((4,)), layers.Dense(2, use_bias=False)]); m.compile("sgd", "mse", run_eagerly=True)
m.fit(x, x[:, :2], batch_size=20, **fit)
""",
    ),
    "steps_per_execution that does not divide the steps": Sample(
        cell=BATCHES
        + """b = Batches(); m = mk(steps_per_execution=4)
saves = keras.callbacks.ModelCheckpoint("s-{epoch}-{batch}.weights.h5", save_freq=8, save_weights_only=True)
h = m.fit(x, y, batch_size=10, epochs=2, callbacks=[b, saves], **fit)
""",
    ),
    "more steps_per_execution than steps": Sample(
        cell=BATCHES
        + """b = Batches(); m = mk(steps_per_execution=101)
h = m.fit(x, y, batch_size=16, callbacks=[b], **fit)
""",
    ),
    "steps_per_execution with steps_per_epoch": Sample(
        cell="""
m = mk(steps_per_execution=3)
h = m.fit(x, y, batch_size=16, steps_per_epoch=5, epochs=2, **fit)
""",
    ),
    "steps_per_execution and validation": Sample(
        cell="""
class Batches(keras.callbacks.Callback):
    def __init__(self): super().__init__(); self.numbers = []
    def on_train_batch_end(self, batch, logs=None): self.numbers.append(batch)
    def on_test_batch_end(self, batch, logs=None): self.numbers.append(-batch)
b = Batches(); m = mk(steps_per_execution=2, metrics=["accuracy"])
h = m.fit(x, y, batch_size=20, validation_data=(x[:50], y[:50]), callbacks=[b], **fit)
""",
    ),
    "None for an optional input of a generator": Sample(
        cell="""
class Add(layers.Layer):
    def call(self, a, b=None): return a if b is None else a + b
a, b = keras.Input((4,), name="x"), keras.Input((4,), name="o", optional=True)
m = keras.Model({"x": a, "o": b}, layers.Dense(1)(Add()(a, b))); m.compile("sgd", "mse")
def batches():
    for _ in range(4): yield {"x": x[:8], "o": None}, y[:8]
m.fit(batches(), **fit)
""",
    ),
    "an exception of a callback is caught": Sample(
        before="""
class Enough(Exception): pass
class Stop(keras.callbacks.Callback):
    def __init__(self, error): super().__init__(); self.error = error
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1: raise self.error
""",
        cell="""
caught = []
for error in (RuntimeError("enough"), Enough("enough")):
    m = mk()
    try: m.fit(x, y, epochs=5, callbacks=[Stop(error)], **fit)
    except type(error) as raised: caught.append("enough" in str(raised)); end = str(raised).partition("; ")[2]
try: mk().fit(np.ones((8, 5)), y[:8], **fit)
except ValueError: caught.append("width")
del error
print(end or "the model in the kernel is unchanged.")
""",
        announced={r"^values\.m\.|^values\.end": "the model in the kernel is unchanged."},
    ),
    "an exception of a callback is not caught": Sample(
        fails=True,
        cell="""
class Stop(keras.callbacks.Callback):
    def on_train_begin(self, logs=None): raise KeyError("enough")
m = mk(); m.fit(x, y, callbacks=[Stop()], **fit)
""",
        # The slots of the optimizer are there already, and hold zeros.
        announced={r"^values\.m\.(optimizer|history):": "the model in the kernel is unchanged"},
    ),
    "BackupAndRestore": Sample(
        cell="m = mk(); h = m.fit(x, y, epochs=2, callbacks=[keras.callbacks.BackupAndRestore('b')], **fit)",
    ),
    "warnings and logging of a callback": Sample(
        cell="""
class Say(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None): print("printed", epoch)
m = mk(); m.fit(x, y, epochs=2, callbacks=[Say(), keras.callbacks.LambdaCallback(on_train_end=lambda logs: print("over"))], **fit)
"""
    ),
    "verbose=2": Sample(cell="m = mk(); h = m.fit(x, y, epochs=2, shuffle=False, verbose=2)"),
    "a loss that needs values, run eagerly": Sample(
        cell="""
def my_loss(y, p): return tf.reduce_mean(tf.square(y - p), -1) + 0 * float(np.mean(p.numpy()))
m = keras.Sequential([keras.Input((4,)), layers.Dense(1)]); m.compile("sgd", my_loss, run_eagerly=True); m.fit(x, y, **fit)
"""
    ),
    "all functions run eagerly": Sample(
        cell="""
tf.config.run_functions_eagerly(True)
def my_loss(y, p): return tf.reduce_mean(tf.square(y - p), -1) + 0 * float(np.mean(p.numpy()))
m = keras.Sequential([keras.Input((4,)), layers.Dense(1)]); m.compile("sgd", my_loss); m.fit(x, y, **fit)
tf.config.run_functions_eagerly(False)
"""
    ),
    "marked built and not built": Sample(
        cell="""
class Eager(keras.Model):
    def __init__(self): super().__init__(); self.d = layers.Dense(1)
    def call(self, x): return self.d(x)
    def train_step(self, data): float(np.linalg.norm(data[0].numpy())); return super().train_step(data)
m = Eager(); m.build((None, 4)); m.compile("sgd", "mse", run_eagerly=True); m.fit(x, y, epochs=3, **fit)
"""
    ),
    "a train_step that is a tf.function, two workers": Sample(
        options="-n 2",
        cell="""
class A(keras.Model):
    @tf.function
    def train_step(self, data): return super().train_step(data)
i = keras.Input((4,)); m = A(i, layers.Dense(1)(i)); m.compile("sgd", "mse"); m.fit(x, y, epochs=2, **fit)
""",
    ),
    "a batch of another width": Sample(
        fails=True,
        cell="""
def batches():
    for width in (4, 4, 6): yield np.ones((10, width), "float32"), y[:10]
m = mk(); m.fit(batches(), **fit)
""",
        announced={r"^values\.m\.": "float32 (10, 6), float32 (10, 1), the first ones were float32 (None, 4)"},
    ),
    "texts as targets": Sample(fails=True, cell="m = mk(); m.fit(x, np.array(['no', 'yes'] * 48), **fit)"),
    "a train_step that keeps what it has seen": Sample(
        cell="""
class Keeping(keras.Model):
    def __init__(self): super().__init__(); self.d, self.seen = layers.Dense(1), []
    def call(self, x): return self.d(x)
    def train_step(self, data): self.seen.append(float(tf.reduce_sum(data[0]))); return super().train_step(data)
m = Keeping(); m.compile("sgd", "mse", run_eagerly=True); m.fit(x, y, epochs=2, **fit)
"""
    ),
    "attributes that training sets": Sample(
        cell="""
class Sets(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.layers[0].trainable = False; self.model.best = {"epoch": epoch, "loss": logs["loss"]}
m = mk(); m.fit(x, y, epochs=2, callbacks=[Sets()], **fit)
m.compile("sgd", "mse"); m.fit(x, y, **fit)
"""
    ),
    "a PyDataset twice": Sample(
        before="""
class Rows(keras.utils.PyDataset):
    def __init__(self): super().__init__(); self.calls, self.order = 0, np.arange(6)
    def __len__(self): return 6
    def __getitem__(self, at): at = 16 * self.order[at]; return x[at : at + 16], y[at : at + 16]
    def on_epoch_end(self): self.calls += 1; self.order = np.roll(self.order, 1)
""",
        cell="r, m = Rows(), mk()\nm.fit(r, epochs=2, **fit); m.fit(r, epochs=2, **fit)",
    ),
    "a generator goes on": Sample(
        cell="""
def batches():
    at = 0
    while True: at = (at + 16) % 96; yield x[at : at + 16], y[at : at + 16]
g, m = batches(), mk()
m.fit(g, steps_per_epoch=4, **fit); m.fit(g, steps_per_epoch=4, **fit)
""",
        announced={r"^values\.m\.": "Some batches of x are read ahead"},
    ),
    "weights of classes and of samples": Sample(
        cell="""
m = mk(metrics=["accuracy"], weighted_metrics=["accuracy"]); m.fit(x, y, class_weight={0: 1.0, 1: 3.0}, **fit)
m.fit(x, y, sample_weight=np.linspace(0, 1, 96), validation_split=0.1, **fit)
"""
    ),
    "several outputs by name": Sample(
        cell="""
i = keras.Input((4,)); h = layers.Dense(3, "relu")(i)
m = keras.Model(i, {"p": layers.Dense(1, "sigmoid", name="p")(h), "q": layers.Dense(2, name="q")(h)})
m.compile("adam", {"p": "binary_crossentropy", "q": "mse"}, loss_weights={"p": 1.0, "q": 0.2}, metrics={"p": ["accuracy"], "q": ["mae"]})
h = m.fit(x, {"p": y, "q": x[:, :2]}, epochs=2, validation_split=0.2, **fit)
"""
    ),
    "a list of the model's losses by epoch, by History": Sample(
        cell="""
m = mk(metrics=["accuracy", keras.metrics.AUC(name="auc")])
h = m.fit(x, y, epochs=3, initial_epoch=1, validation_data=(x, y), validation_freq=2, **fit)
plt.plot(h.history["loss"]); plt.show(); print(len(h.history["val_auc"]), m.history is h)
"""
    ),
    "BatchNormalization and dropout": Sample(
        cell="""
m = keras.Sequential([layers.Dense(8), layers.BatchNormalization(), layers.Dropout(0.5), layers.GaussianNoise(0.1), layers.Dense(1)])
m.compile(keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.9), momentum=0.9), "mse")
h = m.fit(x, y, epochs=2, batch_size=20, **fit)
"""
    ),
    "pretraining and fine-tuning": Sample(
        cell="""
base = keras.Sequential([keras.Input((4,)), layers.Dense(3, "relu")]); base.trainable = False
i = keras.Input((4,)); m = keras.Model(i, layers.Dense(1)(base(i, training=False))); m.compile("adam", "mse"); m.fit(x, y, **fit)
base.trainable = True; m.compile(keras.optimizers.Adam(1e-3), "mse"); m.fit(x, y, **fit)
"""
    ),
    "a fit that stops itself": Sample(
        cell="""
class Stop(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 2: self.model.stop_training = True
m = mk(); h = m.fit(x, y, epochs=4, batch_size=8, callbacks=[Stop()], **fit)
"""
    ),
    "siamese pairs in turn, two workers": Sample(
        options="-n 2",
        cell="""
pairs = np.repeat(x[:48], 2, axis=0); pairs[1::2] = -pairs[1::2]; same = np.tile([[1.0], [0.0]], (48, 1)).astype("float32")
m = keras.Sequential([keras.Input((4,)), layers.Dense(3, "tanh"), layers.Dense(1, "sigmoid")]); m.compile("sgd", "mse")
h = m.fit(pairs, same, batch_size=16, epochs=2, **fit)
""",
    ),
}
