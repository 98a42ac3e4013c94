"""Many callers at once: each gets the answer to its own rows, whatever was run together."""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiaas_magics.backend.serving.engines import EngineLost, EngineRefused
from aiaas_magics.backend.serving.http.request_handler import RequestHandler
from aiaas_magics.backend.serving.models.batching import BatchQueue, Limits, QueueFull, Waiting
from aiaas_magics.backend.serving.models.registry import Registry, Version
from aiaas_magics.backend.serving.models.replicas import Replicas, answers_of
from aiaas_magics.backend.serving.models.stats import EndpointStats
from aiaas_magics.backend.serving.protocols import Request
from aiaas_magics.backend.serving.protocols.open_inference import open_inference_rest
from aiaas_magics.backend.serving.protocols.tfserving import tfserving_rest
from aiaas_magics.core.routing import Routing
from tests.backend.serving.support.serving_models import lookup, plus, spec_of, tensor
from tests.backend.serving.support.serving_rig import Rig


def test_sixteen_callers_never_get_each_others_rows(rig: Rig, tmp_path: Path) -> None:
    rig.load(plus(tmp_path, "live", 0.5, replicas=2))
    wrong: list[object] = []

    def call(seed: int) -> None:
        chance = random.Random(seed)
        connection = http.client.HTTPConnection(*rig.address, timeout=60)
        headers = {"Authorization": f"Bearer {rig.host.token}"}
        for _ in range(60):
            rows = [[float(chance.randrange(2**22))] for _ in range(chance.randrange(1, 6))]
            connection.request("POST", "/v1/models/live:predict", json.dumps({"instances": rows}), headers)
            got = json.loads(connection.getresponse().read())
            if got != {"predictions": [[row[0] + 0.5] for row in rows]}:
                wrong.append((rows, got))
        connection.close()

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(16)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(120)

    assert wrong == []


def test_one_callers_bad_index_spoils_nobody_elses_batch(rig: Rig, tmp_path: Path) -> None:
    rig.load(lookup(tmp_path, "table"))
    seen: list[tuple[int, int]] = []

    def call(index: int) -> None:
        seen.extend((index, rig.predict("table", {"instances": [index]}).status) for _ in range(40))

    callers = [threading.Thread(target=call, args=(index,)) for index in (0, 1, 2, 3, 77, 0, 1, 2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(120)

    assert {status for index, status in seen if index == 77} == {400}
    assert {status for index, status in seen if index != 77} == {200}


# --------------------------------------------------------------------------- the queue, alone


def waiting(item: int, rows: int, key: str | None = "k", size: int = 1, since_s: float = 0.0) -> Waiting[int]:
    return Waiting(item=item, key=key, rows=rows, bytes=size, since_s=since_s)


@given(st.lists(st.tuples(st.integers(1, 40), st.sampled_from(["a", "b", None])), max_size=60), st.integers(1, 64))
def test_batches_keep_the_order_hold_one_key_and_stay_within_the_limit(requests: list[tuple[int, str | None]], batch_rows: int) -> None:
    queue: BatchQueue[int] = BatchQueue(Limits(batch_rows=batch_rows))
    for number, (rows, key) in enumerate(requests):
        queue.offer(waiting(number, rows, key), now_s=0.0)

    batches = []
    while batch := queue.take()[0]:
        batches.append(batch)

    assert [request.item for batch in batches for request in batch] == list(range(len(requests)))
    for batch in batches:
        assert len({request.key for request in batch}) == 1
        assert len(batch) == 1 or (batch[0].key is not None and sum(request.rows for request in batch) <= batch_rows)
    assert len(queue) == 0


def test_a_batch_takes_all_that_fits_and_nobody_is_overtaken() -> None:
    queue: BatchQueue[int] = BatchQueue(Limits(batch_rows=10))
    for number, rows in enumerate((4, 4, 9, 1)):
        queue.offer(waiting(number, rows), now_s=0.0)

    taken = [[request.item for request in queue.take()[0]] for _ in range(3)]

    assert taken == [[0, 1], [2, 3], []]


@pytest.mark.parametrize(
    ("limits", "held", "offered", "now_s", "why"),
    [
        (Limits(waiting=2), [1, 1], 1, 0.0, "2 requests are waiting"),
        (Limits(waiting_bytes=100), [60], 41, 0.0, "memory"),
        (Limits(oldest_s=5.0), [1], 1, 5.1, "more than 5 s"),
    ],
)
def test_a_full_queue_refuses_at_once_and_says_when_to_come_again(
    limits: Limits, held: list[int], offered: int, now_s: float, why: str
) -> None:
    queue: BatchQueue[int] = BatchQueue(limits)
    for number, size in enumerate(held):
        queue.offer(waiting(number, 1, size=size), now_s=0.0)

    with pytest.raises(QueueFull, match=why) as caught:
        queue.offer(waiting(9, 1, size=offered), now_s=now_s)

    assert caught.value.retry_after_s >= 1
    assert len(queue) == len(held)


def test_what_is_larger_than_every_limit_is_taken_when_nothing_else_waits() -> None:
    queue: BatchQueue[int] = BatchQueue(Limits(batch_rows=10, waiting_bytes=100))

    queue.offer(waiting(0, 5000, size=5000), now_s=0.0)

    assert [request.item for request in queue.take()[0]] == [0]


# --------------------------------------------------------------------------- executors, alone


class Doubling:
    """An engine for tests of what is around engines: twice each row, slow on demand, refusing negative rows."""

    kind = "doubling"

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.closed = 0

    def run(self, inputs: Mapping[str, np.ndarray], /) -> dict[str, np.ndarray]:
        x = inputs["x"]
        self.sizes.append(len(x))
        if (x < 0).any():
            raise EngineRefused("negative")
        if (x == 99).any():
            raise EngineLost("gone")
        return {"y": x * 2}

    def close(self) -> None:
        self.closed += 1


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(-1, 6), min_size=1, max_size=4), min_size=1, max_size=12), st.integers(1, 8))
def test_every_request_gets_its_own_rows_or_its_own_fault(requests: list[list[int]], batch_rows: int) -> None:
    engines = [Doubling(), Doubling()]

    async def ask() -> list[object]:
        replicas = Replicas(engines, name="t", batchable=True, limits=Limits(batch_rows=batch_rows), stats=EndpointStats())
        try:
            tensors = [np.array(rows, dtype="float32") for rows in requests]
            return list(await asyncio.gather(*(replicas.run({"x": x}, len(x)) for x in tensors), return_exceptions=True))
        finally:
            await replicas.close()

    answers = asyncio.run(ask())

    for rows, answer in zip(requests, answers, strict=True):
        if min(rows) < 0:
            assert isinstance(answer, EngineRefused)
        else:
            assert isinstance(answer, dict)
            assert answer["y"].tolist() == [2 * row for row in rows]
    assert [engine.closed for engine in engines] == [1, 1]


