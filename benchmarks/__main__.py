"""Runs every benchmark, each in a process of its own: `python -m benchmarks [NAME...]`."""

from __future__ import annotations

import subprocess
import sys

ALL = ("start", "blobs", "training", "scaling", "workers", "serving_start", "serving", "recording", "trust", "trust_private")

if __name__ == "__main__":
    wanted = sys.argv[1:] or ALL
    codes = []
    for name in wanted:
        print(f"{name}:", flush=True)
        codes.append(subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode)
    codes.append(subprocess.run([sys.executable, "-m", "benchmarks.page"], check=False).returncode)
    sys.exit(max(codes))
