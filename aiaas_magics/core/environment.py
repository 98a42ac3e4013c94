"""Environment variables of a kernel: which go to the workers with a job, which to the local server.

Owns the rules by name, the choice, and the sentences about it. Putting values into a payload
belongs to `packing`, starting the server to `backend`.

A variable that was set or changed since this process began belongs to the job and travels with
it. What describes a machine, a screen or this package stays. The local server outlives the
kernel that starts it, so it gets the machine's variables and none of a job.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiaas_magics.core.errors import InvalidSpec

# Names that stay, each kind with its reason. Full matches.
MACHINE: Final = (
    r"PATH|LD_\w+|DYLD_\w+|PYTHON(PATH|HOME)|VIRTUAL_ENV\w*|CONDA_\w+|PKG_CONFIG_PATH|MANPATH|HOME|USER|LOGNAME|SHELL|PWD|OLDPWD|HOSTNAME"
    r"|TMPDIR|TEMP|TMP|LANG|LANGUAGE|LC_\w+|TZ|XDG_\w+|SSH_\w+|DISPLAY|WAYLAND_DISPLAY|DBUS_\w+|SHLVL|_",
    "it describes a machine, and the backend has its own",
)
SCREEN: Final = (
    r"JPY_\w+|JUPYTER\w*|IPYTHON\w*|IPYKERNEL\w*|COLAB_\w+|VSCODE_\w+|PYTEST_\w+|PYDEVD_\w+|MPLBACKEND|TERM\w*|COLORTERM|COLUMNS|LINES"
    r"|PAGER|GIT_PAGER|EDITOR|CLICOLOR\w*|FORCE_COLOR|NO_COLOR",
    "it describes the kernel and its screen",
)
PRODUCT: Final = (r"AIAAS_\w+|OTEL_\w+", "the backend reads it for itself")
WORKER: Final = (
    r"KERAS_BACKEND|TF_USE_LEGACY_KERAS|TF2_BEHAVIOR|TF_CPP_\w+|TF_CONFIG|CUDA_VISIBLE_DEVICES|CUDA_DEVICE_ORDER|NVIDIA_\w+"
    r"|OPENBLAS_NUM_THREADS|KMP_\w+|MALLOC_\w+"
    # TensorFlow 2.21 sets these when it is imported, here and there.
    r"|TPU_\w+|ENABLE_RUNTIME_UPTIME_TELEMETRY|HDF5_PLUGIN_PATH",
    "the backend sets it for each worker",
)
# Read when an interpreter starts: setting one has no effect in the kernel that sets it, and must have none elsewhere.
INTERPRETER: Final = (r"PYTHON\w+", "Python reads it when an interpreter starts")
STAYS: Final = (MACHINE, SCREEN, PRODUCT, WORKER, INTERPRETER)
# How one process runs, not where: another kernel's workers must not inherit it from the server.
OF_ONE_PROCESS: Final = (
    SCREEN[0],
    r"PYTHON(WARNINGS|STARTUP|INSPECT|VERBOSE|DEBUG|OPTIMIZE|HASHSEED|BREAKPOINT|ASYNCIODEBUG|DEVMODE|TRACEMALLOC|PROFILEIMPORTTIME)",
)
# Libraries read these when they are imported, and workers fork from a process that has imported them.
LATE: Final = r"(TF|KERAS|JAX|OMP|MKL|NUMEXPR)_\w+"
# Short words count at the end of a part between underscores: API_KEY, not KEYBOARD; and TOKENIZERS_PARALLELISM is none.
SECRET: Final = re.compile(
    r"SECRET|PASSW(OR)?D|PASSPHRASE|CREDENTIAL|TOKEN(?!IZ)|APIKEY|PRIVATE|(PASS|PWD|KEYS?|CREDS?|AUTH|AUTHORIZATION|COOKIES?|SAS|DSN)(?=_|\d|$)"
)
PASSWORD_IN_URL: Final = re.compile(r"[a-zA-Z][\w+.-]*://[^/\s@]*:[^/\s@]+@")
SHOWN: Final = 6  # guess: names in one sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentChoice:
    """What of a kernel's environment goes with a job, and what of it does not."""

    values: Mapping[str, str]
    secrets: tuple[str, ...] = ()  # set here, or read by the code that travels, and held back

    def notes(self) -> tuple[str, ...]:
        """What to say before the run. Nothing where nothing was set."""
        sentences = []
        if self.values:
            is_single = len(self.values) == 1
            sentences.append(
                f"Environment variable{'' if is_single else 's'} sent to the workers: {_listed(self.values)}. Use --no-env to send none."
            )
        if self.secrets:
            named = ",".join(self.secrets[:SHOWN])
            sentences.append(f"Not sent, because it may be a secret: {_listed(self.secrets)}. Use --env {named} where the workers need it.")
        late = [name for name in self.values if re.fullmatch(LATE, name)]
        if late:
            sentences.append(
                f"Workers get {_listed(late)} after they have imported TensorFlow and Keras, so what a library reads while it is imported "
                "has no effect. Set it before Jupyter (or `aiaas serve`) starts, then run %aiaas_shutdown."
            )
        return tuple(sentences)


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def choose(
    current: Mapping[str, str], initial: Mapping[str, str], *, mentioned: Collection[str] = (), named: Sequence[str] = ()
) -> EnvironmentChoice:
    """What travels: variables that differ from `initial`, those that the code names (`mentioned`), and those asked for (`named`).

    Raises:
        InvalidSpec: one of `named` is not set, or describes this machine.
    """
    for name in named:
        if name not in current:
            raise InvalidSpec(f"--env {name}: this kernel has no such environment variable. Set it first: %env {name}=value.")
        if reason := why_it_stays(name):
            raise InvalidSpec(f"--env {name}: {reason}. Set it where the backend starts, or use another name.")
    values, secrets = {}, []
    for name in sorted(current):
        if name in named:
            values[name] = current[name]
        elif (current[name] != initial.get(name) or name in mentioned) and not why_it_stays(name):
            if is_secret(name, current[name]):
                secrets.append(name)
            else:
                values[name] = current[name]
    return EnvironmentChoice(values=values, secrets=tuple(secrets))


