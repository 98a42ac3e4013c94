"""`python -m tests.nightly.keras_nightly`: what a Keras that we do not support yet would break. A report; it fails nothing.

Makes an environment in `.keras_nightly` with that Keras before all else that this environment has, and runs in it the tests of
private names and some small fits through a real backend. `AIAAS_KERAS` names another one than keras-nightly, as pip reads it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / ".keras_nightly"
KERAS: Final = os.environ.get("AIAAS_KERAS", "keras-nightly")
# In this order: where a name is gone, everything behind it fails for that reason.
TESTS: Final = (
    ("private names", ("tests/packing/test_internals.py",)),
    ("a fit and its result", ("tests/packing/fitcall/test_round_trip.py", "tests/packing/fitcall/test_fit_result.py")),
    ("small fits by workers", ("tests/backend/training/test_attempts.py",)),
)
PYTEST: Final = ("-q", "-p", "no:cacheprovider", "-m", "not nightly", "--tb=no", "-rfE")
MOST_S: Final = 1200  # guess: ten times what they take
SHOWN: Final = 40  # guess: reasons that are read


def main() -> int:
    """0, whatever was found: today's versions are judged elsewhere."""
    python = environment()
    if python is None:
        return 0
    version = re.search(r"^version=(\S+)", output(python, "-c", "import keras; print(f'version={keras.__version__}')"), re.MULTILINE)
    print(f"{KERAS}: Keras {version[1] if version else 'cannot be imported'}")
    for what, files in TESTS:
        report(what, output(python, "-m", "pytest", *PYTEST, *files))
    return 0


def environment() -> Path | None:
    """The interpreter of the environment; None, with a sentence, where that Keras is not to be had."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(FOLDER)], check=True)
    python = FOLDER / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python), "install", "--quiet", "--no-deps", "--pre"]
    installing = subprocess.run([*pip, KERAS], capture_output=True, text=True, check=False)
    if installing.returncode:
        said = installing.stderr.strip().splitlines()[-1:]
        print(f"{KERAS} cannot be installed here, so nothing was tried: {' '.join(said)}")
        return None
    packages = FOLDER / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    # Behind its own packages those of this environment, with what `.pth` files there add.
    (packages / "main.pth").write_text(f"import site; site.addsitedir({sysconfig.get_paths()['purelib']!r})\n")
    return python


def output(python: Path, *arguments: str) -> str:
    """What a program says, with its errors; an endless one is ended."""
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"TF_CPP_MIN_LOG_LEVEL": "3", "COLUMNS": "400"}
    try:
        done = subprocess.run([python, *arguments], cwd=ROOT, env=settings, capture_output=True, text=True, timeout=MOST_S, check=False)
    except subprocess.TimeoutExpired:
        return f"FAILED everything - not done after {MOST_S} s"
    return done.stdout + done.stderr


def report(what: str, said: str) -> None:
    """What broke, each reason once, with one of its tests."""
    reasons: dict[str, list[str]] = {}
    for test, reason in re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - (.*))?$", said, re.MULTILINE):
        reasons.setdefault(reason.strip() or test, []).append(test)
    last = next((line for line in reversed(said.splitlines()) if re.search(r"\d+ (passed|failed|error)", line)), "nothing ran")
    print(f"\n{what}: {last.strip('= ')}")
    for reason, tests in list(reasons.items())[:SHOWN]:
        print(f"  {len(tests)} x {reason[:300]}, in {tests[0]}")
    if len(reasons) > SHOWN:
        print(f"  and {len(reasons) - SHOWN} other reasons")


if __name__ == "__main__":
    sys.exit(main())
