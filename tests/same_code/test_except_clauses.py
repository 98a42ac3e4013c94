"""`except` in a cell catches what the workers raise as it catches what plain `fit` raises."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest

from aiaas_magics.backend.training.error_report import report_of
from aiaas_magics.core.errors import CellError, OutOfMemory, RemoteTrainingError
from aiaas_magics.core.remote_error import ErrorReport
from aiaas_magics.packing.fitcall.fit_call import FitCall, pack
from tests.support.packed import Namespace

Cell = Callable[..., Namespace]


class Enough(RuntimeError):
    """An exception of the user's own."""

    def __init__(self, epoch: int, why: str) -> None:
        super().__init__(f"{why} after epoch {epoch}")


@pytest.mark.parametrize(
    ("raised", "caught_as"),
    [
        (ValueError("bad"), ValueError),
        (TypeError("bad"), TypeError),
        (Enough(3, why="enough"), RuntimeError),
        (Enough(3, why="enough"), Enough),
        (np.linalg.LinAlgError("singular"), np.linalg.LinAlgError),
        (KeyError("loss"), LookupError),
        (FileNotFoundError(2, "No such file", "x.csv"), OSError),
        (StopIteration(), StopIteration),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_workers_error_is_caught_as_pythons_own_class(raised: BaseException, caught_as: type[BaseException]) -> None:
    error = RemoteTrainingError(report_of(raised, rank=0))

    with pytest.raises(caught_as) as caught:
        raise error

    assert isinstance(caught.value, RemoteTrainingError)
    assert isinstance(caught.value, CellError)
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, caught_as)
    assert str(again) == str(error)


@pytest.mark.parametrize(
    "kind",
    [
        "UnicodeDecodeError",
        "SystemExit",
        "InvalidArgumentError",
        "object",
        "__import__",
        "os.system",
        "a.b",
        ".",
        "aiaas_magics.core.errors.UsageError",
    ],
)
def test_a_class_that_cannot_be_made_here_is_still_a_training_error(kind: str) -> None:
    error = RemoteTrainingError(ErrorReport(type=kind, message="bad", ranks=(0,)))

    assert type(error) is RemoteTrainingError


def test_data_of_the_wrong_width_raises_a_value_error_as_in_keras(cell: Cell) -> None:
    made = cell("model = keras.Sequential([layers.Input((6,)), layers.Dense(1)])\nmodel.compile('sgd', 'mse')")

    with pytest.raises(ValueError, match="rejects this data"):
        pack(FitCall(made["model"], {**made["arguments"], "x": np.ones((70, 5), "float32")}))


def test_texts_as_targets_raise_a_value_error_as_in_keras(cell: Cell) -> None:
    made = cell("model = keras.Sequential([layers.Input((6,)), layers.Dense(1)])\nmodel.compile('sgd', 'mse')")

    with pytest.raises(ValueError, match=r"y holds texts .* Encode them"):
        pack(FitCall(made["model"], {**made["arguments"], "y": np.array(["no", "yes"] * 35)}))


def test_a_model_that_is_not_compiled_raises_a_value_error_as_in_keras(cell: Cell) -> None:
    made = cell("model = keras.Sequential([layers.Input((6,)), layers.Dense(1)])")

    with pytest.raises(ValueError, match="not compiled"):
        pack(FitCall(made["model"], made["arguments"]))


def test_a_worker_without_memory_raises_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="ran out of memory"):
        raise OutOfMemory("7", 0, "killed by signal 9")
