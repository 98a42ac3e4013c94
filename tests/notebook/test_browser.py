"""The live view in JupyterLab, in a browser: it moves, it is frozen at the end, and the saved notebook shows everything.

Without Chromium these tests are left out and say so; `.ci/run` installs it where it can.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
START_S = 90.0
CELL_MS = 180_000
RUN_ALL = "() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }"

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed here")]

CELLS = [
    "%load_ext aiaas_magics",
    """
from aiaas_magics.notebook import present
from aiaas_magics.notebook.views.job_panel import LiveJob
from aiaas_magics.plots.history_figure import history_figure
from aiaas_magics.plots.text_twins import history_text
from aiaas_magics.core.spec import JobState
from aiaas_magics.core.story import EpochRow, JobStory, Lane
import time
rows = tuple(EpochRow(epoch=n, seconds=1.0, rows=1000, logs={"loss": 1 / (n + 1), "val_loss": 1.2 / (n + 1)}) for n in range(8))
with LiveJob("widget", title="Job 7 · churn <b>", hint="To stop: interrupt the kernel (■).") as view:
    for n in range(1, 8):
        lanes = tuple(Lane(rank=r, device=f"core {r}", state="training", epoch=n, step=5) for r in range(2))
        story = JobStory(state=JobState.RUNNING, epochs=8, epoch=n, step=5, steps=10, rows=rows[:n], lanes=lanes)
        view.tell(story)
        time.sleep(0.8)
    story = JobStory(state=JobState.SUCCEEDED, epochs=8, epoch=8, rows=rows)
    view.tell(story)
    view.freeze([present.table_bundle(("epoch", "loss"), [("1", "0.5")], caption="Job 7"),
                 present.figure_bundle(history_figure(rows, "Job 7"), history_text(rows))])
""".strip(),
]


PANELS = [
    """
import math, time
from aiaas_magics.core.scaling.endpoint_samples import Sample
from aiaas_magics.core.scaling.load_report import LoadPoint, LoadProgress
from aiaas_magics.notebook.views.endpoint_panel import EndpointPanel, endpoint_picture
from aiaas_magics.notebook.views.live import LiveView
from aiaas_magics.notebook.views.load_panel import LoadPanel, load_picture
def sample(n):
    rate = 800 + 100 * math.sin(n)
    return Sample(at_s=100.0 + n, seconds=1.0, requests_per_s=rate, rows_per_s=rate, failed_per_s=0.0, refused_per_s=0.0, p50_ms=0.7,
                  p99_ms=2.0 + n % 3, wait_ms=0.2, batch_rows=6.4, by_version={1: rate * 0.9, 2: rate * 0.1})
samples = []
def watched():
    return endpoint_picture("churn <b>", tuple(samples), total=12, every_s=1.0, hint="To stop: interrupt the kernel (■).")
with LiveView("widget", EndpointPanel(), watched) as view:
    for n in range(12):
        samples.append(sample(n))
        view.draw(watched)
        time.sleep(0.5)
    view.freeze([{"text/html": "<b>watched</b>", "text/plain": "watched"}])
""".strip(),
    """
points = []
def point(n):
    return LoadPoint(form="json", seconds=1.0, requests=2000, rows=2000, errors={}, requests_per_s=1000.0 * n, rows_per_s=1000.0 * n,
                     p50_ms=0.5, p90_ms=0.8, p99_ms=1.5, p999_ms=3.0, max_ms=9.0, concurrency=n)
with LiveView("widget", LoadPanel(), lambda: load_picture("churn", None)) as view:
    for n in range(1, 6):
        label, waiting = f"{n} connections, json", ("interface alone, json",)
        progress = LoadProgress(label=label, number=n - 1, total=5, points=tuple(points), waiting=waiting)
        view.draw(lambda: load_picture("churn", progress))
        time.sleep(1.0)
        points.append(point(n))
    view.freeze([{"text/html": "<b>measured</b>", "text/plain": "measured"}])
