"""Objects that answer questions with exceptions neither hide a refusal nor stop a fit that can travel."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from aiaas_magics.core.errors import CannotTravel, UsageError
from aiaas_magics.packing.fitcall.fit_call import FitCall, pack
from tests.support.packed import Namespace

Cell = Callable[..., Namespace]

ODD = """
class Loud:
    def __getattr__(self, name): raise RuntimeError(f"no {name}")
class Slotted:
    __slots__ = ("a", "b")
    def __getattribute__(self, name):
        if name in ("a", "b", "__dict__"): raise OSError("not today")
        return object.__getattribute__(self, name)
class Lying:
    @property
    def __class__(self): raise LookupError("who knows")
class Meta(type):
    def __getattribute__(cls, name):
        if name in ("__slots__", "__module__"): raise KeyError(name)
        return super().__getattribute__(name)
class Model(metaclass=Meta): pass
class Keys(dict):
    def items(self): raise ValueError("no items")
    def keys(self): raise ValueError("no keys")
class Mute:
    def __repr__(self): raise RuntimeError("no repr")
    def __eq__(self, other): raise RuntimeError("no eq")
    def __len__(self): raise RuntimeError("no len")
    def __hash__(self): raise RuntimeError("no hash")
    def __bool__(self): raise RuntimeError("no bool")
loud, mute = Loud(), Mute()
model = keras.Sequential([layers.Input((6,)), layers.Dense(1)])
model.compile('sgd', 'mse')
"""

BYSTANDERS = ["loud", "Slotted()", "Lying()", "Model", "Model()", "Keys(a=1)", "mute"]


@pytest.mark.parametrize("bystander", BYSTANDERS)
def test_the_thing_at_fault_is_named_beside_an_odd_one(bystander: str, cell: Cell) -> None:
    made = cell(
        ODD
        + "class Keeper(keras.callbacks.Callback):\n    def on_epoch_end(self, epoch, logs=None): self.odd, loud, mute\n"
        + f"keeper = Keeper()\nkeeper.odd = {bystander}\nkeeper.thing = (n for n in range(3))"
    )

    with pytest.raises(CannotTravel) as refused:
        pack(FitCall(made["model"], {**made["arguments"], "callbacks": [made["keeper"]]}))

    assert re.match(r"callbacks\[0\]\.(thing|odd) cannot be sent to a worker: ", str(refused.value))


@pytest.mark.parametrize("bystander", ["loud", "mute"])
def test_a_fit_with_an_odd_object_that_travels_is_packed(bystander: str, cell: Cell) -> None:
    made = cell(ODD.replace("def __getattr__(self, name): raise", "def __getattr__(self, name):\n        if name[:2] != '__': raise"))
    keeper = made["keras"].callbacks.LambdaCallback(on_epoch_end=eval("lambda epoch, logs: bystander", {"bystander": made[bystander]}))
    keeper.thing = made[bystander]

    assert pack(FitCall(made["model"], {**made["arguments"], "callbacks": [keeper]})).payload


def test_a_librarys_callback_is_named_by_itself_and_not_by_its_inside(cell: Cell, tmp_path: Path) -> None:
    """As TqdmCallback, which holds a bar, which holds a lock and a stream of the kernel."""
    import sys

    package = tmp_path / "site-packages" / "barlib"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "import keras\n"
        "class Bar:\n    def __init__(self, file): self.stream = file\n"
        "class BarCallback(keras.callbacks.Callback):\n"
        "    def __init__(self, file):\n        super().__init__()\n        self.bar = {'inner': [Bar(file)]}\n"
    )
    sys.path.insert(0, str(package.parent))
    try:
        import barlib
    finally:
        sys.path.remove(str(package.parent))
    made = cell(ODD)

    with (tmp_path / "x.txt").open("w") as file, pytest.raises(CannotTravel) as refused:
        pack(FitCall(made["model"], {**made["arguments"], "callbacks": [barlib.BarCallback(file)]}))

    told = str(refused.value)
    assert told.startswith("callbacks[0] (BarCallback) cannot be sent to a worker: it holds an open file '")
    assert "Give a new BarCallback for each fit, or leave it out." in told
    del sys.modules["barlib"]


def test_an_object_that_comes_up_while_pickling_is_named_by_its_holder(cell: Cell) -> None:
    made = cell(ODD + "class Odd:\n    def __reduce__(self): return (list, ((n for n in range(3)),))\nmodel.extra = {'a': [Odd()]}")

    with pytest.raises(CannotTravel) as refused:
        pack(FitCall(made["model"], made["arguments"]))

    assert str(refused.value).startswith("model.extra['a'][0] cannot be sent to a worker: a generator")


@pytest.mark.parametrize("data", ["loud", "mute", "Slotted()", "[loud, x]", "{'a': Slotted()}"])
def test_data_that_is_no_array_is_refused_in_our_words(data: str, cell: Cell) -> None:
    made = cell(ODD + f"given = {data}")

    with pytest.raises(UsageError, match=r"which is no array|cannot be sent"):
        pack(FitCall(made["model"], {"x": made["given"], "y": made["y"]}))


def test_a_layer_that_runs_a_saved_model_is_named_with_its_move(cell: Cell, tmp_path: Path) -> None:
    made = cell(
        "source = keras.Sequential([keras.Input((6,)), layers.Dense(4)])\n"
        f"source.export({str(tmp_path / 'saved')!r}, verbose=False)\n"
        f"saved = layers.TFSMLayer({str(tmp_path / 'saved')!r}, call_endpoint='serve', name='saved')\n"
        "model = keras.Sequential([keras.Input((6,)), saved, layers.Dense(1)])\n"
        "model.compile('sgd', 'mse')"
    )

    with pytest.raises(CannotTravel, match=r"^layer 'saved' \(TFSMLayer\) cannot be sent to a worker") as refused:
        pack(FitCall(made["model"], made["arguments"]))

    assert "build the model from Keras layers" in str(refused.value)
