"""A change that front ends make together, where some refuse, are silent or join in the middle: a real first one, the others scripted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from aiaas_magics.backend.serving.front_ends.call_channel import Asked, Commit, Prepare
from aiaas_magics.backend.serving.front_ends.coordinator import FrontEnds, picture_of
from aiaas_magics.backend.serving.front_ends.two_phase import Kind, Outcome
from aiaas_magics.backend.serving.front_ends.worker_process import follow
from aiaas_magics.backend.serving.models.batching import Limits
from aiaas_magics.backend.serving.models.model_loader import Loader
from aiaas_magics.backend.serving.models.registry import NotServed, Registry
from aiaas_magics.backend.serving.process.control import Change, CountsOf, Load, Retire, RouteVersions, Scale, Withdraw
from aiaas_magics.core.clock import SystemClock
from aiaas_magics.core.errors import AiaasError, CannotStart, InvalidSpec, NotScaled, ProofFailed, UnknownName
from aiaas_magics.core.routing import Routing, Scaling
from tests.backend.serving.support.serving_models import plus


class Scripted:
    """Another front end that agrees to everything, but for what the script says; it notes what it is asked."""

    index = 1
    counted: tuple[CountsOf, ...] = ()

    def __init__(
        self, script: dict[type[Asked], Outcome] | None = None, *, on_prepare: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._script, self._on_prepare = script or {}, on_prepare
        self.heard: list[str] = []

    async def outcome(self, call: Asked, *, answer_s: float) -> Outcome:
        assert 0 < answer_s <= 300
        self.heard.append(type(call).__name__)
        if isinstance(call, Prepare) and self._on_prepare is not None:
            await self._on_prepare()
        return self._script.get(type(call), Outcome(Kind.AGREED))

    async def kill(self) -> None:
        self.heard.append("killed")


class First:
    """The first front end, in this process, with version 1 of `live` live."""

    def __init__(self, folder: Path, *others: Scripted) -> None:
        self.folder, self.registry = folder, Registry()
        self.loader = Loader(self.registry, clock=SystemClock(), scratch=folder, limits=Limits())
        self.front_ends = FrontEnds(self.registry, self.loader, number=1, command=(), inherits=(), keep=lambda _: None, gone=lambda _: None)
        for other in others:
            self.join(other)

    def join(self, other: Scripted) -> None:
        self.front_ends.join(other)  # type: ignore[arg-type]

    def loading(self, version: int) -> Load:
        made = plus(self.folder, "live", float(version))
        return Load(spec=made.spec, version=version, artefact=str(made.artefact), samples=str(made.samples))

    async def carry_out(self, change: Change) -> None:
        await self.front_ends.carry_out(change)

    async def __aenter__(self) -> First:
        load = self.loading(1)
        await self.loader.load(load.spec, 1, artefact=Path(load.artefact), samples=Path(load.samples))
        await self.loader.route("live", Routing(live=1))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.loader.close()

    @property
    def ready(self) -> list[int]:
        return list(self.registry.ready_versions("live"))


ALL = ["Prepare", "Commit", "Drain"]


async def test_every_change_is_prepared_everywhere_then_committed_then_drained(tmp_path: Path) -> None:
    one, two = Scripted(), Scripted()
    async with First(tmp_path, one, two) as first:
        await first.carry_out(first.loading(2))
        await first.carry_out(RouteVersions(name="live", routing=Routing(live=2)))
        await first.carry_out(Scale(name="live", scaling=Scaling(replicas=2)))
        assert (first.ready, first.registry.find("live").replicas) == ([2], 2)
        await first.carry_out(Withdraw(name="live", withdrawn=True))
        assert first.registry.withdrawn == {"live"}
        await first.carry_out(Retire(name="live"))

        assert one.heard == two.heard == ALL * 5
        assert first.registry.names() == []


async def test_one_that_does_not_acknowledge_a_flip_is_killed_before_it_is_said_to_be_done(tmp_path: Path) -> None:
    silent, well = Scripted({Commit: Outcome(Kind.SILENT)}), Scripted()
    async with First(tmp_path, silent, well) as first:
        await first.carry_out(first.loading(2))
        silent.heard.clear()
        first.join(silent)
        await first.carry_out(RouteVersions(name="live", routing=Routing(live=2)))

        assert silent.heard == ["Prepare", "Commit", "killed"]
        assert well.heard == ALL * 2
        assert first.registry.find("live").number == 2


async def test_one_that_is_silent_from_the_beginning_is_killed_and_the_flip_goes_on_without_it(tmp_path: Path) -> None:
    silent, lost, well = Scripted({Prepare: Outcome(Kind.SILENT)}), Scripted({Prepare: Outcome(Kind.LOST)}), Scripted()
    async with First(tmp_path, silent, lost, well) as first:
        await first.carry_out(RouteVersions(name="live", routing=Routing(live=1, labels={"stable": 1})))

        assert (silent.heard, lost.heard, well.heard) == (["Prepare", "killed"], ["Prepare"], ALL)
        assert first.registry.find("live", label="stable").number == 1


@pytest.mark.parametrize(
    ("outcome", "raised"),
    [(Outcome(Kind.REFUSED, ProofFailed("live", "onnx", 1.0, "here")), ProofFailed), (Outcome(Kind.LOST), CannotStart)],
)
async def test_a_version_that_one_cannot_load_is_on_none(tmp_path: Path, outcome: Outcome, raised: type[AiaasError]) -> None:
    failing, well = Scripted({Prepare: outcome}), Scripted()
    async with First(tmp_path, failing, well) as first:
        with pytest.raises(raised):
            await first.carry_out(first.loading(2))

        assert well.heard == ["Prepare", "Abort"]
        assert first.ready == [1]
        with pytest.raises(NotServed):
            first.registry.find("live", 2)
        assert first.registry.find("live").number == 1


async def test_a_scaling_that_one_cannot_make_is_made_by_none_and_the_next_one_is(tmp_path: Path) -> None:
    failing, well = Scripted({Prepare: Outcome(Kind.REFUSED, NotScaled("live", 2, 1, "memory"))}), Scripted()
    async with First(tmp_path, failing, well) as first:
        executor = first.registry.find("live").executor
        with pytest.raises(NotScaled, match="memory"):
            await first.carry_out(Scale(name="live", scaling=Scaling(replicas=2)))

        assert first.registry.find("live").executor is executor
        assert well.heard == ["Prepare", "Abort"]
        failing._script.clear()
        await first.carry_out(Scale(name="live", scaling=Scaling(replicas=2)))
        assert first.registry.find("live").replicas == 2


async def test_what_the_first_refuses_nobody_does(tmp_path: Path) -> None:
    well = Scripted()
    async with First(tmp_path, well) as first:
        with pytest.raises(InvalidSpec, match="no version 7"):
            await first.carry_out(RouteVersions(name="live", routing=Routing(live=7)))
        with pytest.raises(UnknownName):
            await first.carry_out(Retire(name="other"))

        assert well.heard == ["Prepare", "Abort"] * 2
        assert first.registry.find("live").number == 1


async def test_one_that_joins_in_the_middle_has_to_prepare_too(tmp_path: Path) -> None:
    late = Scripted()

    async def join() -> None:
        first.join(late)

    early = Scripted(on_prepare=join)
    async with First(tmp_path, early) as first:
        await first.carry_out(first.loading(2))

        assert early.heard == late.heard == ALL


async def test_a_version_that_is_not_proved_everywhere_answers_nowhere_not_even_by_its_number(tmp_path: Path) -> None:
    seen: list[list[int]] = []

    def is_proved(number: int) -> bool:
        return any(version.number == number and version.executor is not None for version in first.registry.versions("live"))

    async def look() -> None:
        while not is_proved(2):  # noqa: ASYNC110 - what is waited for says nothing when it is there
            await asyncio.sleep(0)
        seen.append(first.ready)

    async with First(tmp_path, Scripted(on_prepare=look)) as first:
        await first.carry_out(first.loading(2))

        assert seen == [[1]], "the first had proved it"
        assert first.ready == [1, 2]


async def test_one_that_follows_has_what_the_first_has_whatever_it_had_before(tmp_path: Path) -> None:
    registry = Registry()
    loader = Loader(registry, clock=SystemClock(), scratch=tmp_path, limits=Limits())
    async with First(tmp_path) as first:
        changes: list[Change] = [
            first.loading(2),
            RouteVersions(name="live", routing=Routing(live=2, previous=1, labels={"stable": 1})),
            RouteVersions(name="live", routing=Routing(live=1, previous=2)),
            first.loading(3),
            Withdraw(name="live", withdrawn=True),
            RouteVersions(name="live", routing=Routing(live=1, canary=3, share=0.5)),
            Scale(name="live", scaling=Scaling(replicas=2)),
            Withdraw(name="live", withdrawn=False),
            RouteVersions(name="live", routing=Routing(live=1)),
            Retire(name="live"),
            first.loading(1),
        ]
        await follow(picture_of(first.registry), registry, loader)
        for number, change in enumerate(changes):
            await first.carry_out(change)
            if number % 2 or number > 7:  # it also has to take two steps at once
                await follow(picture_of(first.registry), registry, loader)
                assert picture_of(registry) == picture_of(first.registry), change
        assert picture_of(registry).endpoints[0].routing is None, "loaded, and not routed to"
        with pytest.raises(NotServed):
            registry.find("live")
    await loader.close()


async def test_one_that_cannot_load_what_the_first_has_says_so(tmp_path: Path) -> None:
    registry = Registry()
    loader = Loader(registry, clock=SystemClock(), scratch=tmp_path, limits=Limits())
    async with First(tmp_path) as first:
        (tmp_path / "live-1.onnx").unlink()

        with pytest.raises(InvalidSpec, match="is not on this host"):
            await follow(picture_of(first.registry), registry, loader)
