"""Each client in a virtual environment of its own, kept in `.conformance` of the checkout.

Owns making them: of pinned requirements, which name all that is needed, and again when those have
changed. What runs in them belongs to `clients`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / ".conformance"


def python_of(name: str, *, beside_main: bool = False) -> Path:
    """The interpreter of the environment `name`; `beside_main` lets it import what this one has, after its own."""
    requirements = HERE / "requirements" / f"{name}.txt"
    wanted = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    environment = FOLDER / name
    python, made_of = environment / "bin" / "python", environment / "made_of"
    if made_of.is_file() and made_of.read_text() == wanted:
        return python
    shutil.rmtree(environment, ignore_errors=True)
    _run(sys.executable, "-m", "venv", "--without-pip", str(environment))
    # Nothing is resolved: the files are what `pip freeze` said, so that a client is the same tomorrow.
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    _run(*pip, "install", "--quiet", "--no-deps", "-r", str(requirements))
    if beside_main:
        (packages_of(environment) / "main.pth").write_text(sysconfig.get_paths()["purelib"])
    made_of.write_text(wanted)
    return python


def packages_of(environment: Path) -> Path:
    return environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | {"PYTHONPATH": ""})
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
