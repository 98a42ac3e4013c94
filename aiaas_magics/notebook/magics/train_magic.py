"""%%aiaas_train: runs every fit of a cell on the backend.

Owns its options and its request. What becomes of each fit belongs to `cell_fits`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

from IPython.core.error import UsageError

from aiaas_magics.core import errors
from aiaas_magics.core.execution import ENGINE_CHOICES, FUSING, PRECISIONS, STRATEGIES, Execution
from aiaas_magics.core.privacy import Privacy
from aiaas_magics.core.spec import MOST_RETRIES
from aiaas_magics.notebook import cell_runner, tracebacks
from aiaas_magics.notebook.border import Family, magic
from aiaas_magics.notebook.cell_fits import CellFits, EndOfCell, FitRequest
from aiaas_magics.notebook.option_values import (
    MOST_WORKERS,
    Every,
    Workers,
    environment_names,
    every,
    job_name,
    private,
    variable,
    whole_number,
    workers,
)
from aiaas_magics.notebook.options import UI, option


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
    fused: str
    checkpoint_every: Every
    retries: int
    resume: str | None
    precision: str
    accumulate: int
    private: Privacy | None
    env: tuple[str, ...] | None
    no_env: bool
    local_fallback: bool
    track: str | None
    ui: str | None
    help: bool

    def __post_init__(self) -> None:
        if self.weak and not (self.workers and self.workers.is_study):
            raise UsageError("--weak compares several numbers of workers. Add --workers 1,2, for example.")
        if self.track is not None and (self.background or self.dry_run):
            raise UsageError("--track needs a training that the cell waits for. With --async, call backend.track(job, URI) later.")
        if self.env and self.no_env:
            raise UsageError("--env sends environment variables, and --no-env sends none. Leave one of them out.")

    @property
    def fits(self) -> FitRequest:
        """What it says of each fit."""
        return FitRequest(
            execution=self.execution,
            environment=None if self.no_env else self.env or (),
            workers=self.workers,
            weak=self.weak,
            name=self.name,
            background=self.background,
            dry_run=self.dry_run,
            seed=self.seed,
            oversubscribe=self.oversubscribe,
            retries=self.retries,
            resume=self.resume,
            local_fallback=self.local_fallback,
            track=self.track,
        )

    @property
    def execution(self) -> Execution:
        return Execution(
            engine=self.engine,
            strategy=self.strategy,
            model_parallel=self.model_parallel,
            fused=self.fused,
            precision=self.precision,
            accumulate=self.accumulate,
            private=self.private,
            checkpoint_epochs=self.checkpoint_every.epochs,
            checkpoint_s=self.checkpoint_every.seconds,
        )


class TrainMagic(Family):
    """Training."""

    @magic(
        TrainRequest,
        option(
            "-n",
            "--workers",
            type=workers,
            metavar="N",
            values="workers",
            help="Number of workers: 2, or 1,2,4 for a study, or max. Default: one worker with every core or GPU.",
        ),
        option("--weak", action="store_true", help="In a study, keep batch_size per worker: n workers then do n times the work per step."),
        option("--name", type=job_name, metavar="NAME", help="Name of the job (default: the model's name)."),
        option(
            "--async", dest="background", action="store_true", help="Return a Job at once; job.result() puts the weights into the model."
        ),
        option("-o", "--out", type=variable, metavar="NAME", help="Assign the History, Job, Study or FitPlan to this variable."),
        option(
            "--dry-run",
            action="store_true",
            help="Show what the first fit sends and how it would run, then end the cell. Each alternative is measured on a few steps. "
            "Nothing is trained.",
        ),
        option("--seed", type=whole_number(0, 2**31 - 1, "A seed"), metavar="S", help="Seed of the row order."),
        option(
            "--oversubscribe",
            action="store_true",
            help="Allow more workers than devices. Workers then share devices, and the results say so.",
        ),
        option("--engine", choices=ENGINE_CHOICES, default="auto", metavar="E", help="Library that computes: auto, tensorflow or jax."),
        option("--strategy", choices=STRATEGIES, default="auto", metavar="S", help="Strategy: auto, single, collective, mirrored or spmd."),
        option(
            "--model-parallel",
            type=whole_number(1, MOST_WORKERS, "A number of devices"),
            default=1,
            metavar="M",
            help="Split the model over M devices (JAX), by model.layout_map. Without one, Dense and Embedding kernels are split along "
            "their last axis.",
        ),
        option(
            "--fused",
            choices=FUSING,
            default="auto",
            metavar="F",
            help="Steps per call. auto: many, with XLA if results are identical and it is faster; xla: many, always with XLA; graph: many, "
            "without XLA; off: one.",
        ),
        option(
            "--checkpoint-every",
            type=every,
            default=Every(epochs=1),
            metavar="E",
            help="Save a checkpoint every 2 (epochs) or every 30s (seconds, also within an epoch); 0 saves none. Default: every epoch. "
            "Checkpoints take at most 5%% of the time.",
        ),
        option(
            "--retries",
            type=whole_number(0, MOST_RETRIES, "The number of retries"),
            default=3,
            metavar="N",
            help="Retry up to N times after lost workers (default 3). Each retry resumes from the last checkpoint.",
        ),
        option("--resume", metavar="JOB", values="job", help="Resume from the last checkpoint of a failed or cancelled job, with any -n."),
        option("--precision", choices=PRECISIONS[1:], default="", metavar="P", help="Compute in float32, mixed_bfloat16 or mixed_float16."),
        option(
            "--accumulate",
            type=whole_number(1, 1024, "A number of parts"),
            default=1,
            metavar="K",
            help="Compute each batch in K parts with one update, for batches that do not fit into memory.",
        ),
        option(
            "--private",
            type=private,
            metavar="BUDGET",
            help="Train with differential privacy (DP-SGD): epsilon=2,delta=1e-5, with clip=1.0 or noise=1.1 where wanted. "
            "The epsilon spent is in History.",
        ),
        option(
            "--env",
            type=environment_names,
            metavar="NAME",
            help="Also send these environment variables: NAME or NAME,NAME. Variables set in this kernel are sent "
            "anyway, unless they look secret.",
        ),
        option("--no-env", action="store_true", help="Send no environment variables to the workers."),
        option("--track", metavar="URI", help="Log parameters, metrics, figure, card and model to this MLflow server."),
        option("--local-fallback", action="store_true", help="If a fit cannot be sent, run it in the kernel."),
        UI,
        needs=("line", "cell"),
        is_cell_magic=True,
    )
    def aiaas_train(self, request: TrainRequest, *, line: str, cell: str | None) -> Any:
        """Run every fit of this cell on the backend.

        The cell runs in the kernel. Workers of the backend train every Keras model that the cell fits. History,
        weights and optimizer state come back as if `fit` had run in the kernel.

            %%aiaas_train --workers 2
            model.fit(x, y, epochs=10, batch_size=256)

        Several numbers (--workers 1,2) run a study, which compares the measured speedup with the ideal.
        An interrupt cancels the job.
        """
        if cell is None or not cell.strip():
            raise UsageError("%%aiaas_train needs code below it. Write %%aiaas_train as the first line of the cell that calls fit.")
        body = cell_runner.compile_body(self.shell, "aiaas_train", line, cell)
        fit_request = replace(request.fits, code="\n".join((f"%%aiaas_train {line}".rstrip(), cell)))
        fits = CellFits(self.shell, self.session, fit_request, ui=self._ui(request.ui), put=functools.partial(self._put, request.out))
        try:
            with fits.capturing() as in_kernel:
                value = cell_runner.run_body(self.shell, body)
        except EndOfCell:
            return None
        except (errors.AiaasError, tracebacks.Interrupted, UsageError):
            raise
        except (Exception, KeyboardInterrupt) as error:  # border: the user's cell ran in here and may raise anything
            tracebacks.attach_local(error, self.shell, body.file)
            raise
        if in_kernel:
            print(in_kernel.sentence())
        elif fits.count == 0:
            raise UsageError("No fit was called in this cell, so the backend trained nothing. Put model.fit(...) below %%aiaas_train.")
        return value
