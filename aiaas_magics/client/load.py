"""The load generator: what an endpoint does when n callers ask at once.

Owns making the load and measuring it, from a process of its own, so that neither the
notebook's interpreter nor the server's is measured along. Asking for a run from a notebook
belongs to `endpoint`, drawing it to `plots`, arithmetic on it to `laws`.

The loop is closed: each of `concurrency` connections asks again as soon as it was answered.
So the latencies are those that `concurrency` patient callers see; a server that stalls is asked
less often meanwhile, and its tail looks better than callers with a schedule of their own
would find it ("coordinated omission").

    python -m aiaas_magics.client.load < plan.json > results.json
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from hdrh.histogram import HdrHistogram

from aiaas_magics import wire
from aiaas_magics.errors import BackendRefused, BackendTooSlow, BackendUnreachable, InvalidSpec
from aiaas_magics.latency import LoadPoint, LoadReport
from aiaas_magics.spec import TensorSpec, Value

if TYPE_CHECKING:
    from aiaas_magics.client.endpoint import Endpoint

WARM_UP_S: Final = 0.3  # guess: connections are open and the engine's memory is there
ANSWER_S: Final = 30.0  # guess: slower than this is an error, not an answer
START_S: Final = 30.0  # guess: a fresh interpreter on a busy machine
LONGEST_US: Final = 60_000_000
DIGITS: Final = 3  # the histogram's precision: 0.1 %
BODIES: Final = 16  # guess: enough that no cache of one body is measured
HEADER_BYTES: Final = 64 * 1024
NO_OP: Final = "aiaas-no-op: 1\r\n"  # a header: read, checked and answered as any other request, but nothing is computed


class Plan(Value, frozen=True, kw_only=True):
    """What to do. The bodies are sent in turn; `token` travels here, not on a command line that others can read."""

    url: str
    path: str
    token: str
    bodies: tuple[str, ...]
    concurrency: tuple[int, ...]
    duration_s: float
    rows: int
    model: str = ""  # the endpoint's name, whose figures say what the engine took; "" where nobody asks
    warm_up_s: float = WARM_UP_S
    authority: str = ""  # PEM file of who vouches for the server's certificate, where the system's own do not

    def __post_init__(self) -> None:
        if not self.concurrency or any(not 1 <= n <= 10_000 for n in self.concurrency):
            raise InvalidSpec(f"concurrency={self.concurrency}: each is between 1 and 10000. Use --concurrency 1,2,4 to start with.")
        if not 0 < self.duration_s <= 3600:
            raise InvalidSpec(f"duration={self.duration_s}: between 0 and 3600 seconds are possible. Use --duration 2 to start with.")
        if self.rows < 1 or not self.bodies:
            raise InvalidSpec(f"rows={self.rows}: a request has at least one row. Use --rows 1 to start with.")


# --------------------------------------------------------------------------- asked for by a client


def run_load(
    endpoint: Endpoint, *, concurrency: Sequence[int] = (1, 2, 4), duration_s: float = 2.0, rows: int = 1, x: Any = None
) -> LoadReport:
    """Load `endpoint` from a process of its own and report what was seen.

    Args:
        concurrency: Numbers of connections, measured one after the other.
        duration_s: Seconds each.
        rows: Rows in a request.
        x: Rows to send, in the form that `endpoint.predict` takes; without it, rows that fit
            the interface are made up.

    Raises:
        InvalidSpec: a number that cannot be.
        BackendRefused: every request was refused; the text is the server's own.
    """
    view = endpoint.view()
    plan = Plan(
        url=view.url,
        path=f"/v1/models/{view.name}:predict",
        token=view.token,
        bodies=bodies_of(view.inputs, rows=rows, x=x),
        concurrency=tuple(concurrency),
        duration_s=duration_s,
        rows=rows,
        model=view.name,
        authority=os.environ.get("AIAAS_CA", ""),
    )
    found = carry_out(plan)
    return LoadReport(
        endpoint=view.name,
        rows=rows,
        hardware=hardware(),
        points=found.points,
        model_per_s=found.model_per_s * view.replicas,
        interface_per_s=found.interface_per_s,
    )


def carry_out(plan: Plan) -> Outcome:
    """Run `plan` in a process of its own.

    Raises:
        BackendUnreachable, BackendRefused, BackendTooSlow: nothing could be measured.
    """
    limit_s = START_S + sum(plan.duration_s + plan.warm_up_s + ANSWER_S for _ in (*plan.concurrency, "no-op"))
    command = [sys.executable, "-P", "-m", "aiaas_magics.client.load"]
    try:
        done = subprocess.run(command, input=wire.encode(plan), capture_output=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise BackendTooSlow(plan.url, limit_s) from error
    try:
        outcome = wire.decode(done.stdout, Outcome)
    except wire.Malformed as error:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise BackendRefused(0, f"The load generator failed: {said[-1] if said else error}. Run it again, or report this to us.") from error
    if outcome.unreachable:
        raise BackendUnreachable(plan.url)
    if outcome.refused:
        raise BackendRefused(outcome.status, outcome.refused)
    return outcome


def bodies_of(inputs: Sequence[TensorSpec], *, rows: int, x: Any = None) -> tuple[str, ...]:
    """Request bodies of `rows` rows each, in row format."""
    import numpy as np

    if rows < 1:
        raise InvalidSpec(f"rows={rows}: a request has at least one row. Use --rows 1 to start with.")
    columns = _given_columns(inputs, x) if x is not None else {spec.name: _made_up(spec, rows * BODIES) for spec in inputs}
    have = min(len(column) for column in columns.values())
    if have < 1:
        raise InvalidSpec("There is no row to send. Give at least one.")
    bodies = []
    for body in range(BODIES):
        chosen = (np.arange(rows) + body * rows) % have
        picked = {name: column[chosen].tolist() for name, column in columns.items()}
        instances = (
            next(iter(picked.values()))
            if len(picked) == 1
            else [dict(zip(picked, row, strict=True)) for row in zip(*picked.values(), strict=True)]
        )
        bodies.append(json.dumps({"instances": instances}, separators=(",", ":")))
    return tuple(dict.fromkeys(bodies))


def _given_columns(inputs: Sequence[TensorSpec], x: Any) -> dict[str, Any]:
    import numpy as np

    if isinstance(x, dict):
        return {spec.name: np.asarray(x[spec.name]) for spec in inputs}
    if len(inputs) > 1:
        return {spec.name: np.asarray(values) for spec, values in zip(inputs, x, strict=True)}
    return {inputs[0].name: np.asarray(x)}


def _made_up(spec: TensorSpec, rows: int) -> Any:
    """Rows that fit the interface. Whole numbers are 0: any other may be no row of an Embedding."""
    import numpy as np

    shape = (rows, *(1 if size < 0 else size for size in spec.shape[1:]))
    if spec.dtype == "string":
        return np.full(shape, "a")
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return np.random.default_rng(0).normal(size=shape).round(6)
    return np.zeros(shape, dtype)


def hardware() -> str:
    """This machine in one line, for captions: the load and a local server share it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores, {_processor() or platform.machine()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


# --------------------------------------------------------------------------- in the generator's process


class Outcome(Value, frozen=True, kw_only=True):
    """What the generator writes: the points, or why there are none."""

    points: tuple[LoadPoint, ...] = ()
    model_per_s: float = 0.0  # of one executor
    interface_per_s: float = 0.0
    unreachable: bool = False
    status: int = 0
    refused: str = ""


@dataclass(slots=True)
class Tally:
    """What one concurrency has seen so far. Warm-up answers are not counted."""

    histogram: Any = field(default_factory=lambda: HdrHistogram(1, LONGEST_US, DIGITS))
    requests: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def answered(self, status: int, seconds: float) -> None:
        if status == 200:
            self.requests += 1
            self.histogram.record_value(min(LONGEST_US, max(1, round(seconds * 1e6))))
        else:
            self.errors[f"http {status}"] += 1


class Gone(Exception):
    """The connection ended, or what came is no answer."""


class Connection:
    """One keep-alive HTTP/1.1 connection; just as much of the protocol as an answer to a prediction has."""

    def __init__(self, plan: Plan, *, path: str = "", header: str = "") -> None:
        """`path` is asked instead of the plan's, with GET and no body; `header` is one more line of the plan's requests."""
        where = urlsplit(plan.url)
        self._host, self._tls = where.hostname or "", _trust(plan) if where.scheme == "https" else None
        self._port = where.port or (443 if self._tls else 80)
        self._requests = (
            [_looking(plan, where.netloc, path)] if path else [_request(plan, where.netloc, body, header) for body in plan.bodies]
        )
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._next = 0

    async def ask(self) -> tuple[int, bytes]:
        """Status and body of the answer to the next request; opens the connection when there is none.

        Raises:
            Gone, OSError: there was no answer.
        """
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port, ssl=self._tls, limit=HEADER_BYTES)
        reader, writer = self._streams
        writer.write(self._requests[self._next % len(self._requests)])
        self._next += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = _length(head)
            body = await reader.readexactly(length)
            status = int(head[9:12])
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            raise Gone from error
        if b"connection: close" in head.lower():
            self.close()
        return status, body

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def _trust(plan: Plan) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=plan.authority or None)


