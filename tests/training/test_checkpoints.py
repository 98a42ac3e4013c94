"""Checkpoints: whole or not there, and nothing but plain data in them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from aiaas_magics.backend.training.checkpoints import KEPT, Checkpoint, load, plain_attributes, save


def checkpoint(epoch: int) -> Checkpoint:
    return Checkpoint(
        epoch=epoch,
        variables=[np.full((2, 3), epoch, np.float32), np.array(7, np.int64), np.array([1, 2], ml_dtypes.bfloat16), np.array([True])],
        history={"loss": [0.5, math.nan, math.inf]},
        epochs_done=[0, 1, 2],
        callbacks=[{"best": np.float64(0.25), "weights": [np.eye(2)], "wait": 3, ("a", 1): {"set", "of"}}, {}],
        stopped=True,
    )


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    found = load(save(tmp_path, checkpoint(4)))

    assert found is not None
    np.testing.assert_equal(found.variables, checkpoint(4).variables)
    assert [array.dtype for array in found.variables] == [array.dtype for array in checkpoint(4).variables]
    np.testing.assert_equal(dict(found.history), dict(checkpoint(4).history))
    np.testing.assert_equal(list(found.callbacks), list(checkpoint(4).callbacks))
    assert (found.epoch, found.epochs_done, found.stopped) == (4, [0, 1, 2], True)


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    for epoch in range(1, 6):
        save(tmp_path, checkpoint(epoch))

    assert sorted(path.name for path in tmp_path.iterdir()) == [f"epoch-{epoch:05d}" for epoch in range(6 - KEPT, 6)]


@pytest.mark.parametrize("name", ["variables.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["cut", "remove", "flip"])
def test_a_torn_one_is_passed_over(tmp_path: Path, name: str, harm: str) -> None:
    save(tmp_path, checkpoint(1))
    newest = save(tmp_path, checkpoint(2))
    path = newest / name
    data = path.read_bytes()
    path.unlink()
    if harm != "remove":
        path.write_bytes(data[:-3] if harm == "cut" else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])

    found = load(newest)

    assert found is not None
    assert found.epoch == 1


def test_none_is_none(tmp_path: Path) -> None:
    assert load(tmp_path / "epoch-00003") is None


def test_the_same_epoch_twice_is_the_second(tmp_path: Path) -> None:
    save(tmp_path, checkpoint(3))

    assert load(save(tmp_path, checkpoint(3))) is not None
    assert len(list(tmp_path.iterdir())) == 1


def test_attributes_that_are_no_plain_data_stay_behind() -> None:
    class Thing:
        def __init__(self) -> None:
            self.plain: Any = {"values": [1, 2.5, np.ones(2)]}
            self.model = 3
            self.function = print
            self.mixed = [1, object()]

    np.testing.assert_equal(plain_attributes(Thing(), leave_out=frozenset({"model"})), {"plain": {"values": [1, 2.5, np.ones(2)]}})
