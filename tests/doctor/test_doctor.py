"""The doctor names what would break a job, with the fix, and says nothing of the kind where nothing would."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from aiaas_magics import cli
from aiaas_magics.doctor import machine_checks, package_checks, server_checks
from aiaas_magics.doctor.finding import Finding, Severity, as_text, fails, ok, would_break_a_job
from tests.backend.server.served import served
from tests.client.test_certificates import behind_tls, made
from tests.support.small_disk import MOUNTS, full, small_disk


def assert_fails(finding: Finding, *words: str) -> None:
    assert finding.health is Severity.FAILS, finding
    assert finding.fix
    for word in words:
        assert word in finding.text + finding.fix, finding


# --------------------------------------------------------------------------- the machine


@MOUNTS
@pytest.mark.process
def test_a_too_small_dev_shm_is_told_with_what_is_missing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "shm", megabytes=64) as shm:
        enough = machine_checks.check_shared_memory(workers=2, model_bytes=10e6, path=shm)
        small = machine_checks.check_shared_memory(workers=4, model_bytes=100e6, path=shm, state=tmp_path)

        assert enough.health is Severity.OK
        assert small.health is Severity.NOTE, "a file in the state folder does instead"
        assert "733 MB are missing" in small.text  # 2 halves x 4 workers x 100 MB, less 67.1 MB
        assert "--shm-size=1600m" in small.fix
        with small_disk(tmp_path / "state", megabytes=8) as state:
            assert_fails(machine_checks.check_shared_memory(workers=4, model_bytes=100e6, path=shm, state=state / "new"), "no room")


def test_one_worker_needs_no_shared_memory(tmp_path: Path) -> None:
    assert machine_checks.check_shared_memory(workers=1, model_bytes=1e15, path=tmp_path).health is Severity.OK


@MOUNTS
@pytest.mark.process
def test_a_full_disk_and_a_read_only_one_are_told(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", megabytes=8) as disk:
        assert machine_checks.check_disk(disk / "state").health is Severity.OK
        with full(disk):
            assert_fails(machine_checks.check_disk(disk / "state"), "No space left")
        filler = disk / "most"
        filler.write_bytes(b"x" * 8_200_000)
        assert_fails(machine_checks.check_disk(disk / "state"), "are missing", "aiaas storage --free")
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert_fails(machine_checks.check_disk(disk / "state"), "Read-only", "AIAAS_HOME")
        assert list(disk.iterdir()) == [], "the probe is removed"


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root writes everywhere")
def test_a_folder_that_may_not_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert_fails(machine_checks.check_disk(tmp_path), "Permission denied")
    finally:
        tmp_path.chmod(0o700)


def test_a_port_that_is_taken_is_told() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        assert_fails(machine_checks.check_ports("127.0.0.1", [holder.getsockname()[1]]), "already in use", "--port")
    assert machine_checks.check_ports("127.0.0.1", [0]).health is Severity.OK


def cgroup(folder: Path, **files: str) -> Path:
    folder.mkdir()
    (folder / "cgroup.controllers").write_text("cpu memory pids")
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def test_the_limits_of_a_cgroup_are_compared_with_what_workers_need(tmp_path: Path) -> None:
    free = machine_checks.check_cgroup(workers=4, root=cgroup(tmp_path / "a", memory_max="max", pids_max="max", cpu_max="max 100000"))
    small = machine_checks.check_cgroup(workers=4, root=cgroup(tmp_path / "b", memory_max="1000000000", pids_max="max"))
    few = machine_checks.check_cgroup(workers=4, root=cgroup(tmp_path / "c", memory_max="max", pids_max="100", cpu_max="150000 100000"))

    assert free == ok("cgroup", "v2; memory unlimited, processes unlimited, cores unlimited")
    assert_fails(small, "4 workers need at least 3 GB, so 2 GB are missing", "--memory")
    assert_fails(few, "processes 100, cores 1.5", "--pids-limit")
    assert machine_checks.check_cgroup(workers=1, root=tmp_path).health is Severity.NOTE


@pytest.mark.process
def test_isolation_is_tried_not_guessed(tmp_path: Path) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)

    assert machine_checks.check_isolation(path=str(tmp_path)).health is Severity.NOTE
    assert "apt install bubblewrap" in machine_checks.check_isolation(path=str(tmp_path)).fix
    broken.write_text("#!/bin/sh\nexit 0\n")
    assert machine_checks.check_isolation(path=str(tmp_path)).health is Severity.OK


def test_the_limit_of_open_files() -> None:
    assert_fails(machine_checks.check_open_files((64, 4096)), "ulimit -n 4096")
    assert machine_checks.check_open_files((512, 4096)).health is Severity.NOTE
    assert machine_checks.check_open_files((4096, 4096)).health is Severity.OK
    assert machine_checks.check_open_files((-1, -1)).health is Severity.OK


# --------------------------------------------------------------------------- packages


def test_this_environment_fits_its_pins() -> None:
    assert package_checks.check_packages().health is Severity.OK
    assert package_checks.check_python().health is Severity.OK


def test_wrong_and_missing_packages_are_named_with_the_line_that_mends_them() -> None:
    installed = {"keras": "3.14.0", "numpy": "2.1.0"}
    finding = package_checks.check_packages(
        ["keras>=3.15.1,<3.16", "numpy>=2,<3", "httpx>=0.28,<0.29", "uvloop; sys_platform == 'none'", "shap; extra == 'explain'"],
        lambda name: installed.get(name, ""),
    )

    assert_fails(finding, "keras 3.14.0 is not", "httpx is missing", "pip install 'keras<3.16,>=3.15.1' 'httpx<0.29,>=0.28'")
    assert "numpy" not in finding.text


def test_an_old_python_is_named() -> None:
    assert_fails(package_checks.check_python("3.9.2", ">=3.11"), "3.9.2, and >=3.11 is needed")


def test_a_missing_extra_is_named_with_the_pip_line() -> None:
    [missing, *_] = package_checks.check_extras(["otel"], lambda name: "")
    [present, *_] = package_checks.check_extras(["otel"], lambda name: "1")
    [unknown, *_] = package_checks.check_extras(["nothing"], lambda name: "1")

    assert_fails(missing, "opentelemetry-sdk", "pip install 'aiaas_magics[otel]'")
    assert present.health is Severity.OK
    assert_fails(unknown, "otel")


@pytest.mark.process
def test_a_library_that_cannot_be_imported_is_told_with_its_last_line(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'ImportError: libcudart.so.12: cannot open shared object file' >&2\nexit 1\n")
    broken.chmod(0o755)

    assert_fails(package_checks.check_library("tensorflow", gpus=(), python=str(broken)), "libcudart.so.12", "pip install")


GPU_BUILD = {"version": "2.21.0", "devices": [], "cuda": "12.5.1", "cudnn": "9"}


def test_gpus_that_the_driver_lists_and_the_library_does_not_see_are_told() -> None:
    gpus = ("NVIDIA H200",)

    none_seen = package_checks.library_finding("tensorflow", GPU_BUILD, gpus=gpus, driver_cuda="12.8")
    old_driver = package_checks.library_finding("tensorflow", GPU_BUILD, gpus=gpus, driver_cuda="11.4")
    seen = package_checks.library_finding("tensorflow", {**GPU_BUILD, "devices": ["/physical_device:GPU:0"]}, gpus=gpus, driver_cuda="12.8")
    no_gpu = package_checks.library_finding("jax", {**GPU_BUILD, "cuda": ""}, gpus=(), driver_cuda="")

    assert_fails(none_seen, "0 of 1 GPUs", "aiaas_magics[cuda]")
    assert_fails(old_driver, "Update the NVIDIA driver", "11.4", "12.5.1")
    assert seen == ok("tensorflow", "2.21.0, built with CUDA 12.5.1 and cuDNN 9; 1 of 1 GPUs")
    assert no_gpu.health is Severity.OK


# --------------------------------------------------------------------------- the server


@pytest.mark.parametrize(("ahead_s", "health"), [(0, Severity.OK), (60, Severity.NOTE), (-60, Severity.NOTE), (4000, Severity.FAILS)])
def test_a_clock_that_is_wrong_is_told(ahead_s: float, health: Severity) -> None:
    now_s = time.time()

    finding = server_checks.clock_finding(format_datetime(datetime.fromtimestamp(now_s + ahead_s, UTC), usegmt=True), now_s=now_s)

    assert finding.health is health
    assert health is Severity.OK or ("ahead" if ahead_s > 0 else "behind") in finding.text
    assert server_checks.clock_finding("nonsense", now_s=now_s).health is Severity.NOTE


@pytest.mark.process
def test_a_running_server_answers_and_its_clock_is_ours(tmp_path: Path) -> None:
    with served(tmp_path / "state", "--pool", "stub") as server:
        [answers, clock] = server_checks.check_server(server.url, server.token)
        wrong = next(iter(server_checks.check_server(server.url, "x" * 40)))
    gone = next(iter(server_checks.check_server(server.url, server.token)))

    assert answers == ok("server", f"{server.url} answers")
    assert clock.health is Severity.OK
    assert_fails(wrong, "could not prove")
    assert_fails(gone, "Could not reach")


# --------------------------------------------------------------------------- the command


@pytest.mark.process
def test_the_command_ends_with_1_where_a_job_would_break_and_prints_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIAAS_HOME", str(tmp_path))
    monkeypatch.delenv("AIAAS_BACKEND", raising=False)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        shown = CliRunner().invoke(cli.main, ["doctor", "--no-imports", "--json", "--workers", "1", "--port", port])
        table = CliRunner().invoke(cli.main, ["doctor", "--no-imports", "--workers", "1", "--port", port])

    findings = {finding["check"]: finding for finding in json.loads(shown.stdout)}
    assert shown.exit_code == table.exit_code == 1
    assert findings["ports"]["health"] == "fails"
    assert findings["packages"]["health"] == "ok"
    assert "FAILS  ports" in table.stdout
    assert "-> Choose another with `aiaas serve --port`" in table.stdout


@pytest.mark.process
def test_the_libraries_are_imported_in_a_child(tmp_path: Path) -> None:
    """jax, the quicker of the two; this process stays without it."""
    probe = (
        "import sys\nfrom aiaas_magics.doctor import package_checks\n"
        "print(package_checks.check_library('jax', gpus=()).health, 'jax' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=120)

    assert done.stdout.split() == ["ok", "False"]


def test_words_for_a_list() -> None:
    findings = [ok("a", "fine"), fails("longer", "broken", "Mend it.")]

    assert as_text(findings) == "ok     a       fine\nFAILS  longer  broken\n               -> Mend it."
    assert would_break_a_job(findings)
    assert not would_break_a_job(findings[:1])


@pytest.mark.process
@pytest.mark.parametrize(
    ("days", "health"), [((-1, 300), Severity.OK), ((-1, 5), Severity.NOTE), ((-3, -1), Severity.FAILS), ((1, 300), Severity.FAILS)]
)
def test_the_certificate_of_a_server_is_read_whoever_signed_it(tmp_path: Path, days: tuple[int, int], health: Severity) -> None:
    with behind_tls(made(tmp_path, "pair", days=days, signer="Somebody")) as (url, _):
        finding = server_checks.certificate_at(url)
    gone = server_checks.certificate_at(url)

    assert finding.health is health, finding
    assert health is Severity.OK or finding.fix
    assert_fails(gone, "could not be read")
