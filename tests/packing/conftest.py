"""Names that tests of packing take from here; the fixtures `cell` and `worker` stand for all tests, in `tests.support.packed`."""

from __future__ import annotations

from tests.support.packed import Namespace, Worker, run_cell

__all__ = ["Namespace", "Worker", "run_cell"]
