"""n processes compute what plain `fit` computes in one, on the same order of rows."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from aiaas_magics.backend.workers.local.launcher_client import LauncherClient
from aiaas_magics.packing.fitcall import fit_call
from tests.backend.training import ranks
from tests.backend.training.fit_cases import CASES, Case, Watcher
from tests.support import lanes

ALL = [(name, n) for name, case in CASES.items() for n in case.ranks]
EXACT = [(name, n) for name, n in ALL if CASES[name].exact]
AVERAGED = "statistics of each worker's own"
# Of cases that only another optimizer, type or size of the last batch tells apart, one is enough for every change; optimizers and
# kinds of models are in the table of tests/equivalence as well.
EVERY_CHANGE = frozenset(
    {
        ("masks", 3),
        *(
            (name, 2)
            for name in (
                "adam",
                "sum, tail smaller than n",
                "synchronized statistics, tail smaller than n",
                "batches smaller than n",
                "an update shared out",
                "accumulated gradients",
                "validation split",
                "no epochs",
            )
        ),
    }
)

# The first test of each number of ranks trains all of its cases.
pytestmark = pytest.mark.timeout(3 * ranks.WAIT_S)


@dataclass(frozen=True)
class Trained:
    model: Any
    history: Any
    callbacks: Any


@dataclass(frozen=True)
class Batch:
    """All cases for one number of ranks, trained."""

    folder: Path
    sent: dict[str, ranks.Sent]


@pytest.fixture(scope="module")
def trained(request: pytest.FixtureRequest, cases: LauncherClient, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Batch]:
    """By number of ranks, each trained when first asked for."""
    pairs = {*lanes.selected(request, "name", "n"), (AVERAGED, 2)}
    names = {n: [name for name, count in ALL if count == n and (name, n) in pairs] for n in (2, 3)}
    return functools.cache(lambda n: train_all(cases, n, names[n], tmp_path_factory.mktemp(f"ranks-{n}")))


def train_all(cases: LauncherClient, n: int, names: Iterable[str], base: Path) -> Batch:
    """One process per rank trains all cases of `names`."""
    sent: dict[str, ranks.Sent] = {}
    files: list[list[Path]] = [[] for _ in range(n)]
    for name in names:
        with floats(CASES[name]):
            sent[name] = ranks.send(base / name, CASES[name].model(), workers=n, **CASES[name].arguments())
        for rank, path in enumerate(ranks.commands(sent[name], base / name, ranks=n)):
            files[rank].append(path)
    ranks.carry_out(cases, files, base, wait_s=2 * ranks.WAIT_S)
    return Batch(base, sent)


class floats:
    """Keras' default type, for the time of a case."""

    def __init__(self, case: Case) -> None:
        self._floatx = case.floatx

    def __enter__(self) -> None:
        self._before = keras.config.floatx()
        self._set(self._floatx)

    def __exit__(self, *exc_info: object) -> None:
        self._set(self._before)

    def _set(self, floatx: str) -> None:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(floatx)  # it is kept once somebody has asked for it


def plain(case: Case) -> Trained:
    model, arguments = case.model(), case.arguments()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Your input ran out of data")  # of a pass that ends within an epoch of steps_per_epoch
        history = model.fit(**arguments, verbose=0)
    return Trained(model, history, arguments.get("callbacks") or ())


@pytest.mark.parametrize(("name", "n"), lanes.thinned(EXACT, keep=EVERY_CHANGE.__contains__))
def test_weights_and_logs_are_those_of_plain_fit(trained: Callable[[int], Batch], name: str, n: int) -> None:
    batch = trained(n)

    assert_like_plain_fit(CASES[name], batch.sent[name], batch.folder / name)


def assert_like_plain_fit(case: Case, sent: ranks.Sent, folder: Path) -> None:
    """The result in `folder` is what plain `fit` makes of `case`: weights, history, and the logs of single batches."""
    with floats(case):
        expected = plain(case)
        # A fit of no epochs leaves its optimizer unbuilt; ours was built in the kernel, before it travelled.
        if not expected.model.optimizer.built:
            expected.model.optimizer.build(expected.model.trainable_variables)
        history = fit_call.apply_result(ranks.result_in(folder), sent.packed)
        model = sent.packed.model

        ours = [variable.numpy() for variable in (*model.variables, *model.optimizer.variables)]
        theirs = [variable.numpy() for variable in (*expected.model.variables, *expected.model.optimizer.variables)]
        assert max(ranks.gaps(ours, theirs)) <= case.tolerance
        assert history.epoch == expected.history.epoch
        assert history.history.keys() == expected.history.history.keys()
        for log, values in expected.history.history.items():
            exact = 1e-9 if case.floatx == "float64" else 1e-6
            np.testing.assert_allclose(history.history[log], values, rtol=exact, atol=exact, err_msg=log)
        for mine, theirs in zip(sent.packed.callbacks, expected.callbacks, strict=True):
            if isinstance(mine, Watcher):
                np.testing.assert_allclose(mine.batches, theirs.batches, rtol=1e-5)


def test_moving_statistics_of_each_workers_own_are_averaged_at_the_end_of_each_epoch(trained: Callable[[int], Batch]) -> None:
    batch, name = trained(2), AVERAGED
    fit_call.apply_result(ranks.result_in(batch.folder / name), batch.sent[name].packed)

    arguments, oracle = CASES[name].arguments(), CASES[name].model()
    layer = oracle.layers[0]
    before = [variable.numpy() for variable in layer.non_trainable_variables]
    for _ in range(arguments["epochs"]):
        found = []
        for rank in range(2):
            for variable, value in zip(layer.non_trainable_variables, before, strict=True):
                variable.assign(value)
            for start in range(0, len(arguments["x"]), arguments["batch_size"]):
                x, y = (np.array_split(arguments[part][start : start + arguments["batch_size"]], 2)[rank] for part in "xy")
                oracle.train_on_batch(x, y)
            found.append([variable.numpy() for variable in layer.non_trainable_variables])
        before = [np.mean(pair, axis=0) for pair in zip(*found, strict=True)]

    for mine, theirs in zip(batch.sent[name].packed.model.layers[0].non_trainable_variables, before, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=1e-6)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_a_number_that_is_missing_is_a_gap_wherever_it_is(place: int, lost: float) -> None:
    holed = [np.ones(2) for _ in range(3)]
    holed[place][1] = lost

    for ours, theirs in ((holed, [np.ones(2)] * 3), ([np.ones(2)] * 3, holed), (holed, holed)):
        assert max(ranks.gaps(ours, theirs)) == np.inf
