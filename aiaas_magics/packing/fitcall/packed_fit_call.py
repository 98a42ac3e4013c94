"""Fit call values: as the user made it, packed for sending, and unpacked in a worker.

Owns the three values. The journeys between them belong to `fit_call`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from aiaas_magics.core.execution import Execution
from aiaas_magics.core.spec import FitShape
from aiaas_magics.core.training_record import DataFingerprint
from aiaas_magics.packing.data import batch_sources
from aiaas_magics.packing.data.batch_shapes import BatchSpec
from aiaas_magics.packing.fitcall.manifest import Manifest
from aiaas_magics.packing.live import attributes
from aiaas_magics.packing.live.model_variables import steps_made


@dataclass(frozen=True, slots=True)
class FitCall:
    """A model and the arguments its `fit` was called with, by name."""

    model: Any
    arguments: Mapping[str, Any]

    @property
    def steps_before(self) -> int:
        """Steps that the model's optimizer has made already; 0 where it does not say."""
        return steps_made(self.model)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFitCall:
    """A fit call ready to be sent, and the live objects that its result will be put into.

    The n-th of `arrays` stands for the n-th placeholder in `payload`; `variables` are
    TensorFlow variables in the order of the result's.
    """

    payload: bytes
    arrays: tuple[np.ndarray, ...]
    manifest: Manifest
    notes: tuple[str, ...]
    shape: FitShape
    memory_bytes: int
    model: Any
    callbacks: tuple[Any, ...]
    variables: tuple[Any, ...]
    paths: tuple[str, ...]
    execution: Execution  # as asked, or without JAX where it cannot be
    streams: tuple[batch_sources.Stream, ...] = ()  # data that this kernel must send batch by batch
    in_batches: bool = False  # some data yields batches instead of holding rows
    sets_environment: bool = False  # variables go along in the payload
    environment_notes: tuple[str, ...] = ()  # which variables go along; `notes` are about results
    datasets: tuple[Any, ...] = ()  # live objects that travel as pickles in the place of arguments
    verbose: Any = "auto"  # as `fit` was given it; workers draw no bar
    inline_data: tuple[DataFingerprint, ...] = ()  # arrays of the arguments that are a part of the payload


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackedFitCall:
    """A fit call in a worker. Arrays that came apart are those given to `unpack`, often read-only.

    Data that yields batches is a `BatchSource` among the arguments.
    """

    model: Any
    arguments: dict[str, Any]
    callbacks: tuple[Any, ...]  # flat, in the order of the kernel's
    variables: tuple[Any, ...]
    paths: tuple[str, ...]
    batch: BatchSpec
    marks: tuple[attributes.Marks, ...] = ()  # of attributes as they came

    @property
    def owners(self) -> list[Any]:
        """The objects whose attributes may come back."""
        sources = batch_sources.in_arguments(self.arguments).values()
        return attributes.owners(self.model, [source.dataset for source in sources if isinstance(source, batch_sources.PickledSource)])
