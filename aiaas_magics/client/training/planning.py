"""Planning: the dry run, which measures the ways in which a fit could run.

Owns which ways are measured, one short job after the other, and what is made of their refusals. What a measuring
job does is written in `spec.MeasureSpec`; the rules that choose among ways are the worker's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import msgspec

from aiaas_magics.client.training import engine_timings
from aiaas_magics.client.training.engine_timings import WORTH_LEAVING, is_open, key_of, quicker_engine
from aiaas_magics.client.training.submission import Preflight, TrainOptions, prepare, submit
from aiaas_magics.core.engines import engines_with
from aiaas_magics.core.errors import BackendTooSlow, NotOnEngine, UsageError
from aiaas_magics.core.events import Candidate, Phase, Planned
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.spec import FitShape, JobState, MeasureSpec
from aiaas_magics.core.story import JobStory
from aiaas_magics.core.timing_cache import StepTiming

if TYPE_CHECKING:
    from aiaas_magics.client.open_backend import OpenBackend
    from aiaas_magics.packing.fitcall.fit_call import FitCall

# Three short repeats: their median is what a scheduler's hiccup leaves alone. The second step tells how many fill one.
MEASURED: Final = MeasureSpec(compare=True, warmup_steps=2, repeats=3, budget_s=0.3)
MOST_S: Final = 120.0  # for all forms of one way, with the start of its processes (guess: a model that takes longer is not for a dry run)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitPlan:
    """What a fit would send, how it would be carried out, and what every way was found to take.

    `choice` is None where only the workers can tell; `unmeasured` says why nothing was measured, in a sentence.
    `simulated`: what one process drives are devices cut out of its cores.
    """

    preflight: Preflight
    shape: FitShape
    choice: Planned | None = None
    candidates: tuple[Candidate, ...] = ()
    unmeasured: str = ""
    simulated: bool = False

    @property
    def steps(self) -> int:
        """Of the whole fit."""
        return self.shape.steps

    @property
    def measured(self) -> tuple[Candidate, ...]:
        """Those that were, the quickest for this fit first."""
        return tuple(sorted((each for each in self.candidates if not each.why), key=self.fit_s))

    @property
    def ruled_out(self) -> tuple[Candidate, ...]:
        return tuple(each for each in self.candidates if each.why)

    def fit_s(self, candidate: Candidate) -> float:
        """What the steps of this fit would take, compiling included: no validation, callbacks, checkpoints."""
        return candidate.compile_s + max(0, self.steps - 1) * candidate.step_s

    def is_chosen(self, candidate: Candidate) -> bool:
        chosen = self.choice
        return chosen is not None and (candidate.engine, candidate.strategy, candidate.fused) == (
            chosen.engine,
            chosen.strategy,
            chosen.fused,
        )

    @property
    def quicker_engine(self) -> Candidate | None:
        """A way of another engine than the chosen one's, where it is quicker by so much that it should be known."""
        chosen = next(filter(self.is_chosen, self.measured), None)
        best = next(iter(self.measured), None)
        if chosen is None or best is None or best.engine == chosen.engine or self.fit_s(chosen) < WORTH_LEAVING * self.fit_s(best):
            return None
        return best


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanProgress:
    """Where a dry run is: the way that is measured now, and its job's story."""

    label: str
    done: tuple[str, ...]
    waiting: tuple[str, ...]
    story: JobStory


