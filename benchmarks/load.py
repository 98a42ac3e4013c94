"""A load generator that costs little, in a process and on a core of its own: the package's callers, over a fixed number of connections.

    python -m benchmarks.load CORE URL TOKEN BODY_FILE CONNECTIONS SECONDS [HEADER...]

Closed loop: each connection sends its next request when it has the answer, so that what is measured is how much the server can
answer. Prints requests/s, percentiles in microseconds, answers that were not 200, and the share of its core that it used:
near 1 it is the generator that is measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from aiaas_magics.client.load_test.load_connection import Caller


class Connection(Caller):
    """Sends the same request again and again, as soon as it was answered or `every_s`."""

    __slots__ = ("_began_ns", "_every_s", "_request", "_took", "_wrong", "over")

    def __init__(self, request: bytes, took: list[int], wrong: list[bytes], every_s: float = 0.0) -> None:
        super().__init__(self._heard, lambda _: None)
        self._request, self._took, self._wrong, self._every_s = request, took, wrong, every_s
        self.over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.send()

    def send(self) -> None:
        if not self.over:
            self._began_ns = time.perf_counter_ns()
            self.ask(self._request, self.due_s)

    def _heard(self, _: Caller, status: int) -> None:
        self._took.append(time.perf_counter_ns() - self._began_ns)
        if status != 200:
            self._wrong.append(self.body[:300])
        if not self._every_s:
            self.send()
            return
        loop = asyncio.get_running_loop()
        self.due_s = max(self.due_s + self._every_s, loop.time())
        loop.call_at(self.due_s, self.send)


async def run(url: str, token: str, body: bytes, connections: int, seconds: float, headers: list[str]) -> dict[str, object]:
    where = urlsplit(url)
    lines = [f"POST {where.path} HTTP/1.1", f"Host: {where.netloc}", f"Content-Length: {len(body)}", *headers]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    request = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
    took: list[int] = []
    wrong: list[bytes] = []
    loop = asyncio.get_running_loop()
    made = [Connection(request, took, wrong) for _ in range(connections)]
    for one in made:
        await loop.create_connection(lambda one=one: one, where.hostname, where.port)  # type: ignore[misc]
    await asyncio.sleep(seconds / 5)  # warm
    took.clear()
    began, used = time.perf_counter(), time.process_time()
    await asyncio.sleep(seconds)
    counted, wall, used = len(took), time.perf_counter() - began, time.process_time() - used
    for one in made:
        one.over = True
    found = sorted(took[:counted])
    if not found:
        raise SystemExit(f"no answer within {seconds} s; the last refusal: {wrong[-1:]}")
    return {
        "rate": counted / wall,
        "p50_us": found[len(found) // 2] / 1e3,
        "p99_us": found[int(len(found) * 0.99)] / 1e3,
        "wrong": len(wrong),
        "first_wrong": wrong[0].decode("latin-1") if wrong else "",
        "generator_busy": used / wall,
    }


if __name__ == "__main__":
    import uvloop

    core, url, token, body, connections, seconds, *headers = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    print(json.dumps(uvloop.run(run(url, token, Path(body).read_bytes(), int(connections), float(seconds), headers))))
