"""Measured page: docs/measured.md and its figure, made from benchmarks/results; nothing there is written by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS

DOCS = Path(__file__).parent.parent / "docs"
FIGURE = DOCS / "figures" / "measured.png"
TITLES = {
    "training": "Training on one worker",
    "scaling": "Two workers",
    "workers": "Worker processes",
    "start": "Start costs",
    "blobs": "Sending data",
    "serving": "Serving",
    "serving_start": "Serving start",
    "recording": "Recording requests",
    "trust_private": "Private training",
    "soak": "Soak test",
}
HEAD = """# Measured

`make bench` and `make soak` wrote this page on the machine named in each part. Subjects were measured in turns within each round. A ratio
is the median over rounds, with half their range. The goal is the value we set out to reach. For *lower*, smaller ratios are better (our
time or memory divided by the other's); for *higher*, larger ones are.

![Ratios beside their goals](figures/measured.png)
"""


def page(results: dict[str, dict[str, Any]]) -> str:
    parts = [HEAD]
    for name in sorted(results, key=list(TITLES).index):
        found = results[name]
        load = f", load {found['load_average']}" if "load_average" in found else ""
        parts.append(f"\n## {TITLES[name]}\n\n{found['hardware']}{load}. `python -m benchmarks.{name}`\n")
        ratios = [row for row in found["rows"] if "ratio" in row]
        others = [row for row in found["rows"] if "ratio" not in row]
        if ratios:
            parts.append("\n| measurement | compared with | ratio | better | goal |\n| --- | --- | --- | --- | --- |")
            parts += [f"\n| {r['what']} | {r['against']} | {r['ratio']} | {r['better']} | {r.get('goal', '')} |" for r in ratios]
            parts.append("\n")
        parts += ["\n".join(["", *(f"* {row['what']}: {told(row)}" for row in others), ""])] if others else []
    return "".join(parts)


def told(row: dict[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in row.items() if key != "what")


def drawn(results: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for name in ("training", "scaling", "workers", "start", "serving", "recording"):
        yield from (row for row in results.get(name, {}).get("rows", ()) if "goal" in row and "ratio" in row)


def draw(rows: Sequence[dict[str, Any]], target: Path) -> None:
    """Every ratio that has a goal, with its rounds, on a logarithmic axis; a tick where the goal is."""
    from matplotlib.figure import Figure

    kinds = [[row for row in rows if row["better"] == better] for better in ("lower", "higher")]
    kinds = [kind for kind in kinds if kind]
    figure = Figure(figsize=(10, 1.6 + 0.36 * len(rows)), layout="constrained", dpi=120)
    panels = figure.subplots(len(kinds), 1, height_ratios=[len(kind) + 1 for kind in kinds], squeeze=False)[:, 0]
    for axes, kind in zip(panels, kinds, strict=True):
        for place, row in enumerate(reversed(kind)):
            reached = row["rounds"] and within(row)
            colour = "#2a78d6" if reached else "#eb6834"
            axes.plot([min(row["rounds"]), max(row["rounds"])], [place, place], color=colour, linewidth=2, alpha=0.5)
            axes.plot(median(row), place, "o", color=colour)
            axes.plot(row["goal"], place, "|", color="#52514e", markersize=14, markeredgewidth=2)
        axes.set_yticks(range(len(kind)), [f"{row['what']} vs {row['against']}" for row in reversed(kind)], fontsize=8)
        axes.set_ylim(-0.7, len(kind) - 0.3)
        axes.set_xscale("log")
        axes.set_xlabel(f"ratio ({kind[0]['better']} is better); tick: goal, blue: goal reached")
        axes.grid(axis="x", which="both", color="#e1e0d9")
        axes.set_axisbelow(True)
    figure.savefig(target)


def median(row: dict[str, Any]) -> float:
    return float(str(row["ratio"]).split(" ")[0])


def within(row: dict[str, Any]) -> bool:
    found, goal = median(row), float(row["goal"])
    return found >= goal if row["better"] == "higher" else found <= goal


def main() -> None:
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json")) if path.stem in TITLES}
    draw(list(drawn(results)), FIGURE)
    (DOCS / "measured.md").write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
