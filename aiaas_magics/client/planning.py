"""How a fit would be carried out, and what the other ways take, before it is: what a dry run finds out.

Owns which ways are measured, one short job after the other, and what is made of their refusals. What a measuring
job does is written in `spec.MeasureSpec`; the rules that choose among ways are the worker's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import msgspec

from aiaas_magics.client.training import Preflight, TrainOptions, prepare, submit
from aiaas_magics.errors import BackendTooSlow, NotOnJax, UsageError
from aiaas_magics.spec import Candidate, Execution, FitShape, JobState, MeasureSpec, Planned
from aiaas_magics.story import JobStory

if TYPE_CHECKING:
    from aiaas_magics.client.client import Backend
    from aiaas_magics.packing.fitcall import FitCall

# Three short repeats: their median is what a scheduler's hiccup leaves alone. The second step tells how many fill one.
MEASURED: Final = MeasureSpec(compare=True, warmup_steps=2, repeats=3, budget_s=0.3)
ENGINES: Final = ("tensorflow", "jax")
MOST_S: Final = 120.0  # for all forms of one way, with the start of its processes (guess: a model that takes longer is not for a dry run)
WORTH_TELLING: Final = 1.1  # times as fast: less is within what two measurements of the same differ by (guess)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitPlan:
    """What a fit would send, how it would be carried out, and what every way was found to take.

    `chosen` is None where only the workers can tell; `unmeasured` says why nothing was measured, in a sentence.
    `simulated`: what one process drives are devices cut out of its cores.
    """

    preflight: Preflight
    shape: FitShape
    chosen: Planned | None = None
    candidates: tuple[Candidate, ...] = ()
    unmeasured: str = ""
    simulated: bool = False

    @property
    def steps(self) -> int:
        """Of the whole fit."""
        return max(0, self.shape.epochs - self.shape.initial_epoch) * self.shape.steps_per_epoch

    @property
    def measured(self) -> tuple[Candidate, ...]:
        """Those that were, the quickest for this fit first."""
        return tuple(sorted((one for one in self.candidates if not one.why), key=self.fit_s))

    @property
    def ruled_out(self) -> tuple[Candidate, ...]:
        return tuple(one for one in self.candidates if one.why)

    def fit_s(self, candidate: Candidate) -> float:
        """What the steps of this fit would take, compiling included: no validation, callbacks, checkpoints."""
        return candidate.compile_s + max(0, self.steps - 1) * candidate.step_s

    def is_chosen(self, candidate: Candidate) -> bool:
        chosen = self.chosen
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
        if chosen is None or best is None or best.engine == chosen.engine or self.fit_s(chosen) < WORTH_TELLING * self.fit_s(best):
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
    backend: Backend, call: FitCall, options: TrainOptions, *, on_progress: Callable[[PlanProgress], None] = lambda _: None
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
    found = FitPlan(preflight=preflight, shape=packed.shape)
    if packed.in_batches:
        return replace(found, unmeasured="Nothing was measured: only steps on arrays are, and what yields batches is used up by it.")
    if running := [view.id for view in backend.jobs() if not view.state.final]:
        return replace(found, unmeasured=f"Nothing was measured: the backend is busy with job {', '.join(running)}. Try again after it.")
    gpus = backend.about().gpus
    open_ways = ways(options.execution, devices=preflight.workers, gpus=gpus)
    labels = tuple(", ".join(way) for way in open_ways)
    found = replace(found, simulated=preflight.workers > 1 and not gpus)
    options = replace(options, resume=None, retries=0)
    for index, (engine, strategy) in enumerate(open_ways):

        def tell(story: JobStory, at: int = index) -> None:
            on_progress(PlanProgress(label=labels[at], done=labels[:at], waiting=labels[at + 1 :], story=story))

        named = replace(options, name=f"{options.name or packed.shape.model}: {labels[index]}"[:100])
        chosen, candidates = measure(backend, call, named, engine, strategy, tell)
        found = replace(found, chosen=found.chosen if index else chosen, candidates=(*found.candidates, *candidates))
    return found


def ways(execution: Execution, *, devices: int, gpus: bool) -> tuple[tuple[str, str], ...]:
    """Every engine and strategy that `execution` leaves open on so many devices; the one that it stands for comes first."""
    resolved = execution.resolved(devices=devices, gpus=gpus)
    first = ("jax" if resolved.on_jax else "tensorflow", resolved.strategy)
    known = {"tensorflow": ("single",) if devices == 1 else ("collective", "mirrored"), "jax": ("single" if devices == 1 else "spmd",)}
    engines = ("jax",) if execution.on_jax else ("tensorflow",) if execution.engine == "tensorflow" else ENGINES
    others = ((engine, strategy) for engine in engines for strategy in known[engine] if execution.strategy in ("auto", strategy))
    return tuple(dict.fromkeys((first, *others)))


def measure(
    backend: Backend, call: FitCall, options: TrainOptions, engine: str, strategy: str, tell: Callable[[JobStory], None]
) -> tuple[Planned | None, tuple[Candidate, ...]]:
    """One way: the plan that its worker makes, and every form that it measured. Why one cannot be measured is a candidate too."""
    refused = Candidate(engine=engine, strategy=strategy, fused=options.execution.fused)
    try:
        way = msgspec.structs.replace(options.execution, engine=engine, strategy=strategy)
        job = submit(prepare(backend, call, replace(options, execution=way)), measure=MEASURED)
    except UsageError as error:
        why = error.why if isinstance(error, NotOnJax) else str(error)
        return None, (msgspec.structs.replace(refused, why=why),)
    try:
        story = job.follow(tell, timeout_s=MOST_S)
    except BackendTooSlow:
        job.cancel()
        return None, (*job.story().candidates, msgspec.structs.replace(refused, why=f"measuring it takes more than {MOST_S:.0f} s"))
    except BaseException:  # border: an interrupt too; whoever starts a measurement ends it
        job.cancel()
        raise
    if job.state is JobState.SUCCEEDED:
        return story.plan, story.candidates
    if story.candidates and story.candidates[-1].why:  # the worker has said it
        return None, story.candidates
    why = story.error.message if story.error is not None else str(job.failure())
    return None, (*story.candidates, msgspec.structs.replace(refused, why=" ".join(why.split())[:300]))
