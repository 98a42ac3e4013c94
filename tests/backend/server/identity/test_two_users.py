"""Two users on one server: what one has, the other neither reads, nor is told of, nor can guess."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiaas_magics.client.account_calls import AccountCalls
from aiaas_magics.client.transport import Transport
from aiaas_magics.core import errors, settings
from aiaas_magics.core.accounts import MadeToken, Quotas, Role, TokenView, WhoAmI
from aiaas_magics.core.contract import BlobQuery, MissingBlobs
from aiaas_magics.core.events import PhaseEntered
from aiaas_magics.core.spec import DeploySpec, EndpointView, FitSpec, JobState, JobView, TensorSpec
from tests.backend.server.served import SHAPE, Served, served, until

TENSOR = TensorSpec(name="x", dtype="float32", shape=(-1, 3))
LONG = {"do": "wait", "seconds": 600}


class User:
    """A user of `server` with a token, and what such a user does."""

    def __init__(self, server: Served, name: str, *, role: Role = Role.USER, groups: tuple[str, ...] = ()) -> None:
        self.server, self.name = server, name
        self.admin = AccountCalls(server.transport)
        self.admin.add_user(name, role=role, groups=groups)
        self.made = self.admin.make_token(name)
        self.transport = Transport(server.url, token=self.made.token)

    def missing(self, *names: str) -> list[str]:
        return self.transport.post("/v1/blobs/missing", BlobQuery(list(names)), MissingBlobs).missing

    def put(self, data: bytes) -> str:
        sha = hashlib.sha256(data).hexdigest()
        self.transport.upload(f"/v1/blobs/{sha}", [data], size=len(data))
        return sha

    def fit(self, *steps: dict[str, object], arrays: tuple[str, ...] = (), workers: int = 1, **more: object) -> FitSpec:
        payload = self.put(json.dumps(steps).encode())
        return FitSpec(
            name="scripted", payload=payload, arrays=arrays, workers=workers, shape=SHAPE, versions=settings.versions(), seed=1, **more
        )  # type: ignore[arg-type]

    def submit(self, *steps: dict[str, object], key: str | None = None, **more: object) -> str:
        return self.transport.post("/v1/jobs", self.fit(*steps, **more), JobView, key=key).id  # type: ignore[arg-type]

    def view(self, job: str) -> JobView:
        return self.transport.get(f"/v1/jobs/{job}", JobView)

    def end(self, job: str) -> JobView:
        return until(lambda: (view := self.view(job)).state.final and view, f"job {job} did not end: {self.server.log}")  # type: ignore[no-any-return]

    def deployment(self, name: str = "churn") -> DeploySpec:
        return DeploySpec(
            name=name, artefact=self.put(b"artefact"), format="onnx", samples=self.put(b"samples"), inputs=(TENSOR,), outputs=(TENSOR,)
        )

    def deploy(self, name: str = "churn") -> EndpointView:
        return self.transport.post("/v1/endpoints", self.deployment(name), EndpointView)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("users") / "state", "--pool", "stub", AIAAS_SIMULATED_DEVICES="2") as server:
        yield server


@pytest.fixture(scope="module")
def ada(server: Served) -> User:
    return User(server, "ada", groups=("lab",))


@pytest.fixture(scope="module")
def ben(server: Served) -> User:
    return User(server, "ben", groups=("lab",))


# --------------------------------------------------------------------------- blobs


def test_a_hash_that_only_another_has_is_one_that_nobody_has(ada: User, ben: User) -> None:
    sha = ada.put(b"ada's rows")

    assert ada.missing(sha) == []
    assert ben.missing(sha) == [sha], "have you got it: no"
    with pytest.raises(errors.UnknownName):
        ben.transport.read(f"/v1/blobs/{sha}")
    with pytest.raises(errors.UnknownName, match=f"no blob '{sha}'"):
        ben.submit(arrays=(sha,))
    deployment = ben.deployment()
    with pytest.raises(errors.UnknownName, match="no blob"):
        ben.transport.post(
            "/v1/endpoints",
            DeploySpec(**{n: getattr(deployment, n) for n in deployment.__struct_fields__} | {"artefact": sha}),
            EndpointView,
        )


def test_the_same_bytes_are_sent_whole_by_both_and_stored_once(server: Served, ada: User, ben: User) -> None:
    data = os.urandom(1_000_000)
    sha = ada.put(data)
    half = data[: len(data) // 2]

    refused = server.raw("PUT", f"/v1/blobs/{sha}", half, token=ben.made.token)[0]

    assert refused == 422, "to know the hash and half of the bytes is not enough"
    assert ben.missing(sha) == [sha]
    assert ben.put(data) == sha
    assert ben.missing(sha) == ada.missing(sha) == []
    assert ben.transport.read(f"/v1/blobs/{sha}") == data
    files = [path for path in server.folder.glob(f"blobs/{sha[:2]}/{sha}*") if path.suffix != ".xxh3"]
    assert len(files) == 1


def test_what_the_servers_own_account_has_sent_is_no_users(server: Served, ada: User) -> None:
    sha = server.put(b"of the server's own account")

    assert ada.missing(sha) == [sha]
    assert ada.put(b"of the server's own account") == sha


def test_results_are_their_owners(ada: User, ben: User) -> None:
    result = ada.end(ada.submit()).result

    assert result is not None
    assert ada.transport.read(f"/v1/blobs/{result}")
    with pytest.raises(errors.UnknownName):
        ben.transport.read(f"/v1/blobs/{result}")


# --------------------------------------------------------------------------- jobs


def test_the_same_key_of_two_users_is_two_jobs(ada: User, ben: User) -> None:
    mine, again, theirs = ada.submit(key="one key"), ada.submit(key="one key"), ben.submit(key="one key")

    assert mine == again != theirs
    assert ben.view(theirs).owner == "ben"
    for key in ("ada\\0one key", "ada:one key"):
        assert ben.submit(key=key) not in (mine, theirs)


def test_a_job_of_another_is_not_gone_on_from(ada: User, ben: User) -> None:
    job = ada.submit()
    ada.end(job)

    with pytest.raises(errors.UnknownName, match=f"no job '{job}'"):
        ben.submit(resume_job=job)


def test_a_waiting_job_says_of_anothers_only_that_there_is_one(server: Served, ada: User, ben: User) -> None:
    first = ada.submit(LONG, workers=2)
    until(lambda: ada.view(first).state is JobState.RUNNING, "the first job did not start")
    waiting = ben.submit(workers=1)

    entries = until(lambda: [e for e in server.entries(waiting) if isinstance(e.event, PhaseEntered) and e.event.detail], "it says nothing")

    assert entries[0].event.detail == "waiting for 1 core; another user's jobs hold devices"
    ada.transport.post(f"/v1/jobs/{first}/cancel", None, JobView)
    ben.end(waiting)


def test_with_many_jobs_of_one_user_waiting_anothers_starts_next(ada: User, ben: User) -> None:
    many = [ada.submit({"do": "wait", "seconds": 0.1}, workers=2) for _ in range(8)]
    own = ben.submit(workers=2)

    ben.end(own)

    assert sum(ada.view(job).state is JobState.QUEUED for job in many) >= 4, "ben did not wait for all of them"
    for job in many:
        ada.transport.post(f"/v1/jobs/{job}/cancel", None, JobView)
        ada.end(job)


# --------------------------------------------------------------------------- endpoints


def test_two_users_have_an_endpoint_of_one_name_and_none_hears_of_the_others(server: Served, ada: User, ben: User) -> None:
    mine, theirs = ada.deploy(), ben.deploy()

    assert (mine.name, theirs.name) == ("ada.churn", "ben.churn")
    assert mine.versions[0].version == theirs.versions[0].version == 1
    assert ada.transport.get("/v1/endpoints/churn", EndpointView).name == "ada.churn"
    assert len({mine.token, theirs.token, "stub-token"}) == 3
    with pytest.raises(errors.UnknownName):
        ada.transport.get("/v1/endpoints/ben.churn", EndpointView)
    with pytest.raises(errors.InvalidSpec, match=r"begin with 'ada\.' are ada's"):
        server.transport.post("/v1/endpoints", _named(ada, server, "ada.other"), EndpointView)


def _named(user: User, server: Served, name: str) -> DeploySpec:
    for data in (b"artefact", b"samples"):
        server.put(data)
    return user.deployment(name)


def test_a_group_shares_an_endpoint_for_as_long_as_one_is_in_it(ada: User, ben: User) -> None:
    shared = ada.deploy("shared")
    calls = AccountCalls(ada.transport)
    calls.share("shared", ["lab"])

    seen = ben.transport.get("/v1/endpoints/ada.shared", EndpointView)

    assert (seen.owner, seen.groups) == ("ada", ("lab",))
    assert seen.token not in ("", shared.token), "each has a token of their own, which ends with the membership"
    with pytest.raises(errors.UnknownName, match="no group 'others'"):
        calls.share("shared", ["others"])
    ada.admin.change_user("ben", groups=())
    with pytest.raises(errors.UnknownName):
        ben.transport.get("/v1/endpoints/ada.shared", EndpointView)
    ada.admin.change_user("ben", groups=("lab",))
    granted = json.loads((ada.server.folder / "serving" / "grants.json").read_text())
    assert {tuple(grant["names"]) for grant in granted} >= {("ada.shared",), ("ben.churn",)}
    assert seen.token not in json.dumps(granted), "what lets anybody in is not written down"


# --------------------------------------------------------------------------- tokens


def test_a_token_ends_when_it_is_revoked_expires_or_its_user_goes(server: Served) -> None:
    eve = User(server, "eve")
    admin = eve.admin
    short = admin.make_token("eve", lives_s=0.3)
    gone = admin.make_token("eve", label="gone")

    def status(made: MadeToken) -> int:
        return server.raw("GET", "/v1/whoami", token=made.token)[0]

    assert status(gone) == 200
    admin.revoke_token(gone.view.id)
    assert status(gone) == 401
    until(lambda: status(short) == 401, "it did not expire")
    assert status(eve.made) == 200
    admin.remove_user("eve")
    assert status(eve.made) == 401
    with pytest.raises(errors.InvalidSpec, match="was a user before"):
        admin.add_user("eve")


def test_a_rotated_token_goes_on_for_an_hour_beside_the_new_one(server: Served, ada: User) -> None:
    first = ada.admin.make_token("ada", label="notebook", lives_s=7 * 86400)

    with Transport(server.url, token=first.token) as own:
        second = AccountCalls(own).rotate_token(first.view.id)

    views = {view.id: view for view in ada.admin.tokens()}
    assert 3500 < (views[first.view.id].expires_s or 0) - time.time() < 3700
    assert second.view.label == "notebook"
    assert 6.9 * 86400 < (second.view.expires_s or 0) - time.time() < 7.1 * 86400
    for made in (first, second):
        assert server.raw("GET", "/v1/whoami", token=made.token)[0] == 200


def test_a_token_for_predictions_opens_nothing_of_the_api_but_its_name(server: Served, ada: User, ben: User) -> None:
    ada.deploy()
    made = AccountCalls(ada.transport).make_token("ada", endpoints=["churn"], requests_per_s=5, lives_s=60)

    assert made.view.endpoints == ("ada.churn",)
    assert server.raw("GET", "/v1/whoami", token=made.token)[0] == 200
    for method, path in (("GET", "/v1/jobs"), ("GET", "/v1/endpoints/ada.churn"), ("POST", "/v1/tokens")):
        status, body, _ = server.raw(method, path, b"{}", token=made.token)
        assert (status, json.loads(body)["type"]) == (403, "RoleTooLow")
    with pytest.raises(errors.UnknownName):
        AccountCalls(ben.transport).make_token("ben", endpoints=["ada.churn"])
    for wanted in ({"user": "ben", "endpoints": ["churn"]}, {"user": "ada"}):
        with pytest.raises(errors.RoleTooLow):
            AccountCalls(ada.transport).make_token(**wanted)  # type: ignore[arg-type]
    granted = json.loads((server.folder / "serving" / "grants.json").read_text())
    assert next(grant for grant in granted if grant["token_id"] == made.view.id)["requests_per_s"] == 5


def test_one_sees_and_revokes_only_ones_own_tokens(ada: User, ben: User) -> None:
    assert {view.user for view in AccountCalls(ada.transport).tokens()} == {"ada"}
    with pytest.raises(errors.UnknownName, match="no token"):
        AccountCalls(ben.transport).revoke_token(ada.made.view.id)


def test_no_token_is_in_the_records_the_log_or_an_answer(server: Served, ada: User) -> None:
    secret = ada.made.token
    ada.transport.get("/v1/whoami", WhoAmI)

    texts = [path.read_bytes() for path in server.folder.rglob("*") if path.is_file() and path.name not in ("token", "reserve")]

    assert all(secret.encode() not in text for text in texts)
    assert secret.rpartition(".")[2] not in server.log
    views = ada.transport.get("/v1/tokens", list[TokenView])
    assert secret not in str(views)
    assert secret not in repr(ada.made), "nor in a notebook's output"
    assert (server.folder / "token_key").stat().st_mode & 0o777 == 0o600


@pytest.mark.process
def test_users_tokens_and_owners_outlive_the_server(tmp_path: Path) -> None:
    with served(tmp_path / "state", "--pool", "stub") as server:
        ada = User(server, "ada")
        sha, job = ada.put(b"rows"), ada.submit()
        ada.end(job)
        endpoint = ada.deploy().name
        server.stop()
        server.start()
        again = Transport(server.url, token=ada.made.token)
        ben = User(server, "ben")

        assert again.get("/v1/whoami", WhoAmI) == WhoAmI(user="ada", role=Role.USER, token_id=ada.made.view.id)
        assert again.get(f"/v1/jobs/{job}", JobView).owner == "ada"
        assert again.get("/v1/endpoints/churn", EndpointView).name == endpoint
        assert again.post("/v1/blobs/missing", BlobQuery([sha]), MissingBlobs).missing == []
        assert ben.missing(sha) == [sha]
        again.close()


# --------------------------------------------------------------------------- limits


def test_a_quota_refuses_with_its_number(server: Served) -> None:
    cem = User(server, "cem")

    def limit(**quotas: float) -> None:
        cem.admin.change_user("cem", quotas=Quotas(**quotas))  # type: ignore[arg-type]

    limit(devices=1)
    with pytest.raises(errors.QuotaExceeded, match="is 1 devices, and this would make 2"):
        cem.submit(workers=2)
    limit(waiting_jobs=1, running_jobs=1)
    running = cem.submit(LONG)
    until(lambda: cem.view(running).state is JobState.RUNNING, "it did not start")
    waiting = cem.submit()
    with pytest.raises(errors.QuotaExceeded, match="is 1 waiting jobs, and this would make 2"):
        cem.submit()
    details = until(lambda: [e.event.detail for e in server.entries(waiting) if isinstance(e.event, PhaseEntered)], "it says nothing")
    assert details == ["waiting for your own jobs: your quota is 1 running jobs"]
    cem.transport.post(f"/v1/jobs/{running}/cancel", None, JobView)
    cem.end(waiting)
    limit(endpoints=1)
    cem.deploy("first")
    cem.deploy("first")
    with pytest.raises(errors.QuotaExceeded, match="is 1 endpoints"):
        cem.deploy("second")
    limit(storage_bytes=200_000)
    cem.put(b"x" * 100_000)
    with pytest.raises(errors.QuotaExceeded, match="is 200,000 bytes of uploads"):
        cem.put(b"y" * 150_000)
    limit(requests_per_s=2)
    statuses = [server.raw("GET", "/v1/jobs", token=cem.made.token)[0] for _ in range(10)]
    assert 429 in statuses
    assert statuses[0] == 200
    assert server.raw("GET", "/v1/jobs")[0] == 200, "nobody else is slowed"
    limit()


@pytest.mark.process
def test_wrong_tokens_are_slowed_and_told_and_right_ones_from_the_same_address_are_not(tmp_path: Path) -> None:
    with served(tmp_path / "state", "--pool", "stub") as server:
        ada = User(server, "ada")
        wrong = re.sub("[A-Za-z0-9]{4}$", "AAAA", ada.made.token)

        answers = [server.raw("GET", "/v1/jobs", token=wrong) for _ in range(200)]

        slowed = [headers for status, _, headers in answers if status == 429]
        assert answers[0][0] == 401
        assert len(slowed) > 20, "one per second gets through"
        assert all(int(headers["retry-after"]) > 0 for headers in slowed)
        assert server.raw("GET", "/v1/jobs", token=ada.made.token)[0] == 200
        assert server.raw("GET", "/v1/jobs")[0] == 200
        assert "from 127.0.0.1: 429" in server.log
        assert wrong not in server.log
