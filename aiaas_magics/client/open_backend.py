"""Open backend: the part of a connection that a fit call on its way needs.

Owns the Protocol. `backend.Backend` keeps it; modules below `training` know no more than this of it.
"""

from __future__ import annotations

from typing import Protocol

from aiaas_magics.client.training.job import Job
from aiaas_magics.client.transport import Transport
from aiaas_magics.client.uploads import BlobSender
from aiaas_magics.core.spec import About, JobView


class OpenBackend(Protocol):
    """A backend that answers. See `Backend` for what each of these promises."""

    transport: Transport
    blobs: BlobSender

    def about(self) -> About: ...

    def job(self, job: str, /) -> Job: ...

    def jobs(self) -> list[JobView]: ...
