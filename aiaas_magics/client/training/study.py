"""Study: the same fit call from the same initial weights on several numbers of workers.

Owns the order of a study's jobs and what is made of their measurements. The arithmetic is
`laws`, the drawing `plots`; what a measured job does is written in `spec.MeasureSpec`.

The order: first plain `fit` on all cores, which also finds how many steps fill the budget;
then every n with exactly these steps, so that the weights after them can be compared.

Strong scaling gives every n the call as it is. Weak scaling gives n workers a batch n times as
large, so that each worker's part stays the same.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from aiaas_magics.client.card import card_records
from aiaas_magics.client.training import returned_files
from aiaas_magics.client.training.engine_timings import is_open
from aiaas_magics.client.training.submission import TrainOptions, prepare, submit
from aiaas_magics.core.engines import HOME, ONE_PROCESS
from aiaas_magics.core.errors import AiaasBug, InvalidSpec
from aiaas_magics.core.events import Measured
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.scaling import laws, projection
from aiaas_magics.core.scaling.projection import ProjectedRow, Projection, StepPoint
from aiaas_magics.core.spec import FitShape, MeasureSpec
from aiaas_magics.core.story import JobStory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from aiaas_magics.client.open_backend import OpenBackend
    from aiaas_magics.client.training.job import Job
    from aiaas_magics.packing.fitcall.fit_call import FitCall, FitResult
    from aiaas_magics.plots.text_twins import StudyReport

REPEATS: Final = 3
BUDGET_S: Final = 1.0  # one repeat of the reference; guess: long against a scheduler's slice, short against patience


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measured number of workers."""

    workers: int
    measured: Measured
    physical: bool  # every worker had a device of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyProgress:
    """Where a study is: the point that runs now (None: the reference), and its job's story."""

    label: str
    done: tuple[str, ...]
    waiting: tuple[str, ...]
    story: JobStory
    measuring: bool = True  # False: the training that follows the measurements


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Measurements of one fit on several numbers of workers. `Backend.study` makes it.

    Times are seconds per epoch, from the median of the repeats; a spread is half their range divided by the median.
    In a weak study times are seconds per step.

    Attributes:
        name: the study's name.
        shape: rows, global batch, steps and epochs of the fit.
        hardware: one line on the backend's hardware.
        simulated: the devices are cores of the CPU that one process drives.
        steps: how many steps each repeat measured.
        points: one measurement per number of workers.
        reference: plain `fit` on all cores.
        parity: the largest relative difference of any weight, norm(a - b) / norm(b), between any n and the smallest
            n; None in a weak study.
        parity_steps: how many steps the weights were compared after.
        weak: n workers took batches n times `shape.global_batch`.
        announced: what cannot be exact on the largest n, one sentence each.
        adaptive: the name of an optimizer that divides each gradient by its own size, such as Adam; "" for others.
        history: Keras' `History` of the training after the study; None if nothing was trained.
        job: the id of that training's job; None if nothing was trained.
    """

    name: str
    shape: FitShape
    hardware: str
    simulated: bool
    steps: int
    points: tuple[Point, ...]
    reference: Point  # plain `fit`, all cores, nothing of ours in between
    parity: float | None  # largest relative difference of any weight between any n and the smallest n
    parity_steps: int
    weak: bool = False
    announced: tuple[str, ...] = ()  # what was said before the run of its largest n
    adaptive: str = ""  # the optimizer, where it divides each gradient by its own size
    history: Any = None
    job: str | None = None

    @property
    def fit(self) -> laws.StudyFit:
        """The serial fraction, whether its law fits (Amdahl's, or Gustafson's if `weak`), and how many workers are worth it."""
        return laws.fit_study(self.speedup_points(), weak=self.weak)

    @property
    def recommended(self) -> int:
        """The recommended number of workers, of those measured. `projection.recommended` goes beyond them."""
        return self.fit.recommended

    @property
    def projection(self) -> Projection:
        """The projected times for up to 64 workers with their law, or the reason why there are none."""
        steps = 1.0 if self.weak else self.shape.rows / self.shape.global_batch
        return projection.project([_step_point(point) for point in self.points if point.physical], weak=self.weak, steps=steps)

    def speedup_points(self) -> tuple[laws.SpeedupPoint, ...]:
        """The measured points: workers, seconds, spread, rows per second."""
        return tuple(self._speedup_point(point) for point in self.points)

    def reference_point(self) -> laws.SpeedupPoint:
        """Plain `fit` on all cores, in the same units."""
        return self._speedup_point(self.reference)

    def _speedup_point(self, point: Point) -> laws.SpeedupPoint:
        measured = point.measured
        rows = measured.steps * measured.rows_per_step
        scale = 1 / measured.steps if self.weak else self.shape.rows / rows
        return laws.point_of(measured.seconds, workers=point.workers, rows=rows, physical=point.physical, scale=scale)

    def rows(self) -> tuple[laws.ScalingRow, ...]:
        """Every measured number of workers beside its ideal: seconds, rows per second, speedup, efficiency."""
        return laws.scaling(self.speedup_points(), weak=self.weak)

    def to_frame(self) -> Any:
        """Make a pandas DataFrame, one row per number of workers.

        Returns:
            The columns workers, seconds (per epoch, or per step if `weak`), rows_per_second, speedup, efficiency,
            spread and projected. Projected rows were not measured; their spread is half the band divided by the
            projected time.
        """
        import pandas as pd

        measured: list[tuple[laws.ScalingRow | ProjectedRow, float, bool]] = [(row, row.spread, False) for row in self.rows()]
        projected = [(row, (row.high_s - row.low_s) / (2 * row.seconds), True) for row in self.projection.rows]
        return pd.DataFrame(
            {
                "workers": row.workers,
                "seconds": row.seconds,
                "rows_per_second": row.rows_per_s,
                "speedup": row.speedup,
                "efficiency": row.efficiency,
                "spread": spread,
                "projected": not_measured,
            }
            for row, spread, not_measured in [*measured, *projected]
        )

    def report(self) -> StudyReport:
        """Everything that the table and the figure show."""
        from aiaas_magics.plots import text_twins

        return text_twins.StudyReport(
            title=f"Study {self.name}",
            points=self.speedup_points(),
            fit=self.fit,
            weak=self.weak,
            reference=self.reference_point(),
            projection=self.projection,
            hardware=self.hardware,
            batch=self.shape.global_batch,
            parity=text_twins.parity_text(
                self.parity, steps=self.parity_steps, weak=self.weak, announced=bool(self.announced), adaptive=self.adaptive
            ),
            announced=self.announced,
            simulated=self.simulated,
        )

    def plot(self) -> Figure:
        """Draw time beside T = N/n, throughput beside P = n*p, and efficiency, as one matplotlib figure."""
        from aiaas_magics.plots.study_figure import study_figure

        return study_figure(self.report())


def _step_point(point: Point) -> StepPoint:
    measured = point.measured
    repeats = laws.point_of(measured.seconds, workers=point.workers, rows=measured.rows_per_step, scale=1 / measured.steps)
    return StepPoint(
        workers=point.workers,
        rows=measured.rows_per_step,
        seconds=repeats.seconds,
        spread=repeats.spread,
        exchange_s=measured.exchange_s,
        exchanges=measured.exchanges,
        exchange_bytes=measured.exchange_bytes,
        latency_s=measured.latency_s,
        transfer_s=measured.transfer_s,
    )


# --------------------------------------------------------------------------- measuring


def measure(
    backend: OpenBackend,
    call: FitCall,
    *,
    points: Sequence[int],
    options: TrainOptions,
    weak: bool = False,
    on_progress: Callable[[StudyProgress], None] = lambda _: None,
) -> Study:
    """Measure `call` on each number of workers in `points`; the model in the kernel is not changed."""
    return _measure(_Calls(backend, call, checked_points(points), options, weak=weak), on_progress=on_progress)


def run(
    backend: OpenBackend,
    call: FitCall,
    *,
    points: Sequence[int],
    options: TrainOptions,
    weak: bool = False,
    on_progress: Callable[[StudyProgress], None] = lambda _: None,
) -> Study:
    """`measure`, then train with the largest number of workers (with `weak`, its batch): the model gets its weights.

    The returned study's `history` is that run's `History`, its `job` the run's id.
    """
    calls = _Calls(backend, call, checked_points(points), options, weak=weak)
    study = _measure(calls, on_progress=on_progress)
    label, done = f"training on n={max(calls.points)}", _labels(calls.points)
    job = submit(calls.of[max(calls.points)])
    try:
        history = job.take(lambda story: on_progress(StudyProgress(label=label, done=done, waiting=(), story=story, measuring=False)))
    except KeyboardInterrupt:  # border: whoever starts a job ends it
        job.cancel()
        raise
    announced = (*study.announced, *returned_files.sentences(job.id, job.files))
    study = replace(study, history=history, job=job.id, announced=announced)
    card_records.of_model(call.model).study = study.report()
    return study


class _Calls:
    """The fit call of each number of workers: the same one, or with `weak` one whose batch is n times as large. Nothing is sent.

    Raises:
        InvalidSpec: `weak`, and the data has not the rows of the largest batch.
    """

    def __init__(self, backend: OpenBackend, call: FitCall, points: tuple[int, ...], options: TrainOptions, *, weak: bool) -> None:
        from aiaas_magics.packing.checks.exactness import adaptive

        if options.execution.private is not None:
            raise InvalidSpec(
                "A study trains the same rows several times, which a private fit pays for each time. "
                "Measure without --private, then train with it on one number of workers."
            )

        self.backend, self.points, self.weak, self.adaptive = backend, points, weak, adaptive(call.model)
        options = replace(options, workers=max(points))
        if is_open(options.execution):  # what was measured of one number of workers must not give the others another engine
            options = replace(options, execution=msgspec.structs.replace(options.execution, engine=HOME.name))
        self.as_given = prepare(backend, call, options)
        self.of = dict.fromkeys(points, self.as_given)
        if not weak:
            return
        shape, most = self.as_given.packed.shape, max(points)
        if shape.rows < most * shape.global_batch:
            raise InvalidSpec(
                f"--weak gives each of {most} workers {shape.global_batch:,} rows a step, {most * shape.global_batch:,} together, "
                f"and there are {shape.rows:,} to train on. Use fewer workers or a smaller batch_size."
            )
        arguments = {name: value for name, value in call.arguments.items() if name != "steps_per_epoch"}
        for workers in points:
            grown = replace(call, arguments={**arguments, "batch_size": workers * shape.global_batch})
            self.of[workers] = replace(prepare(backend, grown, options), seed=self.as_given.seed)


def _measure(calls: _Calls, *, on_progress: Callable[[StudyProgress], None]) -> Study:
    about, packed, points = calls.backend.about(), calls.as_given.packed, calls.points
    study_id = secrets.token_hex(4)
    labels, name = _labels(points), calls.as_given.options.name or packed.shape.model
    results: list[tuple[Measured, FitResult]] = []
    spec = MeasureSpec(plain=True, repeats=REPEATS, budget_s=BUDGET_S)
    for index, workers in enumerate((None, *points)):
        if results:
            spec = MeasureSpec(steps=results[0][0].steps, repeats=REPEATS)
        prepared = calls.as_given if workers is None else calls.of[workers]
        options = replace(prepared.options, workers=workers, name=f"{name} {labels[index]}"[:100])
        job = submit(replace(prepared, options=options), measure=spec, study=study_id)
        results.append(_followed(job, labels, index, on_progress))
    measured = [figures for figures, _ in results]
    devices = len(about.devices)
    return Study(
        name=name,
        shape=packed.shape,
        hardware=about.hardware,
        simulated=any(device.simulated for device in about.devices) or cuts_up(packed.execution, devices=max(points), gpus=about.gpus),
        steps=measured[0].steps,
        reference=Point(workers=devices, measured=measured[0], physical=True),
        points=tuple(Point(workers=n, measured=figures, physical=n <= devices) for n, figures in zip(points, measured[1:], strict=True)),
        parity=None if calls.weak else largest_difference([result for _, result in results[1:]]),
        parity_steps=spec.warmup_steps,
        weak=calls.weak,
        announced=calls.of[max(points)].packed.notes,
        adaptive=calls.adaptive,
    )


def cuts_up(execution: Execution, *, devices: int, gpus: bool) -> bool:
    """Whether one process makes the devices of its cores. `execution` is that of the packed call, which may have left JAX."""
    return execution.resolved(devices=devices, gpus=gpus).strategy in ONE_PROCESS and not gpus


def _labels(points: Sequence[int]) -> tuple[str, ...]:
    """What a study's measurements are called, in their order: the reference, then every n."""
    return ("plain fit, all cores", *(f"n={n}" for n in points))


