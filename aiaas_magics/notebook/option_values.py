"""Option values: reads the value of one option.

Owns the types for argparse, and the sentence for a value that cannot be read. Which option takes which belongs
to the files of `magics/`.
"""

from __future__ import annotations

import keyword
import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiaas_magics.core.errors import AiaasError
from aiaas_magics.core.export_names import REFUSED
from aiaas_magics.core.privacy import Privacy, privacy_of
from aiaas_magics.core.recording import policy_of
from aiaas_magics.core.routing import Scaling, scaling_of
from aiaas_magics.core.spec import checked_name

MOST_WORKERS: Final = 1024  # guess: a typing mistake rather than a wish; what a backend has is the backend's to say


@dataclass(frozen=True, slots=True)
class Workers:
    """How many workers were asked for: several numbers are a study, none of them with `most` means every device."""

    points: tuple[int, ...] = ()
    most: bool = False

    @property
    def is_study(self) -> bool:
        return len(self.points) > 1


def workers(text: str) -> Workers:
    """N | N,M,... | max."""
    if text == "max":
        return Workers(most=True)
    if text.endswith(",") or text.startswith(",") or ",," in text:
        raise ArgumentTypeError(f"{text!r} has nothing between two commas. Write 1,2 without spaces.")
    try:
        points = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a number of workers. Use 2, or 1,2,4 for a study, or max.") from None
    for point in points:
        if point < 1:
            raise ArgumentTypeError(
                f"{point} workers cannot train. Use at least 1, or leave the option out for one worker with every core."
            )
        if point > MOST_WORKERS:
            raise ArgumentTypeError(f"{point} workers are more than {MOST_WORKERS}. Use max for as many as the backend has devices.")
    if len(set(points)) < len(points):
        raise ArgumentTypeError(f"{text!r} contains a number twice. A study compares different numbers of workers, such as 1,2.")
    return Workers(points=tuple(sorted(points)))


