"""What can be typed after a magic's name: the only parsers.

Owns the options and their help; reading a single value belongs to `option_values`. Parsing, `?` help,
completion and the reference page (`docs/generate.py`) are all made from here; carrying a request out belongs
to `magics`.

Each magic has a stack of `option`s and a frozen value that `read_...` makes of a line.
"""

from __future__ import annotations

import difflib
import re
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from IPython.core.error import UsageError
from IPython.core.magic_arguments import ArgDecorator

from aiaas_magics.core.execution import ENGINES, FUSING, PRECISIONS, STRATEGIES, Execution
from aiaas_magics.core.precision import SERVED
from aiaas_magics.core.routing import Rollout, Scaling
from aiaas_magics.core.spec import MOST_RETRIES
from aiaas_magics.notebook.option_values import (
    MOST_WORKERS,
    Every,
    Workers,
    change,
    endpoint_name,
    environment_names,
    every,
    forms,
    job_name,
    levels,
    positive_seconds,
    rates,
    replicas,
    share,
    variable,
    variables,
    whole_number,
    workers,
)

F = TypeVar("F", bound=Callable[..., Any])
V = TypeVar("V")

UI_CHOICES: Final = ("auto", "widget", "html", "text", "none")


class option(ArgDecorator):  # type: ignore[misc, unused-ignore]
    """`argument` of IPython, with the kind of its values for completion: "model", "array", "job", "endpoint", "workers"."""

    def __init__(self, *flags: str, values: str = "", **kwargs: Any) -> None:
        self.flags, self.values, self.kwargs = flags, values, kwargs

    def add_to_parser(self, parser: ArgumentParser, group: Any) -> None:
        action: Any = (group or parser).add_argument(*self.flags, **self.kwargs)
        action.aiaas_values = self.values


def options(*stack: option) -> Callable[[F], F]:
    """Several `option`s as one decorator, in the order of the help."""

    def decorate(function: F) -> F:
        for one in reversed(stack):
            function = one(function)
        return function

    return decorate


# --------------------------------------------------------------------------- options of each magic

HELP = option("-h", "--help", action="store_true", help="Show this help and do nothing.")
UI = option("--ui", choices=UI_CHOICES, metavar="KIND", help="How progress is shown: auto, widget, html, text or none.")
OUT = option("-o", "--out", type=variable, metavar="NAME", help="Also assign the result to this variable.")
JOB = option("job", nargs="?", metavar="JOB", values="job", help="A job's id or name (default: the last job of this kernel).")

