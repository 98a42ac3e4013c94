"""A token is typed once: kept for the next kernel, asked for anew when it does not open the door any more."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiaas_magics.client.account_calls import AccountCalls
from aiaas_magics.core.errors import NotAuthorised
from aiaas_magics.notebook import present
from aiaas_magics.notebook.session import Session
from tests.backend.server.served import Served, served


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("AIAAS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("AIAAS_TOKEN", raising=False)
    with served(tmp_path / "state", "--pool", "stub") as server:
        yield server


def test_a_token_is_typed_once_and_again_when_it_was_revoked(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    accounts = AccountCalls(server.transport)
    accounts.add_user("ada")
    first, second = accounts.make_token("ada"), accounts.make_token("ada")
    typed: list[str] = []
    answers = iter([first.token, second.token])

    def type_it(question: str) -> str:
        typed.append(question)
        return next(answers)

    monkeypatch.setattr(getpass, "getpass", type_it)

    def connect() -> str:
        session = Session()
        who = present.connected_as(session.connect(server.url).whoami())
        session.close()
        return who

    assert connect() == connect() == ", as ada (user)"
    assert typed == [f"Token for {server.url}: "]
    accounts.revoke_token(first.view.id)
    assert connect() == connect() == ", as ada (user)"
    assert len(typed) == 2


def test_the_variable_comes_first_and_nothing_is_asked(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIAAS_TOKEN", server.token)
    session = Session()

    assert present.connected_as(session.connect(server.url).whoami()) == "", "the server's own account"

    session.close()
    monkeypatch.setenv("AIAAS_TOKEN", "")

    def nobody_types(_: str) -> str:
        raise NotAuthorised(server.url)

    monkeypatch.setattr(getpass, "getpass", nobody_types)
    with pytest.raises(NotAuthorised):
        Session().connect(server.url)
