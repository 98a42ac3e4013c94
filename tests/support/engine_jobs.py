"""The jobs that every training engine has to carry out, in children of one real process, and what became of them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiaas_magics.backend.workers.local.spawn import worker_environment
from aiaas_magics.core.engines import EngineInfo
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.privacy import Privacy
from aiaas_magics.core.spec import MeasureSpec
from aiaas_magics.packing.fitcall.fit_call import FitResult
from tests.backend.training import fit_cases, ranks
from tests.support.launchers import ROOT

PRIVATE = Privacy(delta=1e-5, noise=1.0, noise_seed=5)
STEADY = MeasureSpec(steps=2, warmup_steps=1, repeats=2)
WAIT_S = 280.0


@dataclass(frozen=True)
class Outcomes:
    """What became of the jobs of one engine, by name."""

    info: EngineInfo
    folder: Path
    output: str
    code: int

    def result(self, name: str) -> FitResult:
        assert not self.code, self.output[-6000:]
        return ranks.result_in(self.folder / name)

    def events(self, name: str, kind: type[Any]) -> list[Any]:
        assert not self.code, self.output[-6000:]
        return [event for event in ranks.events_in(self.folder / name) if isinstance(event, kind)]

    def gap(self, name: str, reference: str) -> float:
        return max(ranks.gaps(self.result(name).variables, self.result(reference).variables))


def carried_out(info: EngineInfo, folder: Path, *, python: str = sys.executable) -> Outcomes:
    """All jobs of an engine. To run one by hand: `python -m tests.support.engine_process`."""
    jobs = ["touch"]

    def job(name: str, *, workers: int = 1, word: str = "", epochs: int = 4, resume: str | None = None, **more: Any) -> None:
        named = {field: more.pop(field) for field in ("fused", "checkpoint_epochs", "private") if field in more}
        execution = Execution(engine=info.name, strategy=info.on_cores if workers > 1 else "single", **named)
        model, arguments = fit_cases.dense("adam", metrics=["accuracy"])(), fit_cases.data(epochs=epochs)()
        sent = ranks.send(folder / name, model, workers=workers, execution=execution, **arguments)
        one_process = execution.strategy in info.one_process or workers == 1
        if resume is not None:
            more["resume_from"] = str(folder / resume / "checkpoints" / "epoch-00002")
        paths = ranks.commands(
            sent,
            folder / name,
            ranks=1 if one_process else workers,
            devices=workers if one_process else 1,
            cores=(),
            execution=sent.packed.execution,
            **more,
        )
        jobs.append(word + "+".join(map(str, paths)))

    job("plain", word="plain:")
    job("restored", word="restored:")
    for form in info.forms:
        job(f"train-{form}", fused=form)
    job("several", workers=2, fused="off")
    job("checkpoints", epochs=2, checkpoint_epochs=2, fused="off")
    job("resumed", resume="checkpoints", fused="off")
    job("private", epochs=2, checkpoint_epochs=2, fused="off", private=PRIVATE)
    job("private-several", epochs=2, workers=2, fused=info.forms[1], private=PRIVATE)
    job("private-resumed", resume="private", fused="off", private=PRIVATE)
    job("measured", measure=STEADY)
    job("reference", measure=MeasureSpec(steps=2, warmup_steps=1, repeats=2, plain=True))
    job("forms", measure=MeasureSpec(compare=True, warmup_steps=2, repeats=2, budget_s=0.02))
    told = subprocess.run(
        [python, "-m", "tests.support.engine_process", info.name, *jobs],
        env={**worker_environment(info.keras_backend), "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    return Outcomes(info, folder, told.stdout, told.returncode)
