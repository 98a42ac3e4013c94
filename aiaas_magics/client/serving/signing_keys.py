"""Signing keys: files of private and public keys on this machine.

Owns reading and making the files. What is signed with them belongs to `core.integrity`.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiaas_magics.core import integrity
from aiaas_magics.core.errors import InvalidSpec

MOST_BYTES: Final = 64 * 1024  # guess: a file of a hundred keys has 10 kB


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """A new key pair's public side."""

    public: Path
    fingerprint: str


def make(file: Path) -> KeyPair:
    """Make a key pair: the private key in `file`, which only this account may read, and the public one in `file`.pub.

    Raises:
        InvalidSpec: one of the files is there already, or cannot be written, or `cryptography` is not installed.
    """
    public = file.with_name(file.name + ".pub")
    secret, line = integrity.make_key(file.stem)
    try:
        _write_new(file, secret, 0o600)
        try:
            _write_new(public, line, 0o644)
        except OSError:
            file.unlink()
            raise
    except FileExistsError as error:
        raise InvalidSpec(f"{error.filename} is there already. Give another name, or remove that key yourself.") from error
    except OSError as error:
        raise InvalidSpec(
            f"Could not write {error.filename or file}: {error.strerror}. Give a file in a folder that you may write."
        ) from error
    return KeyPair(public=public, fingerprint=integrity.fingerprint(line.decode()))


def _write_new(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        if hasattr(os, "fchmod"):
            os.fchmod(descriptor, mode)  # whatever the umask
        file.write(data)


def read_private(file: Path) -> bytes:
    """The bytes of a private key.

    Raises:
        InvalidSpec: the file cannot be read, or others may read it.
    """
    data = _read(file)
    with contextlib.suppress(OSError):
        if os.name == "posix" and file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise InvalidSpec(f"Others may read the private key {file}. Run chmod 600 on it, or make another key with `aiaas key FILE`.")
    return data


def read_public(file: Path) -> tuple[str, ...]:
    """The public keys in a file, one per line.

    Raises:
        InvalidSpec: the file cannot be read, or a line is no Ed25519 key.
    """
    return integrity.public_keys(_read(file).decode("utf-8", errors="replace"), str(file))


def _read(file: Path) -> bytes:
    try:
        with file.expanduser().open("rb") as opened:
            return opened.read(MOST_BYTES)
    except OSError as error:
        raise InvalidSpec(f"Could not read {file}: {error.strerror}. Check the path; `aiaas key FILE` makes a key pair.") from error
