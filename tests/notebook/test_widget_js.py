"""The widget's ES module, in Node without packages, and its budget."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from playwright._impl._driver import compute_driver_executable

from aiaas_magics.notebook.views.widget import STATIC

pytestmark = pytest.mark.process

LARGEST_BYTES = 15_000  # every widget's state carries the module


def test_the_module_passes_its_own_tests() -> None:
    node, _ = compute_driver_executable()  # the Node.js that Playwright's wheel brings: nothing else to install

    done = subprocess.run(
        [node, "--test", str(Path(__file__).with_name("job_view.test.mjs"))],
        env={**os.environ, "JOB_JS": (STATIC / "job.js").as_uri()},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"pass 12\b", done.stdout), done.stdout


def test_the_module_is_small_and_fetches_nothing() -> None:
    module, style = (STATIC / "job.js").read_text(), (STATIC / "job.css").read_text()

    assert len(module.encode()) + len(style.encode()) < LARGEST_BYTES
    for text in (module, style):
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
        assert not re.search(r"^\s*import\b|@import|innerHTML|fetch\(", text, re.MULTILINE)


def test_the_style_follows_the_theme_and_honours_reduced_motion() -> None:
    style = (STATIC / "job.css").read_text()

    assert "var(--jp-ui-font-color1" in style
    assert "var(--vscode-foreground" in style
    assert "prefers-reduced-motion" in style
