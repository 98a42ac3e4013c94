"""Integrity: the hashes of a deployment, its signature and the keys that are trusted; the only home of `cryptography`.

Owns the bytes that are signed, signing and verifying (Ed25519, RFC 8032), the form of keys (OpenSSH's, so that `ssh-keygen -t ed25519`
makes them and `ssh-keygen -l` names them) and hashing files. Who must be signed belongs to the server's options and to `endpoint_records`.
The library is imported where a key is used, and nowhere else.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from aiaas_magics.core.errors import BlobDamaged, InvalidSpec, SignatureRefused
from aiaas_magics.core.spec import DeploySpec, Signature, TensorSpec

# What the bytes are, so that a signature made for another purpose with the same key is none of a deployment.
PURPOSE: Final = b"aiaas_magics deployment, version 1\n"
KIND: Final = "ssh-ed25519"
READ_BYTES: Final = 1024 * 1024
MOST_KEYS: Final = 100  # guess: who trusts more has another problem
PIP: Final = "pip install 'aiaas_magics[sign]'"


# --------------------------------------------------------------------------- what is signed


def signed_bytes(spec: DeploySpec, signed_s: int) -> bytes:
    """The canonical bytes of a deployment: its name, the hashes of its files, its format and interface, and the time.

    They hold all that decides which answers callers get. Replicas, rollout and the model card may change later and are not signed.

    Args:
        spec: the deployment.
        signed_s: when it is signed, unix time in seconds.
    """
    precision = spec.precision
    manifest = {
        "name": spec.name,
        "artifact": spec.artefact,
        "samples": spec.samples,
        "format": spec.format,
        "inputs": _interface(spec.inputs),
        "outputs": _interface(spec.outputs),
        "precision": [precision.name, precision.rtol, precision.atol, precision.of_largest],
        "signed_s": signed_s,
    }
    return PURPOSE + msgspec.json.encode(manifest, order="sorted")


def _interface(tensors: Sequence[TensorSpec]) -> list[list[Any]]:
    return [[tensor.name, tensor.dtype, list(tensor.shape), tensor.original] for tensor in tensors]


def signed(spec: DeploySpec) -> dict[str, Any]:
    """Who signed a deployment and when, as fields of `VersionView`. It was verified when it was loaded."""
    signature = spec.signature
    return {} if signature is None else {"signer": fingerprint(signature.key), "signed_s": float(signature.signed_s)}


# --------------------------------------------------------------------------- keys


def make_key(comment: str = "") -> tuple[bytes, bytes]:
    """A new key pair: the private key as OpenSSH writes it, and the line of the public key.

    Raises:
        InvalidSpec: `cryptography` is not installed.
    """
    serialization, ed25519 = _library()
    private = ed25519.Ed25519PrivateKey.generate()
    secret = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    line = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return secret, line + (f" {comment}".encode() if comment else b"") + b"\n"


def public_keys(text: str, source: str) -> tuple[str, ...]:
    """The Ed25519 keys in a file of public keys, one per line, without comments.

    Args:
        text: the file's text: lines as in `authorized_keys`; empty ones and those with # at the beginning are skipped.
        source: what to call the file in an error.

    Raises:
        InvalidSpec: a line is no Ed25519 key, or there is none.
    """
    keys = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] != KIND or len(words) < 2 or _raw_key(f"{KIND} {words[1]}") is None:
            raise InvalidSpec(
                f"Line {number} of {source} is no Ed25519 public key. Give lines that begin with {KIND}, as `aiaas key` makes them."
            )
        keys.append(f"{KIND} {words[1]}")
    if not keys or len(keys) > MOST_KEYS:
        raise InvalidSpec(f"{source} holds {len(keys)} public keys. Give a file with 1 to {MOST_KEYS} lines, as `aiaas key` makes them.")
    return tuple(dict.fromkeys(keys))


def fingerprint(key: str) -> str:
    """The fingerprint of a public key's line, as `ssh-keygen -l` shows it: SHA256:...; "" of what is no key."""
    try:
        blob = base64.b64decode(key.split()[1], validate=True)
    except (IndexError, binascii.Error, ValueError):
        return ""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def _raw_key(key: str) -> bytes | None:
    """The 32 bytes of an Ed25519 key: the blob is two strings with their lengths, the kind and the key (RFC 8709)."""
    head = len(KIND).to_bytes(4, "big") + KIND.encode() + (32).to_bytes(4, "big")
    try:
        blob = base64.b64decode(key.split()[1], validate=True)
    except (IndexError, binascii.Error, ValueError):
        return None
    return blob[len(head) :] if blob.startswith(head) and len(blob) == len(head) + 32 else None


