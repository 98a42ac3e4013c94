"""Recorded endpoint: what an endpoint can be asked about its recorded traffic.

Owns these methods of `Endpoint`. Tables and references belong to `recorded_requests`, the value of a comparison to `drift`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from msgspec.structs import replace

from aiaas_magics.client.serving import caller_rows, recorded_requests
from aiaas_magics.client.serving.drift import Drift
from aiaas_magics.client.transport import Transport
from aiaas_magics.core.drift.drift_values import DriftReference, DriftReport
from aiaas_magics.core.errors import BackendRefused, DataMismatch
from aiaas_magics.core.recording import RecordingCounts, RecordingPolicy, policy_of
from aiaas_magics.core.spec import EndpointView, RecordingChange

if TYPE_CHECKING:
    import pandas as pd

NO_REFERENCE: Final = (
    "Drift has nothing to compare with, since no data of this model are known here. Give rows with %aiaas_record NAME 1% --reference ARRAY."
)


class RecordedEndpoint(ABC):
    """The part of an `Endpoint` that is about recorded requests."""

    preprocess: Callable[[Any], Any] | None
    _transport: Transport
    _view: EndpointView

    @property
    def name(self) -> str:
        """The endpoint's name."""
        return self._view.name

    @abstractmethod
    def view(self) -> EndpointView:
        """As the backend says now."""

    @abstractmethod
    def _keep(self, view: EndpointView) -> EndpointView: ...

    @abstractmethod
    def _infer(self, columns: Mapping[str, np.ndarray], version: int = 0) -> dict[str, np.ndarray]: ...

    def record(self, policy: str | float | RecordingPolicy, *, reference: Any = None) -> Self:
        """Keep a sample of the requests and answers, from the next one on; or stop to.

        Inputs and outputs are kept as arrays, with the time, the version and the request's id; no header and no token. The files are
        in the backend's state folder, and whoever runs the backend can read them.

        Args:
            policy: the share of the requests as a number from 0 to 1, or "1%", "1%,256MB,7d" (bounds on the size and on the age
                of a request; the oldest make room), or "off". What is recorded already stays until its age; see `forget_recorded`.
            reference: rows as `predict` takes them, for `drift`. Their distribution is kept, and none of the rows. None leaves
                the reference that the version was deployed with.

        Raises:
            InvalidSpec: it is none of these.
            DataMismatch: the reference does not fit the model's inputs.
        """
        view = self.view()
        if not isinstance(policy, RecordingPolicy):
            text = "off" if policy in (0, "off") else policy if isinstance(policy, str) else f"{policy}"
            policy = policy_of(text, view.recording)
        version = view.routing.live if view.routing is not None else 0
        if reference is None:
            return self._change_recording(RecordingChange(policy=policy))
        return self._record_with(policy, reference, "the rows that were given", version)

    def _record_with(self, policy: RecordingPolicy, rows: Any, origin: str, version: int, columns: Sequence[str] = ()) -> Self:
        """Record as `policy` says, with the distribution of `rows` as the reference of a version.

        The endpoint answers these rows itself; what is recorded already pauses for that, since they are no traffic.
        """
        before = self._view.recording
        if before.is_on:
            self._change_recording(RecordingChange(policy=replace(before, share=0.0)))
        try:
            described = self._reference(rows, origin, version, columns)
        except BaseException:
            if before.is_on:
                self._change_recording(RecordingChange(policy=before))
            raise
        return self._change_recording(RecordingChange(policy=policy, reference=described, version=version))

    def _change_recording(self, change: RecordingChange) -> Self:
        self._keep(self._transport.post(f"/v1/endpoints/{self.name}/recording", change, EndpointView))
        return self

    def _reference(self, x: Any, origin: str, version: int, names: Sequence[str]) -> DriftReference:
        """The distribution of rows as `predict` takes them, and of the answers of a version."""
        if self.preprocess is not None and not caller_rows.is_named(x, self._view.inputs):
            x = self.preprocess(x)
        columns = caller_rows.columns(self.name, x, self._view.inputs)
        labels = {self._view.inputs[0].name: tuple(names)} if names else recorded_requests.labels_of(x, self._view.inputs)
        return recorded_requests.reference(columns, origin=origin, labels=labels, predict=lambda rows: self._infer(rows, version))

    def recording(self) -> RecordingCounts:
        """Ask what is recorded: the policy, requests, rows, bytes, the oldest and newest (unix times), and what was not recorded."""
        return self._transport.get(f"/v1/endpoints/{self.name}/recording", RecordingCounts)

    def recorded(self, *, most_bytes: int = 64_000_000) -> pd.DataFrame:
        """Fetch the newest recorded requests, with the backend's token.

        Args:
            most_bytes: how much to fetch, in bytes.

        Returns:
            A line per row of a request, oldest first: `time` (UTC), `version`, `request` (its id), `row`, and the inputs and
            outputs: a column for each number of a row of up to 256, a column of arrays for larger rows such as images. Of a
            request of more than 256 rows a sample of these was kept.

        Raises:
            InvalidSpec: pandas is not installed.
        """
        recorded_requests.pandas()
        data = self._transport.read(f"/v1/endpoints/{self.name}/recorded?most_bytes={most_bytes}")
        return recorded_requests.frame_of(data, self._view.inputs, self._view.outputs)

    def forget_recorded(self) -> None:
        """Remove what is recorded of this endpoint from the backend. Recording itself goes on."""
        self._transport.delete(f"/v1/endpoints/{self.name}/recorded")

    def drift(self, version: int = 0) -> Drift:
        """Compare the recorded inputs and outputs with the data that the version was deployed with.

        Args:
            version: the version's number; 0 is the live one.

        Raises:
            UnknownName: no such version is loaded.
        """
        return Drift(self._transport.get(f"/v1/endpoints/{self.name}/drift", DriftReport, version=version, answer_s=120.0))


def begin_recording(endpoint: RecordedEndpoint, policy: RecordingPolicy, rows: Any, *, columns: Sequence[str] = ()) -> tuple[str, ...]:
    """Record requests of a version that was deployed just now, with the distribution of `rows` as its reference.

    Args:
        columns: names of the columns of `rows`, where these do not say.

    Returns:
        Sentences on what cannot be had.
    """
    version = max(version.version for version in endpoint.view().versions)
    try:
        if policy.is_on and rows is not None:
            endpoint._record_with(policy, rows, "the data of the deployment", version, columns)
            return ()
        why = ""
    except (DataMismatch, BackendRefused) as error:
        why = f" ({error})"
    endpoint._change_recording(RecordingChange(policy=policy))
    return (NO_REFERENCE + why,) if policy.is_on else ()