def test_an_engine_that_dies_is_told_to_everybody_in_the_batch() -> None:
    answers = answers_of(Doubling(), [{"x": np.array([1.0])}, {"x": np.array([99.0])}], [1, 1])

    assert [type(answer) for answer in answers] == [EngineLost, EngineLost]


def test_outputs_without_a_row_for_each_row_are_asked_for_one_by_one() -> None:
    class Mean(Doubling):
        def run(self, inputs: Mapping[str, np.ndarray], /) -> dict[str, np.ndarray]:
            return {"y": inputs["x"].mean(keepdims=True)}

    answers = answers_of(Mean(), [{"x": np.array([1.0, 3.0])}, {"x": np.array([5.0])}], [2, 1])

    assert [answer["y"].tolist() for answer in answers if isinstance(answer, dict)] == [[2.0], [5.0]]


class Held(Doubling):
    """Computes nothing before it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def run(self, inputs: Mapping[str, np.ndarray], /) -> dict[str, np.ndarray]:
        assert self.go.wait(60)
        return super().run(inputs)


async def test_a_full_queue_is_503_with_retry_after_and_the_others_are_answered() -> None:
    engine, registry = Held(), Registry()
    x, y = tensor("x", "float32", -1), tensor("y", "float32", -1)
    version = Version(number=1, spec=spec_of("busy", [x], [y]), created_s=0.0)
    registry.begin(version)
    version.executor = Replicas([engine], name="busy", batchable=False, limits=Limits(waiting=2), stats=version.stats)
    registry.ready(version)
    registry.route("busy", Routing(live=1))
    route = tfserving_rest.PATHS.route("predict", name="busy")
    requests = [Request(method="POST", path="/v1/models/busy:predict", body=b'{"instances": [%d.0]}' % n) for n in range(8)]
    asked = [asyncio.create_task(RequestHandler(registry).respond(tfserving_rest, route, request)) for request in requests]
    done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)

    engine.go.set()
    answers = [await task for task in asked]
    await version.drain_and_close()

    assert {task.result().status for task in done} == {503}
    refused = [got for got in answers if got.status == 503]
    assert all((b"retry-after", b"1") in got.headers for got in refused)
    assert len(refused) in (5, 6), "one runs at most, two wait"
    assert [json.loads(got.body) for got in answers if got.status == 200] == [
        {"predictions": [2.0 * n]} for n, got in enumerate(answers) if got.status == 200
    ]
    assert engine.closed == 1


async def test_a_request_whose_timeout_is_over_is_not_computed_and_the_others_are() -> None:
    """The v2 parameter "timeout", in microseconds."""
    engine, registry = Held(), Registry()
    x, y = tensor("x", "float32", -1), tensor("y", "float32", -1)
    version = Version(number=1, spec=spec_of("busy", [x], [y]), created_s=0.0)
    registry.begin(version)
    version.executor = Replicas([engine], name="busy", batchable=False, limits=Limits(), stats=version.stats)
    registry.ready(version)
    registry.route("busy", Routing(live=1))
    bodies = [
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [n]}], "parameters": {"timeout": timeout_us}}
        for n, timeout_us in ((1.0, 0), (2.0, 1), (3.0, 600_000_000), (4.0, 0))
    ]
    requests = [Request(method="POST", path="/v2/models/busy/infer", body=json.dumps(body).encode()) for body in bodies]
    asked = [
        asyncio.create_task(
            RequestHandler(registry).respond(open_inference_rest, open_inference_rest.PATHS.route("infer", name="busy"), request)
        )
        for request in requests
    ]
    await asyncio.sleep(0.01)  # the first occupies the engine, and more than a microsecond is over

    engine.go.set()
    answers = [await task for task in asked]
    await version.drain_and_close()

    assert [answer.status for answer in answers] == [200, 503, 200, 200]
    assert b"timeout was over" in answers[1].body
    assert json.loads(answers[2].body)["outputs"][0]["data"] == [6.0]