# --------------------------------------------------------------------------- signing, verifying


def sign(spec: DeploySpec, private_key: bytes, source: str, *, signed_s: int) -> Signature:
    """Sign a deployment.

    Args:
        spec: the deployment, with the hashes of its files.
        private_key: an Ed25519 key as OpenSSH or PKCS #8 writes it, without a passphrase.
        source: what to call the key in an error.
        signed_s: unix time in seconds.

    Raises:
        InvalidSpec: it is no such key, or `cryptography` is not installed.
    """
    serialization, ed25519 = _library()
    load = serialization.load_ssh_private_key if b"OPENSSH" in private_key[:64] else serialization.load_pem_private_key
    try:
        private = load(private_key, password=None)
    except (ValueError, TypeError) as error:
        raise InvalidSpec(f"{source} is no private key without a passphrase ({error}). Make one with `aiaas key FILE`.") from error
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise InvalidSpec(f"{source} is no Ed25519 key. Make one with `aiaas key FILE`.")
    line = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    signature = private.sign(signed_bytes(spec, signed_s))
    return Signature(key=line.decode(), signature=base64.b64encode(signature).decode(), signed_s=signed_s)


def verify(spec: DeploySpec, *trusted: Sequence[str]) -> None:
    """Check a deployment's signature, and that its key is in every one of the `trusted` sets that is not empty.

    A signature that is there is verified also where nothing is trusted: a wrong one is never shown as good.

    Raises:
        SignatureRefused: it is not signed, by none of the keys, or for something else.
        InvalidSpec: `cryptography` is not installed.
    """
    demands = [frozenset(keys) for keys in trusted if keys]
    signature = spec.signature
    if signature is None:
        if demands:
            raise SignatureRefused(spec.name, "it is not signed")
        return
    name = fingerprint(signature.key)
    for keys in demands:
        if signature.key not in keys:
            raise SignatureRefused(spec.name, f"its key {name or signature.key[:40]!r} is not among the trusted ones")
    raw = _raw_key(signature.key)
    if raw is None:
        raise SignatureRefused(spec.name, "its key is no Ed25519 key")
    _, ed25519 = _library()
    from cryptography.exceptions import InvalidSignature

    try:
        public = ed25519.Ed25519PublicKey.from_public_bytes(raw)
        public.verify(base64.b64decode(signature.signature, validate=True), signed_bytes(spec, signature.signed_s))
    except (InvalidSignature, binascii.Error, ValueError) as error:
        raise SignatureRefused(spec.name, f"the signature of {name} is not for this artifact, name and interface") from error


def check_files(spec: DeploySpec, artefact: Path, samples: Path) -> None:
    """Check that both files hold the bytes that the deployment names.

    Raises:
        BlobDamaged: one does not.
    """
    for path, sha in ((artefact, spec.artefact), (samples, spec.samples)):
        if path.is_file() and file_hash(path) != sha:  # one that is not there is another fault, with a sentence of its own
            raise BlobDamaged(sha, f"the file that {spec.name} is served from holds other bytes than were deployed")


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def check_library() -> None:
    """Raises `InvalidSpec` if `cryptography` is not installed, so that a server that must verify does not start without it."""
    _library()


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise InvalidSpec(f"Signatures need the library cryptography, which is not installed. Run {PIP}.") from error
    return serialization, ed25519