train_options = options(
    option(
        "-n",
        "--workers",
        type=workers,
        metavar="N",
        values="workers",
        help="Workers: a number, several numbers (1,2: a study), or max (default: one worker with every core or GPU).",
    ),
    option("--weak", action="store_true", help="In a study: batch_size is per worker, so n workers do n times the work per step."),
    option("--name", type=job_name, metavar="NAME", help="The job's name (default: the model's)."),
    option("--async", dest="background", action="store_true", help="Return a Job at once; job.result() puts the weights into the model."),
    option("-o", "--out", type=variable, metavar="NAME", help="Assign the History, Job, Study or FitPlan to this variable."),
    option(
        "--dry-run",
        action="store_true",
        help="Show what the first fit sends and how it would run: each alternative measured on a few steps, with its memory, or the "
        "reason that rules it out. Then end the cell; nothing is trained.",
    ),
    option("--seed", type=whole_number(0, 2**31 - 1, "A seed"), metavar="S", help="Seed of the row order."),
    option("--oversubscribe", action="store_true", help="Allow more workers than devices. They share devices, and the results say so."),
    option("--engine", choices=ENGINES, default="auto", metavar="E", help="The library that computes: auto, tensorflow or jax."),
    option("--strategy", choices=STRATEGIES, default="auto", metavar="S", help="Strategy: auto, single, collective, mirrored or spmd."),
    option(
        "--model-parallel",
        type=whole_number(1, MOST_WORKERS, "A number of devices"),
        default=1,
        metavar="M",
        help="Split the model over M devices (JAX): by model.layout_map, or kernels of Dense and Embedding by their last axis.",
    ),
    option(
        "--processes",
        type=whole_number(1, MOST_WORKERS, "A number of processes"),
        default=1,
        metavar="P",
        help="Spread the devices of --strategy spmd over P processes (default 1, which is as fast or faster on one machine).",
    ),
    option("--fused", choices=FUSING, default="auto", metavar="F", help="Many steps per call: auto, xla (compiled), graph, or off."),
    option(
        "--checkpoint-every",
        type=every,
        default=Every(epochs=1),
        metavar="E",
        help="Save a checkpoint every 2 (epochs) or 30s (seconds, also within an epoch), or 0 for none (default: every epoch). At most a "
        "twentieth of the time goes into checkpoints.",
    ),
    option(
        "--retries",
        type=whole_number(0, MOST_RETRIES, "The number of retries"),
        default=3,
        metavar="N",
        help="More attempts after lost workers (default 3); each resumes from the last checkpoint.",
    ),
    option("--resume", metavar="JOB", values="job", help="Resume from the last checkpoint of a failed or cancelled job, on any -n."),
    option("--precision", choices=PRECISIONS[1:], default="", metavar="P", help="Compute in float32, mixed_bfloat16 or mixed_float16."),
    option(
        "--accumulate",
        type=whole_number(1, 1024, "A number of parts"),
        default=1,
        metavar="K",
        help="Compute each batch in K parts, for one update, if it does not fit into memory.",
    ),
    option(
        "--env",
        type=environment_names,
        metavar="NAME",
        help="Also send these environment variables: NAME or NAME,NAME. Those set in this kernel are sent anyway, unless they look secret.",
    ),
    option("--no-env", action="store_true", help="Send no environment variables to the workers."),
    option("--local-fallback", action="store_true", help="Run a fit that cannot be sent in the kernel instead."),
    UI,
    HELP,
)
deploy_options = options(
    option("model", nargs="?", metavar="MODEL", values="model", help="The variable or the file that holds the model."),
    option(
        "--name",
        type=endpoint_name,
        metavar="NAME",
        values="endpoint",
        help="Default: the variable's name. A live endpoint gets a new version.",
    ),
    option(
        "--replicas",
        type=replicas,
        default=Scaling(replicas=1),
        metavar="R",
        help="Replicas of the model: 2, or auto (or auto:1-4) for as many as the load needs (default 1).",
    ),
    option("--sample", metavar="ARRAY", values="array", help="Variable with typical rows (default: rows of the last fit on the backend)."),
    option("--canary", type=share, metavar="10%", help="Share of the callers that the next version gets first."),
    option(
        "--keep", type=whole_number(1, 2, "The number of versions"), default=2, metavar="N", help="Loaded versions; 2 allow a rollback."
    ),
    option(
        "--max-delay-us",
        type=whole_number(0, 1_000_000, "A delay in microseconds"),
        default=0,
        metavar="US",
        help="Wait up to US microseconds to fill a batch (default 0).",
    ),
    option(
        "--precision",
        choices=SERVED,
        default="",
        metavar="P",
        help="Store the weights in float16, int8 or int4. The change is measured here and shown before the model goes live.",
    ),
    option(
        "--validate",
        type=variables,
        metavar="X,Y",
        values="array",
        help="Variables with validation data, x_val,y_val or x_val, to measure the effect of --precision on. They are not sent.",
    ),
    option(
        "--max-change",
        type=change,
        metavar="C",
        help="With --precision: the largest change of the first metric, or share of answers (default 0.01; 0.1 without --validate).",
    ),
    OUT,
    HELP,
)
bench_options = options(
    option("name", nargs="?", metavar="NAME", values="endpoint", help="The endpoint."),
    option("-c", "--concurrency", type=levels, default=(1, 2, 4), metavar="C", help="Numbers of connections (default 1,2,4)."),
    option("-d", "--duration", type=positive_seconds, default=1.0, metavar="S", help="Seconds per measurement (default 1)."),
    option("-r", "--rows", type=whole_number(1, 10_000, "Rows a request"), default=1, metavar="K", help="Rows per request (default 1)."),
    option(
        "--rates",
        type=rates,
        metavar="R",
        help="Offered rates in requests/s, sent on a schedule (200,400), or none (default: up from a quarter of what the connections "
        "reached until answers fall behind).",
    ),
    option("--forms", type=forms, default=("json", "binary"), metavar="F", help="Encoding: json, binary, or json,binary."),
    OUT,
    UI,
    HELP,
)
status_options = options(HELP)
attach_options = options(JOB, OUT, UI, HELP)
wait_options = options(JOB, option("--timeout", type=positive_seconds, metavar="S", help="Stop waiting after S seconds."), OUT, UI, HELP)
cancel_options = options(JOB, HELP)
logs_options = options(
    JOB,
    option(
        "-n",
        "--lines",
        type=whole_number(1, 100_000, "A number of lines"),
        default=200,
        metavar="N",
        help="The last N lines (default 200).",
    ),
    HELP,
)
storage_options = options(
    option("--free", action="store_true", help="Remove what nothing needs. Unfinished jobs, live endpoints and what --resume needs stay."),
    HELP,
)
stop_options = options(option("name", nargs="?", metavar="NAME", values="endpoint", help="The endpoint to take down."), HELP)
promote_options = options(option("name", nargs="?", metavar="NAME", values="endpoint", help="The endpoint whose canary goes live."), HELP)
rollback_options = options(option("name", nargs="?", metavar="NAME", values="endpoint", help="The endpoint to roll back."), HELP)
scale_options = options(
    option("name", nargs="?", metavar="NAME", values="endpoint", help="The endpoint."),
    option("replicas", nargs="?", type=replicas, metavar="R", help="Replicas of each version: 2, auto, or auto:1-4."),
    HELP,
)
monitor_options = options(
    option("name", nargs="?", metavar="NAME", values="endpoint", help="The endpoint."),
    option("-s", "--seconds", type=positive_seconds, default=30.0, metavar="S", help="How long (default 30); an interrupt ends it."),
    option("-e", "--every", type=positive_seconds, default=1.0, metavar="S", help="Seconds between updates (default 1)."),
    OUT,
    UI,
    HELP,
)
connect_options = options(
    option("url", nargs="?", metavar="URL", values="backend", help="local, or an address such as https://gpu-box:8443."),
    option(
        "--fingerprint",
        metavar="HEX",
        help="Accept the certificate with this SHA-256 fingerprint from now on, whoever signed it. `aiaas serve` prints it.",
    ),
    HELP,
)
shutdown_options = options(HELP)


