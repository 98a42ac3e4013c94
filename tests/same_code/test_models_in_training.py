"""A model that an async job trains is refused whatever would read or replace its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from aiaas_magics.core.errors import JobStillRunning
from aiaas_magics.notebook.capture import guard
from aiaas_magics.packing.export import model_export
from aiaas_magics.packing.fitcall.fit_call import FitCall, pack
from tests.support.packed import Namespace

pytestmark = pytest.mark.slow  # each exports a model

Cell = Callable[..., Namespace]

SHARING = """
inputs = keras.Input((6,))
code = layers.Dense(3, name='code')(inputs)
encoder = keras.Model(inputs, code, name='encoder')
model = keras.Model(inputs, layers.Dense(6)(code))
model.compile('sgd', 'mse')
encoder.compile('sgd', 'mse')
other = keras.Sequential([keras.Input((6,)), layers.Dense(1)])
"""


@pytest.fixture
def held(cell: Cell) -> Iterator[Namespace]:
    made = cell(SHARING)
    guard.hold(made["model"], "j7")
    yield made
    guard.release(made["model"])


@pytest.mark.parametrize("name", ["model", "encoder"])
def test_neither_it_nor_a_model_with_its_layers_is_deployed(name: str, held: Namespace) -> None:
    with pytest.raises(JobStillRunning, match=r"deploy on a model that job j7 is still training. Call job.result\(\) first"):
        model_export.export(held[name], held["x"])


def test_a_model_with_its_layers_is_not_trained(held: Namespace) -> None:
    with pytest.raises(JobStillRunning, match="fit on a model that job j7"):
        pack(FitCall(held["encoder"], {**held["arguments"], "y": held["x"][:, :3]}))


@pytest.mark.parametrize(
    "use", [lambda m: m.compile("adam", "mse"), lambda m: m.get_weights(), lambda m: m.set_weights([]), lambda m: m.export("x")]
)
def test_what_reads_or_replaces_its_state_is_refused(use: Callable[..., object], held: Namespace) -> None:
    with pytest.raises(JobStillRunning):
        use(held["model"])


def test_another_model_and_a_released_one_are_exported(held: Namespace) -> None:
    assert model_export.export(held["other"], held["x"]).format == "onnx"

    guard.release(held["model"])

    assert model_export.export(held["encoder"], held["x"]).format == "onnx"
    assert "_aiaas_job" not in vars(held["model"].layers[1])
