"""Cells that plain Keras runs leave under the magic what they leave plainly, or it is said: other people's, and all pairs of parts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec

import pytest

from aiaas_magics.client import local_server
from tests.notebook.conftest import started
from tests.same_code import product
from tests.same_code.cells import BEFORE, CELLS, Sample
from tests.same_code.library_cells import LIBRARY_CELLS
from tests.same_code.oracle import Oracle, covering, differences, unannounced

ROWS = covering(product.PARTS)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    """Two kernels and a local server of their own, which has the package of the product installed as well."""
    folder = tmp_path_factory.mktemp("as_plain")
    packages, home = folder / "site-packages", folder / "home"
    packages.mkdir()
    (packages / "a_hub.py").write_text(product.PACKAGE)
    home.mkdir()
    before = os.environ["AIAAS_HOME"]
    os.environ["AIAAS_HOME"] = str(home)
    try:
        with ExitStack() as stack:
            plain, ours = (stack.enter_context(contextmanager(started)(folder, packages=packages)) for _ in range(2))
            yield Oracle(plain, ours, folder)
    finally:
        local_server.stop_local()
        os.environ["AIAAS_HOME"] = before


@pytest.mark.nightly
@pytest.mark.parametrize("name", CELLS)
def test_a_cell_of_other_people_leaves_what_it_leaves_plainly(name: str, oracle: Oracle) -> None:
    assert leaves_otherwise(CELLS[name], oracle) == []


@pytest.mark.nightly
@pytest.mark.parametrize("name", LIBRARY_CELLS)
def test_a_model_of_an_installed_library_trains_as_plainly(name: str, oracle: Oracle) -> None:
    assert leaves_otherwise(LIBRARY_CELLS[name], oracle) == []


def leaves_otherwise(sample: Sample, oracle: Oracle) -> list[str]:
    for module in sample.needs:
        if find_spec(module) is None:  # not imported here: KerasHub takes as long as TensorFlow
            pytest.skip(f"needs {module}, which the extra hub installs")
    plain, ours = oracle.run(sample.cell, before=BEFORE + sample.before, after=sample.after, options=sample.options)
    assert sample.fails or plain.error == (), plain.message
    return unannounced(differences(plain, ours), sample.announced, ours)


@pytest.mark.nightly
@pytest.mark.parametrize("row", ROWS, ids=lambda row: ", ".join(row.values()))
def test_each_two_parts_of_a_cell_go_together_as_plainly(row: dict[str, str], oracle: Oracle) -> None:
    plain, ours = oracle.run(**product.cell_of(row))

    assert plain.error == (), "plain Keras runs every cell of the product"
    assert differences(plain, ours) == []
