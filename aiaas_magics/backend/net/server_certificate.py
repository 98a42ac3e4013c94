"""Server certificate: the checks of a certificate, its key and the address to listen on, before a server starts.

Owns the checks. Both servers take the same options.
"""

from __future__ import annotations

import hashlib
import os
import ssl
from pathlib import Path
from typing import Final

from aiaas_magics.core.errors import InvalidSpec
from aiaas_magics.core.server_proof import is_loopback

OTHER_ACCOUNTS: Final = 0o026  # read or write by everybody, write by the group; a group that reads a key is common (ssl-cert)


class _Encrypted(Exception):
    """The key wants a password."""


def check_listening(host: str, certificate: str | Path | None, key: str | Path | None) -> None:
    """Raises `InvalidSpec` for half a pair, and for an address beyond this machine without TLS: the token would cross in the clear."""
    if bool(certificate) != bool(key):
        raise InvalidSpec("TLS needs a certificate and its key. Use both --tls-cert and --tls-key.")
    if not certificate and not is_loopback(host):
        raise InvalidSpec(
            f"--host {host} is reachable from other machines, so the token would travel in clear text. Add --tls-cert and --tls-key."
        )


def check_pair(certificate: Path, key: Path) -> None:
    """Raises `InvalidSpec`, with one sentence, for a pair of PEM files that must not be served with, or cannot be."""
    for flag, path in (("--tls-cert", certificate), ("--tls-key", key)):
        if not path.is_file():
            raise InvalidSpec(f"{flag} {path}: there is no such file. Use the path of a PEM file.")
        if not os.access(path, os.R_OK):
            raise InvalidSpec(f"{flag} {path} is not readable by this account. Use a file that it can read.")
    if os.name == "posix" and key.stat().st_mode & OTHER_ACCOUNTS:
        raise InvalidSpec(f"--tls-key {key} is readable by other accounts on this machine, so it may have leaked. Run chmod 600 {key}.")

    def password() -> str:
        raise _Encrypted

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password)
    except _Encrypted:
        raise InvalidSpec(f"--tls-key {key} is encrypted, and a server cannot ask for its password. Use a key without one.") from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InvalidSpec(f"--tls-key {key} is not the key of --tls-cert {certificate}. Use two files that belong together.") from None
        raise InvalidSpec(
            f"--tls-cert {certificate} and --tls-key {key} cannot be used ({error.reason or error}). Use PEM files of a chain and its key."
        ) from None


def fingerprint(certificate: Path) -> str:
    """SHA-256 of the first certificate in the file, as clients show it."""
    text = certificate.read_text(encoding="ascii")
    begin = text.index("-----BEGIN CERTIFICATE-----")
    end = text.index("-----END CERTIFICATE-----", begin)
    der = ssl.PEM_cert_to_DER_cert(text[begin:end] + "-----END CERTIFICATE-----")
    digest = hashlib.sha256(der).hexdigest().upper()
    return ":".join(digest[place : place + 2] for place in range(0, 64, 2))
