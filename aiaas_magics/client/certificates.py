"""Certificates: which certificates a client believes, and what it says about the others.

Owns the pins (fingerprints that the user has accepted, by host and port, in a file of the state folder), the TLS settings that follow, and
the sentence behind the TLS library's errors. Connections are opened in `connections`, and by the load generator.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from aiaas_magics.core import settings
from aiaas_magics.core.errors import AiaasError, CertificateChanged, CertificateRefused, InvalidSpec, WrongProtocol

AUTHORITY: Final = "AIAAS_CA"
FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
LOOK_S: Final = 3.0  # guess: it has just answered
# OpenSSL's numbers (x509_vfy.h), which `ssl.SSLCertVerificationError.verify_code` gives.
WHY: Final = {
    9: "it is not valid yet; is this machine's clock right?",
    10: "it has expired",
    18: "it is signed by itself, and nobody here vouches for it",
    19: "it is signed by an authority of its own, which is not known here",
    20: "it is signed by an authority that is not known here",
    21: "it is signed by an authority that is not known here",
    62: "it is for another host name",
    64: "it is for another address",
}
NOT_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE", "PACKET_LENGTH_TOO_LONG"})


def fingerprint_of(der: bytes) -> str:
    """As `openssl x509 -fingerprint -sha256` writes it."""
    digest = hashlib.sha256(der).hexdigest().upper()
    return ":".join(digest[place : place + 2] for place in range(0, 64, 2))


def checked_fingerprint(text: str) -> str:
    """`text` in that form; with colons or without, in any case.

    Raises:
        InvalidSpec: it is none.
    """
    digits = text.replace(":", "").lower()
    if not FINGERPRINT.fullmatch(digits):
        raise InvalidSpec(f"{text[:100]!r} is not a SHA-256 fingerprint. Use the 64 hexadecimal digits that `aiaas serve` prints there.")
    return ":".join(digits.upper()[place : place + 2] for place in range(0, 64, 2))


# --------------------------------------------------------------------------- pins


def pinned(url: str) -> str:
    """The fingerprint that the user has accepted for the server at `url`; "" where there is none."""
    return _pins().get(_place(url), "")


def pin(url: str, fingerprint: str) -> None:
    """Accept the certificate with this fingerprint for the server at `url`, in this and later kernels of this account."""
    file = _file()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as pin_file:
        json.dump({**_pins(), _place(url): fingerprint}, pin_file)
    fresh.replace(file)


def _file() -> Path:
    return settings.home() / "pins.json"


def _pins() -> dict[str, str]:
    try:
        pins = json.loads(_file().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        # A pin that cannot be read must not turn into "first use".
        raise InvalidSpec(f"The accepted fingerprints in {_file()} cannot be read ({error}). Fix the file, or delete it.") from error
    return {str(place): str(print_) for place, print_ in pins.items()} if isinstance(pins, dict) else {}


def _place(url: str) -> str:
    where = urlsplit(url)
    return f"{where.hostname}:{where.port or 443}"


# --------------------------------------------------------------------------- TLS


def settings_for(fingerprint: str, authority: str = "") -> ssl.SSLContext | None:
    """TLS that believes `fingerprint` alone (to be compared by `check` after the handshake), or the authority in the file `authority`.

    None where neither is given: then the library's own authorities count.

    Raises:
        InvalidSpec: there is no such file, or no certificate in it.
    """
    if fingerprint:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    if not authority:
        return None
    try:
        return ssl.create_default_context(cafile=authority)
    except ssl.SSLError as error:
        raise InvalidSpec(f"{AUTHORITY}={authority[:200]}: there is no certificate in that file. Use a PEM file, or unset it.") from error
    except OSError as error:
        raise InvalidSpec(f"{AUTHORITY}={authority[:200]}: {error.strerror}. Use the path of a PEM file, or unset the variable.") from error


def check(connection: Any, url: str, fingerprint: str) -> None:
    """Compare the other end's certificate; `connection` is what has `getpeercert`.

    Raises:
        CertificateChanged: it is another one.
    """
    presented = fingerprint_of(connection.getpeercert(True) or b"")
    if presented != fingerprint:
        raise CertificateChanged(url, fingerprint, presented)


def refusal(error: BaseException, url: str) -> AiaasError | None:
    """What a failed connection to `url` means, where TLS is the reason."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        why = WHY.get(cause.verify_code, cause.verify_message or "it cannot be checked")
        return CertificateRefused(url, why, _seen_at(url))
    if isinstance(cause, ssl.SSLError) and (cause.reason or "") in NOT_TLS:
        return WrongProtocol(url, "no TLS")
    return None


def speaks_tls(host: str, port: int) -> bool:
    """Whether a TLS server answers there. Nothing is sent but the beginning of a handshake."""
    return bool(_certificate_at(host, port))


def _seen_at(url: str) -> str:
    where = urlsplit(url)
    certificate = _certificate_at(where.hostname or "", where.port or 443)
    return fingerprint_of(certificate) if certificate else ""


def _certificate_at(host: str, port: int) -> bytes:
    context = settings_for(fingerprint="any")
    assert context is not None
    with (
        suppress(OSError),
        socket.create_connection((host, port), LOOK_S) as plain,
        context.wrap_socket(plain, server_hostname=host) as encrypted,
    ):
        return encrypted.getpeercert(True) or b""
    return b""


def valid_until_s(url: str) -> float:
    """When the certificate that is shown at `url` ends (unix time), whoever signed it.

    Raises:
        ssl.SSLCertVerificationError: it has ended, or does not hold yet.
        OSError: nobody answers with TLS there.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 443
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    certificate = _certificate_at(host, port)
    if not certificate:
        raise OSError("nobody answers with TLS there")
    context.load_verify_locations(cadata=certificate)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    with socket.create_connection((host, port), timeout=LOOK_S) as raw, context.wrap_socket(raw) as connection:
        shown = connection.getpeercert() or {}
    return float(ssl.cert_time_to_seconds(str(shown["notAfter"])))
