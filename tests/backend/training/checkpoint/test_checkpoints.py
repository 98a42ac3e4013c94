"""Checkpoints: whole or not there, and nothing but plain data in them."""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from aiaas_magics.backend.folders.checkpoint_folder import CHECKPOINTS_KEPT, TrainingPosition, adopt, keep_newest, newest_whole
from aiaas_magics.backend.training.checkpoint.checkpoint_contents import (
    CallbackState,
    Checkpoint,
    decode_own,
    encode_own,
    load,
    plain_attributes,
    write,
)


def checkpoint(epoch: int, step: int = 0) -> Checkpoint:
    return Checkpoint(
        place=TrainingPosition(epoch, step),
        variables=[np.full((2, 3), epoch, np.float32), np.array(7, np.int64), np.array([1, 2], ml_dtypes.bfloat16), np.array([True])],
        paths=["dense/kernel", "iterations", "half", "flag"],
        history={"loss": [0.5, math.nan, math.inf]},
        epochs_done=[0, 1, 2],
        callbacks=[
            CallbackState(
                kind="Own", attributes={"best": np.float64(0.25), "weights": [np.eye(2)], ("a", 1): {"set", "of"}}, left=["Own.x"]
            ),
            CallbackState(kind="Texts", attributes={"names": np.array(["a", "bcd"]), "nothing": np.zeros((0, 3))}),
        ],
        ranks=[b"of rank 0", b"of rank 1"],
        stopped=True,
    )


def places(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_loaded_is_what_was_written(tmp_path: Path) -> None:
    found = load(write(tmp_path, checkpoint(4, 17)))

    assert found is not None
    np.testing.assert_equal(found.variables, checkpoint(4).variables)
    assert [array.dtype for array in found.variables] == [array.dtype for array in checkpoint(4).variables]
    np.testing.assert_equal(dict(found.history), dict(checkpoint(4).history))
    assert [state.kind for state in found.callbacks] == ["Own", "Texts"]
    for state, before in zip(found.callbacks, checkpoint(4).callbacks, strict=True):
        np.testing.assert_equal(dict(state.attributes), dict(before.attributes))
    assert found.callbacks[0].left == ["Own.x"]
    assert (found.place, found.epochs_done, found.ranks, found.stopped) == (
        TrainingPosition(4, 17),
        [0, 1, 2],
        [b"of rank 0", b"of rank 1"],
        True,
    )
    assert found.paths == checkpoint(4).paths


def test_what_a_rank_keeps_of_its_own_comes_back_bit_for_bit() -> None:
    own = {"python": random.getstate(), "numpy": np.random.get_state(), "values": {3: np.array([1.5], ml_dtypes.bfloat16)}, "keras": None}

    found = decode_own(encode_own(own))

    assert found["python"] == own["python"]
    np.testing.assert_equal(found, own)


def test_the_newest_few_are_kept_in_the_order_of_training(tmp_path: Path) -> None:
    for place in [(1, 0), (1, 9), (1, 10), (2, 0), (99_999, 0), (100_000, 3)]:
        write(tmp_path, checkpoint(*place))

    assert places(tmp_path) == ["epoch-100000-step-00000003", "epoch-99999"]
    assert len(places(tmp_path)) == CHECKPOINTS_KEPT
    assert newest_whole(tmp_path) == (TrainingPosition(100_000, 3), tmp_path / "epoch-100000-step-00000003")


@pytest.mark.parametrize("name", ["variables.safetensors", "state.json", "rank-1.safetensors", "manifest.json"])
@pytest.mark.parametrize("harm", ["cut", "remove", "flip"])
def test_a_torn_one_is_passed_over_and_gives_way_to_the_next(tmp_path: Path, name: str, harm: str) -> None:
    before = write(tmp_path, checkpoint(1))
    newest = write(tmp_path, checkpoint(2))
    path = newest / name
    data = path.read_bytes()
    path.unlink()
    if harm != "remove":
        path.write_bytes(data[:-3] if harm == "cut" else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])

    assert newest_whole(tmp_path) == (TrainingPosition(1), before)
    assert load(newest) is None

    write(tmp_path, checkpoint(1, 5))

    assert places(tmp_path) == ["epoch-00001", "epoch-00001-step-00000005"]


