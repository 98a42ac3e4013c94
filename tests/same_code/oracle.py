"""Plain Keras is the oracle: a cell is run plainly and under the magic, and what the two leave is compared.

Owns running a cell both ways and the comparison, which is a plain function of two `Ran`. Reading a kernel belongs to `kernel_state`.
"""

from __future__ import annotations

import itertools
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from tests.notebook.conftest import Cell, Kernel

# docs/equivalence.md: what ends where plain fit ends is within 1e-5 of its norm; rounding of a few steps of Adam may be ten times as much.
RTOL: Final = 1e-4
ATOL: Final = 1e-6
MAGIC: Final = "%%aiaas_train --ui none"
START: Final = "from tests.same_code import kernel_state as _kernel_state"
# How often TensorFlow has traced lately is a matter of the kernel's whole life, and not of one cell.
RETRACED: Final = "triggered tf.function retracing"
WARNING: Final = re.compile(r"\b\w*Warning: .*")
# Of Keras' bar and of the time that steps took nothing is compared.
TIMES: Final = re.compile(r"\d+m?s/(step|epoch)|\b\d+(\.\d+)?m?s\b")


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What running one cell brought."""

    error: tuple[str, ...] = ()  # the exception's class and its bases, the nearest first, as module.name; empty without one
    message: str = ""
    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    figures: int = 0
    state: Mapping[str, Any] = field(default_factory=dict)

    @property
    def notices(self) -> str:
        return "\n".join((*self.state.get("notices", ()), *self.lines, self.message))


def differences(plain: Ran, ours: Ran) -> list[str]:
    """What is otherwise under the magic than plainly, each as `place: plain != ours`."""
    found = []
    if bool(plain.error) != bool(ours.error):
        found.append(f"outcome: {_outcome(plain)} != {_outcome(ours)}")
    elif plain.error and _caught_as(plain.error) not in ours.error:
        found.append(f"exception: {_caught_as(plain.error)} is no base of {ours.error[0]}")
    if plain.lines != ours.lines:
        found.append(f"lines: {list(plain.lines)} != {list(ours.lines)}")
    if plain.warnings != ours.warnings:
        found.append(f"warnings: {list(plain.warnings)} != {list(ours.warnings)}")
    if plain.figures != ours.figures:
        found.append(f"figures: {plain.figures} != {ours.figures}")
    for part in ("names", "values", "files", "random"):
        found += _differing(plain.state.get(part), ours.state.get(part), part)
    return found


def unannounced(differences: Sequence[str], announced: Mapping[str, str], ours: Ran) -> list[str]:
    """Those whose place no pattern of `announced` matches, or of which the cell does not say the sentence that goes with it."""
    return [one for one in differences if not any(re.search(place, one) and said in ours.notices for place, said in announced.items())]


def _outcome(ran: Ran) -> str:
    return f"{ran.error[0]}: {ran.message[:400]}" if ran.error else "ok"


def _differing(plain: Any, ours: Any, place: str) -> Iterator[str]:
    if isinstance(plain, Mapping) and isinstance(ours, Mapping):
        for key in (*plain, *(key for key in ours if key not in plain)):
            if key not in plain or key not in ours:
                yield f"{place}.{key}: {_short(plain.get(key, '(none)'))} != {_short(ours.get(key, '(none)'))}"
            else:
                yield from _differing(plain[key], ours[key], f"{place}.{key}")
    elif isinstance(plain, list) and isinstance(ours, list) and len(plain) == len(ours):
        for at, (one, other) in enumerate(zip(plain, ours, strict=True)):
            yield from _differing(one, other, f"{place}[{at}]")
    elif not _equal(plain, ours):
        yield f"{place}: {_short(plain)} != {_short(ours)}"


def _equal(plain: Any, ours: Any) -> bool:
    if isinstance(plain, float) and isinstance(ours, float):
        return bool(np.isclose(ours, plain, rtol=RTOL, atol=ATOL, equal_nan=True))
    if isinstance(plain, np.ndarray) and isinstance(ours, np.ndarray):
        if plain.dtype != ours.dtype or plain.shape != ours.shape:
            return False
        if plain.dtype.kind == "f":
            size = float(np.linalg.norm(np.nan_to_num(plain)))
            close = float(np.linalg.norm(np.nan_to_num(ours) - np.nan_to_num(plain))) <= RTOL * size + ATOL
            return close and bool((np.isnan(plain) == np.isnan(ours)).all())
        return bool((plain == ours).all())
    return type(plain) is type(ours) and plain == ours


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)} {np.array2string(value.ravel()[:4], precision=6)}"
    return repr(value)[:200]


class Oracle:
    """Runs cells in `plain` as they are, and in `ours` under the magic; the two may be one kernel."""

    def __init__(self, plain: Kernel, ours: Kernel, folder: Path) -> None:
        self._plain, self._ours, self._folder = plain, ours, folder
        self._numbers = itertools.count()
        for kernel in {id(one): one for one in (plain, ours)}.values():
            _run(kernel, f"%load_ext aiaas_magics\n%matplotlib inline\n{START}\n_kernel_state.loaded()")

    def run(self, cell: str, *, before: str = "", after: str = "", options: str = "-n 1") -> tuple[Ran, Ran]:
        """What `cell` brings plainly and under the magic, each in a fresh namespace in which `before` has run, and `after` it."""
        number = next(self._numbers)
        plain = self._ran(self._plain, self._folder / f"{number}" / "plain", before, cell, after)
        ours = self._ran(self._ours, self._folder / f"{number}" / "ours", before, f"{MAGIC} {options}\n{cell}", after)
        return plain, ours

    def _ran(self, kernel: Kernel, folder: Path, before: str, cell: str, after: str) -> Ran:
        folder.parent.mkdir(exist_ok=True)
        _run(kernel, f"{START}\n_kernel_state.begin({str(folder)!r})")
        if before:
            _run(kernel, before)
        ran = kernel.run(cell)
        later = kernel.run(after) if after else Cell(reply={"status": "ok"})
        assert later.ok, later.error
        state = folder.parent / f"{folder.name}.state"
        _run(kernel, f"_kernel_state.take({str(state)!r})")
        outputs = [*ran.outputs, *later.outputs]
        return Ran(
            error=() if ran.ok else _classes(kernel, ran),
            message="" if ran.ok else str(ran.reply["evalue"]),
            lines=tuple(_lines(outputs)),
            warnings=tuple(_warnings(outputs)),
            figures=sum("image/png" in output.get("data", {}) for output in outputs),
            state=pickle.loads(state.read_bytes()),
        )


def _run(kernel: Kernel, code: str) -> None:
    cell = kernel.run(code)
    assert cell.ok, cell.error


def _classes(kernel: Kernel, ran: Cell) -> tuple[str, ...]:
    """The class of the last exception and its bases, as IPython keeps it; of a usage error there is only the name."""
    told = kernel.run("import sys as _sys\nfor _one in getattr(_sys, 'last_type', object).__mro__: print(_one.__module__, _one.__name__)")
    names = [(module, name) for module, _, name in (line.partition(" ") for line in told.text.splitlines())]
    if not names or names[0][1] != ran.reply["ename"]:
        return (str(ran.reply["ename"]),)
    return tuple(name if module == "builtins" else f"{module}.{name}" for module, name in names)


def _caught_as(error: Sequence[str]) -> str:
    """The nearest class that the cell's own `except` names: Python's or the notebook's. Of libraries' own it takes what those stand for."""
    return next((name for name in error if "." not in name or name.startswith("__main__.")), error[0])


def _lines(outputs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What stands on stdout, line by line, without times and warnings; of a bar what stands there at its end."""
    lines, after_warning = [], False
    for line in _text(outputs, {"stdout"}).split("\n"):
        last = line.rstrip("\r").rpartition("\r")[2]
        bare = TIMES.sub("", re.sub(r"\x1b\[[0-9;]*m|\x08", "", last)).strip()
        is_warning = WARNING.search(bare) is not None
        code_of_warning = after_warning and last.startswith("  ")  # Python shows the line that warned below it
        if bare and not (is_warning or code_of_warning or RETRACED in bare):
            lines.append(bare)
        after_warning = is_warning
    return lines


