"""What a cell has left in a kernel, as plain values; and the state in which each cell begins.

Owns reading and resetting the kernel that it is imported in. Comparing two of what it reads belongs to `oracle`.
"""

from __future__ import annotations

import csv
import json
import os
import pickle
import random
import sys
from pathlib import Path
from typing import Any, Final

SEED: Final = 7
TEXTS: Final = frozenset({".csv", ".json", ".txt", ".log"})
# Of objects' attributes what is compared: plain values. Anything else is compared by its type.
PLAIN: Final = (bool, int, float, str, bytes, type(None))
# Keras keeps there what it has compiled; the next call makes it where it is missing.
COMPILED: Final = frozenset({"train_function", "test_function", "predict_function"})
_names: set[str] | None = None  # IPython's own, in the namespace


def begin(folder: str) -> None:
    """Make of this kernel what it was before the first cell, in an empty `folder`, with the seeds set."""
    import keras
    import matplotlib.pyplot as plt
    from IPython import get_ipython

    global _names
    space = get_ipython().user_ns
    if _names is None:  # another test may have used this kernel: what it has left is no part of it
        _names = {name for name in space if name in get_ipython().user_ns_hidden or name.startswith("_")}
    for name in set(space) - _names:
        del space[name]
    plt.close("all")
    keras.utils.clear_session()
    keras.utils.set_random_seed(SEED)
    for module in list(sys.modules.values()):  # each cell hears each warning once
        vars(module).get("__warningregistry__", {}).clear()
    Path(folder).mkdir(parents=True)
    os.chdir(folder)


def take(file: str) -> None:
    """Write to `file` what the cell has left: names, models, callbacks, histories, files, random states."""
    from IPython import get_ipython

    space = get_ipython().user_ns
    new = {name: value for name, value in space.items() if name not in (_names or ()) and not name.startswith("_")}
    state = {
        "names": {name: type(value).__name__ for name, value in sorted(new.items())},
        "values": {name: _value(value) for name, value in sorted(new.items())},
        "files": _files(Path.cwd()),
        "random": _random_states(),
        "notices": _notices(get_ipython()),
    }
    Path(file).write_bytes(pickle.dumps(state))


def _value(value: Any) -> Any:
    import keras

    if isinstance(value, keras.Model):
        return _model(value)
    if isinstance(value, keras.callbacks.History):
        return _history(value)
    if isinstance(value, keras.utils.PyDataset):
        return _attributes(value, without=frozenset())
    return _plain(value, depth=4)


def _model(model: Any) -> dict[str, Any]:
    import numpy as np

    optimizer = getattr(model, "optimizer", None)
    metrics = {}
    for metric in getattr(model, "metrics", ()) if getattr(model, "compiled", False) else ():
        metrics[metric.name] = [np.array(variable) for variable in metric.variables]
    return {
        "built": model.built,
        "weights": [np.array(variable) for variable in model.weights],
        "trainable": [layer.trainable for layer in model._flatten_layers()],
        "optimizer": None if optimizer is None else [np.array(variable) for variable in optimizer.variables],
        "metrics": metrics,
        "attributes": _attributes(model, without=COMPILED),
        "history": _history(model.history) if getattr(model, "history", None) is not None else None,
        "stop_training": getattr(model, "stop_training", None),
    }


def _history(history: Any) -> dict[str, Any]:
    epoch = list(getattr(history, "epoch", []))  # set when training begins
    return {"history": _plain(history.history, depth=4), "epoch": epoch, "params": dict(history.params or {})}


def _attributes(thing: Any, *, without: frozenset[str]) -> dict[str, Any]:
    """The attributes that whoever wrote the class sees: those without an underscore, as far as they are plain."""
    import keras

    return {
        name: _plain(value, depth=4)
        for name, value in sorted(vars(thing).items())
        if not name.startswith("_")
        and name not in without
        and not isinstance(value, (keras.Model, keras.layers.Layer, keras.callbacks.Callback))
    }


def _plain(value: Any, *, depth: int) -> Any:
    import keras
    import numpy as np
    import tensorflow as tf

    if isinstance(value, PLAIN):
        return value
    if isinstance(value, keras.callbacks.Callback):
        return _attributes(value, without=frozenset({"params", "model"}))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.copy()
    if isinstance(value, (tf.Variable, keras.Variable)) or (tf.is_tensor(value) and hasattr(value, "numpy")):
        return np.array(value)
    if depth and isinstance(value, dict):
        return {str(key): _plain(one, depth=depth - 1) for key, one in value.items()}
    if depth and isinstance(value, (list, tuple, set)):
        return [_plain(one, depth=depth - 1) for one in (sorted(value, key=str) if isinstance(value, set) else value)]
    return f"<{getattr(value, '__qualname__', type(value).__name__)}>"


def _files(folder: Path) -> dict[str, Any]:
    """Each file below `folder`: the text of what is text, the size of nothing else. Event files have a time in their names."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            name = str(path.relative_to(folder))
            if "tfevents" in name:
                name = f"{Path(name).parent}/events"
                found[name] = found.get(name, 0) + 1
            else:
                found[name] = _content(path) if path.suffix in TEXTS else "<bytes>"
    return found


def _content(path: Path) -> Any:
    """A text; of JSON and of a table what they hold, so that numbers may differ by rounding."""
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".csv":
        return [[_number(cell) for cell in row] for row in csv.reader(path.read_text().splitlines())]
    return path.read_text()


def _number(cell: str) -> Any:
    try:
        return float(cell)
    except ValueError:
        return cell


def _random_states() -> dict[str, Any]:
    import numpy as np
    from keras.src import backend
    from keras.src.random import seed_generator

    state = np.random.get_state()
    return {
        "python": list(random.getstate()[1]),
        "numpy": [state[0], state[1], state[2]],
        "keras": np.array(seed_generator.global_seed_generator().state),
        "floatx": backend.floatx(),
    }


def _notices(shell: Any) -> list[str]:
    """What the magic has said of the last fit, where there is one."""
    magics = next((one for name, one in shell.magics_manager.registry.items() if name == "AiaasMagics"), None)
    job = None if magics is None else magics.session.last_job
    return [] if job is None else list(job.story().notices)


def loaded() -> None:
    """Import what every cell needs, once."""
    import keras  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import tensorflow  # noqa: F401

    assert "keras" in sys.modules
