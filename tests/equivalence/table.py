"""What is combined: models, optimizers, and the ways of carrying out a fit.

Owns the table and what is possible together. Cases that one property makes are `tests.backend.training.fit_cases`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers, ops

from aiaas_magics.core.execution import Execution
from tests.backend.training import fit_cases
from tests.backend.training.fit_cases import CASES, Case, OwnStep

BATCH = 12


class Way(NamedTuple):
    """How a fit is carried out; `strategy` and `fused` are those of `spec.Execution`.

    `ranks` is how many parts a batch has: as many processes, or devices of one process, which are simulated by cores of the CPU.
    """

    strategy: str
    fused: str
    ranks: int

    @property
    def processes(self) -> int:
        return self.ranks if self.strategy == "collective" else 1

    @property
    def on_jax(self) -> bool:
        return self.strategy == "spmd"

    @property
    def execution(self) -> Execution:
        return Execution(strategy=self.strategy, fused=self.fused, checkpoint_epochs=0)


PLAIN = Way("plain", "off", 1)
RANKS = (2, 3, 4)
WAYS = (
    *(Way("single", fused, 1) for fused in ("off", "graph", "xla")),
    *(Way("collective", fused, ranks) for fused in ("off", "graph") for ranks in RANKS),
    Way("collective", "xla", 2),
    *(Way("mirrored", "off", ranks) for ranks in RANKS),
    *(Way("spmd", "auto", ranks) for ranks in (1, *RANKS)),
)


@dataclass(frozen=True)
class Row:
    """A model to compile with any optimizer.

    `said` are the first words of what is announced on several workers; `exact` whether weights and logs are those of one all the same.
    On JAX other things differ, on any number of devices.
    """

    build: Callable[[], tuple[Any, dict[str, Any]]]  # the model, and what else `compile` is given
    arguments: Callable[[], dict[str, Any]]
    said: tuple[str, ...] = ()
    exact: bool = True
    said_on_jax: tuple[str, ...] = ()
    exact_on_jax: bool = True
    logs_on_jax: tuple[str, ...] = ()  # those that the announcement on JAX is about
    looks_up: str = ""  # the table that an Embedding trains: what squares or clips its gradients differs on JAX
    stays: str = ""  # why it does not go to JAX
    is_cut: bool = True  # for XLA, around the exchange of several processes


class Hits(keras.metrics.Metric):
    """A metric of the user's own: a matrix of counts."""

    def __init__(self, name: str = "hits", **options: Any) -> None:
        super().__init__(name=name, **options)
        self.counts = self.add_variable((2, 2), "zeros", name="counts")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        true, found = ops.reshape(ops.cast(y_true, "int32"), (-1,)), ops.reshape(ops.cast(y_pred > 0.5, "int32"), (-1,))
        self.counts.assign_add(ops.matmul(ops.transpose(ops.one_hot(true, 2)), ops.one_hot(found, 2)))

    def result(self) -> Any:
        return ops.trace(self.counts) / ops.sum(self.counts)


def mlp() -> tuple[Any, dict[str, Any]]:
    model = keras.Sequential(
        [layers.Input((6,)), layers.Dense(16, activation="tanh"), layers.Dense(8, activation="gelu"), layers.Dense(1, activation="sigmoid")]
    )
    named = [
        "accuracy",
        keras.metrics.AUC(name="auc"),
        keras.metrics.Recall(name="recall"),
        keras.metrics.RootMeanSquaredError(name="rmse"),
    ]
    return model, {"loss": "binary_crossentropy", "metrics": [*named, Hits()]}


def rows(count: int, **more: Any) -> Callable[[], dict[str, Any]]:
    def arguments() -> dict[str, Any]:
        x, y = fit_cases.table(count)
        return {"x": x, "y": y, "epochs": 3, "batch_size": BATCH, "shuffle": False} | more

    return arguments


