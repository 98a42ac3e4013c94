"""Models whose class belongs to an installed package and is a graph of layers, as those of KerasHub are."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from aiaas_magics.packing.live import user_modules
from tests.same_code.fits import fit

PACKAGE = """
import keras

class Base(keras.Model):
    pass

class Backbone(Base):
    def __init__(self, width=3):
        inputs = keras.Input((4,))
        super().__init__(inputs, keras.layers.Dense(width, name="inner")(inputs))
        self.width = width
"""
X = np.random.default_rng(1).normal(size=(48, 4)).astype("float32")
Y = X[:, :1] - X[:, 1:2]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "a_hub.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module("a_hub")
    sys.modules.pop("a_hub", None)


def alone(package: ModuleType) -> Any:
    return package.Backbone(1)


def nested(package: ModuleType) -> Any:
    return keras.Sequential([layers.Input((4,)), package.Backbone(), layers.Dense(1)])


def with_lora(package: ModuleType) -> Any:
    backbone = package.Backbone()
    backbone.get_layer("inner").enable_lora(2)
    return keras.Sequential([layers.Input((4,)), backbone, layers.Dense(1)])


@pytest.mark.parametrize("make", [alone, nested, with_lora])
def test_a_functional_class_of_a_package_trains_where_no_object_of_it_was_made(
    make: Callable[[ModuleType], Any], package: ModuleType, tmp_path: Path
) -> None:
    def made() -> Any:
        keras.utils.set_random_seed(3)
        model = make(package)
        model.compile("sgd", "mse")
        return model

    def imported_anew() -> None:
        del sys.modules["a_hub"]
        importlib.import_module("a_hub")

    assert user_modules.users_module("a_hub") is None, "it is a package, and goes by its name"
    plain, ours = made(), made()
    expected = plain.fit(X, Y, batch_size=16, shuffle=False, epochs=2, verbose=0).history["loss"]

    history = fit(tmp_path, ours, x=X, y=Y, batch_size=16, shuffle=False, epochs=2, between=imported_anew)

    np.testing.assert_allclose(history.history["loss"], expected, rtol=1e-5)
    for mine, theirs in zip(ours.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)
