"""Deferred imports: modules that Keras and TensorFlow import for few, imported when somebody asks for them.

Owns which modules those are. Where JAX, scikit-learn and matplotlib are installed, they take a third of the time and of the
memory of importing Keras, for wrappers and figures that hardly any training uses. Nothing is taken away: the first access
runs a module as its import would have.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, Final, Literal

from aiaas_magics.core.internals import keras_internals, tensorflow_internals

# They bring along scikit-learn, matplotlib, and TensorFlow Lite, which brings JAX.
SELDOM_USED: Final = frozenset(
    {
        "keras.wrappers",
        "keras.visualization",
        *keras_internals.SELDOM_USED,
        *tensorflow_internals.SELDOM_USED,
    }
)


@contextlib.contextmanager
def deferring(names: frozenset[str] = SELDOM_USED, *, without: Sequence[str] = ()) -> Iterator[None]:
    """Inside, importing one of `names` does not run it; whoever asks it for something, there or later, makes it run.

    What is to go `without` seems not to be installed meanwhile.
    """
    finder, hidden = _Finder(names), [name for name in without if name not in sys.modules]
    sys.meta_path.insert(0, finder)
    sys.modules |= dict.fromkeys(hidden)  # type: ignore[arg-type]  # None is how the import system marks it
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in hidden:
            del sys.modules[name]


class _Finder(MetaPathFinder):
    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in self._names else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Deferring(spec.loader)
        return spec


class _Deferring(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        spec.loader = module.__loader__ = self._loader
        vars(module)[_RUN] = _once(module, spec)
        vars(module).pop("__path__", None)  # importing a module of a package asks for it, and needs the package to have run
        module.__class__ = _Deferred


_RUN: Final = "__aiaas_run__"


class _Deferred(ModuleType):
    """Runs for what is missing only. The standard library's `LazyLoader` runs a module for its metadata too, which inspect asks all for."""

    def __getattr__(self, name: str) -> Any:
        # Whoever goes through all modules there are (inspect, warnings) asks for what only some have.
        if name.startswith("__") and name not in ("__all__", "__path__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        vars(self)[_RUN]()
        return ModuleType.__getattribute__(self, name)

    def __dir__(self) -> list[str]:
        vars(self)[_RUN]()
        return sorted(vars(self))


def _once(module: ModuleType, spec: ModuleSpec) -> Callable[[], None]:
    """What runs `module`, once, while other threads wait; a run that fails is made again by the next who asks."""
    lock = threading.RLock()
    state: Literal["waiting", "running", "over"] = "waiting"

    def run() -> None:
        nonlocal state
        with lock:
            if state != "waiting":
                return  # its own code asks for what it has not made yet; or another thread was first
            state = "running"
            try:
                if spec.submodule_search_locations is not None:
                    module.__path__ = spec.submodule_search_locations
                assert spec.loader is not None
                spec.loader.exec_module(module)
            except BaseException:
                vars(module).pop("__path__", None)
                state = "waiting"
                raise
            module.__class__, state = ModuleType, "over"

    return run
