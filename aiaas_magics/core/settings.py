"""Settings of this machine: where files are, and the environment's versions.

Owns the reading of environment variables and the choice of the state folder.
Creating the folder and writing into it belongs to `backend.server`.

    AIAAS_HOME      folder for state, instead of the platform's own
    AIAAS_BACKEND   what a notebook is connected to at first: "local" or a URL
    AIAAS_TOKEN     the token for a backend that is not local
    AIAAS_UI        auto | widget | html | text | none
    AIAAS_KEEP_FREE     what is to stay free of the state folder's disk, like 2GB or 10%
    AIAAS_CORS          origins of web pages that may ask it for predictions, with blanks between them
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

from aiaas_magics.core.engines import ENGINES, HOME
from aiaas_magics.core.spec import Versions

KEEP_FREE: Final = "AIAAS_KEEP_FREE"
CORS: Final = "AIAAS_CORS"


def package_version() -> str:
    """The version of this package, as its metadata says; "0" for a checkout that was not installed."""
    return installed_version("aiaas_magics") or "0"


def home() -> Path:
    """The folder for everything that outlives a process; it may not exist yet."""
    if override := os.environ.get("AIAAS_HOME"):
        return Path(override).expanduser().resolve()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_STATE_HOME", Path.home() / ".local" / "state"))
    return base / "aiaas_magics"


def make_private(folder: Path) -> None:
    """Have `folder`; what of its path is missing is made for this account alone, whatever the umask."""
    for part in reversed([folder, *folder.parents]):
        with contextlib.suppress(FileExistsError):
            if not part.is_dir():
                part.mkdir(mode=0o700)
                part.chmod(0o700)  # a umask takes away from what is asked for
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))


def without_tokens(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a server and what it starts: ours, without what speaks of another backend."""
    return {name: value for name, value in environment.items() if name not in {"AIAAS_TOKEN", "AIAAS_BACKEND"}}


def environment_key() -> str:
    """Names this environment: one local server each, so that both sides have the same packages."""
    text = f"{sys.prefix}\n{package_version()}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def local_state() -> Path:
    """The state folder of this environment's local server."""
    return home() / f"local-{environment_key()}"


def bundle_state(folder: Path) -> Path:
    """The state folder of an endpoint that is served from `folder` alone."""
    return home() / f"model-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]}"


def installed_version(distribution: str) -> str:
    """The installed version of a distribution, without importing it; empty when it is not there."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def versions() -> Versions:
    """What runs here, read from metadata: nothing heavy is imported."""
    libraries = {info.name: next(filter(None, map(installed_version, info.packages)), "") for info in ENGINES.values()}
    engines = {name: version for name, version in libraries.items() if version}
    return Versions(
        python=platform.python_version(),
        keras=installed_version("keras"),
        tensorflow=engines.get(HOME.name, ""),
        aiaas_magics=package_version(),
        engines=engines,
    )
