"""How a benchmark reports: ratios with spread, on screen and as JSON beside the code.

Absolute times of a shared machine mean little, so each figure stands beside what it is
compared with, measured in the same run, one after the other in turns.
"""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Sample:
    """Repeated measurements of one thing, in one unit."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Half the range, as a share of the median."""
        return (max(self.values) - min(self.values)) / (2 * self.median)

    def __str__(self) -> str:
        return f"{self.median:.4g} ±{self.spread:.0%}"


def interleaved(subjects: dict[str, Callable[[], float]], *, repeats: int) -> dict[str, Sample]:
    """Each subject in turn, `repeats` times round; each returns what it measured."""
    found: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(repeats):
        for name, subject in subjects.items():
            found[name].append(subject())
    return {name: Sample(tuple(values)) for name, values in found.items()}


def ratio(above: Sample, below: Sample) -> Sample:
    """Pairs of one round divided: what happened to the machine in that round happened to both."""
    return Sample(tuple(a / b for a, b in zip(above.values, below.values, strict=True)))


def compared(what: str, against: str, found: Sample, *, goal: float | None = None, higher_is_better: bool = False) -> dict[str, object]:
    """A row of a ratio: what was measured over what it is compared with; `page` draws these."""
    row: dict[str, object] = {"what": what, "against": against, "ratio": str(found), "rounds": [round(value, 3) for value in found.values]}
    return row | {"better": "higher" if higher_is_better else "lower"} | ({} if goal is None else {"goal": round(goal, 3)})


def hardware() -> str:
    memory = psutil.virtual_memory().total / 2**30
    return f"{psutil.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def save(name: str, rows: Sequence[dict[str, object]]) -> None:
    """Print the rows and keep them under benchmarks/results."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"hardware": hardware(), "load_average": round(psutil.getloadavg()[0], 1), "rows": list(rows)}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    for row in rows:
        print("  " + "  ".join(f"{key}={value}" for key, value in row.items()))
