"""Job record: collects what a job is trained from, when it is submitted.

Owns the collecting: packages, machine, random states, fingerprints of data. The value belongs to `core.training_record`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import re
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from aiaas_magics.core import environment as environment_rules
from aiaas_magics.core import host
from aiaas_magics.core.spec import About
from aiaas_magics.core.training_record import DataFingerprint, TrainingEnvironment, TrainingRecord

if TYPE_CHECKING:
    from aiaas_magics.core.spec import FitSpec
    from aiaas_magics.packing.fitcall.fit_call import PackedFitCall

# A distribution's folder: reading the names of some hundred takes a millisecond, reading their metadata a quarter of a second.
INSTALLED: Final = re.compile(r"(?P<name>[A-Za-z0-9_.]+?)-(?P<version>[^-]+)(-py[\d.]+)?\.(dist|egg)-info")

# A string that is assigned to a name, a key or an argument; and `%env NAME=value`.
ASSIGNED: Final = re.compile(r"""(?P<name>\b\w+)(?P<between>['"]?\]?\s*[:=]\s*[rbfu]?['"])(?P<value>[^'"\n]+)""")
ENVIRONMENT_LINE: Final = re.compile(r"(?P<name>(?<=%env )\w+)(?P<between>[ =]+)(?P<value>\S+)")
HIDDEN: Final = "<hidden>"


def record_of(spec: FitSpec, packed: PackedFitCall, about: About, *, code: str) -> TrainingRecord:
    """The record of a fit call that is about to be submitted as `spec`.

    Args:
        code: the cell's text; "" from a script.
    """
    from aiaas_magics.packing.checks import randomness

    return TrainingRecord(
        created_s=time.time(),
        where=environment_of(about),
        execution=spec.execution,
        workers=spec.workers,
        row_seed=spec.seed,
        random_states=randomness.fingerprints(),
        model=spec.shape.model,
        parameters=spec.shape.parameters,
        payload=spec.payload,
        data=fingerprints(packed, spec.arrays),
        code=without_secrets(code),
        variables=tuple(item.name for item in packed.manifest.of_kind("variable")),
        reads_batches=packed.in_batches,
        is_streamed=bool(packed.streams),
    )


def without_secrets(code: str) -> str:
    """The text with `<hidden>` in the place of what is assigned to a name that looks like a secret's.

    >>> without_secrets("api_key = 'abc'; os.environ['TOKEN'] = 'x'; name = 'churn'")
    "api_key = '<hidden>'; os.environ['TOKEN'] = '<hidden>'; name = 'churn'"
    """

    def masked(match: re.Match[str]) -> str:
        is_secret = environment_rules.is_secret(match["name"], match["value"])
        return f"{match['name']}{match['between']}{HIDDEN if is_secret else match['value']}"

    return ENVIRONMENT_LINE.sub(masked, ASSIGNED.sub(masked, code))


def environment_of(about: About) -> TrainingEnvironment:
    """This process and the backend that it speaks to."""
    return TrainingEnvironment(
        python=platform.python_version(),
        platform=platform.platform(),
        packages=installed_packages(),
        kernel_processor=host.cpu_name(),
        backend=about.backend,
        hardware=about.hardware,
        backend_versions=about.versions,
    )


def fingerprints(packed: PackedFitCall, names: Sequence[str]) -> tuple[DataFingerprint, ...]:
    """One for each array of the call; its blob's name is the SHA-256 of its bytes."""
    labels = [item.name for item in packed.manifest.of_kind("array")]
    apart = tuple(
        DataFingerprint(name=label, dtype=str(array.dtype), shape=array.shape, sha256=sha)
        for label, array, sha in zip(labels, packed.arrays, names, strict=False)
    )
    return (*packed.inline_data, *apart)


def installed_packages() -> dict[str, str]:
    """The distributions on this interpreter's path, each with its version, by canonical name; the first on the path counts."""
    packages: dict[str, str] = {}
    for folder in sys.path:
        try:
            changed_ns = os.stat(folder or ".").st_mtime_ns
        except OSError:  # a folder that is gone
            continue
        packages = {**_packages_in(folder or ".", changed_ns), **packages}
    return dict(sorted(packages.items()))


@functools.lru_cache(maxsize=64)
def _packages_in(folder: str, changed_ns: int) -> dict[str, str]:
    """Those of one folder as it was when an entry of it changed last: a fit after the other reads it once."""
    packages: dict[str, str] = {}
    with contextlib.suppress(OSError):  # a zip
        for entry in sorted(os.listdir(folder)):
            if match := INSTALLED.fullmatch(entry):
                packages.setdefault(re.sub(r"[-_.]+", "-", match["name"]).lower(), match["version"])
    return packages
