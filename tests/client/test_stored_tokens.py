"""Tokens that were typed once: where they are kept, and who reads them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from aiaas_magics.client import stored_tokens
from aiaas_magics.core.errors import InvalidSpec

URL = "https://gpu-box:8443"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIAAS_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(sys.modules, "keyring", None)
    return tmp_path / "home"


def test_a_token_is_kept_in_a_file_of_this_account_alone(home: Path) -> None:
    assert stored_tokens.find(URL) == ""

    where = stored_tokens.keep(URL, "aiaas.one")

    assert where == str(home / "tokens.json")
    assert (home / "tokens.json").stat().st_mode & 0o777 == 0o600
    assert stored_tokens.find(URL) == stored_tokens.find(f"{URL}/") == "aiaas.one"
    for other in ("https://gpu-box:8444", "https://gpu-box", "http://gpu-box:8443", "https://gpu-box.evil.example:8443"):
        assert stored_tokens.find(other) == "", "it goes to its own server only"
    stored_tokens.keep("https://other", "aiaas.two")
    stored_tokens.forget(URL)
    assert (stored_tokens.find(URL), stored_tokens.find("https://other")) == ("", "aiaas.two")
    assert [path.name for path in home.iterdir()] == ["tokens.json"]


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="file modes")
def test_a_file_that_others_can_read_is_refused(home: Path) -> None:
    stored_tokens.keep(URL, "aiaas.one")
    (home / "tokens.json").chmod(0o644)

    with pytest.raises(InvalidSpec, match="Other accounts can read"):
        stored_tokens.find(URL)


class Keyring(ModuleType):
    """What the package offers of itself, kept in a dictionary."""

    def __init__(self, *, priority: float) -> None:
        super().__init__("keyring")
        self.kept: dict[tuple[str, str], str] = {}
        self.errors = SimpleNamespace(KeyringError=KeyError)
        self.get_keyring = lambda: SimpleNamespace(priority=priority)
        self.get_password = lambda service, name: self.kept.get((service, name))
        self.set_password = lambda service, name, token: self.kept.__setitem__((service, name), token)
        self.delete_password = lambda service, name: self.kept.__delitem__((service, name))


def test_the_systems_keyring_comes_first_and_then_no_file_has_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored_tokens.keep(URL, "aiaas.old")
    keyring = Keyring(priority=5)
    monkeypatch.setitem(sys.modules, "keyring", keyring)

    assert stored_tokens.find(URL) == "aiaas.old"
    assert stored_tokens.keep(URL, "aiaas.new") == "the system's keyring"

    assert stored_tokens.find(URL) == "aiaas.new"
    assert "aiaas" not in (home / "tokens.json").read_text()
    stored_tokens.forget(URL)
    assert stored_tokens.find(URL) == ""


def test_a_keyring_that_keeps_nothing_is_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", Keyring(priority=0))

    assert stored_tokens.keep(URL, "aiaas.one") == str(home / "tokens.json")
