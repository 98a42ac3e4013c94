"""Ten minutes of one endpoint at 70 % of what it can do: no error, no growth. `make soak`, or `python -m benchmarks.soak MINUTES`.

What it can do is measured first, for a few seconds. Then sixteen connections ask on a schedule, and once a second the server's
memory and open files are looked at. Growth is the difference of the medians of the last and the second fifth of the time; the
first fifth is left to caches that fill.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil

from benchmarks import serving
from benchmarks.load import Connection
from benchmarks.report import save

CONNECTIONS = 16
SHARE = 0.7


async def asked(
    target: serving.Target, rate: float, seconds: float, server: psutil.Process
) -> tuple[int, list[bytes], list[tuple[int, int]]]:
    """Answers, refusals, and the server's memory and open files second by second."""
    where, body = urlsplit(target.url), target.body.read_bytes()
    head = (
        f"POST {where.path} HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Length: {len(body)}\r\nAuthorization: Bearer {target.token}\r\n\r\n"
    )
    took: list[int] = []
    wrong: list[bytes] = []
    made = [Connection(head.encode() + body, took, wrong, every_s=CONNECTIONS / rate) for _ in range(CONNECTIONS)]
    loop = asyncio.get_running_loop()
    for one in made:
        await loop.create_connection(lambda one=one: one, where.hostname, where.port)  # type: ignore[misc]
    seen, answered, until = [], 0, time.monotonic() + seconds
    while time.monotonic() < until:
        await asyncio.sleep(1)
        answered += len(took)
        took.clear()
        seen.append((server.memory_info().rss, server.num_fds()))
    for one in made:
        one.over = True
    await asyncio.sleep(1)
    return answered, wrong, seen


def growth(values: list[int]) -> float:
    fifth = max(1, len(values) // 5)
    return statistics.median(values[-fifth:]) - statistics.median(values[fifth : 2 * fifth])


def main() -> int:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    with tempfile.TemporaryDirectory(prefix="aiaas-soak-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        subprocess.run([sys.executable, "-c", serving.EXPORT, name], check=True, capture_output=True)
        ours = stack.enter_context(serving.Ours(folder))
        body = folder / "row.json"
        body.write_text(json.dumps({"instances": np.random.default_rng(0).random((1, 100)).round(6).tolist()}))
        target = ours.target("/v1/models/article:predict", body)
        rate = SHARE * serving.load(target, CONNECTIONS)["rate"]
        answered, wrong, seen = asyncio.run(asked(target, rate, minutes * 60, ours.process))
    memory, files = growth([one[0] for one in seen]) / 1e6, growth([one[1] for one in seen])
    row: dict[str, object] = {
        "what": f"{minutes:g} minutes at 70% load",
        "requests": answered,
        "requests/s": round(answered / (minutes * 60)),
        "wrong": len(wrong),
        "memory grew by MB": round(memory, 1),
        "open files grew by": files,
    }
    save("soak", [row])
    return int(bool(wrong) or memory > 5 or files > 0)


if __name__ == "__main__":
    sys.exit(main())
