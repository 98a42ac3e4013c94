"""Load generator: measures an endpoint under n concurrent callers, and at given request rates.

Owns making the load and measuring it, in a process of its own, so that neither the notebook's interpreter nor the
server's is measured along. Asking for a run from a notebook belongs to `load_run`, drawing it to `plots`.

Two kinds of load, which answer two questions (Schroeder, Wierman, Harchol-Balter, "Open versus closed: a cautionary
tale", NSDI 2006). Closed: each of n connections asks again as soon as it was answered; so the latencies are those of n
patient callers, and a server that stalls is asked less often meanwhile. Open: requests come at the times of a Poisson
process, and each counts from its time, whether or not a connection was free for it.

    python -m aiaas_magics.client.load_test.load_generator < plan.json

Writes a line "# {...}", a `LoadProgress`, before each measurement, and its `LoadOutcome` last.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import ssl
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, Final
from urllib.parse import urlsplit

from hdrh.histogram import HdrHistogram

from aiaas_magics.client import certificates
from aiaas_magics.client.load_test.load_connection import Caller, Proving
from aiaas_magics.client.load_test.load_plan import (
    ANSWER_S,
    SHARES,
    BodyForm,
    LoadOutcome,
    LoadPlan,
    Reporter,
    at_once_label,
    interface_label,
    rate_label,
)
from aiaas_magics.core import server_proof, wire
from aiaas_magics.core.contract import NO_OP
from aiaas_magics.core.errors import AiaasError, BackendNotProven
from aiaas_magics.core.scaling.load_report import LoadPoint, RatePoint, Sides

LONGEST_US: Final = 60_000_000
DIGITS: Final = 3  # the histogram's precision: 0.1 %
AGAIN_S: Final = 0.01  # a server that is gone is not to be asked as fast as a loop turns
SPIN_S: Final = 0.002  # uvloop's timers count whole milliseconds; nearer than this the loop turns until it is time
OPEN_CONNECTIONS: Final = 64  # guess: as many as can wait in the server at once; who finds none free waits here, and it counts


def _histogram() -> Any:
    return HdrHistogram(1, LONGEST_US, DIGITS)


@dataclass(slots=True)
class Tally:
    """What one measurement has seen so far, of requests that are due from `counts_from_s` on."""

    counts_from_s: float
    histogram: Any = field(default_factory=_histogram)
    late: Any = field(default_factory=_histogram)
    requests: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def answered(self, status: int, due_s: float, now_s: float) -> None:
        # Counted by when it was due: an answer that took long belongs to the time that it took.
        if due_s < self.counts_from_s:
            return
        if status == 200:
            self.requests += 1
            self.histogram.record_value(_us(now_s - due_s))
        else:
            self.errors[f"http {status}"] += 1

    def failed(self, kind: str, due_s: float) -> None:
        if due_s >= self.counts_from_s:
            self.errors[kind] += 1

    def left(self, due_s: float, now_s: float) -> None:
        """One that was due was not answered by the end."""
        if due_s >= self.counts_from_s:
            self.errors["not answered in time"] += 1
            self.histogram.record_value(_us(now_s - due_s))

    def percentile_ms(self, percent: float) -> float:
        return float(self.histogram.get_value_at_percentile(percent)) / 1e3 if self.requests else 0.0

    def answers(self, plan: LoadPlan, form: BodyForm, seconds: float) -> dict[str, Any]:
        """The fields of an `Answers`."""
        return {
            "form": form.name,
            "seconds": seconds,
            "requests": self.requests,
            "rows": self.requests * plan.rows,
            "errors": dict(self.errors),
            "requests_per_s": self.requests / seconds,
            "rows_per_s": self.requests * plan.rows / seconds,
            "p50_ms": self.percentile_ms(50),
            "p90_ms": self.percentile_ms(90),
            "p99_ms": self.percentile_ms(99),
            "p999_ms": self.percentile_ms(99.9),
            "max_ms": float(self.histogram.get_max_value()) / 1e3 if self.requests else 0.0,
        }


def _us(seconds: float) -> int:
    return min(LONGEST_US, max(1, round(seconds * 1e6)))


class Callers:
    """Connections to the plan's server that ask `requests` in turn; one that ends is opened again. When each asks: `free`."""

    patience_s = 2 * ANSWER_S  # with what is on the way at the end

    def __init__(self, plan: LoadPlan, requests: list[bytes]) -> None:
        self._plan, self._tls = plan, _trust(plan)
        self._requests: Iterator[bytes] = cycle(requests)
        self._loop = asyncio.get_running_loop()
        self._open: set[Caller] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._over = False
        now_s = time.perf_counter()
        self.tally = Tally(now_s + plan.warm_up_s)
        self.until_s = self.tally.counts_from_s + plan.duration_s

    def free(self, caller: Caller) -> None:
        """`caller` may ask."""
        raise NotImplementedError

    def send(self, caller: Caller, due_s: float) -> None:
        caller.ask(next(self._requests), due_s)

    def connect(self) -> None:
        task = asyncio.ensure_future(self._connect())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self) -> None:
        while not self._over:
            began_s = time.perf_counter()
            try:
                caller = await _connected(self._plan, self._tls, self._answered, self._lost)
            except (OSError, TimeoutError, AiaasError):
                self.tally.failed("connection", began_s)
                await asyncio.sleep(AGAIN_S)
            else:
                self._open.add(caller)
                self.free(caller)
                return

    def _answered(self, caller: Caller, status: int) -> None:
        self.tally.answered(status, caller.due_s, time.perf_counter())
        if not self._over:
            self.free(caller)

    def _lost(self, caller: Caller) -> None:
        self._open.discard(caller)
        if self._over:
            return
        if caller.is_waiting:
            self.tally.failed("connection", caller.due_s)
        self._loop.call_later(AGAIN_S, self.connect)

    async def run(self, count: int) -> float:
        """Ask over `count` connections until the time is over and what is on the way is answered; the seconds that count."""
        for _ in range(count):
            self.connect()
        while (now_s := time.perf_counter()) < self.until_s:
            await asyncio.sleep(min(1.0, self.until_s - now_s))
            self._give_up_on_the_slow()
        while any(caller.is_waiting for caller in self._open) and time.perf_counter() < self.until_s + self.patience_s:
            await asyncio.sleep(AGAIN_S)
            self._give_up_on_the_slow()
        seconds = time.perf_counter() - self.tally.counts_from_s
        self.close()
        return seconds

    def _give_up_on_the_slow(self) -> None:
        now_s = time.perf_counter()
        for caller in [caller for caller in self._open if caller.is_waiting and now_s - caller.due_s > ANSWER_S]:
            self.tally.failed("timeout", caller.due_s)
            caller.is_waiting = False
            caller.hang_up()

    def close(self) -> None:
        self._over = True
        for task in self._opening:
            task.cancel()
        for caller in self._open:
            caller.hang_up()


