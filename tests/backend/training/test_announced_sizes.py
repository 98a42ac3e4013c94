"""What two real workers make of a batch is as far from plain `fit` as was announced."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from aiaas_magics.backend.workers.local.launcher_client import LauncherClient
from aiaas_magics.packing.fitcall import fit_call
from tests.backend.training import ranks
from tests.packing.checks import joining

SIZE = re.compile(r"differs by ([0-9.e+-]+) of its norm")


def segmenting() -> Any:
    return joining.segmenting(joining.dice_loss)


def softened() -> Any:
    return joining.with_layers(layers.Lambda(lambda t: ops.softmax(t, axis=0)))


def remembering() -> Any:
    return joining.subclassed(joining.Remembering)


def contrasting() -> Any:
    return joining.subclassed(joining.Contrasting)


def one_batch(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value[: joining.ROWS] if isinstance(value, np.ndarray) else value for name, value in given.items()}


def weights_of(model: Any) -> list[Any]:
    return list(model.trainable_variables)


# By name: the model, its data, and the variables that the announcement is about.
CASES: dict[str, tuple[Callable[[], Any], Callable[[], dict[str, Any]], Callable[[Any], list[Any]], str]] = {
    "Dice": (segmenting, joining.images, weights_of, "The loss dice_loss"),
    "softmax over rows": (softened, joining.table, weights_of, "The layer lambda"),
    "bare variable": (remembering, joining.table, lambda model: [model.highest], "The variable"),
    "queue": (contrasting, lambda: joining.table() | {"y": None}, lambda model: [model.queue], "The variable"),
}


@pytest.fixture(scope="module")
def trained(cases: LauncherClient, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[ranks.Sent, Path]]:
    base = tmp_path_factory.mktemp("ranks")
    sent: dict[str, tuple[ranks.Sent, Path]] = {}
    files: list[list[Path]] = [[], []]
    for number, (name, (build, given, _, _)) in enumerate(CASES.items()):
        folder = base / str(number)
        sent[name] = (ranks.send(folder, build(), workers=2, **one_batch(given()), epochs=1), folder)
        for rank, path in enumerate(ranks.commands(sent[name][0], folder, ranks=2)):
            files[rank].append(path)
    ranks.carry_out(cases, files, base)
    return sent


@pytest.mark.parametrize("name", CASES)
def test_two_workers_differ_from_one_by_what_was_announced(trained: dict[str, tuple[ranks.Sent, Path]], name: str) -> None:
    build, given, concerned, words = CASES[name]
    sent, folder = trained[name]
    [said] = [text for text in sent.packed.notes if text.startswith(words)]
    plain = build()
    before = values(concerned(build()))
    plain.fit(**one_batch(given()), epochs=1, verbose=0)

    fit_call.apply_result(ranks.result_in(folder), sent.packed)

    ours, theirs = values(concerned(sent.packed.model)), values(concerned(plain))
    # One step of SGD moves weights by their gradient; of another variable the value itself is compared.
    norm = np.linalg.norm(theirs - before) if concerned is weights_of else np.linalg.norm(theirs)
    found = SIZE.search(said)
    assert found is not None
    assert np.linalg.norm(ours - theirs) / norm == pytest.approx(float(found[1]), rel=0.2)


def values(variables: list[Any]) -> Any:
    return np.concatenate([np.ravel(variable.numpy()) for variable in variables]).astype("float64")


def test_sgd_is_what_the_cases_are_trained_with() -> None:
    assert all(isinstance(build().optimizer, keras.optimizers.SGD) for build, *_ in CASES.values())
