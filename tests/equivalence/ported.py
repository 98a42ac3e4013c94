"""Runs on JAX: packed here, all trained by one process of four simulated devices, since starting one for each would take minutes.

Owns packing them and reading what came back. What that process does is `jax_cases`; runs on TensorFlow are `forked`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from aiaas_magics.packing.fitcall import fit_call
from tests.backend.training import ranks
from tests.equivalence.rank import Outcome, outcome_of
from tests.equivalence.table import Run, case_of

# Nearly all of it is compiling, and what is compiled runs for a moment.
ENVIRONMENT = {"KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"}


class Ported:
    """The runs, under way: `outcomes` waits for them."""

    def __init__(self, runs: Iterable[Run], folder: Path) -> None:
        self._folder, self._sent = folder, dict[Run, ranks.Sent]()
        self.process: subprocess.Popen[bytes] | None = None
        commands = []
        for place, run in enumerate(runs):
            case, at = case_of(run.case), folder / str(place)
            sent = ranks.send(at, case.model(), workers=run.way.ranks, execution=run.way.execution, **case.arguments())
            self._sent[run] = sent
            if sent.packed.execution.runs_on.ported:
                commands += ranks.commands(sent, at, ranks=1, devices=run.way.ranks, cores=(), execution=sent.packed.execution)
        if commands:
            self.process = ranks.spawn("-m", "tests.backend.training.jax.jax_cases", *map(str, commands), output=folder / "output.txt")

    def outcomes(self) -> dict[Run, Outcome]:
        """What became of each; one that stays on TensorFlow was not carried out and has its notes only."""
        if self.process is not None:
            self.process.wait()
        return {run: self._outcome(self._folder / str(place), sent) for place, (run, sent) in enumerate(self._sent.items())}

    def _outcome(self, folder: Path, sent: ranks.Sent) -> Outcome:
        packed = sent.packed
        if not packed.execution.runs_on.ported:
            return Outcome([], {}, [], [], notes=packed.notes, fused="stays")
        if not (folder / "attempt-1" / "result.safetensors").exists():
            refused = folder / "attempt-1" / "refused.txt"
            return Outcome([], {}, [], [], error=(refused if refused.exists() else self._folder / "output.txt").read_text()[-6000:])
        history = fit_call.apply_result(ranks.result_in(folder), packed)
        return outcome_of(packed.model, history, packed.callbacks, notes=packed.notes)


@contextmanager
def started(runs: Iterable[Run], folder: Path) -> Iterator[Ported]:
    """The runs begin, and end with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        ported = Ported(runs, folder)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    try:
        yield ported
    finally:
        if ported.process is not None:
            ported.process.kill()
            ported.process.wait()