def cnn(*, own_statistics: bool) -> Callable[[], tuple[Any, dict[str, Any]]]:
    """Trained statistics and dropout, or statistics that stand still and none. No bias before statistics: its gradient is exactly zero."""

    def build() -> tuple[Any, dict[str, Any]]:
        normal = layers.BatchNormalization(name="normal", momentum=0.8)
        normal.trainable = own_statistics
        inner = [layers.Conv2D(4, 3, kernel_regularizer="l2", use_bias=False), normal, layers.Activation("tanh"), layers.MaxPooling2D()]
        if own_statistics:
            inner.append(layers.Dropout(0.3, name="drop"))
        model = keras.Sequential([layers.Input((8, 8, 2)), *inner, layers.Flatten(), layers.Dense(3)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return model, {"loss": loss, "metrics": ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")]}

    return build


def images() -> dict[str, Any]:
    random = np.random.default_rng(4)
    x = random.normal(size=(53, 8, 8, 2)).astype("float32")
    y = (x.mean(axis=(1, 2, 3)) * 30).astype("int32") % 3
    return {"x": x, "y": y, "epochs": 2, "batch_size": BATCH, "shuffle": False, "class_weight": {0: 1.0, 1: 0.3, 2: 2.5}}


def lstm() -> tuple[Any, dict[str, Any]]:
    words = keras.Input((7,), dtype="int32")
    states = layers.LSTM(5, return_sequences=True)(layers.Embedding(9, 4, mask_zero=True)(words))
    model = keras.Model(words, layers.Dense(3, activation="softmax")(states))
    return model, {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}


def sentences(count: int, **more: Any) -> Callable[[], dict[str, Any]]:
    def arguments() -> dict[str, Any]:
        given = fit_cases.sentences()
        return given | {"x": given["x"][:count], "y": given["y"][:count]} | more

    return arguments


def transformer() -> tuple[Any, dict[str, Any]]:
    """One block. Its attention has no biases: that of the keys has a gradient of exactly zero, of which Adam makes noise of full size."""
    words = keras.Input((7,), dtype="int32")
    states = layers.Embedding(9, 8)(words) + layers.Embedding(7, 8)(ops.arange(7))
    seen = layers.MultiHeadAttention(2, 4, use_bias=False)(states, states, use_causal_mask=True)
    states = layers.LayerNormalization()(states + seen)
    states = layers.LayerNormalization()(states + layers.Dense(8)(layers.Dense(16, activation="gelu")(states)))
    model = keras.Model(words, layers.Dense(3, activation="softmax")(states))
    overlap = keras.metrics.MeanIoU(3, sparse_y_pred=False, name="iou")
    return model, {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy", overlap], "weighted_metrics": ["accuracy"]}


def token_weights(count: int) -> Any:
    return np.random.default_rng(6).uniform(0.1, 2.0, (count, 7)).astype("float32")


def several() -> tuple[Any, dict[str, Any]]:
    a, b = keras.Input((6,), name="a"), keras.Input((2,), name="b")
    joined = layers.Dense(8, activation="tanh")(layers.Concatenate()([a, b]))
    outputs = {"value": layers.Dense(1, name="value")(joined), "kind": layers.Dense(3, activation="softmax", name="kind")(joined)}
    return keras.Model({"a": a, "b": b}, outputs), {
        "loss": {"value": "mse", "kind": "sparse_categorical_crossentropy"},
        "loss_weights": {"value": 0.3, "kind": 2.0},
        "metrics": {"value": ["mae"], "kind": ["accuracy"]},
    }


MODELS: dict[str, Row] = {
    "mlp": Row(mlp, rows(53), said=("Variables of the metric hits",)),
    "cnn": Row(
        cnn(own_statistics=True),
        images,
        said=("BatchNormalization (normal)", "Random numbers (drop)"),
        exact=False,
        said_on_jax=("Random numbers (drop) are drawn by JAX",),
        exact_on_jax=False,
    ),
    "cnn, statistics frozen": Row(cnn(own_statistics=False), images),
    # The last batch has 3 rows, less than one for each of 4 ranks.
    "lstm with masks": Row(lstm, sentences(51), looks_up="embedding", is_cut=False),
    "transformer block": Row(transformer, sentences(53, sample_weight=token_weights(53)), looks_up="embedding", is_cut=False),
    "custom train_step": Row(
        lambda: (OwnStep(), {}),
        rows(53),
        said=("OwnStep has its own train_step",),
        stays="This fit stays on TensorFlow: OwnStep has its own train_step",
    ),
    "several outputs": Row(
        several,
        lambda: fit_cases.several_data(53) | {"validation_split": 0.25},
        said_on_jax=("The losses shown of single outputs count the last, smaller batch",),
        logs_on_jax=("value_loss", "kind_loss", "val_value_loss", "val_kind_loss"),
    ),
}

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "clipnorm": lambda: keras.optimizers.SGD(0.5, momentum=0.9, clipnorm=0.05),
    "global_clipnorm": lambda: keras.optimizers.Adam(0.01, global_clipnorm=0.1),
    "ema": lambda: keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True, ema_momentum=0.9),
}

# In `make equivalence` only: one case of each is among `fit_cases`.
MORE_OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "clipvalue": lambda: keras.optimizers.SGD(0.5, clipvalue=0.01),
    "ema that overwrites": lambda: keras.optimizers.AdamW(0.01, use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=4),
    "accumulation": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=3),
}


