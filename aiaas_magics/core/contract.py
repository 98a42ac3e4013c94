"""HTTP contract: the small bodies, headers and notes that a client and a server both write down.

Owns these values, and the check that both sides may work together. Large values (jobs, endpoints) belong to `spec`, a kernel's
identity to `process_id`, the encoding to `wire`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from aiaas_magics.core.errors import VersionSkew
from aiaas_magics.core.spec import Versions

NO_OP: Final = "aiaas-no-op"  # header of a prediction: it is read, checked and answered as any other, but nothing is computed
OPENED: Final = "aiaas-opened"  # header of a callback's file: `APPENDED` if callbacks only ever added to it
APPENDED: Final = "appended"
MUST_AGREE: Final = {"python": "Python", "keras": "Keras", "tensorflow": "TensorFlow", "aiaas_magics": "aiaas_magics"}


class Health(msgspec.Struct):
    """Body of GET /v1/health: the server's version of this package."""

    aiaas: str


class BlobQuery(msgspec.Struct):
    """Body of POST /v1/blobs/missing: names of blobs, their SHA-256."""

    blobs: list[str]


class MissingBlobs(msgspec.Struct):
    """Its answer: the names that the server does not have."""

    missing: list[str]


class DroppedFile(msgspec.Struct):
    """Body of POST /v1/blobs/{sha}/adopt: the name of a file in the dropbox."""

    file: str


class ServerNote(msgspec.Struct, frozen=True, kw_only=True):
    """The file server.json in a state folder: which process serves it, where, and of which version."""

    pid: int
    started: int  # see `process_id.start_mark`
    url: str
    version: str = ""


def check_versions(client: Versions, server: Versions) -> None:
    """Python, Keras, TensorFlow and this package must agree up to the second number: objects travel by their inner state.

    Raises:
        VersionSkew: naming the first that differs.
    """
    if difference := client.skew(server, *MUST_AGREE):
        raise VersionSkew(
            MUST_AGREE[difference], getattr(client, difference) or "not installed", getattr(server, difference) or "not installed"
        )
