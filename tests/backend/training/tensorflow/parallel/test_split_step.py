"""Several workers whose steps XLA compiles in two halves, around the exchange, compute what plain `fit` computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from aiaas_magics.backend.workers.local.launcher_client import LauncherClient
from aiaas_magics.core.events import Planned
from aiaas_magics.core.execution import Execution
from tests.backend.training import ranks
from tests.backend.training.fit_cases import CASES, Case, data, dense, metrics, optimizer
from tests.backend.training.test_equivalence import assert_like_plain_fit, floats
from tests.support import lanes

COMPILED = (
    "momentum in float64",
    "adam",
    "several outputs, odd batches",
    "tail smaller than n",
    "an update shared out",
    "global clipnorm",
    "weight decay and averages",
    "scaled loss",
    "custom train_step",
    "early stopping",
    "batch logs",
)


def scheduled() -> Any:
    """Has a metric of the rate of the step that comes next: it depends on the update."""
    keras.utils.set_random_seed(3)
    sgd = keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.5, 1, 0.9))

    def rate(y: Any, y_pred: Any) -> Any:
        return sgd.learning_rate

    model = keras.Sequential([layers.Input((6,)), layers.Dense(1, activation="sigmoid")])
    model.compile(sgd, "binary_crossentropy", metrics=[rate])
    return model


def recurrent() -> Any:
    keras.utils.set_random_seed(3)
    model = keras.Sequential([layers.Input((6,)), layers.Reshape((6, 1)), layers.LSTM(4), layers.Dense(1, activation="sigmoid")])
    model.compile("adam", "binary_crossentropy", metrics=metrics())
    return model


def table() -> Any:
    keras.utils.set_random_seed(3)
    model = keras.Sequential([layers.Input((6,)), layers.Embedding(3, 4), layers.Flatten(), layers.Dense(1, activation="sigmoid")])
    model.compile(optimizer("SGD", learning_rate=0.1)(), "binary_crossentropy")
    return model


def indices() -> dict[str, Any]:
    given = data()()
    return given | {"x": (given["x"] > 0).astype("float32")}


@dataclass(frozen=True)
class One:
    case: Case
    fused: str
    planned: str
    why: str = ""


ALL = {
    **{name: One(CASES[name], "xla", "xla") for name in COMPILED},
    "recurrent": One(Case(recurrent, data()), "xla", "xla"),
    "recurrent, many steps": One(Case(recurrent, data(epochs=80)), "auto", "xla"),
    "dense, many steps": One(Case(dense("sgd"), data(epochs=80)), "auto", "graph", "costs what compiling gains, but in recurrent layers"),
    "masks": One(CASES["masks"], "xla", "graph", "its losses are weighed by what all workers count"),
    "logs of what the update changed": One(
        Case(scheduled, data()), "xla", "graph", "uses weights or the optimizer's state after the update"
    ),
    "a table": One(Case(table, indices), "xla", "graph", "exchanged row by row"),
}


EVERY_CHANGE = frozenset({"an update shared out", "recurrent", "masks", "a table"})


@pytest.fixture(scope="module")
def trained(
    request: pytest.FixtureRequest, cases: LauncherClient, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[ranks.Sent, Path]]:
    """Everything of this module, trained by two processes."""
    base = tmp_path_factory.mktemp("halves")
    sent: dict[str, ranks.Sent] = {}
    files: list[list[Path]] = [[], []]
    for name in lanes.selected(request, "name"):
        one = ALL[name]
        execution = Execution(fused=one.fused)
        with floats(one.case):
            sent[name] = ranks.send(base / name, one.case.model(), execution=execution, **one.case.arguments())
        for rank, path in enumerate(ranks.commands(sent[name], base / name, ranks=2, execution=execution)):
            files[rank].append(path)
    ranks.carry_out(cases, files, base)
    return lambda name: (sent[name], base / name)


@pytest.mark.parametrize("name", lanes.thinned(ALL, keep=EVERY_CHANGE.__contains__))
def test_steps_in_halves_are_those_of_plain_fit_or_are_not_cut_and_say_why(
    trained: Callable[[str], tuple[ranks.Sent, Path]], name: str
) -> None:
    sent, folder = trained(name)
    one = ALL[name]

    [planned] = [event for event in ranks.events_in(folder) if isinstance(event, Planned)]
    assert planned.fused == one.planned, planned.why
    assert one.why in " ".join(planned.why)
    assert_like_plain_fit(one.case, sent, folder)
    assert np.isfinite(ranks.result_in(folder).history["loss"]).all()