class Combination(NamedTuple):
    model: str
    optimizer: str
    form: str  # strategy and fused
    ranks: int

    @property
    def run(self) -> Run:
        return Run(f"{self.model} / {self.optimizer}", Way(*self.form.split(), self.ranks))


class Run(NamedTuple):
    """One case, carried out in one way."""

    case: str
    way: Way

    def __str__(self) -> str:
        return f"{self.case}: {self.way.strategy} {self.way.fused} on {self.way.ranks}"

    @property
    def row(self) -> Row | None:
        return MODELS.get(self.case.partition(" / ")[0])

    @property
    def stays(self) -> bool:
        """Whether it does not go to JAX, and says so."""
        return self.way.on_jax and self.row is not None and bool(self.row.stays)

    @property
    def fused(self) -> str:
        """The form of its steps: the one that is asked for, where that can be had."""
        in_halves = self.way.fused == "xla" and self.way.ranks > 1
        return "graph" if in_halves and self.row is not None and not self.row.is_cut else self.way.fused

    @property
    def is_exact(self) -> bool:
        if self.row is None:
            return self.way.ranks == 1 or case_of(self.case).exact
        if self.way.on_jax:
            return self.row.exact_on_jax and not self._of_lookups
        return self.way.ranks == 1 or self.row.exact

    @property
    def said(self) -> tuple[str, ...]:
        """The first words of everything that is announced."""
        if self.row is None or (self.way.ranks == 1 and not self.way.on_jax):
            return ()
        if self.stays:
            return (self.row.stays, *(self.row.said if self.way.ranks > 1 else ()))
        if not self.way.on_jax:
            return self.row.said
        return *self.row.said_on_jax, *self._of_lookups

    @property
    def _of_lookups(self) -> tuple[str, ...]:
        """What is done to each lookup of a row on TensorFlow, and to their sum on JAX."""
        assert self.row is not None
        optimizer = optimizer_of(self.case)
        if not self.row.looks_up or optimizer.gradient_accumulation_steps:
            return ()
        squares = [] if isinstance(optimizer, keras.optimizers.SGD) else [f"{type(optimizer).__name__} squares"]
        clips = [f"{option} clips" for option in ("clipnorm", "global_clipnorm", "clipvalue") if getattr(optimizer, option)]
        return tuple(f"{does} the gradient of a row of {self.row.looks_up}" for does in squares + clips)


def combinations(optimizers: Iterable[str]) -> list[Combination]:
    """Every one that is possible: one process has one rank, several processes have two at least."""
    return [
        Combination(model, optimizer, f"{way.strategy} {way.fused}", way.ranks)
        for model in MODELS
        for optimizer in optimizers
        for way in WAYS
    ]


POSSIBLE = combinations(OPTIMIZERS)
# In the form that is chosen where nobody asks for one, `tests/backend/training/test_equivalence.py` runs these.
PROPERTIES = [
    Run(name, Way("collective", fused, ranks))
    for name, case in CASES.items()
    if name != "no epochs"  # it makes no step, in any form
    for ranks in case.ranks
    for fused in ("off", "graph")
]


# What every change runs: one model in all forms, on as few ranks as each can have, all models in one form, and there one optimizer
# more, which needs the numbers of all variables.
THIN = [
    combination
    for combination in POSSIBLE
    if ((combination.model, combination.optimizer) == ("mlp", "adam") and combination.ranks <= 2)
    or (
        (combination.form, combination.ranks) == ("collective graph", 2)
        and (combination.optimizer == "adam" or (combination.model, combination.optimizer) == ("mlp", "global_clipnorm"))
    )
]


def runs(*, every: bool) -> list[Run]:
    if not every:
        return [combination.run for combination in THIN]
    return [*(combination.run for combination in combinations([*OPTIMIZERS, *MORE_OPTIMIZERS])), *PROPERTIES]


def optimizer_of(case: str) -> Any:
    return (OPTIMIZERS | MORE_OPTIMIZERS)[case.partition(" / ")[2]]()


def case_of(name: str) -> Case:
    """A case by its name: one of `fit_cases`, or "model / optimizer"."""
    if name in CASES:
        return CASES[name]
    row = MODELS[name.partition(" / ")[0]]

    def build() -> Any:
        keras.utils.set_random_seed(11)
        built, compiled = row.build()
        built.compile(optimizer=optimizer_of(name), **compiled)
        return built

    return Case(build, row.arguments)
