"""Stored tokens: the tokens that the user typed once, by the server that they are for.

Owns where they are kept: the keyring of the operating system where the package `keyring` is installed and finds one, else a file of
this account alone. Neither a notebook, nor an output, nor a command line ever holds one. Who asks for a token belongs to `session`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import secrets
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from aiaas_magics.core import settings
from aiaas_magics.core.errors import InvalidSpec

SERVICE: Final = "aiaas_magics"


def find(url: str) -> str:
    """The token that was kept for the server at `url`; "" where there is none."""
    place = _place(url)
    if (keyring := _keyring()) is not None:
        with contextlib.suppress(keyring.errors.KeyringError):
            if token := keyring.get_password(SERVICE, place):
                return str(token)
    return _tokens().get(place, "")


def keep(url: str, token: str) -> str:
    """Keep a token for this and later kernels of this account; where it is now, in words."""
    place = _place(url)
    if (keyring := _keyring()) is not None:
        with contextlib.suppress(keyring.errors.KeyringError):
            keyring.set_password(SERVICE, place, token)
            _write({name: value for name, value in _tokens().items() if name != place})
            return "the system's keyring"
    _write({**_tokens(), place: token})
    return str(_file())


def forget(url: str) -> None:
    """Remove the token that was kept for the server at `url`, if there is one."""
    place = _place(url)
    if (keyring := _keyring()) is not None:
        with contextlib.suppress(keyring.errors.KeyringError):
            keyring.delete_password(SERVICE, place)
    if place in (tokens := _tokens()):
        _write({name: value for name, value in tokens.items() if name != place})


def _keyring() -> Any:
    """The package, if it is installed and has a keyring to write to."""
    try:
        keyring = importlib.import_module("keyring")
    except ImportError:
        return None
    # 0 and less are the ones that store nothing, or in plain text.
    return keyring if keyring.get_keyring().priority > 0 else None


def _file() -> Path:
    return settings.home() / "tokens.json"


def _tokens() -> dict[str, str]:
    file = _file()
    try:
        if hasattr(os, "getuid") and (status := file.stat()).st_mode & 0o077 and status.st_uid == os.getuid():
            raise InvalidSpec(f"Other accounts can read the tokens in {file}. Run `chmod 600` on it, and use new tokens.")
        tokens = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InvalidSpec(f"The tokens in {file} cannot be read ({error}). Fix the file, or delete it.") from error
    return {str(place): str(token) for place, token in tokens.items()} if isinstance(tokens, dict) else {}


def _write(tokens: dict[str, str]) -> None:
    file = _file()
    if not tokens and not file.exists():
        return
    settings.make_private(file.parent)
    fresh = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as token_file:
        json.dump(tokens, token_file)
    fresh.replace(file)


def _place(url: str) -> str:
    """A token goes by the same scheme to the same host and port, and nowhere else."""
    where = urlsplit(url)
    return f"{where.scheme}://{where.hostname}:{where.port or (443 if where.scheme == 'https' else 80)}"
