"""Ranks that add up in shared memory: real processes, and what they leave behind."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aiaas_magics.backend.training.comm import shared_memory
from aiaas_magics.backend.training.comm.process_group import RankMissing
from aiaas_magics.backend.training.comm.shared_memory_group import SharedMemoryGroup
from tests.backend.training.ranks import ROOT

pytestmark = pytest.mark.process

WAIT_S = 60.0


@dataclass(frozen=True)
class End:
    code: int
    stdout: str
    stderr: str


def run(folder: Path, ranks: int, what: str) -> list[End]:
    name = f"aiaas-test-{secrets.token_hex(4)}"
    script = str(Path(__file__).with_name("group_rank.py"))
    processes = []
    for rank in range(ranks):
        with (folder / f"out-{rank}").open("w") as out, (folder / f"err-{rank}").open("w") as err:
            arguments = [sys.executable, script, str(rank), str(ranks), name, str(folder), what]
            processes.append(subprocess.Popen(arguments, stdout=out, stderr=err, env={"PYTHONPATH": str(ROOT), "PATH": ""}))
    try:
        for process in processes[: 1 if what == "late" else None]:
            process.wait(WAIT_S)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert list(Path("/dev/shm").glob(f"{name}*")) == []
    assert list(folder.glob(f"{name}*")) == []
    return [
        End(process.returncode, (folder / f"out-{rank}").read_text(), (folder / f"err-{rank}").read_text())
        for rank, process in enumerate(processes)
    ]


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_all_ranks_get_the_same_sums(tmp_path: Path, ranks: int) -> None:
    found: list[dict[str, Any]] = [json.loads(rank.stdout) for rank in run(tmp_path, ranks, "everything")]

    pairs = range(ranks)
    expected = {
        "sum": [sum(place + 10 * rank for rank in pairs) for place in range(3)],
        "gathered": [[place + 10 * rank for place in range(3)] for rank in pairs],
        "weighted": [0.5 * sum(1 + rank for rank in pairs)] * 4,
        "shapes": True,
        "aligned": True,
        "rows": [[[rank, rank] for rank in pairs for _ in range(rank * turn)] for turn in range(3)],
        "any": [True, False],
        "first": 5.0,
        "same": [0.1, sum(pairs) / ranks],
        "many": sum(turn + rank for turn in range(300) for rank in pairs),
    }
    assert found == [expected] * ranks


def test_memory_that_shm_cannot_give_is_a_file_of_the_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path / "not there")

    made = shared_memory.create_segment("name", 4096, fallback=tmp_path)
    found = shared_memory.find_segment("name", 4096, fallback=tmp_path)

    assert found is not None
    made.view[:5] = b"hello"
    assert bytes(found.view[:5]) == b"hello"
    made.forget()
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_does_not_come_is_named_in_time(tmp_path: Path) -> None:
    began = time.monotonic()

    first, _ = run(tmp_path, 2, "late")

    assert first.code != 0
    assert "worker 1 did not come within 2 s; this worker cannot go on without it" in first.stderr
    assert time.monotonic() - began < 30


def test_a_rank_that_left_is_not_waited_for(tmp_path: Path) -> None:
    first, second = run(tmp_path, 2, "leaves")

    assert second.code == 0
    assert "RankMissing: worker 1 has left" in first.stderr


def test_memory_is_not_waited_for_when_the_rank_that_makes_it_is_gone(tmp_path: Path) -> None:
    began = time.monotonic()

    _, second = run(tmp_path, 2, "dies")

    assert "RankMissing: worker 0 is gone (its process ended)" in second.stderr
    assert time.monotonic() - began < 30


def test_ranks_that_lost_step_are_told_so(tmp_path: Path) -> None:
    ends = run(tmp_path, 2, "disagrees")

    assert any("exchanges 8 bytes while worker 1 exchanges 16" in end.stderr for end in ends)


def test_nobody_is_waited_for_who_never_met(tmp_path: Path) -> None:
    with pytest.raises(RankMissing, match=r"worker 1 did not come within 0\.1 s"):
        SharedMemoryGroup(rank=0, ranks=2, name="aiaas-test-alone", folder=tmp_path, meet_s=0.1)

    assert list(Path("/dev/shm").glob("aiaas-test-alone*")) == []