def test_one_that_cannot_be_written_leaves_those_before_it_as_they_were(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    write(tmp_path, checkpoint(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # Python ignores the signal: writing fails, as on a full disk
    try:
        with pytest.raises(OSError, match="large"):
            write(tmp_path, Checkpoint(place=TrainingPosition(2), variables=[np.zeros(100_000)]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert places(tmp_path) == ["epoch-00001"]
    assert load(tmp_path / "epoch-00001") is not None


def test_none_is_none(tmp_path: Path) -> None:
    assert load(tmp_path / "epoch-00003") is None
    assert newest_whole(tmp_path / "nowhere") is None


def test_the_same_place_twice_is_the_second(tmp_path: Path) -> None:
    write(tmp_path, checkpoint(3))

    assert load(write(tmp_path, checkpoint(3))) is not None
    assert places(tmp_path) == ["epoch-00003"]


def test_another_job_may_have_it_too_and_keeps_it_when_the_first_goes_on(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    write(old, checkpoint(1))
    adopt(write(old, checkpoint(2)), new)
    keep_newest(old)
    assert places(old) == ["epoch-00002"]

    for epoch in (3, 4):
        write(old, checkpoint(epoch))

    assert newest_whole(new) == (TrainingPosition(2), new / "epoch-00002")


def test_attributes_that_are_no_plain_data_stay_behind() -> None:
    class Thing:
        def __init__(self) -> None:
            self.plain: Any = {"values": [1, 2.5, np.ones(2)]}
            self.model = 3
            self.function = print
            self.mixed = [1, object()]

    np.testing.assert_equal(plain_attributes(Thing(), leave_out=frozenset({"model"})), {"plain": {"values": [1, 2.5, np.ones(2)]}})


BAD = {
    "absolute": lambda path: json.dumps({"/dev/zero": "x"}),
    "above": lambda path: json.dumps({"../other": "x"}),
    "dots": lambda path: json.dumps({"..": "x"}),
    "device": lambda path: (path / "zero").symlink_to("/dev/zero") or json.dumps({"zero": "x"}),
    "pipe": lambda path: os.mkfifo(path / "pipe") or json.dumps({"pipe": "x"}),
    "list": lambda path: "[1, 2]",
    "deep": lambda path: "[" * 200_000,
    "endless": lambda path: None,
    "nothing": lambda path: "{}",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_manifest_that_names_anything_but_plain_files_of_its_folder_is_no_checkpoint(tmp_path: Path, kind: str) -> None:
    good = write(tmp_path, checkpoint(1))
    bad = tmp_path / TrainingPosition(2).name
    bad.mkdir()
    text = BAD[kind](bad)
    if text is None:
        (bad / "manifest.json").symlink_to("/dev/zero")
    else:
        (bad / "manifest.json").write_text(text)

    assert newest_whole(tmp_path) == (TrainingPosition(1), good)


def test_a_link_in_the_place_of_a_checkpoint_is_none(tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere", checkpoint(3))
    good = write(tmp_path / "own", checkpoint(1))
    (tmp_path / "own" / TrainingPosition(3).name).symlink_to(elsewhere)

    assert newest_whole(tmp_path / "own") == (TrainingPosition(1), good)


def test_what_stands_beside_the_files_of_a_checkpoint_is_not_adopted(tmp_path: Path) -> None:
    path = write(tmp_path / "one", checkpoint(1))
    (path / "stray").symlink_to("/dev/zero")

    adopt(path, tmp_path / "two")

    assert sorted(one.name for one in (tmp_path / "two" / path.name).iterdir()) == sorted(
        one.name for one in path.iterdir() if one.name != "stray"
    )
    assert newest_whole(tmp_path / "two") is not None
