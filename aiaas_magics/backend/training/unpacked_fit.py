"""Unpacked fit call: the protocol of one that has arrived in a worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Unpacked(Protocol):
    """A fit call that has arrived: see `fit_call.UnpackedFitCall`."""

    @property
    def model(self) -> Any: ...
    @property
    def arguments(self) -> Mapping[str, Any]: ...
    @property
    def variables(self) -> Sequence[Any]: ...
    @property
    def paths(self) -> Sequence[str]: ...
    @property
    def callbacks(self) -> Sequence[Any]: ...