def _request(plan: Plan, host: str, body: str, header: str) -> bytes:
    data = body.encode()
    head = (
        f"POST {plan.path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {plan.token}\r\n"
        f"{header}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode("latin-1") + data


def _looking(plan: Plan, host: str, path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {plan.token}\r\n\r\n".encode("latin-1")


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise ValueError("an answer without its length")


async def caller(plan: Plan, tally: Tally, counts_from_s: float, until_s: float, header: str = "") -> None:
    """Ask, wait, ask again, until the time is over."""
    connection = Connection(plan, header=header)
    try:
        while (began_s := time.perf_counter()) < until_s:
            try:
                async with asyncio.timeout(ANSWER_S):
                    status, _ = await connection.ask()
            except (Gone, OSError, TimeoutError) as error:
                connection.close()
                if began_s >= counts_from_s:
                    tally.errors["timeout" if isinstance(error, TimeoutError) else "connection"] += 1
                await asyncio.sleep(0.01)  # a server that is gone is not to be asked as fast as a loop turns
            else:
                # Counted by when it was asked: an answer that took long belongs to the time that it took.
                if began_s >= counts_from_s:
                    tally.answered(status, time.perf_counter() - began_s)
    finally:
        connection.close()


async def measure(plan: Plan, concurrency: int, header: str = "") -> LoadPoint:
    """One point: `concurrency` callers for the plan's time. `header` is one more line of their requests."""
    tally = Tally()
    counts_from_s = time.perf_counter() + plan.warm_up_s
    until_s = counts_from_s + plan.duration_s
    async with asyncio.TaskGroup() as callers:
        for _ in range(concurrency):
            callers.create_task(caller(plan, tally, counts_from_s, until_s, header))
    # The callers end with their last answers; those were counted, so their time counts as well.
    return point_of(plan, concurrency, tally, time.perf_counter() - counts_from_s)


def point_of(plan: Plan, concurrency: int, tally: Tally, seconds: float) -> LoadPoint:
    def percentile_ms(percent: float) -> float:
        return float(tally.histogram.get_value_at_percentile(percent)) / 1e3 if tally.requests else 0.0

    return LoadPoint(
        concurrency=concurrency,
        seconds=seconds,
        requests=tally.requests,
        rows=tally.requests * plan.rows,
        errors=dict(tally.errors),
        requests_per_s=tally.requests / seconds,
        rows_per_s=tally.requests * plan.rows / seconds,
        p50_ms=percentile_ms(50),
        p90_ms=percentile_ms(90),
        p99_ms=percentile_ms(99),
        p999_ms=percentile_ms(99.9),
        max_ms=float(tally.histogram.get_max_value()) / 1e3 if tally.requests else 0.0,
    )


async def outcome_of(plan: Plan) -> Outcome:
    """All points, or why there are none: one refused request is asked first, so that a wrong token does not cost the whole time."""
    first = Connection(plan)
    try:
        async with asyncio.timeout(ANSWER_S):
            status, body = await first.ask()
    except (Gone, OSError, TimeoutError):
        return Outcome(unreachable=True)
    finally:
        first.close()
    if status not in (200, 429, 503):
        return Outcome(status=status, refused=sentence_in(body) or f"The endpoint answered {status}.")
    before = await spent(plan)
    points = [await measure(plan, concurrency) for concurrency in plan.concurrency]
    after = await spent(plan)
    nothing = await measure(plan, max(plan.concurrency), NO_OP)
    rows, seconds = (late - early for early, late in zip(before, after, strict=True))
    return Outcome(
        points=tuple(points),
        model_per_s=rows / plan.rows / seconds if seconds > 0 else 0.0,
        interface_per_s=nothing.requests_per_s,
    )


async def spent(plan: Plan) -> tuple[float, float]:
    """Rows that the endpoint has computed, and seconds that they took in the engine; zeros where it does not say."""
    connection = Connection(plan, path=f"/v2/models/{plan.model}/stats")
    try:
        async with asyncio.timeout(ANSWER_S):
            status, body = await connection.ask()
        models = json.loads(body)["model_stats"] if status == 200 and plan.model else []
        return (
            float(sum(model["inference_count"] for model in models)),
            sum(model["inference_stats"]["compute_infer"]["ns"] for model in models) / 1e9,
        )
    except (Gone, OSError, TimeoutError, ValueError, KeyError, TypeError):
        return 0.0, 0.0
    finally:
        connection.close()


def sentence_in(body: bytes) -> str:
    """The text of an error answer."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return ""


def main() -> int:
    plan = wire.decode(sys.stdin.buffer.read(), Plan)
    try:
        import uvloop

        loop_factory: Any = uvloop.new_event_loop
    except ImportError:
        loop_factory = None
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        outcome = runner.run(outcome_of(plan))
    sys.stdout.buffer.write(wire.encode(outcome))
    return 0


if __name__ == "__main__":
    sys.exit(main())