# --------------------------------------------------------------------------- requests


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    workers: Workers | None
    weak: bool
    name: str | None
    background: bool
    out: str | None
    dry_run: bool
    seed: int | None
    oversubscribe: bool
    engine: str
    strategy: str
    model_parallel: int
    processes: int
    fused: str
    checkpoint_every: Every
    retries: int
    resume: str | None
    precision: str
    accumulate: int
    env: tuple[str, ...] | None
    no_env: bool
    local_fallback: bool
    ui: str | None
    help: bool

    def __post_init__(self) -> None:
        if self.weak and not (self.workers and self.workers.is_study):
            raise UsageError("--weak compares several numbers of workers. Use it with --workers 1,2, say.")
        if self.env and self.no_env:
            raise UsageError("--env sends environment variables, and --no-env sends none. Leave one of them out.")

    @property
    def environment(self) -> tuple[str, ...] | None:
        """Variables to send beside those set in this kernel; None to send none."""
        return None if self.no_env else self.env or ()

    @property
    def execution(self) -> Execution:
        return Execution(
            engine=self.engine,
            strategy=self.strategy,
            model_parallel=self.model_parallel,
            processes=self.processes,
            fused=self.fused,
            precision=self.precision,
            accumulate=self.accumulate,
            checkpoint_epochs=self.checkpoint_every.epochs,
            checkpoint_s=self.checkpoint_every.seconds,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployRequest:
    model: str | None
    name: str | None
    replicas: Scaling
    sample: str | None
    canary: float | None
    keep: Literal[1, 2]
    max_delay_us: int
    precision: str
    validate: tuple[str, ...] | None
    max_change: float | None
    out: str | None
    help: bool

    def __post_init__(self) -> None:
        if not self.precision and (self.validate is not None or self.max_change is not None):
            raise UsageError("--validate and --max-change are about what fewer bits change. Use them with --precision int8, say.")

    @property
    def rollout(self) -> Rollout:
        return Rollout(canary=self.canary or 0.0, keep=self.keep)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleRequest:
    name: str | None
    replicas: Scaling | None
    help: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorRequest:
    name: str | None
    seconds: float
    every: float
    out: str | None
    ui: str | None
    help: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRequest:
    name: str | None
    concurrency: tuple[int, ...]
    duration: float
    rows: int
    rates: tuple[float, ...] | None
    forms: tuple[str, ...]
    out: str | None
    ui: str | None
    help: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """For the magics that name a job; what one of them does not take keeps its default."""

    job: str | None
    help: bool
    out: str | None = None
    ui: str | None = None
    timeout: float | None = None
    lines: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class NameRequest:
    name: str | None
    help: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectRequest:
    url: str | None
    fingerprint: str | None
    help: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageRequest:
    free: bool
    help: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainRequest:
    help: bool


def read(magic: Any, line: str, as_value: type[V]) -> V:
    """What was typed after `magic`, as a value.

    Raises:
        UsageError: IPython's own, exactly that class, so that one line is shown and Run All stops.
    """
    return as_value(**vars(parse(magic, line)))


def parse(magic: Any, line: str) -> Namespace:
    words = split(line)
    refuse_unresolved(words)
    parser: ArgumentParser = magic.parser
    parser.allow_abbrev = False
    refuse_unknown(parser, words)
    try:
        found, rest = parser.parse_known_args(words)
    except UsageError as error:
        raise UsageError(_readable(str(error), parser.prog)) from None
    if rest and "(" in rest[0]:
        raise UsageError(f"{rest[0]!r} was not expected here. Code goes on the lines below %%{parser.prog}.")
    if rest:
        raise UsageError(f"{rest[0]!r} was not expected here. An option takes one word, quoted if it has spaces; see %{parser.prog} -h.")
    return found


def split(line: str) -> list[str]:
    """The words of a line; quotes hold a word together and are taken off."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = ""
    lexer.escape = ""
    try:
        return list(lexer)
    except ValueError:
        raise UsageError("A quotation mark is not closed. Write 'two words' with the same mark at both ends.") from None


def refuse_unresolved(words: list[str]) -> None:
    """IPython leaves the whole line as it is when one variable in it is unknown, and says nothing."""
    for word in words:
        if found := re.search(r"\{([^{}]*)\}|^\$(\w+)$|=\$(\w+)$", word):
            name = next(filter(None, found.groups()), "")
            raise UsageError(f"Variable {name!r} is not defined. Define it before this cell, or write the value itself.")


def refuse_unknown(parser: ArgumentParser, words: list[str]) -> None:
    known = [flag for action in parser._actions for flag in action.option_strings]
    for word in words:
        if word == "--":
            return
        flag = word.split("=", 1)[0]
        if not re.match(r"--?[A-Za-z]", flag) or flag in known:
            continue
        if not flag.startswith("--") and flag[:2] in known:
            continue  # -n2
        close = difflib.get_close_matches(flag, known, n=1, cutoff=0.5)
        hint = f"Did you mean {close[0]}?" if close else f"%{parser.prog} -h lists what there is."
        raise UsageError(f"There is no option {flag}. {hint}")


def _readable(text: str, prog: str) -> str:
    """argparse's message as a sentence with the next move."""
    text = re.sub(r"^argument (\S+): ", r"\1: ", text)
    if text.endswith("expected one argument"):
        return f"{text.split(':')[0]} needs a value after it; see %{prog} -h."
    if "invalid choice" in text:
        return f"{text.rstrip('.')}."
    return text
