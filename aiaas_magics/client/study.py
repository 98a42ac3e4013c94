"""The same fit call from the same initial weights on several numbers of workers.

Owns the order of a study's jobs and what is made of their measurements. The arithmetic is
`laws`, the drawing `plots`; what a measured job does is written in `spec.MeasureSpec`.

The order: first plain `fit` on all cores, which also finds how many steps fill the budget;
then every n with exactly these steps, so that the weights after them can be compared.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from aiaas_magics import laws
from aiaas_magics.client.training import Prepared, TrainOptions, prepare, submit
from aiaas_magics.errors import AiaasBug, InvalidSpec
from aiaas_magics.spec import FitShape, Measured, MeasureSpec
from aiaas_magics.story import JobStory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from aiaas_magics.client.client import Backend
    from aiaas_magics.client.job import Job
    from aiaas_magics.packing.fitcall import FitCall, FitResult

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
    """What the workers bought, measured.

    Times are per epoch, from the median of the repeats; `spread` is half their range over the median.
    """

    name: str
    shape: FitShape
    hardware: str
    simulated: bool
    steps: int
    points: tuple[Point, ...]
    reference: Point  # plain `fit`, all cores, nothing of ours in between
    parity: float  # largest relative difference of any weight between any n and the smallest n
    parity_steps: int
    history: Any = None
    job: str | None = None

    @property
    def fit(self) -> laws.StudyFit:
        """Serial fraction, how well Amdahl's law fits, and how many workers are worth it."""
        return laws.fit_study(self.speedup_points())

    @property
    def recommended(self) -> int:
        return self.fit.recommended

    def speedup_points(self) -> tuple[laws.SpeedupPoint, ...]:
        return tuple(self._speedup_point(point) for point in self.points)

    def reference_point(self) -> laws.SpeedupPoint:
        return self._speedup_point(self.reference)

    def _speedup_point(self, point: Point) -> laws.SpeedupPoint:
        rows = point.measured.steps * point.measured.rows_per_step
        scale = self.shape.rows / rows
        return laws.point_of(point.measured.seconds, workers=point.workers, rows=rows, physical=point.physical, scale=scale)

    def rows(self) -> tuple[laws.ScalingRow, ...]:
        """Every measured number of workers beside its ideal."""
        return laws.scaling(self.speedup_points())

    def to_frame(self) -> Any:
        """A pandas DataFrame: workers, seconds (an epoch), rows_per_second, speedup, efficiency, spread."""
        import pandas as pd

        return pd.DataFrame(
            {
                "workers": [row.workers for row in self.rows()],
                "seconds": [row.seconds for row in self.rows()],
                "rows_per_second": [row.rows_per_s for row in self.rows()],
                "speedup": [row.speedup for row in self.rows()],
                "efficiency": [row.efficiency for row in self.rows()],
                "spread": [row.spread for row in self.rows()],
            }
        )

    def plot(self) -> Figure:
        """Time against T = N/n, throughput against P = n*p, and efficiency, as one figure."""
        from aiaas_magics.plots import text
        from aiaas_magics.plots.study import study_figure

        return study_figure(
            self.speedup_points(),
            self.fit,
            reference=self.reference_point(),
            hardware=self.hardware,
            title=self.name,
            batch=self.shape.global_batch,
            parity=text.parity_text(self.parity, steps=self.parity_steps),
            simulated=self.simulated,
        )


def measure(
    backend: Backend,
    call: FitCall,
    *,
    points: Sequence[int],
    options: TrainOptions,
    on_progress: Callable[[StudyProgress], None] = lambda _: None,
) -> Study:
    """Measure `call` on each number of workers in `points`; the model in the kernel is not changed."""
    wanted = checked_points(points)
    prepared = prepare(backend, call, replace(options, workers=max(wanted)))
    return _measure(backend, prepared, points=wanted, on_progress=on_progress)


