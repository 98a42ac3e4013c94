"""The examples in docstrings say what happens."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import aiaas_magics

ROOT = Path(aiaas_magics.__file__).parent
EXAMPLE = "\n    >>> "
WITH_EXAMPLES = sorted(path.relative_to(ROOT.parent) for path in ROOT.rglob("*.py") if EXAMPLE in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=str)
def test_the_examples_of_a_module_hold(path: Path) -> None:
    failed, _ = doctest.testmod(import_module(".".join(path.with_suffix("").parts)))

    assert failed == 0
