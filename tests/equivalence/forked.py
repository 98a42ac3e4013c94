"""Runs, carried out in processes that one preloaded launcher forks: a case costs its tracing and nothing else.

Owns which runs share processes, and collecting outcomes. What a process does is `rank`.
"""

from __future__ import annotations

import os
import pickle
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from aiaas_magics.backend.workers.local.attempt_folder import AttemptFolder, Exit, read_value
from aiaas_magics.backend.workers.local.launcher_client import LauncherClient
from tests.backend.training import ranks
from tests.equivalence import ported
from tests.equivalence.rank import Outcome, Task
from tests.equivalence.table import PLAIN, Run, Way

STUCK_S = 120.0  # one case, on a machine that is busy with something else
LOOK_S = 0.02

Outcomes = dict[Run, Outcome]


class Group:
    """The processes of one way, over its cases. One that fails ends them; the cases after it get new ones."""

    def __init__(self, folder: Path, way: Way, cases: Sequence[str], *, deterministic: bool) -> None:
        self.way, self._folder, self._cases, self._deterministic = way, folder, list(cases), deterministic
        self.outcomes: Outcomes = {}
        self._attempt = 0

    def start(self, launcher: LauncherClient) -> None:
        self._attempt += 1
        self._at_s, self._seen = time.monotonic(), 0
        self._attempt_folder = AttemptFolder(self._folder / f"attempt-{self._attempt}")
        self._attempt_folder.path.mkdir(parents=True)
        self._started = tuple(self._cases)
        name = f"aiaas-test-{secrets.token_hex(4)}"
        task = Task(self._started, self.way, 0, name, self._attempt_folder.path, self._deterministic)
        paths = [self._attempt_folder.command(rank) for rank in range(self.way.processes)]
        for rank, path in enumerate(paths):
            path.write_bytes(pickle.dumps(replace(task, rank=rank)))
        launcher.ask({"commands": [str(path) for path in paths]})

    def collect(self) -> bool:
        """Whether all processes have ended; outcomes are complete up to the first case that failed."""
        ended = [read_value(self._attempt_folder.exit(rank), Exit) for rank in range(self.way.processes)]
        while (found := self._attempt_folder.path / f"{self._seen}.pickle").exists():
            self._keep(pickle.loads(found.read_bytes()))
        stuck = time.monotonic() - self._at_s > STUCK_S
        if stuck or (None in ended and any(one is not None and one.code != 0 for one in ended)):
            self.kill()
        if None in ended:
            return False
        if self._cases and self._seen < len(self._started) and not (self._seen and self._last.error):
            self._keep(Outcome([], {}, [], [], error=f"{ended}, stuck={stuck}\n{self._output()}"))
        return True

    def _keep(self, outcome: Outcome) -> None:
        self._last = outcome
        self.outcomes[Run(self._cases.pop(0), self.way)] = outcome
        self._seen, self._at_s = self._seen + 1, time.monotonic()

    @property
    def is_done(self) -> bool:
        return not self._cases

    def kill(self) -> None:
        ranks.kill(self._attempt_folder, self.way.processes)

    def _output(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(self._attempt_folder.path.glob("output-*")))


def carried_out(runs: Iterable[Run], folder: Path, launcher: LauncherClient, *, deterministic: bool = False) -> Outcomes:
    """The outcome of each run, and of plain `fit` for each of their cases."""
    cases: dict[Way, dict[str, None]] = {}
    chosen = list(runs)
    for run in chosen:
        if not run.way.on_jax:
            cases.setdefault(run.way, {})[run.case] = None
        if not run.stays:
            cases.setdefault(PLAIN, {})[run.case] = None
    groups = [Group(folder / "-".join(map(str, way)), way, list(names), deterministic=deterministic) for way, names in cases.items()]
    waiting, running = sorted(groups, key=lambda group: -group.way.processes), list[Group]()
    try:
        with ported.started([run for run in chosen if run.way.on_jax], folder / "jax") as on_jax:
            _carry_out(waiting, running, launcher)
            return {run: outcome for group in groups for run, outcome in group.outcomes.items()} | on_jax.outcomes()
    finally:
        for group in running:
            group.kill()


def _carry_out(waiting: list[Group], running: list[Group], launcher: LauncherClient) -> None:
    """As many processes at once as there are cores."""
    while waiting or running:
        for group in list(waiting):
            if not running or sum(other.way.processes for other in running) + group.way.processes <= (os.cpu_count() or 1):
                waiting.remove(group)
                running.append(group)
                group.start(launcher)
        for group in list(running):
            if group.collect():
                if group.is_done:
                    running.remove(group)
                else:
                    group.start(launcher)
        time.sleep(LOOK_S)
