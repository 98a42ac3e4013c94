"""Output differences: how far a written file's answers are from the model's own, output by output.

Owns the comparison. Computing the file's answers belongs to the module of its format, with the format's own runtime.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from aiaas_magics.core.agreement import compare, largest_of
from aiaas_magics.core.precision import Precision
from aiaas_magics.packing.export.export_formats import replayed
from aiaas_magics.packing.export.onnx_session import Form, Named
from aiaas_magics.packing.formats.export_source import SampleSet


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputDifference:
    """One output of a file against the model's own answers.

    Args:
        largest: the largest absolute difference over all sample rows.
        relative: the same as a part of the largest absolute answer.
        agrees: whether every number is within what its precision allows.
    """

    output: str
    largest: float
    relative: float
    agrees: bool


def differences(samples: Sequence[SampleSet], form: Form, allowed: Precision) -> tuple[OutputDifference, ...]:
    """Compute one row, three rows and all rows of each set, and compare them with the model's own answers.

    Args:
        form: the written file as a function, computed by its own runtime.
    """
    measured: dict[str, OutputDifference] = {}
    for sample in samples:
        for part in parts_of(sample):
            answers = form(part.rows)
            for name, whole in sample.answers.items():
                if name in part.answers:
                    difference = _of_output(name, answers.get(name), part.answers[name], whole, allowed)
                    measured[name] = _worse(measured.get(name), difference)
    return tuple(measured.values())


def parts_of(sample: SampleSet) -> Iterator[SampleSet]:
    """The rows of a sample, so many at a time as the host of an endpoint replays them, with what is to be answered."""
    for number in replayed(sample.count):
        places = np.arange(number) % sample.count
        rows = {name: np.ascontiguousarray(array[places]) for name, array in sample.rows.items()}
        whole = number == sample.count
        answers = {name: array if whole else array[places] for name, array in sample.answers.items() if whole or len(array) == sample.count}
        yield SampleSet(rows, answers)


def row_by_row(form: Form) -> Form:
    """The form of a file that takes one row at a time, for any number of rows."""

    def computed(rows: Named) -> dict[str, np.ndarray]:
        count = len(next(iter(rows.values())))
        single = [form({name: array[place : place + 1] for name, array in rows.items()}) for place in range(count)]
        return {name: np.concatenate([answers[name] for answers in single]) for name in single[0]}

    return computed


def _of_output(name: str, answers: np.ndarray | None, expected: np.ndarray, whole: np.ndarray, allowed: Precision) -> OutputDifference:
    if answers is None or answers.shape != expected.shape:
        return OutputDifference(output=name, largest=math.inf, relative=math.inf, agrees=False)
    if expected.dtype.kind in "OSU":
        same = _texts(answers) == _texts(expected)
        return OutputDifference(output=name, largest=0.0 if same else math.inf, relative=0.0 if same else math.inf, agrees=same)
    size = largest_of(whole)
    agreement = compare(answers, expected, allowed, largest=size)
    relative = agreement.largest / size if size else agreement.largest
    return OutputDifference(output=name, largest=agreement.largest, relative=relative, agrees=bool(agreement))


def _texts(array: np.ndarray) -> list[bytes]:
    return [text if isinstance(text, bytes) else str(text).encode() for text in array.ravel()]


def _worse(first: OutputDifference | None, second: OutputDifference) -> OutputDifference:
    if first is None:
        return second
    worst = first if first.largest >= second.largest else second
    return OutputDifference(output=worst.output, largest=worst.largest, relative=worst.relative, agrees=first.agrees and second.agrees)


def worst_of(measured: Sequence[OutputDifference]) -> OutputDifference:
    """The output that is furthest off."""
    return max(measured, key=lambda difference: (not difference.agrees, difference.largest))
