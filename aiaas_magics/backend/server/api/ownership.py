"""Ownership: what of a running server is whose.

Owns the checks behind every route whose path, or body, names a job, a blob or an endpoint. The rules are `identity.callers`'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aiaas_magics.backend.server.conductor import Conductor
from aiaas_magics.backend.server.endpoint_records import Endpoints
from aiaas_magics.backend.server.identity.blob_spaces import BlobSpaces
from aiaas_magics.backend.server.identity.callers import ApiCaller
from aiaas_magics.backend.server.identity.directory import Directory
from aiaas_magics.backend.server.storage.records import JobRecord
from aiaas_magics.core.accounts import qualified
from aiaas_magics.core.errors import InvalidSpec, UnknownName

SHOWN: Final = 100


class Ownership:
    """Asks the parts of one server."""

    def __init__(self, *, conductor: Conductor, endpoints: Endpoints, spaces: BlobSpaces, directory: Directory) -> None:
        self._conductor, self._endpoints, self._spaces, self._directory = conductor, endpoints, spaces, directory

    # ----------------------------------------------------------------- jobs

    def jobs_of(self, caller: ApiCaller) -> list[JobRecord]:
        return [record for record in self._conductor.records() if caller.owns(record.owner)]

    def check_job(self, job: str, caller: ApiCaller) -> None:
        """Raises `UnknownName`, with the caller's own jobs."""
        ids = tuple(record.job.id for record in self.jobs_of(caller))
        if job not in ids:
            raise UnknownName("job", job, ids[-SHOWN:])

    # ----------------------------------------------------------------- blobs

    def check_blob(self, sha: str, caller: ApiCaller) -> None:
        """Raises `UnknownName`."""
        if not self._spaces.has(sha, caller) and all(record.result != sha for record in self.jobs_of(caller)):
            raise UnknownName("blob", sha)

    async def check_blobs(self, names: Sequence[str], caller: ApiCaller) -> None:
        """Raises `UnknownName`, naming the first that the caller has not sent."""
        missing = await self._spaces.missing(names, caller)
        if missing:
            raise UnknownName("blob", missing[0])

    # ----------------------------------------------------------------- endpoints

    def endpoints_of(self, caller: ApiCaller, *, shared: bool) -> list[str]:
        """Names, in order; with those that the caller's groups share."""
        owners = self._endpoints.owners()
        return [name for name, owner in owners.items() if caller.owns(owner.owner) or (shared and caller.sees(owner.owner, owner.groups))]

    def endpoints_owned_by(self, user: str) -> list[str]:
        return [name for name, owner in self._endpoints.owners().items() if owner.owner == user]

    def find_endpoint(self, name: str, caller: ApiCaller, *, shared: bool) -> str:
        """The full name: a user's own endpoints are found by the name that they were deployed with.

        Raises:
            UnknownName: with the names that the caller may know.
        """
        names = self.endpoints_of(caller, shared=shared)
        for full in (qualified(name, caller.user), name):
            if full in names:
                return full
        raise UnknownName("endpoint", name, tuple(names))

    def name_to_deploy(self, name: str, caller: ApiCaller) -> tuple[str, str]:
        """The full name under which the caller deploys, and whose the endpoint will be.

        Raises:
            InvalidSpec: an admin begins something in a user's space.
        """
        owners = self._endpoints.owners()
        if not caller.is_admin:
            return qualified(name, caller.user), caller.user
        if name in owners:
            return name, owners[name].owner
        prefix, dot, _ = name.partition(".")
        if dot and self._directory.role_of(prefix) is not None and prefix != caller.user:
            raise InvalidSpec(f"Names that begin with '{prefix}.' are {prefix}'s. Use another --name.")
        return name, caller.user

    def names_used(self) -> set[str]:
        """What no new user may be called: whose something is already, or with what an endpoint's name begins."""
        owners = self._endpoints.owners()
        names = {record.owner for record in self._conductor.records()} | {owner.owner for owner in owners.values()}
        return names | {name.partition(".")[0] for name in owners if "." in name}