def _warnings(outputs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What Python warned of, on either stream: in a notebook on stderr, of workers between what they print."""
    return sorted({found[0] for found in WARNING.finditer(_text(outputs, {"stdout", "stderr"}))})


def _text(outputs: Sequence[Mapping[str, Any]], streams: Set[str]) -> str:
    return "".join(output["text"] for output in outputs if output.get("name") in streams)


def covering(values: Mapping[str, Sequence[str]], *, valid: Callable[[Mapping[str, str]], bool] = lambda _: True) -> list[dict[str, str]]:
    """Combinations in which each two values of different names come together at least once, where a valid one has them.

    Greedy: each next combination is that of all which has most pairs that none before has. The first of several, so that it is
    the same list each time.
    """
    names = list(values)
    every = [dict(zip(names, row, strict=True)) for row in itertools.product(*values.values())]
    candidates = [(one, _pairs(one)) for one in every if valid(one)]
    wanted = set().union(*(pairs for _, pairs in candidates))
    chosen = []
    while wanted:
        best, pairs = max(candidates, key=lambda one: len(one[1] & wanted))
        chosen.append(best)
        wanted -= pairs
    return chosen


def _pairs(row: Mapping[str, str]) -> set[tuple[tuple[str, str], ...]]:
    return set(itertools.combinations(sorted(row.items()), 2))