class ClosedLoop(Callers):
    """A closed loop: who was answered asks again."""

    def free(self, caller: Caller) -> None:
        now_s = time.perf_counter()
        if now_s < self.until_s:
            self.send(caller, now_s)


class OpenLoop(Callers):
    """An open loop: requests come at random times, independent of each other, `rate` of them a second."""

    def __init__(self, plan: LoadPlan, requests: list[bytes], rate: float) -> None:
        super().__init__(plan, requests)
        self._gap_s = random.Random(0).expovariate
        self._rate = rate
        self.patience_s = plan.duration_s  # who overloads a server need not wait until it has caught up
        self._idle: list[Caller] = []
        self._due: deque[float] = deque()  # came when no connection was free
        self._next_s = time.perf_counter() + plan.warm_up_s / 2  # when the connections are open
        self.offered = 0
        self._pace()

    def free(self, caller: Caller) -> None:
        if self._due and time.perf_counter() < self.until_s:
            self.send(caller, self._due.popleft())
        else:
            self._idle.append(caller)

    def _pace(self) -> None:
        """Ask what is due, and come again when the next one is."""
        now_s = time.perf_counter()
        while self._next_s <= now_s and self._next_s < self.until_s:
            due_s = self._next_s
            if due_s >= self.tally.counts_from_s:
                self.offered += 1
                self.tally.late.record_value(_us(now_s - due_s))
            if self._usable():
                self.send(self._idle.pop(), due_s)
            else:
                self._due.append(due_s)
            self._next_s = due_s + self._gap_s(self._rate)
        if self._next_s >= self.until_s:
            return
        if self._next_s - now_s > SPIN_S:
            self._loop.call_later(self._next_s - now_s - SPIN_S / 2, self._pace)
        else:
            self._loop.call_soon(self._pace)

    def _usable(self) -> bool:
        while self._idle and self._idle[-1] not in self._open:  # it was lost while nobody needed it
            self._idle.pop()
        return bool(self._idle)

    def close(self) -> None:
        super().close()
        now_s = time.perf_counter()
        for due_s in (*self._due, *(caller.due_s for caller in self._open if caller.is_waiting)):
            self.tally.left(due_s, now_s)


