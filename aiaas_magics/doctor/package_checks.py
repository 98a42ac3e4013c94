"""Package checks: Python, the pinned packages, extras, and whether TensorFlow and JAX can be imported and see the devices.

Owns those checks. The libraries are imported in a child process: a broken one may end it, and this process stays small.
"""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any, Final

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from aiaas_magics.core.plain_text import visible
from aiaas_magics.core.settings import installed_version
from aiaas_magics.doctor.finding import Finding, fails, ok

PACKAGE: Final = "aiaas_magics"
IMPORT_S: Final = 180.0  # guess: 8 s on a busy machine, and more from a cold disk
LIBRARIES: Final = {
    "tensorflow": (
        "import tensorflow as tf\n"
        "info = dict(tf.sysconfig.get_build_info())\n"
        "report = {'version': tf.__version__, 'devices': [d.name for d in tf.config.list_physical_devices('GPU')],\n"
        "    'cuda': str(info.get('cuda_version', '')), 'cudnn': str(info.get('cudnn_version', ''))}\n"
    ),
    "jax": (
        "import jax\n"
        "gpus = [str(d) for d in jax.devices() if d.platform != 'cpu']\n"
        "report = {'version': jax.__version__, 'devices': gpus, 'cuda': '', 'cudnn': ''}\n"
    ),
}
EXTRA_OF: Final = {"tensorflow": "cuda", "jax": "jax"}


def check_python(version: str = "", required: str = "") -> Finding:
    version, required = version or platform.python_version(), required or _metadata().get("Requires-Python", "")
    if SpecifierSet(required).contains(version, prereleases=True):
        return ok("python", f"{version}, {required} is needed")
    return fails("python", f"{version}, and {required} is needed", f"Install Python {required} and make a new environment with it.")


def check_packages(requirements: Sequence[str] | None = None, version_of: Callable[[str], str] = installed_version) -> Finding:
    """The packages that this one needs, against the versions that it is tested with."""
    wrong, count = [], 0
    for requirement in _required(requirements):
        count += 1
        version = version_of(requirement.name)
        if not version:
            wrong.append((f"{requirement.name} is missing", requirement))
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append((f"{requirement.name} {version} is not {requirement.specifier}", requirement))
    if not wrong:
        return ok("packages", f"{count} packages have the versions that are needed")
    line = " ".join(f"'{requirement.name}{requirement.specifier}'" for _, requirement in wrong)
    return fails("packages", "; ".join(text for text, _ in wrong), f"Run {sys.executable} -m pip install {line}")


def check_extras(needed: Sequence[str] = (), version_of: Callable[[str], str] = installed_version) -> Iterator[Finding]:
    """Which extras are there. One that is `needed` and is not breaks a job."""
    extras = {name: _missing_of(name, version_of) for name in _metadata().get_all("Provides-Extra") or ()}
    for name in needed:
        if name not in extras:
            yield fails(f"extra {name}", "there is no such extra", f"Use one of: {', '.join(extras)}.")
        elif extras[name]:
            yield fails(f"extra {name}", f"{', '.join(extras[name])} missing", f"Run {sys.executable} -m pip install '{PACKAGE}[{name}]'")
        else:
            yield ok(f"extra {name}", "installed")
    whole = [name for name, missing in extras.items() if not missing and name not in needed]
    rest = [name for name, missing in extras.items() if missing and name not in needed]
    yield ok("extras", f"installed: {', '.join(whole) or 'none'}; not installed: {', '.join(rest) or 'none'}")


def check_library(name: str, *, gpus: Sequence[str], driver_cuda: str = "", python: str = sys.executable) -> Finding:
    """Whether the library can be imported, and sees the GPUs that the driver lists.

    Args:
        gpus: names of the GPUs, as the driver says.
        driver_cuda: the newest CUDA that the driver can run, such as "12.8".
    """
    code = f"import json\n{LIBRARIES[name]}print('REPORT', json.dumps(report))"
    try:
        done = subprocess.run([python, "-P", "-c", code], capture_output=True, text=True, errors="replace", timeout=IMPORT_S)
    except subprocess.TimeoutExpired:
        return fails(name, f"its import took more than {IMPORT_S:g} s", "Check the disk that it is installed on; try again.")
    lines = [line for line in done.stdout.splitlines() if line.startswith("REPORT ")]
    if done.returncode or not lines:
        last = visible((done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1])[:200]
        return fails(name, f"cannot be imported: {last}", f"Run {python} -m pip install --force-reinstall {name}")
    return library_finding(name, json.loads(lines[-1].removeprefix("REPORT ")), gpus=gpus, driver_cuda=driver_cuda)


def library_finding(name: str, report: dict[str, Any], *, gpus: Sequence[str], driver_cuda: str) -> Finding:
    """What a library's report means beside what the driver says."""
    built = f", built with CUDA {report['cuda']} and cuDNN {report['cudnn']}" if report["cuda"] else ""
    gpu_count = f"{len(report['devices'])} of {len(gpus)} GPUs" if gpus else "no GPU here, runs on the CPU"
    text = f"{report['version']}{built}; {gpu_count}"
    if len(report["devices"]) >= len(gpus):
        return ok(name, text)
    if report["cuda"] and driver_cuda and _numbers(driver_cuda)[:1] < _numbers(report["cuda"])[:1]:
        fix = f"Update the NVIDIA driver: it runs CUDA up to {driver_cuda}, and this library needs {report['cuda']}."
        return fails(name, text, fix)
    extra = EXTRA_OF[name]
    line = f"'{PACKAGE}[{extra}]'" if name == "tensorflow" else "'jax[cuda12]'"
    return fails(name, text, f"Run {sys.executable} -m pip install {line}, which brings CUDA's libraries, and unset CUDA_VISIBLE_DEVICES.")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _metadata() -> Any:
    return metadata.distribution(PACKAGE).metadata


def _required(lines: Sequence[str] | None) -> Iterator[Requirement]:
    for line in metadata.requires(PACKAGE) or () if lines is None else lines:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def _missing_of(extra: str, version_of: Callable[[str], str], package: str = PACKAGE) -> list[str]:
    """Packages of an extra that are not installed; an extra of extras counts theirs."""
    missing = []
    with contextlib.suppress(metadata.PackageNotFoundError):
        for line in metadata.requires(package) or ():
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or marker.evaluate({"extra": ""}) or not marker.evaluate({"extra": extra}):
                continue
            if not version_of(requirement.name):
                missing.append(requirement.name)
            for inner in sorted(requirement.extras):
                missing += _missing_of(inner, version_of, requirement.name)
    return missing
