"""Peers in environments of their own, so that none of them decides which versions we have. Kept under `.bench/` in the checkout."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent / ".bench"


def python_of(name: str, requirements: Sequence[str], *, sees_ours: bool = False) -> Path:
    """The interpreter of an environment with `requirements`, made when it is missing or they changed.

    With `sees_ours` it also finds what is installed in this one (TensorFlow, say), after its own.
    """
    folder = ROOT / name
    wanted = hashlib.sha256("\n".join([sys.version, str(sees_ours), *requirements]).encode()).hexdigest()
    mark, python = folder / "requirements.sha256", folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if mark.is_file() and mark.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements], check=True)
    if sees_ours:
        found = subprocess.run(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True, capture_output=True, text=True
        )
        (Path(found.stdout.strip()) / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    mark.write_text(wanted)
    return python
