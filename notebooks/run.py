"""Executes notebooks headless, and turns them into pages.

    python -m notebooks.run notebooks/01_quickstart.ipynb --html build/quickstart.html
    python -m notebooks.run notebooks/*.ipynb --in-place

Owns execution and the checks that every committed notebook must pass: no error, no widget
state, every figure with a text twin. Used by `make demo`, `make notebooks` and the tests.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

CELL_TIMEOUT_S = 600
# What would only be noise on a page: TensorFlow's start-up lines, and Keras' advice against the article's `input_dim`.
# TensorFlow writes some of them before it reads the level.
START_UP = re.compile(
    r"((WARNING: All log messages before absl|WARNING:tensorflow:\d+ out of the last|[IWE]0000 |To enable the following).*\n?)+"
)
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore:Do not pass an `input_shape`:UserWarning"}


def execute(notebook: NotebookNode, *, folder: Path, timeout_s: int = CELL_TIMEOUT_S) -> NotebookNode:
    """Run every cell of `notebook` in a fresh kernel whose working directory is `folder`; outputs are put in place."""
    client = NotebookClient(
        notebook,
        timeout=timeout_s,
        kernel_name="python3",
        store_widget_state=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env={**os.environ, **QUIET})
    for cell in notebook.cells:
        cell.get("metadata", {}).pop("execution", None)  # times of day: noise in a diff
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not START_UP.fullmatch(output.get("text", ""))]
    notebook.metadata.pop("widgets", None)
    return notebook


def faults(notebook: NotebookNode) -> list[str]:
    """What a committed notebook must not have, one sentence each."""
    found = []
    if "widgets" in notebook.metadata:
        found.append("the notebook stores widget state")
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if output.output_type == "error":
                found.append(f"cell {number} raised {output.ename}: {output.evalue[:200]}")
            if "application/vnd.jupyter.widget-view+json" in data:
                found.append(f"cell {number} holds a widget that is dead in a static viewer")
            if "image/png" in data and len(data.get("text/plain", "")) < 20:
                found.append(f"cell {number} shows a figure without a text twin")
            if output.output_type == "stream" and "\b" in output.text:
                found.append(f"cell {number} prints backspaces")
    return found


@contextmanager
def own_state() -> Iterator[Path]:
    """A state folder for this run alone; its server is stopped at the end, and nothing of the user's is touched."""
    folder = Path(tempfile.mkdtemp(prefix="aiaas-"))
    before = os.environ.get("AIAAS_HOME")
    os.environ["AIAAS_HOME"] = str(folder)
    try:
        yield folder
    finally:
        from aiaas_magics.client import local_server

        local_server.stop_local()
        if before is None:
            del os.environ["AIAAS_HOME"]
        else:
            os.environ["AIAAS_HOME"] = before
        shutil.rmtree(folder, ignore_errors=True)


def save_figures(notebook: NotebookNode, stem: str, folder: Path) -> None:
    """The figures of an executed notebook as PNG files, numbered in order; the README shows them."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [
        output.data["image/png"] for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    for number, picture in enumerate(pictures, 1):
        (folder / f"{stem}-{number}.png").write_bytes(base64.b64decode(picture))


def page_of(notebook: NotebookNode) -> str:
    from nbconvert import HTMLExporter

    page, _ = HTMLExporter().from_notebook_node(notebook)
    return str(page)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--in-place", action="store_true", help="store the outputs in the notebooks")
    parser.add_argument("--figures", type=Path, help="write the notebooks' figures into this folder")
    parser.add_argument("--html", type=Path, help="write the executed notebook as a page")
    wanted = parser.parse_args()
    bad = 0
    with own_state(), tempfile.TemporaryDirectory(prefix="aiaas-notebook-") as folder:
        for path in wanted.notebooks:
            began = time.monotonic()
            print(f"{path}: running ...", flush=True)
            notebook = execute(nbformat.read(path, as_version=4), folder=Path(folder))
            for fault in faults(notebook):
                bad += 1
                print(f"{path}: {fault}", file=sys.stderr)
            print(f"{path}: done in {time.monotonic() - began:.0f} s")
            if wanted.in_place:
                nbformat.write(notebook, path)
            if wanted.figures:
                save_figures(notebook, path.stem, wanted.figures)
            if wanted.html:
                wanted.html.parent.mkdir(parents=True, exist_ok=True)
                wanted.html.write_text(page_of(notebook), encoding="utf-8")
                print(f"\nThe rendered page is {wanted.html.resolve()}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
