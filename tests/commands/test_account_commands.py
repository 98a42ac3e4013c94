"""`aiaas user` and `aiaas token`, as they are typed, against a running server."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result

from aiaas_magics.cli import main
from aiaas_magics.core.accounts import id_of_token
from tests.backend.server.served import Served, served


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("commands") / "state", "--pool", "stub") as server:
        yield server


def run(server: Served, *words: str) -> Result:
    return CliRunner().invoke(main, [*words, "--state", str(server.folder)])


def lines(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def test_a_user_is_added_changed_and_removed(server: Served) -> None:
    (token,) = lines(run(server, "user", "add", "ada", "--role", "viewer", "--group", "lab"))

    assert id_of_token(token)
    assert server.raw("GET", "/v1/jobs", token=token)[0] == 200
    assert lines(run(server, "user", "role", "ada", "user")) == ["ada has the role user."]
    assert lines(run(server, "user", "groups", "ada", "lab", "course")) == ["ada is in lab, course."]
    assert lines(run(server, "user", "quota", "ada", "--devices", "2", "--storage", "20GB")) == [
        "ada: devices=2 storage_bytes=20,000,000,000."
    ]
    assert lines(run(server, "user", "quota", "ada", "--devices", "0")) == ["ada: storage_bytes=20,000,000,000."]
    assert lines(run(server, "user", "list")) == ["ada\tuser\tlab,course\tstorage_bytes=20,000,000,000"]
    assert lines(run(server, "user", "remove", "ada")) == ["Removed ada. The name is not given again."]
    assert server.raw("GET", "/v1/jobs", token=token)[0] == 401


def test_a_token_is_made_listed_rotated_and_revoked(server: Served) -> None:
    run(server, "user", "add", "ben")
    (token,) = lines(run(server, "token", "make", "ben", "--label", "laptop", "--expires", "30d"))
    token_id = id_of_token(token)

    row = next(line for line in lines(run(server, "token", "list", "--user", "ben")) if line.startswith(token_id)).split("\t")

    assert row[1] == "ben"
    assert re.fullmatch(r"expires \d{4}-\d\d-\d\d \d\d:\d\d", row[2])
    assert row[3:] == ["never used", "API", "laptop"]
    (rotated,) = lines(run(server, "token", "rotate", token_id))
    assert server.raw("GET", "/v1/whoami", token=rotated)[0] == 200
    assert lines(run(server, "token", "revoke", token_id)) == [f"Token {token_id} of ben is revoked."]
    assert server.raw("GET", "/v1/whoami", token=token)[0] == 401
    assert token not in run(server, "token", "list").output


def test_the_token_of_the_servers_own_account_is_printed_alone(server: Served) -> None:
    assert lines(run(server, "token")) == [server.token]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("user", "add", "Not A Name"), "cannot name a user"),
        (("user", "role", "nobody", "user"), "There is no user 'nobody'"),
        (("user", "remove", "../jobs"), "There is nothing at this address"),
        (("token", "make", "nobody"), "There is no user 'nobody'"),
        (("token", "make", "nobody", "--expires", "soon"), "is not a time"),
        (("token", "revoke", "nothing"), "There is no token 'nothing'"),
        (("user", "quota", "nobody", "--storage", "much"), "is not a size"),
    ],
    ids=str,
)
def test_what_goes_wrong_is_one_sentence(server: Served, words: tuple[str, ...], text: str) -> None:
    result = run(server, *words)

    assert result.exit_code == 2
    assert text in result.stderr
    assert len(result.stderr.splitlines()) == 1
