"""A load generator that costs little, in a process and on a core of its own: raw HTTP/1.1 over a fixed number of connections.

    python -m benchmarks.load CORE URL TOKEN BODY_FILE CONNECTIONS SECONDS [HEADER...]

Closed loop: each connection sends its next request when it has the answer, so that what is measured is how much the server can
answer. Prints requests a second, percentiles in microseconds, answers that were not 200, and the share of its core that it used:
near 1 it is the generator that is measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CHUNKED = -1  # the answer's length is not told before


class Connection(asyncio.Protocol):
    """Sends the same request again and again."""

    def __init__(self, request: bytes, took: list[int], wrong: list[bytes], every_s: float = 0.0) -> None:
        self._request, self._took, self._wrong = request, took, wrong
        self._every_s, self._due_s = every_s, 0.0
        self._got = b""
        self._whole = 0  # bytes of the answer that is coming, or `CHUNKED`, once its head is there
        self.over = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self.send()

    def send(self) -> None:
        if self.over:
            return
        self._began_ns = time.perf_counter_ns()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._got += data
        if not self._whole:
            end = self._got.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._got[:end].lower()
            place = head.find(b"content-length:")
            self._whole = CHUNKED if place < 0 else end + 4 + int(head[place + 15 :].split(b"\r\n", 1)[0])
        if not self._got.endswith(b"0\r\n\r\n") if self._whole == CHUNKED else len(self._got) < self._whole:
            return
        self._took.append(time.perf_counter_ns() - self._began_ns)
        if not self._got.startswith(b"HTTP/1.1 200"):
            self._wrong.append(self._got[:300])
        self._got, self._whole = b"", 0
        if self.over:
            return
        loop = asyncio.get_running_loop()
        self._due_s = max(self._due_s + self._every_s, loop.time())
        if self._every_s:
            loop.call_at(self._due_s, self.send)
        else:
            self.send()


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