async def _connected(plan: LoadPlan, tls: ssl.SSLContext | None, answered: Any, lost: Any) -> Caller:
    where, loop = urlsplit(plan.url), asyncio.get_running_loop()
    host, port = where.hostname or "", where.port or (443 if tls else 80)
    async with asyncio.timeout(ANSWER_S):
        if not server_proof.is_needed(plan.url):
            encrypted, caller = await loop.create_connection(lambda: Caller(answered, lost), host, port, ssl=tls)
            if plan.fingerprint:
                try:
                    certificates.check(encrypted.get_extra_info("ssl_object"), plan.url, plan.fingerprint)
                except AiaasError:
                    encrypted.abort()
                    raise
            return caller
        transport, proving = await loop.create_connection(lambda: Proving(plan.url, plan.token), host, port)
        try:
            await proving.proven
        except BaseException:
            transport.abort()
            raise
        caller = Caller(answered, lost)
        transport.set_protocol(caller)
        caller.connection_made(transport)
    return caller


def _trust(plan: LoadPlan) -> ssl.SSLContext | None:
    if server_proof.is_needed(plan.url):
        return None
    return certificates.settings_for(plan.fingerprint, plan.authority) or ssl.create_default_context()


def _requests(plan: LoadPlan, form: BodyForm, **more: str) -> list[bytes]:
    """Whole requests, one for each body; `more` are headers."""
    head = _head("POST", plan, form.path, {**dict(form.headers), **more})
    return [head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body for body in form.bodies]


def _head(method: str, plan: LoadPlan, path: str, headers: dict[str, str]) -> bytes:
    values = {"Host": urlsplit(plan.url).netloc, "Authorization": f"Bearer {plan.token}", **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in values.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}".encode("latin-1")


