"""What a machine says it has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas_magics.backend.server import devices
from aiaas_magics.backend.server.devices import Machine
from aiaas_magics.core import host
from aiaas_magics.core.execution import Execution
from aiaas_magics.core.spec import Device


def test_this_machine_has_the_cores_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(devices.SIMULATED, raising=False)

    machine = devices.find()

    assert 1 <= len(machine.devices) <= len(os.sched_getaffinity(0))
    assert machine.hardware.startswith(f"{len(machine.devices)} core")
    assert machine.memory_bytes > 2**27


def test_simulated_devices_are_named_as_such_and_share_the_real_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(devices.SIMULATED, "5")

    machine = devices.find()

    assert len(machine.devices) == 5
    assert all(device.simulated for device in machine.devices)
    assert "simulated" in machine.hardware
    assert set(machine.cores_of(tuple(range(5)))) <= os.sched_getaffinity(0)


@pytest.mark.parametrize("text", ["", "0", "-3", "two", "1.5"])
def test_odd_numbers_of_simulated_devices_mean_none(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(devices.SIMULATED, text)

    assert not devices.find().devices[0].simulated


@given(st.integers(1, 12), st.integers(1, 4))
def test_ranks_on_different_devices_are_on_different_cores_as_long_as_there_are_any(count: int, cores: int) -> None:
    machine = Machine(tuple(Device(kind="cpu", index=i, name=f"{i}") for i in range(count)), tuple(range(cores)), "", 1)

    pinned = [machine.cores_of((position,)) for position in range(min(count, cores))]

    assert len(set(pinned)) == len(pinned)
    assert machine.cores_of(tuple(range(count))) == tuple(range(min(count, cores)))


def test_a_gpu_worker_is_given_its_gpus_and_no_cores() -> None:
    machine = Machine((Device(kind="gpu", index=3, name="GPU A"), Device(kind="gpu", index=5, name="GPU A")), (), "", 1)

    assert (machine.gpus_of((1,)), machine.cores_of((1,)), machine.label((1,), Execution())) == ((5,), (), "GPU A")
    assert (machine.gpus_of((0, 1)), machine.label((0, 1), Execution(strategy="mirrored"))) == ((3, 5), "2 gpu devices")


def test_one_process_with_several_devices_of_a_cpu_is_shown_as_simulated() -> None:
    machine = Machine(tuple(Device(kind="cpu", index=i, name=f"core {i}") for i in range(2)), (0, 1), "", 1)

    assert machine.label((0, 1), Execution(strategy="mirrored")) == "2 simulated devices on 2 cores"
    assert machine.label((0, 1), Execution(strategy="single")) == "2 cores"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
        ({"cpu.max": "garbage"}, None),
    ],
)
def test_a_quota_is_read_from_either_kind_of_cgroup(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    assert host.cpu_quota(tmp_path) == quota


def test_memory_is_what_the_cgroup_grants(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("123456789\n")

    assert host.memory_bytes(tmp_path) == 123456789
