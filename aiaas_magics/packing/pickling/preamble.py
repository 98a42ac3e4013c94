"""Preamble of a payload: what a worker puts in place before it makes any object of the fit call.

Owns the value and putting it in place. Which variables travel belongs to `environment`, which
texts to `cell_sources`; a preamble is plain texts, and is read without the user's code.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from aiaas_magics.packing.live import cell_sources


@dataclass(frozen=True, slots=True, kw_only=True)
class Preamble:
    """Environment variables by name, and the source text of cells by file name."""

    environment: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    def put_in_place(self) -> None:
        """In a worker only: this changes the process's environment, before TensorFlow has run an operation in it."""
        os.environ.update(self.environment)
        cell_sources.put_sources(self.sources)