""".strip(),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """JupyterLab on loopback, with a notebook of `CELLS` in its folder: its address with the token, and the notebook."""
    folder = tmp_path_factory.mktemp("lab")
    notebook = folder / "live.ipynb"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for path, texts in ((notebook, CELLS), (folder / "panels.ipynb", PANELS)):
        nbformat.write(nbformat.v4.new_notebook(metadata=kernel, cells=[nbformat.v4.new_code_cell(text) for text in texts]), path)
    token, runtime = secrets.token_hex(16), folder / "runtime"
    environment = {**os.environ, "JUPYTER_RUNTIME_DIR": str(runtime), "JUPYTER_CONFIG_DIR": str(folder / "config"), "JUPYTER_TOKEN": token}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.port=0", "--ip=127.0.0.1", "--allow-root"]
    command += [
        f"--ServerApp.root_dir={folder}",
        "--LabApp.expose_app_in_browser=True",
        "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    with (folder / "lab.log").open("wb") as log, subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log) as process:
        try:
            yield f"{_address(runtime, process)}lab/tree/live.ipynb?reset&token={token}", notebook
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _address(runtime: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        for file in runtime.glob("jpserver-*.json"):
            told = json.loads(file.read_text() or "{}")
            if told.get("url"):
                return str(told["url"])
        time.sleep(0.2)
    raise AssertionError(f"JupyterLab did not start within {START_S} s")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


def opened(browser: Any, address: str, *, scheme: str = "light") -> Page:
    page: Page = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme=scheme)
    page.goto(address)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=90_000)
    kernel = "window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel"
    page.wait_for_function(f"() => {kernel}?.connectionStatus === 'connected' && {kernel}.status === 'idle'", timeout=90_000)
    return page


def command(page: Page, name: str) -> None:
    page.evaluate("name => window.jupyterapp.commands.execute(name)", name)


def test_the_view_moves_is_frozen_and_the_saved_notebook_shows_the_figure(browser: Any, lab: tuple[str, Path]) -> None:
    address, notebook = lab
    page = opened(browser, address)

    page.evaluate(RUN_ALL)
    bar = page.get_by_role("progressbar", name="Job 7 · churn <b>")
    expect(bar).to_be_visible(timeout=CELL_MS)
    first = int(bar.get_attribute("aria-valuenow") or 0)
    moved = f"() => Number(document.querySelector('.aiaas-bar')?.getAttribute('aria-valuenow')) > {first}"
    page.wait_for_function(moved, timeout=CELL_MS)
    expect(page.get_by_text(re.compile(r"epoch \d of 8")).first).to_be_visible(timeout=CELL_MS)
    expect(page.get_by_role("row", name="worker 1")).to_be_visible()
    page.screenshot(path=str(notebook.parent / "live.png"))

    expect(page.locator(".jp-OutputArea img")).to_be_visible(timeout=CELL_MS)
    expect(bar).to_have_count(0)
    command(page, "docmanager:save")
    page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty")
    page.close()

    saved = notebook.read_text(encoding="utf-8")
    assert "widget-view+json" not in saved
    assert "image/png" in saved

    reopened = opened(browser, address)
    picture = reopened.locator(".jp-OutputArea img")
    expect(picture).to_be_visible(timeout=CELL_MS)
    assert picture.evaluate("image => image.naturalWidth") > 500
    expect(reopened.get_by_text("model not found")).to_have_count(0)
    reopened.screenshot(path=str(notebook.parent / "reopened.png"))
    reopened.close()


@pytest.mark.nightly
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_watched_endpoint_and_a_load_run_move_and_leave_no_widget(browser: Any, lab: tuple[str, Path], scheme: str) -> None:
    address, notebook = lab
    page = opened(browser, address.replace("live.ipynb", "panels.ipynb"), scheme=scheme)
    page.evaluate(f"() => window.jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {scheme.title()}'}})")
    page.wait_for_function(f"() => document.body.dataset.jpThemeLight === '{str(scheme == 'light').lower()}'")

    page.evaluate(RUN_ALL)
    watched = page.get_by_role("progressbar", name="Endpoint churn <b>")
    expect(watched).to_be_visible(timeout=CELL_MS)
    expect(page.locator(".aiaas-tile").first).to_contain_text("requests/s", timeout=CELL_MS)
    expect(page.get_by_role("img", name=re.compile("latency: p50"))).to_be_visible(timeout=CELL_MS)
    expect(page.get_by_role("row", name="version 2")).to_be_visible()
    page.screenshot(path=str(notebook.parent / f"endpoint-{scheme}.png"))
    loaded = page.get_by_role("progressbar", name="Endpoint churn under load")
    expect(loaded).to_be_visible(timeout=CELL_MS)
    expect(page.get_by_role("row", name=re.compile("2 connections, json 2,000"))).to_be_visible(timeout=CELL_MS)
    expect(page.get_by_role("img", name=re.compile("by connections"))).to_be_visible(timeout=CELL_MS)
    page.screenshot(path=str(notebook.parent / f"load-{scheme}.png"))

    expect(page.get_by_text("measured", exact=True)).to_be_visible(timeout=CELL_MS)
    expect(watched).to_have_count(0)
    expect(loaded).to_have_count(0)
    page.close()


@pytest.mark.nightly
def test_tab_offers_options_in_the_browser(browser: Any, lab: tuple[str, Path]) -> None:
    address, _ = lab
    page = opened(browser, address)
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-cell'); }")  # the first cell loads the extension
    expect(page.locator(".jp-InputPrompt").first).to_contain_text(re.compile(r"\[\d+\]"), timeout=CELL_MS)
    command(page, "notebook:insert-cell-below")
    command(page, "notebook:enter-edit-mode")

    page.keyboard.type("%%aiaas_train --loc")
    page.keyboard.press("Tab")

    expect(page.locator(".jp-Completer")).to_contain_text("--local-fallback", timeout=30_000)
    page.close()
