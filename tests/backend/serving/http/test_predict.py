"""`endpoint.predict` against a real inference process: every dtype, large arrays, many at once, a server that restarts."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aiaas_magics.client import transport
from aiaas_magics.client.serving import endpoint as endpoints
from aiaas_magics.client.serving import tensor_protocol
from aiaas_magics.client.serving.endpoint import Endpoint
from aiaas_magics.client.transport import Transport
from aiaas_magics.core.errors import BackendError, BackendRefused, DataMismatch
from aiaas_magics.core.spec import EndpointView, TensorSpec
from tests.backend.serving.support.serving_models import Made, echo, plus
from tests.backend.serving.support.serving_rig import Rig
from tests.support.impostors import Proving

DTYPES = ["float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"]


def endpoint_of(rig: Rig, made: Made) -> Endpoint:
    view = EndpointView(
        name=made.spec.name,
        url=rig.host.url,
        token=rig.host.token,
        replicas=1,
        versions=(),
        inputs=made.spec.inputs,
        outputs=made.spec.outputs,
    )
    return Endpoint(Transport(rig.host.url, token=rig.host.token), view)


@pytest.mark.parametrize("dtype", [*DTYPES, "string"])
def test_every_dtype_goes_there_and_back_bit_for_bit(rig: Rig, tmp_path: Path, dtype: str) -> None:
    made = echo(tmp_path, "echo", dtype, 3)
    rig.load(made)
    endpoint = endpoint_of(rig, made)
    given = (
        np.array([["a", "ä€", ""], ["b", "c" * 1000, "\x00x"]], object) if dtype == "string" else np.arange(6).reshape(2, 3).astype(dtype)
    )

    found = endpoint.predict(given)

    assert found.dtype == (np.dtype(object) if dtype == "string" else np.dtype(dtype))
    assert found.tolist() == given.tolist()


def test_numbers_that_json_has_no_word_for_arrive_as_they_are(rig: Rig, tmp_path: Path) -> None:
    made = echo(tmp_path, "echo", "float32", 4)
    rig.load(made)
    given = np.array([[np.nan, np.inf, -np.inf, np.float32(1e-45)]], np.float32)

    assert endpoint_of(rig, made).predict(given).tobytes() == given.tobytes()


def test_a_large_array_goes_in_parts_and_is_put_together_again(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "PART_BYTES", 4096)
    made = plus(tmp_path, "plus", 1.0)
    rig.load(made)
    given = np.arange(10_000, dtype=np.float32)[:, None]

    assert np.array_equal(endpoint_of(rig, made).predict(given), given + 1)


def test_batches_come_back_in_order_and_are_read_only_so_far_ahead(rig: Rig, tmp_path: Path) -> None:
    made = plus(tmp_path, "plus", 1.0)
    rig.load(made)
    read: list[int] = []

    def batches() -> Iterator[Any]:
        for number in range(20):
            read.append(number)
            yield np.full((number + 1, 1), number, np.float32)

    found = []
    for answer in endpoint_of(rig, made).predict_batches(batches(), in_flight=3):
        found.append(answer)
        assert len(read) <= len(found) + 3

    assert [len(answer) for answer in found] == list(range(1, 21))
    assert all((answer == number + 1).all() for number, answer in enumerate(found))


def test_predictions_can_be_awaited_together(rig: Rig, tmp_path: Path) -> None:
    made = plus(tmp_path, "plus", 1.0)
    rig.load(made)
    endpoint = endpoint_of(rig, made)

    async def together() -> list[Any]:
        return await asyncio.gather(*(endpoint.predict_async(np.full((1, 1), n, np.float32)) for n in range(16)))

    assert [float(answer[0, 0]) for answer in asyncio.run(together())] == [n + 1.0 for n in range(16)]


def test_pandas_and_lists_are_taken_and_what_does_not_fit_is_told_before_it_is_sent(rig: Rig, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    made = plus(tmp_path, "plus", 1.0)
    rig.load(made)
    endpoint = endpoint_of(rig, made)

    assert endpoint.predict(pandas.DataFrame({"a": [1.0, 2.0]})).tolist() == [[2.0], [3.0]]
    assert endpoint.predict([[1], [2]]).tolist() == [[2.0], [3.0]]
    assert endpoint.predict(np.float32([1, 2])).tolist() == [[2.0], [3.0]], "as Keras adds the last axis"
    with pytest.raises(DataMismatch, match="Give whole rows"):
        endpoint.predict(np.zeros((2, 1, 3), np.float32))
    with pytest.raises(DataMismatch, match="texts were given"):
        endpoint.predict([["x"]])


def test_a_prediction_outlives_a_restart_of_the_server(rig: Rig, tmp_path: Path) -> None:
    made = plus(tmp_path, "plus", 1.0)
    rig.load(made)
    endpoint = endpoint_of(rig, made)
    os.kill(rig.host.pid, signal.SIGKILL)

    assert endpoint.predict([[1.0]]).tolist() == [[2.0]]


ANSWER_HEAD = b'{"outputs":[{"name":"y","datatype":"FP32","shape":[1,1],"parameters":{"binary_data_size":4}}]}'


@pytest.mark.parametrize(
    ("script", "asked", "raised"),
    [
        pytest.param([503, 429, 200], 3, None, id="not now"),
        pytest.param([0, 200], 2, None, id="broken off"),
        pytest.param([503] * 9, 5, "scripted", id="never"),
        pytest.param([400, 200], 1, "scripted", id="wrong"),
        pytest.param([413, 200], 1, "scripted", id="too large"),
        pytest.param([500, 200], 1, "scripted", id="a fault"),
        pytest.param([401, 200], 1, "token", id="no token"),
    ],
)
def test_only_what_may_be_answered_another_time_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, script: list[int], asked: int, raised: str | None
) -> None:
    monkeypatch.setattr(transport, "RETRY_WAITS_S", (0.01,) * 4)
    seen: list[int] = []

    class Scripted(Proving):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            seen.append(script[len(seen)])
            body = ANSWER_HEAD + np.float32(2.0).tobytes() if seen[-1] == 200 else b'{"error":"scripted"}'
            self.close_connection = True
            if seen[-1]:
                self.send_response(seen[-1])
                self.send_header("content-length", str(len(body)))
                self.send_header(tensor_protocol.LENGTH_HEADER, str(len(ANSWER_HEAD)))
                self.end_headers()
                self.wfile.write(body)

    x, y = (TensorSpec(name=name, dtype="float32", shape=(-1, 1)) for name in "xy")
    with ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        view = EndpointView(name="scripted", url=url, token="t", replicas=1, versions=(), inputs=(x,), outputs=(y,))
        endpoint = Endpoint(Transport(url, token="t"), view)

        if raised is None:
            assert endpoint.predict([[1.0]]).tolist() == [[2.0]]
        else:
            with pytest.raises(BackendError, match=raised):
                endpoint.predict([[1.0]])
        server.shutdown()
        thread.join()

    assert len(seen) == asked


@pytest.mark.parametrize(
    ("says", "waits"),
    [("3", [3.0]), ("0", [0.2]), ("", [0.2]), ("Wed, 25 Nov 2026 10:00:00 GMT", [0.2]), ("-1", [0.2]), ("11", []), ("9" * 400, [])],
)
def test_a_server_is_left_alone_for_as_long_as_it_asks_if_that_is_not_long(
    monkeypatch: pytest.MonkeyPatch, says: str, waits: list[float]
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(transport, "time", SimpleNamespace(sleep=waited.append, monotonic=time.monotonic))  # other threads sleep as ever

    class Busy(Proving):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200 if waited else 503)
            self.send_header("content-length", "0")
            self.send_header("retry-after", says)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        with Transport(f"http://127.0.0.1:{server.server_port}", token="t") as calls:
            if waits:
                calls.infer("/", b"x", headers={})
            else:
                with pytest.raises(BackendRefused) as refused:
                    calls.infer("/", b"x", headers={})
                assert refused.value.retry_after_s > transport.RETRY_MOST_S
        server.shutdown()
        thread.join()

    assert waited == waits


def test_callers_in_threads_share_an_endpoint(rig: Rig, tmp_path: Path) -> None:
    made = plus(tmp_path, "plus", 1.0)
    rig.load(made)
    endpoint, wrong = endpoint_of(rig, made), list[object]()

    def ask(number: int) -> None:
        for step in range(50):
            got = endpoint.predict([[number * 100 + step]])
            if got.tolist() != [[number * 100 + step + 1.0]]:
                wrong.append(got)

    callers = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)

    assert wrong == []


# --------------------------------------------------------------------------- the form alone


@given(st.data(), st.sampled_from(DTYPES), hnp.array_shapes(max_dims=3, max_side=4))
def test_what_is_written_is_read_again(data: st.DataObject, dtype: str, shape: tuple[int, ...]) -> None:
    array = data.draw(hnp.arrays(np.dtype(dtype), shape))
    body, headers = tensor_protocol.encode({"x": array}, (TensorSpec(name="x", dtype=dtype, shape=(-1,) * len(shape)),))
    length = int(headers[tensor_protocol.LENGTH_HEADER])
    answer = body[:length].replace(b'"inputs"', b'"outputs"')

    found = tensor_protocol.decode(answer + body[length:], str(len(answer)))["x"]

    assert length % tensor_protocol.ALIGN == 0
    assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())
    found.fill(0)  # its own memory, to be changed


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (b"", None),
        (b"{}", "2"),
        (b"{", "x"),
        (b'{"outputs":[{"name":"y","datatype":"NONE","shape":[1],"parameters":{"binary_data_size":4}}]}', "91"),
        (b'{"outputs":[{"name":"y","datatype":"FP32","shape":[2],"parameters":{"binary_data_size":4}}]}1234', "91"),
    ],
)
def test_an_answer_of_somebody_else_is_refused_with_a_sentence(body: bytes, length: str | None) -> None:
    with pytest.raises(BackendRefused, match="is not understood"):
        tensor_protocol.decode(body, length)
