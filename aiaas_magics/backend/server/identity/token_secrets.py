"""Token secrets: makes users' tokens, and the hashes by which they are known.

Owns the form, the key and the arithmetic; what a token opens belongs to `directory`.

A token is `aiaas.ID.SECRET`. The ID finds its record by one look-up, so that no time tells how much of a guess was right; the
SECRET has 256 random bits, so a slow hash (scrypt) would protect nothing and cost 50 ms or more of every first request. The
record keeps HMAC-SHA256 of the whole token under a key that lies outside the records, in a 0600 file: whoever can write into
the records alone (a copy, a backup, an injection) makes no token that opens anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
import string
from pathlib import Path
from typing import Final

from aiaas_magics.backend.folders.small_files import write_private
from aiaas_magics.core.accounts import id_of_token
from aiaas_magics.core.errors import InvalidSpec

KEY_BYTES: Final = 32
ID_CHARACTERS: Final = 12
ALPHABET: Final = string.ascii_lowercase + string.digits


def server_key(state: Path) -> bytes:
    """The key of the state folder `state`, made when there is none.

    Raises:
        InvalidSpec: the file holds no key. Without the right one every token is worthless.
    """
    file = state / "token_key"
    with contextlib.suppress(FileNotFoundError):
        key = file.read_bytes()
        if len(key) != KEY_BYTES:
            raise InvalidSpec(f"{file} does not hold the {KEY_BYTES} bytes of a key. Restore it, or delete it and make all tokens anew.")
        file.chmod(0o600)
        return key
    key = secrets.token_bytes(KEY_BYTES)
    write_private(file, key, durable=True)
    return key


def new_token() -> str:
    token = f"aiaas.{''.join(secrets.choice(ALPHABET) for _ in range(ID_CHARACTERS))}.{secrets.token_urlsafe(32)}"
    assert id_of_token(token)
    return token


def fake_proof_key(token_id: str, key: bytes) -> bytes:
    """Proves nothing, for a token that there is not: the answer looks like any other, and is the same each time."""
    return hmac.new(key, b"no such token|" + token_id.encode(), hashlib.sha256).digest()
