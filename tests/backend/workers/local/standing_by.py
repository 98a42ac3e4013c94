"""A scripted worker that can be made ready before it has a command, as the real one can."""

from __future__ import annotations

import os
from collections.abc import Sequence

from aiaas_magics.testing.scripted_worker import main as main


def make_ready(cores: Sequence[int]) -> None:
    if 7 in cores:
        os._exit(1)
