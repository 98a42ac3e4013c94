"""The same cells, another machine: a server started by hand, reached by its address and token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.recipes import server_by_hand
from tests.notebook.conftest import Kernel, started

CELL = """%%aiaas_train --ui none
import keras, numpy as np
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
history = model.fit(np.ones((8, 3)), np.ones(8), epochs=2)
"""


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    for kernel in started(tmp_path):
        assert kernel.run("%load_ext aiaas_magics").ok
        yield kernel


def test_a_cell_trains_on_a_server_that_was_started_by_hand(kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> None:
    with server_by_hand(tmp_path_factory.mktemp("by-hand")) as (url, token):
        kernel.run(f"import os; os.environ['AIAAS_TOKEN'] = {token!r}")

        connected = kernel.run(f"%aiaas_connect {url}")
        trained = kernel.run(CELL)
        status = kernel.run("%aiaas_status")
        epochs = kernel.run("print(len(history.epoch))")

    assert "Connected to" in connected.text
    assert url in connected.text
    assert trained.ok, trained.error
    assert url in str(status.outputs)
    assert epochs.text == "2\n"
    assert token not in str([connected.outputs, trained.outputs, status.outputs])


def test_a_wrong_token_is_refused_with_the_way_to_the_right_one(kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> None:
    with server_by_hand(tmp_path_factory.mktemp("by-hand")) as (url, _):
        kernel.run("import os; os.environ['AIAAS_TOKEN'] = 'wrong'")

        refused = kernel.run(f"%aiaas_connect {url}")

    assert refused.reply["ename"] == "BackendNotProven"
    assert "aiaas token" in refused.error