def plan(
    backend: OpenBackend, call: FitCall, options: TrainOptions, *, on_progress: Callable[[PlanProgress], None] = lambda _: None
) -> FitPlan:
    """Check `call`, and measure every way to carry it out that `options` leave open; the model in the kernel is not changed.

    Of what is sent the arrays are found there by the fit itself.

    Raises:
        As `client.training.prepare`.
    """
    # A seed of its own: drawing one would move the kernel's random numbers, and with them the fit that is to follow.
    options = replace(options, seed=options.seed or 0)
    prepared = prepare(backend, call, options)
    preflight, packed = prepared.preflight, prepared.packed
    result = FitPlan(preflight=preflight, shape=packed.shape)
    if packed.in_batches:
        return replace(result, unmeasured="Nothing was measured, because measuring would use up data that yields batches.")
    if running := [view.id for view in backend.jobs() if not view.state.final]:
        return replace(
            result, unmeasured=f"Nothing was measured: the backend is busy with job {', '.join(running)}. Try again when it has ended."
        )
    about, measured = backend.about(), list[StepTiming]()
    gpus = about.gpus
    open_ways = ways(options.execution, devices=preflight.workers, gpus=gpus)
    labels = tuple(", ".join(way) for way in open_ways)
    result = replace(result, simulated=preflight.workers > 1 and not gpus)
    options = replace(options, resume=None, retries=0)
    for index, (engine, strategy) in enumerate(open_ways):

        def tell(story: JobStory, at: int = index) -> None:
            on_progress(PlanProgress(label=labels[at], done=labels[:at], waiting=labels[at + 1 :], story=story))

        named = replace(options, name=f"{options.name or packed.shape.model}: {labels[index]}"[:100])
        way = measure(backend, call, named, engine, strategy, tell)
        measured += [StepTiming.of(candidate, start_s=way.start_s) for candidate in way.candidates if not candidate.why]
        result = replace(result, choice=result.choice if index else way.choice, candidates=(*result.candidates, *way.candidates))
    if is_open(options.execution):
        key = key_of(packed, about, execution=options.execution, workers=options.workers)
        engine_timings.cache().put(key, measured)
        if (quicker := quicker_engine(measured, steps=result.steps)) is not None:
            best = quicker.way
            choice = Planned(engine=best.engine, strategy=best.strategy, fused=best.fused, why=(quicker.why,))
            # What is to be announced of the fit is what differs on that engine.
            announced = prepare(backend, call, options).preflight.notes
            result = replace(result, choice=choice, preflight=replace(preflight, notes=announced))
    return result


def ways(execution: Execution, *, devices: int, gpus: bool) -> tuple[tuple[str, str], ...]:
    """Every engine and strategy that `execution` leaves open on so many devices; the one that it stands for comes first."""
    resolved = execution.resolved(devices=devices, gpus=gpus)
    first = (resolved.runs_on.name, resolved.strategy)
    engines = engines_with(execution.strategy) if execution.engine == "auto" else (execution.runs_on,)
    other_ways = (
        (info.name, strategy)
        for info in engines
        for strategy in (("single",) if devices == 1 else info.several)
        if execution.strategy in ("auto", strategy)
    )
    return tuple(dict.fromkeys((first, *other_ways)))


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredWay:
    """One way: the plan that its worker makes, every form that it measured, and the seconds before its first step.

    Why one cannot be measured is a candidate too.
    """

    candidates: tuple[Candidate, ...]
    choice: Planned | None = None
    start_s: float = 0.0


def measure(
    backend: OpenBackend, call: FitCall, options: TrainOptions, engine: str, strategy: str, tell: Callable[[JobStory], None]
) -> MeasuredWay:
    """Have a job measure one way."""
    refused = Candidate(engine=engine, strategy=strategy, fused=options.execution.fused)
    try:
        way = msgspec.structs.replace(options.execution, engine=engine, strategy=strategy)
        job = submit(prepare(backend, call, replace(options, execution=way)), measure=MEASURED)
    except UsageError as error:
        why = error.why if isinstance(error, NotOnEngine) else str(error)
        return MeasuredWay(candidates=(msgspec.structs.replace(refused, why=why),))
    try:
        story = job.follow(tell, timeout_s=MOST_S)
    except BackendTooSlow:
        job.cancel()
        refused = msgspec.structs.replace(refused, why=f"measuring takes more than {MOST_S:.0f} s")
        return MeasuredWay(candidates=(*job.story().candidates, refused))
    except BaseException:  # border: an interrupt too; whoever starts a measurement ends it
        job.cancel()
        raise
    if job.state is JobState.SUCCEEDED:
        return MeasuredWay(candidates=story.candidates, choice=story.plan, start_s=start_s(story))
    if story.candidates and story.candidates[-1].why:  # the worker has said it
        return MeasuredWay(candidates=story.candidates)
    why = story.error.message if story.error is not None else str(job.failure())
    return MeasuredWay(candidates=(*story.candidates, msgspec.structs.replace(refused, why=" ".join(why.split())[:300])))


def start_s(story: JobStory) -> float:
    """Seconds from packing the fit call to where its first step is compiled."""
    compiling = next((span.start_s for span in story.phases if span.phase is Phase.COMPILING), None)
    return 0.0 if compiling is None else max(0.0, compiling - story.phases[0].start_s)
