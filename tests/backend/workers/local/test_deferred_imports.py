"""A deferred module is what its import would have made it, later."""

from __future__ import annotations

import inspect
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from aiaas_magics.backend.workers.local.deferred_imports import deferring

NAMES = frozenset({"late", "late.inner"})


@pytest.fixture
def late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package that tells when it runs; importable, and forgotten afterwards."""
    package = tmp_path / "late"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import sys\n"
        "import late as itself\n"
        "sys.late_runs = getattr(sys, 'late_runs', 0) + 1\n"
        "if getattr(sys, 'late_fails', False): raise ImportError('not today')\n"
        "__all__ = ['value']\n"
        "assert not hasattr(itself, 'value')\n"
        "value = 3\n"
        "def __getattr__(name):\n"
        "    if name == 'old': return 'renamed'\n"
        "    raise AttributeError(name)\n"
    )
    (package / "inner.py").write_text("from late import value\ndouble = 2 * value\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "late"]:
        del sys.modules[name]
    for name in ("late_runs", "late_fails"):
        vars(sys).pop(name, None)


def runs() -> int:
    return getattr(sys, "late_runs", 0)


def deferred() -> ModuleType:
    with deferring(NAMES):
        return import_module("late")


def test_it_runs_when_it_is_asked_for_something_and_once(late: Path) -> None:
    module = deferred()
    before = runs()

    assert (module.value, module.value, module.old) == (3, 3, "renamed")
    assert (before, runs()) == (0, 1)
    assert type(module) is ModuleType
    assert module.__spec__ is not None
    assert module.__file__ == str(late / "__init__.py")
    with pytest.raises(AttributeError):
        module.missing  # noqa: B018


@pytest.mark.parametrize("way", ["from late import value", "from late import *", "import late.inner", "import late; value = dir(late)"])
def test_every_way_to_import_from_it_makes_it_run(late: Path, way: str) -> None:
    deferred()
    scope: dict[str, Any] = {}

    exec(way, scope)

    assert runs() == 1
    assert scope.get("value", 3) in (3, sorted(vars(sys.modules["late"])))


def test_a_module_of_a_package_may_be_deferred_too(late: Path) -> None:
    with deferring(NAMES):
        inner = import_module("late.inner")
    before = "double" in vars(inner)

    assert inner.double == 6
    assert not before


def test_whoever_looks_at_all_modules_does_not_make_it_run(late: Path) -> None:
    deferred()

    inspect.getmodule(compile("1", str(late / "nowhere.py"), "eval"))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
    assert util.find_spec("late") is not None
    assert not hasattr(sys.modules["late"], "__wrapped__")

    assert runs() == 0


def test_one_that_fails_says_so_whenever_it_is_asked(late: Path) -> None:
    sys.late_fails = True  # type: ignore[attr-defined]
    module = deferred()

    for _ in range(2):
        with pytest.raises(ImportError, match="not today"):
            module.value  # noqa: B018
    sys.late_fails = False  # type: ignore[attr-defined]

    assert module.value == 3
    assert runs() == 3


def test_threads_that_ask_at_once_all_get_it(late: Path) -> None:
    (late / "__init__.py").write_text("import sys, time\nsys.late_runs = getattr(sys, 'late_runs', 0) + 1\ntime.sleep(0.2)\nvalue = 3\n")
    module, got = deferred(), []
    asking = [threading.Thread(target=lambda: got.append(module.value)) for _ in range(8)]

    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(timeout=10)

    assert got == [3] * 8
    assert runs() == 1


def test_what_is_hidden_is_there_afterwards(late: Path) -> None:
    with deferring(frozenset(), without=("late", "sys")), pytest.raises(ModuleNotFoundError):
        import_module("late")

    assert import_module("late").value == 3
    assert sys.modules["sys"] is sys


@pytest.mark.process
@pytest.mark.slow
def test_a_preloaded_process_has_all_of_keras_and_little_of_what_few_use() -> None:
    probe = (
        "import importlib, sys\n"
        "from aiaas_magics.backend.workers.local.launcher import preload\n"
        "from aiaas_magics.core.engines import HOME\n"
        "preload(HOME.preload)\n"
        "print([name for name in ('jax', 'sklearn', 'matplotlib', 'tensorflow.lite.python.lite') if name in sys.modules])\n"
        "import keras, tensorflow as tf\n"
        "assert issubclass(keras.wrappers.SKLearnClassifier, object) and keras.wrappers.SKLearnClassifier.__init__\n"
        "assert keras.visualization.plot_image_gallery and keras.callbacks.OrbaxCheckpoint\n"
        "assert tf.lite.TFLiteConverter is tf.compat.v2.lite.TFLiteConverter\n"
        "assert tf.compat.v1.lite.TFLiteConverter\n"
        "print([name for name in ('jax', 'matplotlib', 'tensorflow.lite.python.lite') if name in sys.modules])\n"
        "import jax.numpy\n"
        "print(jax.numpy.arange(3).sum())\n"
    )

    told = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=300, check=False)

    assert told.stdout.splitlines() == ["[]", "['jax', 'matplotlib', 'tensorflow.lite.python.lite']", "3"], told.stderr[-3000:]
