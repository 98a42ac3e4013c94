"""The notebooks run from top to bottom, and what is committed shows in a static viewer."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from notebooks.run import execute, faults, page_of
from tests.support import lanes

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", lanes.thinned(NOTEBOOKS, keep=lambda path: path.stem == "01_quickstart"), ids=lambda path: path.stem)
def test_a_notebook_runs_and_keeps_only_what_shows_everywhere(path: Path, tmp_path: Path) -> None:
    notebook = execute(nbformat.read(path, as_version=4), folder=tmp_path)

    assert faults(notebook) == []
    assert "image/png" in {kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})}
    assert "<img" in page_of(notebook)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_has_its_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]

    assert faults(notebook) == []
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs) >= 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_holds_no_secret_and_no_path_of_a_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    folders = [f"/{name}/" for name in ("home", "root", "tmp")]
    assert not [word for word in (*folders, "Bearer ey") if word in text]
