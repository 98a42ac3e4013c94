"""What the strategy mirrored could get wrong by itself. The devices are simulated: cores of the CPU.

That it computes what plain `fit` computes, models by optimizers, is among the runs of `tests.equivalence`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf

from aiaas_magics.backend.workers.local.launcher_client import LauncherClient
from aiaas_magics.core.events import Planned
from aiaas_magics.core.execution import Execution
from tests.backend.training import ranks
from tests.backend.training.fit_cases import CASES, Case, OwnStep, data, dense, optimizer
from tests.backend.training.test_equivalence import assert_like_plain_fit, floats
from tests.support import lanes

MIRRORED = Execution(strategy="mirrored")


class Replicas(keras.callbacks.Callback):
    """Keeps on how many devices the model was."""

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def on_train_begin(self, logs: Any = None) -> None:
        self.found = self.model.distribute_strategy.num_replicas_in_sync


class CompiledStep(OwnStep):
    train_step = tf.function(OwnStep.train_step)


def compiled_step() -> Any:
    keras.utils.set_random_seed(11)
    model = CompiledStep()
    model.compile(optimizer="adam")
    return model


KNOWN = CASES | {
    "momentum": Case(dense(optimizer("SGD", momentum=0.9)), data(callbacks=lambda: [Replicas()])),
    "compiled train_step": Case(compiled_step, data()),
}
NAMES = {
    2: (
        "momentum",
        "accumulated gradients",
        "scaled loss",
        "synchronized statistics, tail smaller than n",
        "compiled train_step",
        "step by step",
    ),
    3: ("adam in float64", "sum, tail smaller than n"),
}


@pytest.fixture(scope="module")
def trained(
    request: pytest.FixtureRequest, cases: LauncherClient, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], dict[str, tuple[Path, ranks.Sent]]]:
    """By number of devices: all cases, trained in one process when first asked for."""
    names = {n: [name for name, count in lanes.selected(request, "name", "n") if count == n] for n in NAMES}
    return functools.cache(lambda n: train_all(cases, n, names[n], tmp_path_factory.mktemp(f"devices-{n}")))


def train_all(cases: LauncherClient, n: int, names: Iterable[str], base: Path) -> dict[str, tuple[Path, ranks.Sent]]:
    made, files = {}, []
    for name in names:
        folder, case = base / name, KNOWN[name]
        with floats(case):
            sent = ranks.send(folder, case.model(), workers=n, execution=MIRRORED, **case.arguments())
        made[name] = folder, sent
        files += ranks.commands(sent, folder, ranks=1, devices=n, cores=(0, 1), execution=MIRRORED)
    ranks.carry_out(cases, [files], base)
    return made


@pytest.mark.parametrize(
    ("name", "n"),
    lanes.thinned(
        [(name, n) for n, names in NAMES.items() for name in names],
        keep=lambda case: (
            case
            not in {
                ("momentum", 2),
                ("step by step", 2),
                ("sum, tail smaller than n", 3),
                ("accumulated gradients", 2),
                ("adam in float64", 3),
                ("scaled loss", 2),
            }
        ),
    ),
)
def test_replicas_train_as_plain_fit_does(trained: Callable[[int], dict[str, tuple[Path, ranks.Sent]]], name: str, n: int) -> None:
    folder, sent = trained(n)[name]

    assert_like_plain_fit(KNOWN[name], sent, folder)

    [plan] = [event for event in ranks.events_in(folder) if isinstance(event, Planned)]
    assert (plan.strategy, plan.fused) == ("mirrored", "off")
    assert all(callback.found == n for callback in sent.packed.callbacks if isinstance(callback, Replicas))