def whole_number(least: int, most: int, label: str) -> Callable[[str], int]:
    """A type for argparse: a whole number in a range, refused in words."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise ArgumentTypeError(f"{text!r} is not a whole number. {label} is between {least} and {most}.") from None
        if not least <= number <= most:
            raise ArgumentTypeError(f"{number} is out of range. {label} is between {least} and {most}.")
        return number

    return read


def positive_seconds(text: str) -> float:
    try:
        seconds = float(text.removesuffix("s"))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        raise ArgumentTypeError(f"{text!r} is not a time in seconds. Use a number above 0, such as 2 or 0.5.")
    return seconds


def share(text: str) -> float:
    """A part of the requests: 10% or 0.1."""
    try:
        fraction = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction < 1:
        raise ArgumentTypeError(f"{text!r} is not a share of the requests. Use more than 0 and less than 100%, such as 10%.")
    return fraction


def variables(text: str) -> tuple[str, ...]:
    """x_val,y_val | x_val, or short,long | rows"""
    names = text.split(",")
    if len(names) > 2 or not all(names):
        raise ArgumentTypeError(f"{text!r} does not name one or two variables. Write x_val,y_val without spaces, or x_val alone.")
    return tuple(variable(name) for name in names)


@dataclass(frozen=True, slots=True)
class RowsOf:
    """Some rows of a variable: all, or those from `start` up to `stop`, as a slice has them."""

    name: str
    start: int | None = None
    stop: int | None = None

    def of(self, value: Any) -> Any:
        """These rows of `value`: an array or a frame, or a dict or list of them, one for each input."""
        if isinstance(value, Mapping):
            return {key: self.of(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)) and value and hasattr(value[0], "shape"):
            return [self.of(item) for item in value]
        return value[self.start : self.stop]


def rows_of(text: str) -> RowsOf:
    """x_test | x_test[:20] | x_test[100:120] | x_test[7]"""
    match = re.fullmatch(r"([^\W\d]\w*)(?:\[(?:(-?\d+)|(-?\d+)?:(-?\d+)?)\])?", text)
    if match is None:
        raise ArgumentTypeError(f"{text!r} does not name rows. Write a variable, or some rows of one without spaces: x_test[:20].")
    name, only, start, stop = match.groups()
    if only is not None:
        return RowsOf(variable(name), int(only), int(only) + 1 or None)
    return RowsOf(variable(name), None if start is None else int(start), None if stop is None else int(stop))


def names(text: str) -> tuple[str, ...]:
    """no,yes"""
    labels = tuple(part.strip() for part in text.split(","))
    if not all(labels):
        raise ArgumentTypeError(f"{text!r} has nothing between two commas. Write no,yes without spaces.")
    return labels


def environment_names(text: str) -> tuple[str, ...]:
    """MY_RATE | MY_RATE,MY_KEY"""
    names = text.split(",")
    if not all(name and "=" not in name for name in names):
        raise ArgumentTypeError(f"{text!r} does not name environment variables. Write NAME or NAME,NAME without values and spaces.")
    return tuple(names)


def change(text: str) -> float:
    """How much may change: 0.01 or 1%."""
    try:
        limit = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a limit for the change. Use 0 or more, such as 0.01 or 1%.")
    return limit


def private(text: str) -> Privacy:
    """epsilon=2,delta=1e-5[,clip=1.0] | noise=1.1,delta=1e-5[,clip=1.0]"""
    try:
        return privacy_of(text)
    except AiaasError as error:
        raise ArgumentTypeError(str(error)) from None


def replicas(text: str) -> Scaling:
    """2 | auto | auto:1-4"""
    try:
        return scaling_of(text)
    except AiaasError as error:
        raise ArgumentTypeError(str(error)) from None


def recording(text: str) -> str:
    """1% | 1%,256MB,7d | off"""
    try:
        policy_of(text)
    except AiaasError as error:
        raise ArgumentTypeError(str(error)) from None
    return text


@dataclass(frozen=True, slots=True)
class Every:
    """How often a checkpoint is kept: epochs, or seconds. Neither is never."""

    epochs: int = 0
    seconds: float = 0.0


def every(text: str) -> Every:
    """2 (epochs) | 30s (seconds) | 0 (never)."""
    if text.endswith("s"):
        return Every(seconds=positive_seconds(text))
    return Every(epochs=whole_number(0, 10**6, "A number of epochs (write 30s for seconds)")(text))


def epsilons(text: str) -> tuple[float, ...]:
    """How much each number of a row may change, between commas."""
    try:
        numbers = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        numbers = (0.0,)
    if not all(0 < number < float("inf") for number in numbers):
        raise ArgumentTypeError(f"{text!r} is not a list of changes. Use numbers above 0 in the units of x, such as 0.01,0.03,0.1.")
    return numbers


def levels(text: str) -> tuple[int, ...]:
    """Numbers of connections, between commas."""
    read = whole_number(1, 4096, "A number of connections")
    if not all(text.split(",")):
        raise ArgumentTypeError(f"{text!r} has nothing between two commas. Write 1,2,4 without spaces.")
    return tuple(sorted({read(part) for part in text.split(",")}))


def rates(text: str) -> tuple[float, ...]:
    """Requests/s between commas; none for no open loop."""
    if text == "none":
        return ()
    try:
        numbers = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        numbers = (0.0,)
    if not all(0 < rate <= 1e6 for rate in numbers):
        raise ArgumentTypeError(f"{text!r} is not a list of rates. Use requests per second, such as 100,500,1000, or none.")
    return numbers


def forms(text: str) -> tuple[str, ...]:
    """How tensors travel: json, binary, or both between commas."""
    names = tuple(dict.fromkeys(text.split(",")))
    if not set(names) <= {"json", "binary"}:
        raise ArgumentTypeError(f"{text!r} is not an encoding of tensors. Use json, binary, or json,binary.")
    return names


def variable(text: str) -> str:
    if not text.isidentifier() or keyword.iskeyword(text):
        raise ArgumentTypeError(f"{text!r} is not a variable name. Use letters, digits and '_', not starting with a digit.")
    return text


def endpoint_name(text: str) -> str:
    try:
        return checked_name("an endpoint", text)
    except AiaasError as error:
        raise ArgumentTypeError(str(error)) from None


def job_name(text: str) -> str:
    if not 0 < len(text) <= 100 or not text.isprintable():
        raise ArgumentTypeError("A job's name has 1 to 100 printable characters. Give a shorter one.")
    return text


def model_format(text: str) -> str:
    """A format of a model file; one that nothing writes is refused with what to use instead."""
    if text in REFUSED:
        raise ArgumentTypeError(REFUSED[text])
    return text
