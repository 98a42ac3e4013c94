"""How many executors a version should have: the decision alone, and the loader that carries it out."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import floats, integers
from msgspec.structs import replace

from aiaas_magics.backend.serving.models import model_loader as loading
from aiaas_magics.backend.serving.models.autoscaling import (
    DOWN_WINDOWS,
    UP_WINDOWS,
    WINDOW_S,
    Totals,
    Window,
    wanted_replicas,
    window_between,
)
from aiaas_magics.backend.serving.models.batching import Limits
from aiaas_magics.backend.serving.models.model_loader import Loader
from aiaas_magics.backend.serving.models.recorder import Recordings
from aiaas_magics.backend.serving.models.registry import Registry, Version
from aiaas_magics.core.errors import InvalidSpec, NotScaled
from aiaas_magics.core.routing import Routing, Scaling, scaling_of
from tests.backend.serving.support.serving_models import plus

IDLE = Window(busy=0.0, waited_s=0.0, computed_s=0.0)
TIGHT = Window(busy=0.95, waited_s=0.02, computed_s=0.005)


def test_a_window_is_the_difference_of_two_totals() -> None:
    before = Totals(requests=10, batches=5, queue_ns=10**9, compute_ns=10**9)
    after = Totals(requests=110, batches=25, queue_ns=3 * 10**9, compute_ns=2 * 10**9)

    assert window_between(before, after, seconds=2.0, replicas=2) == Window(busy=0.25, waited_s=0.02, computed_s=0.05)
    assert window_between(after, after, seconds=2.0, replicas=2) == IDLE


def test_executors_that_are_busy_for_long_enough_get_one_more_up_to_the_most() -> None:
    assert wanted_replicas([IDLE, *[TIGHT] * UP_WINDOWS], replicas=1, least=1, most=4) == 2
    assert wanted_replicas([TIGHT] * (UP_WINDOWS - 1), replicas=1, least=1, most=4) == 1
    assert wanted_replicas([TIGHT, IDLE], replicas=1, least=1, most=4) == 1
    assert wanted_replicas([TIGHT] * 30, replicas=4, least=1, most=4) == 4


def test_requests_that_wait_longer_than_they_compute_are_a_reason_too_unless_executors_are_idle() -> None:
    waiting = Window(busy=0.6, waited_s=0.03, computed_s=0.01)

    assert wanted_replicas([waiting] * UP_WINDOWS, replicas=2, least=1, most=4) == 3
    assert wanted_replicas([Window(busy=0.1, waited_s=0.03, computed_s=0.01)] * UP_WINDOWS, replicas=2, least=1, most=4) == 2


def test_one_executor_less_comes_after_a_long_calm_and_not_below_the_least() -> None:
    assert wanted_replicas([IDLE] * DOWN_WINDOWS, replicas=3, least=1, most=4) == 2
    assert wanted_replicas([IDLE] * (DOWN_WINDOWS - 1), replicas=3, least=1, most=4) == 3
    assert wanted_replicas([TIGHT, *[IDLE] * (DOWN_WINDOWS - 1)], replicas=3, least=1, most=4) == 3
    assert wanted_replicas([IDLE] * DOWN_WINDOWS, replicas=2, least=2, most=4) == 2


@given(replicas=integers(1, 8), load=floats(0, 8))
def test_the_number_settles_whatever_the_load_is(replicas: int, load: float) -> None:
    """`load`: how many executors it would keep busy. From any number it comes to rest, and is then never too small."""
    seen = [replicas]
    for _ in range(12):
        window = Window(busy=min(1.0, load / seen[-1]), waited_s=0.0, computed_s=0.01)
        seen.append(wanted_replicas([window] * DOWN_WINDOWS, replicas=seen[-1], least=1, most=8))

    assert seen[-1] == seen[-2] == seen[-3]
    assert seen[-1] == 8 or load / seen[-1] <= 0.8


@pytest.mark.parametrize("wrong", ["", "0", "65", "auto:", "auto:0-3", "auto:3-2", "auto:1-65", "1-4", "two", "-1", "٣"])
def test_a_number_of_replicas_that_cannot_be_is_refused(wrong: str) -> None:
    with pytest.raises(InvalidSpec):
        scaling_of(wrong)


class Clock:
    """Goes on by a window at each look."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def now_s(self) -> float:
        self._now_s += WINDOW_S
        return self._now_s


def test_a_version_gets_executors_with_its_load_and_gives_them_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "usable_cores", lambda: (0, 1))
    seen = asyncio.run(_numbers_of_executors(tmp_path))

    assert seen["busy"] == 2, "the most is 4, and the host has 2 cores"
    assert seen["calm"] == 1
    assert seen["fixed"] == 1, "a number that was asked for is not followed by the load"
    assert seen["answer"] == 2.0


async def _numbers_of_executors(folder: Path) -> dict[str, float]:
    registry = Registry()
    loader = Loader(registry, clock=Clock(), scratch=folder, limits=Limits(), recordings=Recordings(folder / "recorded"))
    made = plus(folder, "live", 1.0)
    spec = replace(made.hashed, most_replicas=4)
    await loader.load(spec, 1, artefact=made.artefact, samples=made.samples)
    await loader.route("live", Routing(live=1))
    version = registry.find("live")

    async def look(times: int, busy: float) -> int:
        for _ in range(times):
            busy_for(version, busy)
            await loader.follow_load()
        return version.replicas

    seen: dict[str, float] = {"busy": await look(3 * UP_WINDOWS, busy=1.0)}
    with version.lease() as executor:
        seen["answer"] = float((await executor.run({"x": np.ones((1, 1), np.float32)}, 1))["y"][0, 0])
    seen["calm"] = await look(DOWN_WINDOWS + 1, busy=0.0)
    await loader.scale("live", Scaling(replicas=1))
    seen["fixed"] = await look(3 * UP_WINDOWS, busy=1.0)
    await loader.close()
    return seen


def test_a_scaling_that_cannot_open_one_version_leaves_all_of_them_as_they_were(tmp_path: Path) -> None:
    asyncio.run(_scaled_in_vain(tmp_path))


async def _scaled_in_vain(folder: Path) -> None:
    registry = Registry()
    loader = Loader(registry, clock=Clock(), scratch=folder, limits=Limits(), recordings=Recordings(folder / "recorded"))
    made = {number: plus(folder, "live", float(number)) for number in (1, 2)}
    for number, model in made.items():
        await loader.load(model.hashed, number, artefact=model.artefact, samples=model.samples)
    await loader.route("live", Routing(live=2, previous=1))
    versions = registry.versions("live")
    before = [(version.executor, version.replicas, version.spec) for version in versions]
    threads = threads_of("aiaas-live")

    made[1].artefact.write_bytes(b"damaged since")
    with pytest.raises(NotScaled, match=r"present replicas: could not start .* of version 1\..* Reason: Blob .* is damaged"):
        await loader.scale("live", Scaling(replicas=3))

    assert [(version.executor, version.replicas, version.spec) for version in versions] == before
    assert threads_of("aiaas-live") == threads
    with versions[0].lease() as executor:
        assert (await executor.run({"x": np.ones((1, 1), np.float32)}, 1))["y"].tolist() == [[3.0]]
    await loader.close()


def threads_of(name: str) -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith(name))


def busy_for(version: Version, share: float) -> None:
    """What the executors of a version would have counted in a window."""
    compute_ns = int(share * WINDOW_S * version.replicas * 1e9)
    version.stats.ran(rows=1, waited_ns=0, compute_ns=compute_ns, why="all")