async def ask_once(plan: LoadPlan, request: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to one request.

    Raises:
        OSError, TimeoutError, BackendNotProven, CertificateChanged: there was none.
    """
    answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

    def answered(caller: Caller, status: int) -> None:
        if not answer.done():
            answer.set_result((status, caller.body))

    def lost(_: Caller) -> None:
        if not answer.done():
            answer.set_exception(ConnectionError("the connection ended without an answer"))

    caller = await _connected(plan, _trust(plan), answered, lost)
    try:
        caller.ask(request, 0.0)
        async with asyncio.timeout(ANSWER_S):
            return await answer
    finally:
        caller.hang_up()


async def at_once(plan: LoadPlan, form: BodyForm, concurrency: int, **headers: str) -> LoadPoint:
    """One point: `concurrency` patient callers for the plan's time."""
    callers = ClosedLoop(plan, _requests(plan, form, **headers))
    began_s, used_s = time.perf_counter(), time.process_time()
    seconds = await callers.run(concurrency)
    busy = (time.process_time() - used_s) / (time.perf_counter() - began_s)
    return LoadPoint(concurrency=concurrency, generator_busy=min(1.0, busy), **callers.tally.answers(plan, form, seconds))


async def on_schedule(plan: LoadPlan, form: BodyForm, rate: float) -> RatePoint:
    """One point: `rate` requests a second for the plan's time."""
    callers = OpenLoop(plan, _requests(plan, form), rate)
    seconds = await callers.run(OPEN_CONNECTIONS)
    tally = callers.tally
    return RatePoint(
        offered_per_s=callers.offered / plan.duration_s,
        late_ms=float(tally.late.get_value_at_percentile(99)) / 1e3 if callers.offered else 0.0,
        **tally.answers(plan, form, max(plan.duration_s, seconds)),
    )


async def rates_of(plan: LoadPlan, reached_per_s: float, reporter: Reporter) -> tuple[RatePoint, ...]:
    """The plan's rates; where it leaves them open, up from a quarter of `reached_per_s` until answers stay behind."""
    rates = plan.rates if plan.rates is not None else tuple(share * reached_per_s for share in SHARES if reached_per_s)
    for rate in rates:
        reporter.begin(rate_label(rate, plan.forms[0]))
        reporter.rates.append(await on_schedule(plan, plan.forms[0], rate))
        if plan.rates is None and not reporter.rates[-1].keeps_up:
            break
    return tuple(reporter.rates)


async def sides_of(plan: LoadPlan, form: BodyForm, reporter: Reporter) -> Sides:
    """Adds `form`'s points to the reporter's, and says what its two sides could do alone."""
    before = await spent(plan)
    for concurrency in plan.concurrency:
        reporter.begin(at_once_label(concurrency, form))
        reporter.points.append(await at_once(plan, form, concurrency))
    after = await spent(plan)
    reporter.begin(interface_label(form))
    no_op = await at_once(plan, form, max(plan.concurrency), **{NO_OP: "1"})
    rows, seconds = (late - early for early, late in zip(before, after, strict=True))
    return Sides(
        form=form.name,
        model_per_s=rows / plan.rows / seconds if seconds > 0 else 0.0,
        interface_per_s=no_op.requests_per_s,
    )


async def outcome_of(plan: LoadPlan) -> LoadOutcome:
    """All points, or why there are none: one request of each form is asked first, so that a wrong token does not cost the whole time."""
    for form in plan.forms:
        try:
            status, body = await ask_once(plan, _requests(plan, form)[0])
        except (OSError, TimeoutError):
            return LoadOutcome(unreachable=True)
        except BackendNotProven:
            return LoadOutcome(unproven=True)
        except AiaasError as error:
            return LoadOutcome(refused=str(error))
        if status not in (200, 429, 503):
            return LoadOutcome(status=status, refused=sentence_in(body) or f"The endpoint answered {status}.")
    reporter = Reporter(plan)
    sides = tuple([await sides_of(plan, form, reporter) for form in plan.forms])
    reached = max(point.requests_per_s for point in reporter.points if point.form == plan.forms[0].name)
    return LoadOutcome(points=tuple(reporter.points), sides=sides, rates=await rates_of(plan, reached, reporter))


async def spent(plan: LoadPlan) -> tuple[float, float]:
    """Rows that the endpoint has computed, and seconds that they took in the engine; zeros where it does not say."""
    request = _head("GET", plan, f"/v2/models/{plan.model}/stats", {}) + b"\r\n"
    try:
        status, body = await ask_once(plan, request) if plan.model else (0, b"")
        models = json.loads(body)["model_stats"] if status == 200 else []
        return (
            float(sum(model["inference_count"] for model in models)),
            sum(model["inference_stats"]["compute_infer"]["ns"] for model in models) / 1e9,
        )
    except (OSError, TimeoutError, AiaasError, ValueError, KeyError, TypeError):
        return 0.0, 0.0


def sentence_in(body: bytes) -> str:
    """The text of an error answer."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return ""


def main() -> int:
    plan = wire.decode(sys.stdin.buffer.read(), LoadPlan)
    gc.freeze()
    gc.disable()  # a pause of ours would be a latency of theirs
    try:
        import uvloop

        loop_factory: Any = uvloop.new_event_loop
    except ImportError:
        loop_factory = None
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        outcome = runner.run(outcome_of(plan))
    sys.stdout.buffer.write(wire.encode(outcome) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
