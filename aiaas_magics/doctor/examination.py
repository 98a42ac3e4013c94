"""Examination: all checks of the doctor, in their order.

Owns the order, and reading what the driver says of the GPUs. The checks belong to the modules beside this one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from aiaas_magics.core.settings import installed_version
from aiaas_magics.doctor import machine_checks, package_checks, server_checks
from aiaas_magics.doctor.finding import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be examined. `server` is the address and token of one that runs; None leaves it out."""

    state: Path
    workers: int
    model_bytes: float
    ports: Sequence[int] = (0,)
    host: str = "127.0.0.1"
    extras: Sequence[str] = ()
    imports: bool = True
    server: tuple[str, str] | None = None


def examine(question: Question) -> Iterator[Finding]:
    yield package_checks.check_python()
    yield package_checks.check_packages()
    yield from package_checks.check_extras(question.extras)
    if question.imports:
        gpus, driver_cuda = _driver()
        for name in package_checks.LIBRARIES:
            if installed_version(name) or name == "tensorflow":
                yield package_checks.check_library(name, gpus=gpus, driver_cuda=driver_cuda)
    yield machine_checks.check_disk(question.state)
    yield machine_checks.check_shared_memory(workers=question.workers, model_bytes=question.model_bytes, state=question.state)
    yield machine_checks.check_ports(question.host, question.ports)
    yield machine_checks.check_cgroup(workers=question.workers)
    yield machine_checks.check_isolation()
    yield machine_checks.check_open_files()
    if question.server is not None:
        yield from server_checks.check_server(*question.server)


def _driver() -> tuple[tuple[str, ...], str]:
    """Names of the GPUs that the driver leaves us, and the newest CUDA that it runs; nothing without a driver."""
    from aiaas_magics.backend.server.devices import find_gpus

    gpus = tuple(device.name for device in find_gpus())
    if not gpus:
        return (), ""
    import pynvml

    try:
        pynvml.nvmlInit()
        number = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return gpus, ""
    return gpus, f"{number // 1000}.{number % 1000 // 10}"
