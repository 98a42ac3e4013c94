"""Backend magics: connect to a backend, show its status and storage, shut the local one down.

Owns their options and requests. The connection belongs to `session`.
"""

from __future__ import annotations

from dataclasses import dataclass

from IPython.core.error import UsageError

from aiaas_magics.notebook import present
from aiaas_magics.notebook.border import Family, magic
from aiaas_magics.notebook.options import option
from aiaas_magics.notebook.views import live


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainRequest:
    help: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageRequest:
    free: bool
    help: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectRequest:
    url: str | None
    fingerprint: str | None
    help: bool


class BackendMagics(Family):
    """The backend itself."""

    @magic(PlainRequest)
    def aiaas_status(self, request: PlainRequest) -> None:
        """Show the backend, its jobs and its endpoints."""
        backend = self.session.backend
        about, jobs, endpoints = backend.about(), backend.jobs(), backend.endpoints()
        self.session.saw_jobs(jobs)
        self.session.saw_endpoints(endpoints)
        live.show(self.shell, [present.status_bundle(about, backend.url, jobs, endpoints, who=backend.whoami())])

    @magic(
        StorageRequest,
        option(
            "--free",
            action="store_true",
            help="Delete what is no longer needed. Unfinished jobs, live endpoints and checkpoints for --resume stay.",
        ),
    )
    def aiaas_storage(self, request: StorageRequest) -> None:
        """Show what the backend's state folder holds, and how much of it can be freed.

        %aiaas_storage --free
        """
        backend = self.session.backend
        freed = backend.free_storage() if request.free else None
        live.show(self.shell, [present.storage_bundle(backend.storage(), freed)])

    @magic(
        ConnectRequest,
        option("url", nargs="?", metavar="URL", values="backend", help="Backend: local, or an address such as https://gpu-box:8443."),
        option(
            "--fingerprint",
            metavar="HEX",
            help="Trust the certificate with this SHA-256 fingerprint from now on, whoever signed it. `aiaas serve` prints it.",
        ),
    )
    def aiaas_connect(self, request: ConnectRequest) -> None:
        """Connect to a backend: local, or a server's address.

        The token comes from AIAAS_TOKEN or from a prompt. It is never an argument, because cells are saved. What you type at the
        prompt is kept for the next time, in the system's keyring or in a file of your account alone.
        """
        backend = self.session.connect(request.url, fingerprint=request.fingerprint or "")
        about = backend.about()
        who = present.connected_as(backend.whoami())
        print(f"Connected to {about.backend} at {backend.url}{who}: {about.hardware}, {len(about.devices)} devices.")

    @magic(PlainRequest)
    def aiaas_shutdown(self, request: PlainRequest) -> None:
        """Stop the local server with its jobs and endpoints. The next magic starts it again."""
        backend = self.session.backend
        if backend.about().backend != "local":
            raise UsageError(f"{backend.name} at {backend.url} is not the local server. Run `aiaas stop` where it runs.")
        backend.stop()
        self.session.close()
        print("The local server has stopped.")
