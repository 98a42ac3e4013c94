"""A real inference process behind a real server: each user asks their own endpoints, and a token is handed to a caller."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import aiaas_magics
from aiaas_magics.client.backend import Backend
from aiaas_magics.core.errors import UnknownName
from aiaas_magics.core.spec import DeploySpec, EndpointView
from tests.backend.serving.support import serving_models
from tests.contracts.recipes import server_by_hand
from tests.support.waiting import until

pytestmark = pytest.mark.process


@dataclass(frozen=True)
class Team:
    root: Backend
    ada: Backend
    ben: Backend

    def deploy(self, user: Backend, folder: Path, amount: float) -> EndpointView:
        made = serving_models.plus(folder, "churn", amount)
        blobs = {
            field: user.blobs.send_bytes(path.read_bytes()) for field, path in (("artefact", made.artefact), ("samples", made.samples))
        }
        spec = DeploySpec(**{name: getattr(made.spec, name) for name in made.spec.__struct_fields__} | blobs)
        return user.transport.post("/v1/endpoints", spec, EndpointView, answer_s=60)


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    with server_by_hand(folder) as (url, token), aiaas_magics.connect(url, token) as root:
        tokens = []
        for name in ("ada", "ben"):
            root.accounts.add_user(name)
            tokens.append(root.accounts.make_token(name).token)
        with aiaas_magics.connect(url, tokens[0]) as ada, aiaas_magics.connect(url, tokens[1]) as ben:
            yield Team(root, ada, ben)


def ask(view: EndpointView, token: str, *, name: str = "") -> tuple[int, object]:
    where = urlsplit(view.url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=30)
    try:
        path = f"/v1/models/{name or view.name}:predict"
        connection.request("POST", path, json.dumps({"instances": [[1.0]]}), {"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_each_user_asks_their_own_endpoint_by_the_name_that_both_gave(team: Team, tmp_path: Path) -> None:
    ada, ben = team.deploy(team.ada, tmp_path, 1.0), team.deploy(team.ben, tmp_path, 2.0)
    until(lambda: ask(ben, ben.token)[0] == 200, "the grants were not read", wait_s=10)

    assert ask(ada, ada.token) == (200, {"predictions": [[2.0]]})
    assert ask(ben, ben.token) == (200, {"predictions": [[3.0]]})
    assert ask(ada, ben.token)[0] == ask(ada, ben.token, name="nothing")[0] == 404
    assert team.ada.endpoint("churn").predict([[1.0]]).tolist() == [[2.0]], "by the client, which has the process prove itself"
    with pytest.raises(UnknownName):
        team.ben.endpoint("ada.churn")
    assert ask(ada, team.root.endpoint("ada.churn").token)[0] == 200, "an admin's token asks every endpoint"


def test_a_token_that_was_handed_to_a_caller_asks_one_endpoint_until_it_is_revoked(team: Team, tmp_path: Path) -> None:
    view = team.deploy(team.root, tmp_path, 3.0)
    team.root.accounts.add_user("cem", role="admin")
    made = team.root.accounts.make_token("cem", endpoints=["churn"], label="web shop", lives_s=3600)
    until(lambda: ask(view, made.token)[0] == 200, "the grant was not read", wait_s=10)

    assert ask(view, made.token) == (200, {"predictions": [[4.0]]})
    assert ask(view, made.token, name="ada.churn")[0] == 404
    team.root.accounts.revoke_token(made.view.id)
    until(lambda: ask(view, made.token)[0] == 401, "it was not revoked", wait_s=2)
