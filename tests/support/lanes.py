"""Lanes of the suite: `quick` starts no process, `nightly` holds what is long; `make test` runs everything but `nightly`.

Owns which tests belong to a lane, and the guard that keeps processes out of `quick`. CONTRIBUTING.md says which lane holds what.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

import pytest

T = TypeVar("T")

# Fixtures that start a process of ours, a kernel or a browser, or a server in this one. Other tests carry the marker themselves.
PROCESS_FIXTURES: Final = frozenset(
    {
        *("kernel", "fresh_kernel", "loaded", "trainer", "lab", "browser"),
        *("own_home", "backend", "server", "pool", "cases", "launcher", "outcomes", "worker"),
        *("exports", "article", "shared", "rig", "fuzzed", "slow", "traced", "receiver", "calm", "opened", "running"),
    }
)
STARTS: Final = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"})
QUICK: Final = "not process"
# Files that take longest, longest first (`--durations`): begun last, one of them would keep one core busy while the other is idle.
LONGEST: Final = (
    "tests/backend/training/test_equivalence.py",
    "tests/notebook/test_training_cells.py",
    "tests/e2e/test_faults.py",
    "tests/contracts/test_backend.py",
    "tests/equivalence/test_table.py",
    "tests/backend/server/test_faults_of_the_server.py",
    "tests/e2e/test_notebooks.py",
    "tests/backend/serving/engines/test_precision.py",
    "tests/backend/training/jax/test_spmd.py",
    "tests/backend/serving/engines/test_engines.py",
    "tests/backend/training/tensorflow/test_multi_step.py",
    "tests/backend/serving/process/test_supervisor.py",
    "tests/packing/export/test_model_export.py",
    "tests/backend/serving/engines/test_coverage.py",
    "tests/packing/fitcall/test_fit_result.py",
    "tests/backend/training/checkpoint/test_resuming.py",
    "tests/backend/training/test_attempts.py",
    "tests/backend/training/tensorflow/parallel/test_split_step.py",
    "tests/backend/serving/test_load.py",
    "tests/packing/fitcall/test_round_trip.py",
    "tests/backend/training/test_rank_datasets.py",
    "tests/backend/training/tensorflow/test_trace_cache.py",
    "tests/notebook/test_browser.py",
    "tests/backend/training/test_parts_and_precision.py",
)


def arrange(items: list[pytest.Item]) -> None:
    """Mark what starts a process, and begin with what takes longest."""
    for item in items:
        names = set(getattr(item, "fixturenames", ()))
        if names & PROCESS_FIXTURES or item.get_closest_marker("nightly"):
            item.add_marker(pytest.mark.process)
    ranks = {file: rank for rank, file in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(_file(item), len(ranks)))


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


class ProcessGuard:
    """In the lane `quick`: a test that starts a process fails, and says what to do."""

    def __init__(self) -> None:
        self._test = ""
        sys.addaudithook(self._on_event)  # stays for the life of the interpreter

    def _on_event(self, event: str, _: object) -> None:
        if self._test and event in STARTS:
            test, self._test = self._test, ""  # once: what pytest does with the failure may start processes
            raise AssertionError(
                f"{test} starts a process ({event}). Mark it with pytest.mark.process, which keeps it out of `make quick`."
            )

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._test = item.nodeid
        try:
            return (yield)
        finally:
            self._test = ""


def is_quick(config: pytest.Config) -> bool:
    return QUICK in str(config.getoption("markexpr"))


def thinned(values: Iterable[T], *, keep: Callable[[T], bool]) -> list[Any]:
    """Parameters of a test: what `keep` says no to only `make nightly` runs."""
    return [
        value if keep(value) else pytest.param(*(value if type(value) is tuple else (value,)), marks=pytest.mark.nightly)
        for value in values
    ]


def selected(request: pytest.FixtureRequest, *names: str) -> list[Any]:
    """The parameters `names` of every test of the same module that this session runs; single values where there is one name.

    For fixtures that train all cases of a module at once: what no test looks at is not trained.
    """
    calls = [item.callspec.params for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    rows = [tuple(call[name] for name in names) for call in calls if set(names) <= set(call)]
    return [row[0] if len(names) == 1 else row for row in rows]
