"""Session: the kernel's connection to a backend, and the jobs and endpoints that it has seen there.

Owns the connection (made when first needed), the jobs that this kernel handed in, and the
names that completion offers. What can be asked of a backend belongs to `backend`.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from IPython.core.error import StdinNotImplementedError

from aiaas_magics.core.errors import BackendNotProven, InvalidSpec, NotAuthorised, UnknownName

if TYPE_CHECKING:
    from aiaas_magics.client.backend import Backend
    from aiaas_magics.client.serving.endpoint import Endpoint
    from aiaas_magics.client.training.job import Job
    from aiaas_magics.core.spec import EndpointView, JobView


class Session:
    """One kernel's dealings with backends. Opens no connection before one is needed."""

    def __init__(self) -> None:
        self._backend: Backend | None = None
        self._jobs: dict[str, Job] = {}
        self._settle: dict[str, Callable[[], None]] = {}
        self._names_seen: dict[str, list[str]] = {"job": [], "endpoint": []}
        self.last_job: Job | None = None

    @property
    def backend(self) -> Backend:
        if self._backend is None:
            from aiaas_magics.client.backend import connect

            self._backend = connect()
        return self._backend

    @property
    def is_connected(self) -> bool:
        return self._backend is not None

    def connect(self, url: str | None, *, fingerprint: str = "") -> Backend:
        """Connect anew; asks for a token where a remote backend wants one and AIAAS_TOKEN is not set."""
        from aiaas_magics.client import stored_tokens
        from aiaas_magics.client.backend import connect

        try:
            backend = connect(url, fingerprint=fingerprint)
        except (NotAuthorised, BackendNotProven) as error:
            # A token of before may have been revoked: over plain HTTP that shows in a proof that does not fit it.
            is_of_before = bool(url) and bool(stored_tokens.find(str(url)))
            if os.environ.get("AIAAS_TOKEN") or (isinstance(error, BackendNotProven) and not is_of_before):
                raise
            token = self._asked_token(url or "")
            backend = connect(url, token, fingerprint=fingerprint)
            stored_tokens.keep(backend.url, token)
        self.close()
        self._backend = backend
        return backend

    @staticmethod
    def _asked_token(url: str) -> str:
        try:
            return getpass.getpass(f"Token for {url}: ")
        except StdinNotImplementedError:
            raise NotAuthorised(url) from None

    def close(self) -> None:
        """End the connection; jobs and endpoints go on."""
        if self._backend is not None:
            self._backend.close()
        self._backend = None

    # ---- jobs

    def remember(self, job: Job, settle: Callable[[], None] = lambda: None) -> Job:
        """Keep `job` as the last one; `settle` makes its live view static and is called at most once."""
        self._jobs[job.id] = job
        self._settle[job.id] = settle
        self.last_job = job
        self._note("job", job.id)
        return job

    def settle(self, job: Job) -> None:
        """Make the live view of a background job static, now that the job has ended."""
        self._settle.pop(job.id, lambda: None)()

    def find_job(self, name: str | None) -> Job:
        """The job with this id or name, or whose id begins so; the last one of this kernel without a name.

        A job that this kernel handed in is the very object that holds its model.

        Raises:
            UnknownName, InvalidSpec: with what there is.
        """
        if name is None:
            if self.last_job is None:
                raise InvalidSpec("This kernel has not submitted a job yet. Name one; %aiaas_status lists them.")
            return self.last_job
        if name in self._jobs:
            return self._jobs[name]
        views = self.backend.jobs()
        self.saw_jobs(views)
        view = _matching(name, views)
        if view is None:
            raise UnknownName("job", name, tuple(view.id for view in views[-8:]))
        return self._jobs.get(view.id) or self.backend.job(view.id)

    def find_own(self, job: str) -> Job | None:
        """The job with this id, if it was handed in from this kernel."""
        return self._jobs.get(job)

    # ---- names for completion

    def names_seen(self, kind: str) -> list[str]:
        """Names that this kernel has seen, newest first. Asks nobody."""
        if kind == "backend":
            return [name for name in dict.fromkeys(("local", os.environ.get("AIAAS_BACKEND", ""))) if name]
        return list(reversed(self._names_seen.get(kind, [])))

    def saw_jobs(self, views: list[JobView]) -> None:
        for view in views:
            self._note("job", view.id)

    def saw_endpoints(self, views: list[EndpointView]) -> None:
        self._names_seen["endpoint"] = [view.name for view in views]

    def saw_endpoint(self, endpoint: Endpoint) -> None:
        self._note("endpoint", endpoint.name)

    def _note(self, kind: str, name: str) -> None:
        names = self._names_seen[kind]
        if name in names:
            names.remove(name)
        names.append(name)


def _matching(name: str, views: list[Any]) -> Any:
    """The newest job with this id or name, or the only one whose id begins so."""
    exact = [view for view in views if name in (view.id, view.spec.name)]
    if exact:
        return exact[-1]
    begun = [view for view in views if view.id.startswith(name)]
    return begun[0] if len(begun) == 1 else None
