"""A fit in another process is the fit that the kernel would have run, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiaas_magics.packing.fitcall import fit_call
from tests.packing.cells import CELLS
from tests.support import lanes
from tests.support.packed import Namespace, Worker

Cell = Callable[..., Namespace]


def assert_same(expected: list[np.ndarray], found: Any, paths: tuple[str, ...]) -> None:
    assert len(expected) == len(found)
    for mine, theirs, path in zip(expected, found, paths, strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=path)


# The first is long; the others have parts that a case of every change has too, or differ from one in a type of numbers.
NIGHTLY = frozenset(
    {
        "a network of three hundred layers",
        "several inputs and outputs by name, with an embedding and masks",
        "recurrent layers in wrappers",
        "a Sequential that is not built",
        "images",
        "bfloat16 variables",
        "float64",
        "weights for samples, and data to validate",
        "tensors, and steps instead of a batch size",
        "a model that was fitted before",
        "weights for classes, and a split to validate",
        "an optimizer with everything on",
        "mixed precision",
        "a loss that refers to the model itself",
    }
)


@pytest.mark.parametrize("name", lanes.thinned(CELLS, keep=lambda name: name not in NIGHTLY))
def test_a_worker_trains_exactly_as_the_kernel_would(name: str, cell: Cell, worker: Worker, tmp_path: Path) -> None:
    made = cell(CELLS[name])
    model, arguments = made["model"], made["arguments"]
    packed = fit_call.pack(fit_call.FitCall(model, arguments))

    result = fit_call.read_result(worker.train(packed, tmp_path / "run"))

    own = model.fit(**arguments, verbose=0)
    assert result.history == own.history
    assert result.epoch == own.epoch
    assert_same([variable.numpy() for variable in packed.variables], result.variables, packed.paths)
