"""Which folders beside a notebook travel: those that its callbacks speak of, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import pytest

from aiaas_magics.packing.fitcall import fit_call, working_folder
from tests.contracts.recipes import small_model, table

BESIDE = ("runs/day-1", "plots/deep", "from_a_global", "divorce papers", "salaries-2026", ".hidden/runs")
OUT = "from_a_global"


class Writes(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        Path(f"plots/epoch-{epoch}.txt").write_text("")
        Path(self.folder, "a.txt").write_text("")
        Path(OUT, "b.txt").write_text("")


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    for name in BESIDE:
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def test_only_folders_that_a_callback_speaks_of_are_named_to_the_backend(beside: Path) -> None:
    x, y = table()
    packed = fit_call.pack(fit_call.FitCall(small_model(), {"x": x, "y": y, "callbacks": [Writes("runs/day-1")]}), workers=1)

    assert set(working_folder.folders(beside, payload=packed.payload)) == {"runs", "runs/day-1", "plots", "plots/deep", "from_a_global"}