def run(
    backend: Backend,
    call: FitCall,
    *,
    points: Sequence[int],
    options: TrainOptions,
    on_progress: Callable[[StudyProgress], None] = lambda _: None,
) -> Study:
    """`measure`, then train with the largest number of workers: the model gets its weights.

    The returned study's `history` is that run's `History`, its `job` the run's id.
    """
    wanted = checked_points(points)
    prepared = prepare(backend, call, replace(options, workers=max(wanted)))
    study = _measure(backend, prepared, points=wanted, on_progress=on_progress)
    label, done = f"training on n={max(wanted)}", _labels(wanted)
    job = submit(prepared)
    try:
        history = job.take(lambda story: on_progress(StudyProgress(label=label, done=done, waiting=(), story=story, measuring=False)))
    except KeyboardInterrupt:  # border: whoever starts a job ends it
        job.cancel()
        raise
    return replace(study, history=history, job=job.id)


def _measure(
    backend: Backend, prepared: Prepared, *, points: tuple[int, ...], on_progress: Callable[[StudyProgress], None] = lambda _: None
) -> Study:
    about = backend.about()
    study_id = secrets.token_hex(4)
    labels, name = _labels(points), prepared.options.name or prepared.packed.shape.model
    results: list[tuple[Measured, FitResult]] = []
    spec = MeasureSpec(plain=True, repeats=REPEATS, budget_s=BUDGET_S)
    for index, workers in enumerate((None, *points)):
        if results:
            spec = MeasureSpec(steps=results[0][0].steps, repeats=REPEATS)
        options = replace(prepared.options, workers=workers, name=f"{name} {labels[index]}"[:100])
        job = submit(replace(prepared, options=options), measure=spec, study=study_id)
        results.append(_followed(job, labels, index, on_progress))
    measured = [found for found, _ in results]
    devices = len(about.devices)
    return Study(
        name=name,
        shape=prepared.packed.shape,
        hardware=about.hardware,
        simulated=any(device.simulated for device in about.devices),
        steps=measured[0].steps,
        reference=Point(workers=devices, measured=measured[0], physical=True),
        points=tuple(Point(workers=n, measured=found, physical=n <= devices) for n, found in zip(points, measured[1:], strict=True)),
        parity=largest_difference([result for _, result in results[1:]]),
        parity_steps=spec.warmup_steps,
    )


def _labels(points: Sequence[int]) -> tuple[str, ...]:
    """What a study's measurements are called, in their order: the reference, then every n."""
    return ("plain fit, all cores", *(f"n={n}" for n in points))


def _followed(job: Job, labels: tuple[str, ...], index: int, on_progress: Callable[[StudyProgress], None]) -> tuple[Measured, FitResult]:
    from aiaas_magics.packing import fitcall

    def tell(story: JobStory) -> None:
        on_progress(StudyProgress(label=labels[index], done=labels[:index], waiting=labels[index + 1 :], story=story))

    try:
        story = job.follow(tell)
    except BaseException:  # border: an interrupt too; whoever starts a measurement ends it
        job.cancel()
        raise
    result = fitcall.read_result(job.result_bytes())
    if story.measured is None:
        raise AiaasBug(f"job {job.id} measured nothing")
    return story.measured, result


def checked_points(points: Sequence[int]) -> tuple[int, ...]:
    """`points` sorted and without repeats.

    Raises:
        InvalidSpec: when fewer than two different numbers are left, or one is below 1.
    """
    wanted = tuple(sorted(set(points)))
    if len(wanted) < 2 or wanted[0] < 1:
        raise InvalidSpec(f"A study compares at least two numbers of workers, not {list(points)}. Use --workers 1,2.")
    return wanted


def largest_difference(results: Sequence[FitResult]) -> float:
    """Largest norm(a - b) / norm(b) of any weight between any result and the first; 0 for one result.

    Optimizer slots are left out: Adam divides tiny momenta by tiny roots, so they say more about rounding than about the model.
    """
    first, *others = results
    worst = 0.0
    for other in others:
        for place in first.roles["weights"]:
            mine, theirs = (np.asarray(result.variables[place], np.float64).ravel() for result in (first, other))
            norm, gap = float(np.linalg.norm(mine)), float(np.linalg.norm(theirs - mine))
            worst = max(worst, gap / norm if norm else gap)
    return worst
