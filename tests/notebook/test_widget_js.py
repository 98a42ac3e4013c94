"""The widgets' ES modules, in Node without packages, and their budget."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from playwright._impl._driver import compute_driver_executable

from aiaas_magics.notebook.views.panel import STATIC
from aiaas_magics.notebook.views.widget import esm_text

LARGEST_BYTES = 15_000  # every widget's state carries script and style
MODULES = sorted(path.stem for path in STATIC.glob("*.js") if path.stem != "panel")


def test_every_view_has_a_module() -> None:
    assert MODULES == ["endpoint", "job", "load"]


@pytest.mark.process
@pytest.mark.parametrize(("module", "tests"), [("job", 12), ("endpoint", 6), ("load", 6)])
def test_a_module_passes_its_own_tests(module: str, tests: int, tmp_path: Path) -> None:
    node, _ = compute_driver_executable()  # the Node.js that Playwright's wheel brings: nothing else to install
    joined = tmp_path / f"{module}.mjs"
    joined.write_text(esm_text(STATIC / f"{module}.js"), encoding="utf-8")

    done = subprocess.run(
        [node, "--test", str(Path(__file__).with_name(f"{module}_panel.test.mjs"))],
        env={**os.environ, "PANEL_JS": joined.as_uri()},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"pass {tests}\b", done.stdout), done.stdout


@pytest.mark.parametrize("module", MODULES)
def test_a_widget_is_small_and_fetches_nothing(module: str) -> None:
    script, style = esm_text(STATIC / f"{module}.js"), (STATIC / "panel.css").read_text(encoding="utf-8")

    assert len(script.encode()) + len(style.encode()) < LARGEST_BYTES
    for text in (script, style):
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
        assert not re.search(r"^\s*import\b|@import|innerHTML|fetch\(", text, re.MULTILINE)


def test_the_style_follows_the_theme_and_honours_reduced_motion() -> None:
    style = (STATIC / "panel.css").read_text(encoding="utf-8")

    assert "var(--jp-ui-font-color1" in style
    assert "var(--vscode-foreground" in style
    assert "prefers-reduced-motion" in style
