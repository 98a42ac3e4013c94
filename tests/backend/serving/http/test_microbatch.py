"""Plain predictions that are answered together: each gets the answer of its own rows, and whatever is not plain the common way's."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from aiaas_magics.backend.serving.engines import EngineRefused
from aiaas_magics.backend.serving.http.fast_path import microbatch
from aiaas_magics.backend.serving.http.fast_path.microbatch import Microbatcher, target_of
from aiaas_magics.backend.serving.http.request_handler import RequestHandler
from aiaas_magics.backend.serving.models.batching import Limits
from aiaas_magics.backend.serving.models.registry import Registry, Version
from aiaas_magics.backend.serving.models.replicas import Inline, Replicas
from aiaas_magics.backend.serving.protocols import Response
from aiaas_magics.backend.serving.protocols.tfserving import tfserving_rest
from aiaas_magics.core.routing import Routing
from tests.backend.serving.support.serving_models import spec_of, tensor


class Times:
    """Multiplies, and refuses negative numbers."""

    kind = "times"

    def __init__(self, factor: int) -> None:
        self.factor, self.runs = factor, list[int]()

    def run(self, inputs: Mapping[str, np.ndarray], /) -> dict[str, np.ndarray]:
        x = inputs["x"]
        self.runs.append(len(x))
        if x.min() < 0:
            raise EngineRefused("negative")
        return {"y": x * self.factor}

    def close(self) -> None: ...


class Odd(Times):
    """Answers with what one kind of request cannot be answered with: numbers that JSON has no form for, or another count of rows."""

    def run(self, inputs: Mapping[str, np.ndarray], /) -> dict[str, np.ndarray]:
        x = super().run(inputs)["y"]
        return {"y": x.astype(np.complex64) if self.factor == 10 else x[0] if self.factor == 100 else x.sum()}


class Asked:
    """A request that writes down what becomes of it."""

    json_bytes, began_ns = 0, 0

    def __init__(self, body: bytes) -> None:
        self.body, self.begun, self.response = body, 0, list[Response]()

    def answer(self, response: Response) -> None:
        self.response.append(response)

    def begin(self) -> None:
        self.begun += 1

    @property
    def said(self) -> bytes | None:
        return self.response[0].body if self.response else None


class Served:
    def __init__(self, **limits: Any) -> None:
        self.registry, self.engines = Registry(), dict[tuple[str, int], Times]()
        self.limits = Limits(**limits)
        self.microbatcher = Microbatcher(RequestHandler(self.registry))

    def load(self, name: str, number: int, *, columns: int = 1, engine: type[Times] = Times, **more: Any) -> Version:
        spec = spec_of(name, [tensor("x", "float32", -1, columns)], [tensor("y", "float32", -1, columns)])
        version = Version(number=number, spec=spec, created_s=0.0)
        self.registry.begin(version)
        made = self.engines[name, number] = engine(10**number)
        shared = {"batchable": True, "limits": self.limits, "stats": version.stats, "row_bytes": 4 * columns} | more
        version.executor = Inline(made, larger=Replicas([Times(1)], name=name, **shared), **shared)
        self.registry.ready(version)
        return version

    def ask(self, name: str, body: bytes, number: int | None = None) -> Asked:
        asked = Asked(body)
        self.microbatcher.add(target_of(name, number, None, tfserving_rest.plain_form), asked)
        return asked

    async def close(self) -> None:
        for name in self.registry.names():
            for version in self.registry.remove(name):
                await version.drain_and_close()


def rows(*values: float) -> bytes:
    return b'{"instances": [%b]}' % b",".join(b"[%g]" % value for value in values)


async def turns(count: int = 1) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
async def served() -> Any:
    made = Served(batch_rows=4)
    made.load("a", 1)
    made.registry.route("a", Routing(live=1))
    yield made
    await made.close()


async def test_requests_of_one_turn_are_computed_at_once_and_each_gets_its_rows(served: Served) -> None:
    one, two, three = served.ask("a", rows(1)), served.ask("a", rows(2, 3)), served.ask("a", rows(4))
    await turns()

    assert [one.said, two.said, three.said] == [
        b'{"predictions":[[10.0]]}',
        b'{"predictions":[[20.0],[30.0]]}',
        b'{"predictions":[[40.0]]}',
    ]
    assert served.engines["a", 1].runs == [4]
    figures = served.registry.find("a").stats
    assert (figures.requests, figures.rows, figures.dispatch) == (3, 4, {"all that waited": 1})


async def test_what_does_not_fit_into_a_batch_runs_in_the_next_turn_before_what_came_later(served: Served) -> None:
    asked = [served.ask("a", rows(n)) for n in range(6)]
    await turns()
    late = served.ask("a", rows(6))

    assert [one.said is not None for one in asked] == [True] * 4 + [False] * 2
    await turns()

    assert [one.said for one in (*asked, late)] == [b'{"predictions":[[%d.0]]}' % (10 * n) for n in range(7)]
    assert served.engines["a", 1].runs == [4, 3]
    assert served.registry.find("a").stats.dispatch == {"full": 1, "all that waited": 1}


@pytest.mark.parametrize(
    "body",
    [b"{", b'{"instances": [["1"]]}', b'{"instances": [[NaN]]}', b'{"instances": [[1, 2]]}', b'{"inputs": [[1]]}', rows(1, 2, 3, 4, 5)],
)
async def test_what_is_not_plain_goes_the_common_way_and_spoils_nothing(served: Served, body: bytes) -> None:
    before, other, after = served.ask("a", rows(1)), served.ask("a", body), served.ask("a", rows(2))
    await turns()

    assert (other.begun, other.said) == (1, None)
    assert (before.said, after.said) == (b'{"predictions":[[10.0]]}', b'{"predictions":[[20.0]]}')


async def test_of_a_batch_that_fails_every_request_goes_the_common_way(served: Served) -> None:
    asked = [served.ask("a", rows(value)) for value in (1, -1, 2)]
    await turns()

    assert [(one.begun, one.said) for one in asked] == [(1, None)] * 3
    assert served.registry.find("a").stats.requests == 0


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_outputs_that_are_not_rows_of_numbers_are_left_to_the_common_way(number: int) -> None:
    served = Served()
    served.load("odd", number, columns=3, engine=Odd)
    served.registry.route("odd", Routing(live=number))
    asked = [served.ask("odd", b'{"instances": [[1, 2, 3]]}') for _ in range(2)]
    await turns()

    assert [(one.begun, one.said) for one in asked] == [(1, None)] * 2
    await served.close()


async def test_models_and_versions_of_one_turn_do_not_mix(served: Served) -> None:
    served.load("a", 2)
    served.load("b", 3)
    served.registry.route("b", Routing(live=3))
    served.registry.route("a", Routing(live=1, previous=2))
    asked = [served.ask("a", rows(1)), served.ask("b", rows(1)), served.ask("a", rows(2), 2), served.ask("a", rows(3))]
    await turns()

    assert [one.said for one in asked] == [
        b'{"predictions":[[10.0]]}',
        b'{"predictions":[[1000.0]]}',
        b'{"predictions":[[200.0]]}',
        b'{"predictions":[[30.0]]}',
    ]


async def test_a_request_that_was_read_before_a_flip_is_answered_by_the_version_after_it(served: Served) -> None:
    served.load("a", 2)
    asked = served.ask("a", rows(1))
    served.registry.route("a", Routing(live=2))
    await turns()

    assert asked.said == b'{"predictions":[[100.0]]}'


async def test_callers_are_split_by_the_common_way_where_there_is_a_canary(served: Served) -> None:
    served.load("a", 2)
    served.registry.route("a", Routing(live=1, canary=2, share=0.5))
    split, named = served.ask("a", rows(1)), served.ask("a", rows(1), 2)
    await turns()

    assert (split.begun, split.said) == (1, None)
    assert named.said == b'{"predictions":[[100.0]]}'


async def test_who_is_not_there_or_does_not_join_is_left_to_the_common_way(served: Served) -> None:
    served.load("slow", 1, limits=Limits(delay_s=0.1))
    served.load("alone", 1, batchable=False)
    for name in ("slow", "alone"):
        served.registry.route(name, Routing(live=1))
    asked = [served.ask(name, rows(1)) for name in ("nobody", "slow", "alone")]
    served.registry.withdraw("a")
    asked.append(served.ask("a", rows(1)))
    await turns()

    assert [(one.begun, one.said) for one in asked] == [(1, None)] * 4


async def test_no_more_wait_here_than_may(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(microbatch, "MOST_WAITING", 2)

    asked = [served.ask("a", rows(1)) for _ in range(3)]

    assert [one.begun for one in asked] == [0, 0, 1]
    await turns()


async def test_a_long_answer_is_left_to_the_way_that_may_compress_it() -> None:
    served = Served()
    served.load("wide", 1, columns=20_000)
    served.registry.route("wide", Routing(live=1))
    long, short = served.ask("wide", b'{"instances": [[%b]]}' % b",".join([b"0.1"] * 20_000)), served.ask("wide", b"{}")
    await turns()

    assert (long.begun, long.said, short.begun) == (1, None, 1)
    await served.close()
