"""Arguments of a fit call: parsed once, a frozen value from then on.

Owns `FitData` and making it (`normalise`). Whether the model takes this data, and whether it can be cut for workers, belongs to
`fit_checks`; what becomes of it on the way to `fit_call`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from aiaas_magics.core.spec import FitShape
from aiaas_magics.packing.checks import fit_checks
from aiaas_magics.packing.data import batch_shapes, batch_sources
from aiaas_magics.packing.data.batch_shapes import BatchSpec
from aiaas_magics.packing.data.fit_data import plain_arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class FitData:
    """What `fit` was called with, as it travels, and what follows from that alone.

    Of data that yields batches, 0 stands for rows and steps that nobody knows before they have come.
    """

    arguments: Mapping[str, Any]  # without callbacks: numpy arrays, and a `BatchSource` in the place of what yields batches
    callbacks: tuple[Any, ...]  # flat
    x: Any  # as the user gave it
    datasets: tuple[Any, ...]  # the live objects that yield batches, in the order of `batch_sources.PLACES`
    streams: tuple[batch_sources.Stream, ...]  # those that this kernel must send batch by batch
    batch: BatchSpec
    rows: int
    global_batch: int
    steps_per_epoch: int

    @property
    def sources(self) -> dict[str, batch_sources.BatchSource]:
        """What travels in the place of data that yields batches, by argument."""
        return batch_sources.in_arguments(self.arguments)

    @property
    def pickled_datasets(self) -> tuple[Any, ...]:
        """Those of `datasets` that travel as pickles."""
        pickled = [source.dataset for source in self.sources.values() if isinstance(source, batch_sources.PickledSource)]
        return tuple(dataset for dataset in self.datasets if any(dataset is live for live in pickled))

    def shape(self, model: Any) -> FitShape:
        """How much work it is for `model`, which is built."""
        return FitShape(
            rows=self.rows,
            global_batch=self.global_batch,
            steps_per_epoch=self.steps_per_epoch,
            initial_epoch=int(self.arguments.get("initial_epoch") or 0),
            epochs=int(self.arguments.get("epochs", 1)),
            parameters=int(sum(math.prod(variable.shape) for variable in model.weights)),
            model=str(model.name),
        )


def normalise(model: Any, arguments: Mapping[str, Any]) -> FitData:
    """The arguments of `model.fit`, parsed. Nothing is copied: an array stays the very same object.

    Raises:
        TypeError: an argument that `fit` has not, as `fit` would.
        CannotTravel: kinds of data that do not travel, by name.
        DataMismatch: what is no data, or does not fit together.
    """
    plain = plain_arguments(_bound(arguments))
    fit_checks.check_arguments(model, plain)
    callbacks = flat_callbacks(plain.pop("callbacks", None))
    x = arguments["x"]
    datasets, streams = [], []
    for name in batch_sources.PLACES:
        if batch_sources.is_source(dataset := plain.get(name)):
            plain[name], stream = batch_sources.packed(dataset, name, shuffle=name == "x" and bool(plain.get("shuffle", True)))
            datasets.append(dataset)
            streams += [] if stream is None else [stream]
    rows, steps, source = batch_shapes.training_rows(plain), plain.get("steps_per_epoch"), plain["x"]
    if isinstance(source, batch_sources.BatchSource):
        batch, steps = source.batch_rows, steps or source.batches or 0
    else:
        batch = batch_shapes.shape_rows(plain)
        steps = steps or math.ceil(rows / batch)
    return FitData(
        arguments=MappingProxyType(plain),
        callbacks=tuple(callbacks),
        x=x,
        datasets=tuple(datasets),
        streams=tuple(streams),
        batch=batch_shapes.batch_spec(plain),
        rows=rows,
        global_batch=int(batch),
        steps_per_epoch=int(steps),
    )


def flat_callbacks(callbacks: Any) -> list[Any]:
    """The user's callbacks as a flat list, however `fit` was given them."""
    import keras

    from aiaas_magics.core.internals.keras_internals import CallbackList

    if callbacks is None:
        return []
    if isinstance(callbacks, CallbackList):
        set_by_fit = (keras.callbacks.History, keras.callbacks.ProgbarLogger)
        return [callback for callback in callbacks.callbacks if not isinstance(callback, set_by_fit)]
    return [callback for callback in keras.tree.flatten(callbacks) if callback is not None]


def _bound(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`arguments` as `fit` would bind them; raises `TypeError` for an unknown one, as `fit` would."""
    from aiaas_magics.core.internals.keras_internals import TensorFlowTrainer

    signature = inspect.signature(inspect.unwrap(TensorFlowTrainer.fit))
    bound = signature.bind(None, **arguments)
    return {name: value for name, value in bound.arguments.items() if name != "self"}