def _followed(job: Job, labels: tuple[str, ...], index: int, on_progress: Callable[[StudyProgress], None]) -> tuple[Measured, FitResult]:
    from aiaas_magics.packing.fitcall import fit_call

    def tell(story: JobStory) -> None:
        on_progress(StudyProgress(label=labels[index], done=labels[:index], waiting=labels[index + 1 :], story=story))

    try:
        story = job.follow(tell)
    except BaseException:  # border: an interrupt too; whoever starts a measurement ends it
        job.cancel()
        raise
    result = fit_call.read_result(job.result_bytes())
    if story.measured is None:
        raise AiaasBug(f"job {job.id} measured nothing")
    return story.measured, result


def checked_points(points: Sequence[int]) -> tuple[int, ...]:
    """`points` sorted and without repeats.

    Raises:
        InvalidSpec: when fewer than two different numbers are left, or one is below 1.
    """
    counts = tuple(sorted(set(points)))
    if len(counts) < 2 or counts[0] < 1:
        raise InvalidSpec(f"A study compares at least two numbers of workers, not {list(points)}. Use --workers 1,2.")
    return counts


def largest_difference(results: Sequence[FitResult]) -> float:
    """Largest norm(a - b) / norm(b) of any weight between any result and the first; 0 for one result, infinite where one is no number.

    Optimizer slots are left out: Adam divides tiny momenta by tiny roots, so they say more about rounding than about
    the model.
    """
    first, *other_results = results
    worst = 0.0
    for other in other_results:
        for place in first.roles["weights"]:
            own_values, other_values = (np.asarray(result.variables[place], np.float64).ravel() for result in (first, other))
            with np.errstate(invalid="ignore"):  # of two infinities
                norm, gap = float(np.linalg.norm(own_values)), float(np.linalg.norm(other_values - own_values))
            relative = gap / norm if norm else gap
            worst = max(worst, relative if np.isfinite(relative) else np.inf)  # max() passes a NaN over
    return worst