def why_it_stays(name: str) -> str | None:
    """The reason why no job may bring this variable along; None where it may."""
    return next((reason for pattern, reason in STAYS if re.fullmatch(pattern, name, re.IGNORECASE)), None)


def is_secret(name: str, value: str) -> bool:
    """Whether a variable looks like a secret, by its name or by a password in its address."""
    return SECRET.search(name.upper()) is not None or PASSWORD_IN_URL.search(value) is not None


@functools.cache
def initial() -> Mapping[str, str]:
    """The environment that this process began with; where the system does not keep it, that of the first call."""
    if sys.platform == "linux":
        try:
            entries = Path("/proc/self/environ").read_bytes().split(b"\0")
        except OSError:
            entries = []
        pairs = (os.fsdecode(entry).partition("=") for entry in entries if b"=" in entry)
        if variables := {name: value for name, _, value in pairs}:
            return variables
    return dict(os.environ)


def of_server(current: Mapping[str, str], initial: Mapping[str, str]) -> dict[str, str]:
    """The local server's environment: the machine's variables as they are now, all others as this process began with them.

    Without another backend's address and token, and without what says how one Python process or one screen behaves.
    """
    staying = {name: value for name, value in current.items() if why_it_stays(name)}
    staying |= {name: value for name, value in initial.items() if not why_it_stays(name)}
    ours_alone = ("AIAAS_TOKEN", "AIAAS_BACKEND")
    dropped = "|".join(OF_ONE_PROCESS)
    return {name: value for name, value in staying.items() if name not in ours_alone and not re.fullmatch(dropped, name, re.IGNORECASE)}
