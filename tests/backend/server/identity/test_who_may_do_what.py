"""Route x role x owner: every route of the API, asked by everybody, against one table."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from aiaas_magics.backend.server.api.api_app import routes
from aiaas_magics.client.transport import Transport
from aiaas_magics.core import settings
from aiaas_magics.core.accounts import EndpointSharing, MadeToken, NewToken, Role, UserChange, UserView
from aiaas_magics.core.errors import UnknownName
from aiaas_magics.core.model_card import ModelCard
from aiaas_magics.core.process_id import ProcessId
from aiaas_magics.core.recording import RecordingPolicy
from aiaas_magics.core.routing import Change, Scaling
from aiaas_magics.core.spec import DeploySpec, EndpointView, FitSpec, JobView, RecordingChange, TensorSpec
from tests.backend.server.served import SHAPE, Served, served

TENSOR = TensorSpec(name="x", dtype="float32", shape=(-1, 3))
NOWHERE = {"job": "999", "sha": "0" * 64, "name": "nothing", "user": "nobody", "token": "0" * 12}


@dataclass(frozen=True)
class Row:
    """A route: the least role, what its path names, and what the owner (or, of a path without one, anybody who may) reads."""

    line: str
    role: Role | None
    names: str = ""  # "job", "blob", "endpoint", or nothing
    status: int = 200
    body: str = ""
    shared: bool = False  # whether a member of the group may, too


TABLE = [
    Row("GET /v1/health", None),
    Row("GET /v1/about", Role.VIEWER),
    Row("GET /v1/whoami", Role.VIEWER),
    Row("POST /v1/kernels", Role.ADMIN, status=204, body="kernel"),
    Row("POST /v1/blobs/missing", Role.USER, body="query"),
    Row("PUT /v1/blobs/{sha}", Role.USER, status=201, body="bytes"),
    Row("GET /v1/blobs/{sha}", Role.VIEWER, "blob"),
    Row("POST /v1/blobs/{sha}/adopt", Role.ADMIN, status=400, body="dropped"),
    Row("POST /v1/jobs", Role.USER, status=201, body="fit"),
    Row("GET /v1/jobs", Role.VIEWER),
    Row("GET /v1/jobs/{job}", Role.VIEWER, "job"),
    Row("GET /v1/jobs/{job}/events", Role.VIEWER, "job"),
    Row("POST /v1/jobs/{job}/cancel", Role.USER, "job"),
    Row("GET /v1/jobs/{job}/checkpoint", Role.VIEWER, "job", status=400),
    Row("GET /v1/jobs/{job}/feed/x", Role.USER, "job"),
    Row("PUT /v1/jobs/{job}/feed/x/0/0", Role.USER, "job", body="bytes"),
    Row("GET /v1/jobs/{job}/files/a.txt", Role.VIEWER, "job"),
    Row("GET /v1/jobs/{job}/figures/1/1", Role.VIEWER, "job", status=404),
    Row("POST /v1/endpoints", Role.USER, status=201, body="deployment"),
    Row("GET /v1/endpoints", Role.VIEWER),
    Row("GET /v1/endpoints/{name}", Role.VIEWER, "endpoint", shared=True),
    Row("POST /v1/endpoints/{name}/routing", Role.USER, "endpoint", body="change"),
    Row("POST /v1/endpoints/{name}/replicas", Role.USER, "endpoint", body="scaling"),
    Row("POST /v1/endpoints/{name}/groups", Role.USER, "endpoint", body="sharing"),
    Row("GET /v1/endpoints/{name}/cards/1", Role.VIEWER, "endpoint", shared=True),
    Row("PUT /v1/endpoints/{name}/cards/1", Role.USER, "endpoint", status=204, body="card"),
    Row("POST /v1/endpoints/{name}/recording", Role.USER, "endpoint", body="recording"),
    Row("GET /v1/endpoints/{name}/recording", Role.USER, "endpoint"),
    Row("GET /v1/endpoints/{name}/recorded", Role.USER, "endpoint"),
    Row("GET /v1/endpoints/{name}/drift", Role.USER, "endpoint"),
    Row("DELETE /v1/endpoints/{name}/recorded", Role.USER, "endpoint", status=204),
    Row("DELETE /v1/endpoints/{name}", Role.USER, "endpoint", status=204),
    Row("GET /v1/storage", Role.ADMIN),
    Row("POST /v1/storage/free", Role.ADMIN),
    Row("GET /v1/users", Role.ADMIN),
    Row("POST /v1/users", Role.ADMIN, status=400, body="user"),  # the name is taken
    Row("POST /v1/users/{user}", Role.ADMIN, status=404, body="user change"),
    Row("DELETE /v1/users/{user}", Role.ADMIN, status=404),
    Row("GET /v1/tokens", Role.VIEWER),
    Row("POST /v1/tokens", Role.USER, status=404, body="token"),  # its endpoint is nobody's
    Row("POST /v1/tokens/{token}/revoke", Role.VIEWER, status=404),
    Row("POST /v1/tokens/{token}/rotate", Role.VIEWER, status=404),
    Row("POST /v1/stop", Role.ADMIN, status=202),
]
STOP = "POST /v1/stop"


class Actor:
    """A user with something of each kind."""

    def __init__(self, server: Served, name: str, groups: tuple[str, ...]) -> None:
        self.name, self._server = name, server
        server.transport.post("/v1/users", UserView(name=name, role=Role.USER, groups=groups), UserView)
        self.token = server.transport.post("/v1/tokens", NewToken(user=name), MadeToken).token
        with Transport(server.url, token=self.token) as own:
            self.blob = self.put(own, f"the data of {name}".encode())
            payload = self.put(own, json.dumps([{"do": "write", "path": "a.txt", "text": name}]).encode())
            self.spec = FitSpec(
                name="scripted", payload=payload, arrays=(self.blob,), workers=1, shape=SHAPE, versions=settings.versions(), seed=1
            )
            self.job = own.post("/v1/jobs", self.spec, JobView, key="the same key for all").id
            self.samples = self.put(own, b"samples")
            self.endpoint = self.deploy(own, "churn")
            self.shared = self.deploy(own, "shared")
            own.post(f"/v1/endpoints/{self.shared}/groups", EndpointSharing(groups=groups), EndpointView)
        self.deployment = self._deployment("churn")

    @staticmethod
    def put(own: Transport, data: bytes) -> str:
        sha = hashlib.sha256(data).hexdigest()
        own.upload(f"/v1/blobs/{sha}", [data], size=len(data))
        return sha

    def _deployment(self, name: str) -> DeploySpec:
        return DeploySpec(
            name=name,
            artefact=self.blob,
            format="onnx",
            samples=self.samples,
            inputs=(TENSOR,),
            outputs=(TENSOR,),
            card=ModelCard(name=name),
        )

    def deploy(self, own: Transport, name: str) -> str:
        return own.post("/v1/endpoints", self._deployment(name), EndpointView).name

    def things(self) -> dict[str, str]:
        return {"job": self.job, "sha": self.blob, "name": self.endpoint}

    def body(self, kind: str) -> bytes | None:
        made: dict[str, object] = {
            "kernel": ProcessId(pid=1, started=1),
            "query": {"blobs": [self.blob]},
            "dropped": {"file": "x"},
            "fit": self.spec,
            "deployment": self.deployment,
            "change": Change(action="label", label="prod", version=1),
            "scaling": Scaling(replicas=1),
            "sharing": EndpointSharing(groups=()),
            "card": ModelCard(name="churn"),
            "recording": RecordingChange(policy=RecordingPolicy(share=0.5)),
            "user": UserView(name=self.name, role=Role.USER),
            "user change": UserChange(role=Role.USER),
            "token": NewToken(user=self.name, endpoints=("nothing",)),
        }
        if kind == "bytes":
            return f"the data of {self.name}".encode()
        return msgspec.json.encode(made[kind]) if kind else None

    def ask(self, row: Row, things: dict[str, str], token: str | None = None) -> tuple[int, bytes]:
        method, _, path = row.line.partition(" ")
        status, body, _ = self._server.raw(
            method, path.format(**(NOWHERE | things)), self.body(row.body), token=self.token if token is None else token
        )
        return status, body


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("roles") / "state") as server:
        yield server


@pytest.fixture(scope="module")
def other(server: Served) -> Actor:
    other = Actor(server, "other", ("team",))
    server.end(other.job)
    return other


@pytest.fixture(scope="module", params=list(Role))
def actor(server: Served, other: Actor, request: pytest.FixtureRequest) -> Actor:
    """A user of each role, who got what is theirs while they had a role that may."""
    actor = Actor(server, f"own-{request.param}", ("team",))
    server.end(actor.job)
    server.transport.post(f"/v1/users/{actor.name}", UserChange(role=request.param), UserView)
    return actor


def role_of(actor: Actor) -> Role:
    return Role(actor.name.removeprefix("own-"))


def test_the_table_has_every_route_and_no_other() -> None:
    def plain(path: str) -> str:
        path = re.sub(r":\w+}", "}", path)
        return (
            path.replace("{number}/{index}", "0/0")
            .replace("feed/{name}", "feed/x")
            .replace("{path}", "a.txt")
            .replace("{attempt}/{number}", "1/1")
            .replace("cards/{version}", "cards/1")
        )

    lines = [f"{method} {plain(route.path)}" for route in routes() for method in (route.methods or set()) - {"HEAD"}]

    assert sorted(lines) == sorted(row.line for row in TABLE)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.line)
def test_a_stranger_may_ask_for_the_health_and_nothing_else(server: Served, other: Actor, row: Row) -> None:
    assert other.ask(row, other.things(), token="")[0] == (200 if row.role is None else 401)


@pytest.mark.parametrize("row", [row for row in TABLE if row.line != STOP], ids=lambda row: row.line)
def test_what_is_ones_own_takes_the_role_and_no_more(actor: Actor, other: Actor, row: Row) -> None:
    status, body = actor.ask(row, actor.things())

    if row.role is not None and not role_of(actor).includes(row.role):
        assert (status, msgspec.json.decode(body)["type"]) == (403, "RoleTooLow")
    else:
        assert status == row.status, body
    if row.line.startswith("DELETE /v1/endpoints") and status == 204:
        actor.ask(next(row for row in TABLE if row.body == "deployment"), {})


@pytest.mark.parametrize("row", [row for row in TABLE if row.names], ids=lambda row: row.line)
def test_what_is_anothers_is_answered_as_what_does_not_exist(server: Served, actor: Actor, other: Actor, row: Row) -> None:
    role = role_of(actor)
    if role is Role.ADMIN:
        assert actor.ask(row, other.things())[0] == row.status, "everything is an admin's"
        if row.line.startswith("DELETE"):
            with Transport(server.url, token=other.token) as own:
                other.deploy(own, "churn")
        return
    theirs, nothing = actor.ask(row, other.things()), actor.ask(row, NOWHERE)

    if not role.includes(row.role or Role.VIEWER):
        assert theirs[0] == nothing[0] == 403
        return
    assert theirs[0] == nothing[0] == 404
    # Both answers are the same function of what was asked and of what is one's own.
    for (_, body), things in ((theirs, other.things()), (nothing, NOWHERE)):
        refusal = msgspec.json.decode(body)
        kind, asked, own = refusal["args"]
        assert (refusal["type"], kind, asked) == ("UnknownName", row.names, things[{"job": "job", "blob": "sha", "endpoint": "name"}[kind]])
        assert own == msgspec.json.decode(nothing[1])["args"][2]
        assert refusal["error"] == str(UnknownName(kind, asked, own))
        assert set(refusal) == {"error", "type", "args"}


@pytest.mark.parametrize("row", [row for row in TABLE if row.names == "endpoint"], ids=lambda row: row.line)
def test_what_a_group_shares_may_be_looked_at_and_not_changed(actor: Actor, other: Actor, row: Row) -> None:
    role = role_of(actor)
    if role is Role.ADMIN:
        return  # asked above

    status, body = actor.ask(row, {"name": other.shared})

    if not role.includes(row.role or Role.VIEWER):
        assert status == 403
    elif row.shared and "cards" in row.line:
        assert (status, msgspec.json.decode(body, type=ModelCard).name) == (200, "shared")
    elif row.shared:
        view = msgspec.json.decode(body, type=EndpointView)
        assert (status, view.name, view.owner) == (200, "other.shared", "other")
        assert bool(view.token) == role.includes(Role.PREDICTOR)
        assert view.token != "stub-token", "that one opens every endpoint"
    else:
        assert status == 404


def test_lists_hold_what_is_ones_own(server: Served, actor: Actor, other: Actor) -> None:
    with Transport(server.url, token=actor.token) as own:
        jobs = own.get("/v1/jobs", list[JobView])
        endpoints = {view.name for view in own.get("/v1/endpoints", list[EndpointView])}

    if role_of(actor) is Role.ADMIN:
        assert {"other", actor.name} <= {view.owner for view in jobs}
        assert other.endpoint in endpoints
    else:
        assert {view.owner for view in jobs} == {actor.name}
        assert {name for name in endpoints if not name.endswith(".shared")} <= {actor.endpoint}
        assert other.shared in endpoints


def test_what_jobs_leave_for_later_fits_is_kept_by_owner(server: Served, other: Actor) -> None:
    look = json.dumps([{"do": "python", "text": "open('where.txt', 'w').write(play.command.choices)"}]).encode()
    places = {}
    for owner, own in (("", server.transport), ("other", Transport(server.url, token=other.token))):
        spec = msgspec.structs.replace(other.spec, payload=other.put(own, look), arrays=())
        job = own.post("/v1/jobs", spec, JobView, key=f"look-{owner}.").id
        assert server.end(job).files == ("where.txt",)
        places[owner] = Path(own.read(f"/v1/jobs/{job}/files/where.txt").decode())

    assert places == {"": server.folder / "choices", "other": server.folder / "owners" / "other" / "choices"}


def test_only_an_admin_ends_the_server(server: Served, actor: Actor, other: Actor) -> None:
    if role_of(actor) is not Role.ADMIN:
        row = next(row for row in TABLE if row.line == STOP)
        assert actor.ask(row, {})[0] == 403
