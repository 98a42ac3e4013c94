"""A backup of a running server, restored into an empty folder, is that server again."""

from __future__ import annotations

import contextlib
import hashlib
import io
import sqlite3
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from aiaas_magics import cli
from aiaas_magics.backend.server.audit.audit_chain import AuditHead, checked
from aiaas_magics.backend.server.audit.audit_log import lines_of
from aiaas_magics.backend.server.backup import backup_file
from aiaas_magics.backend.server.backup.state_backup import back_up, back_up_into
from aiaas_magics.backend.server.backup.state_restore import restore
from aiaas_magics.core import wire
from aiaas_magics.core.accounts import MadeToken, NewToken, Role, UserView
from aiaas_magics.core.errors import BlobDamaged, InvalidSpec, StoreNotWritable
from aiaas_magics.core.events import AttemptStarted, Checkpointed, StateChanged
from aiaas_magics.core.spec import DeploySpec, EndpointView, Freed, JobState, JobView, TensorSpec
from tests.backend.server.served import Served, served
from tests.support.small_disk import MOUNTS, full, small_disk

pytestmark = pytest.mark.process
NOTHING: Mapping[str, bytes | None] = {}
TENSOR = TensorSpec(name="x", dtype="float32", shape=(-1, 3))


def aiaas(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    return result


def deploy(server: Served, artefact: bytes = b"a model") -> EndpointView:
    spec = DeploySpec(
        name="churn",
        artefact=server.put(artefact),
        format="onnx",
        samples=server.put(b"samples"),
        inputs=(TENSOR,),
        outputs=(TENSOR,),
        model="net",
    )
    return server.transport.post("/v1/endpoints", spec, EndpointView)


def views(server: Served) -> list[JobView]:
    return server.transport.get("/v1/jobs", list[JobView])


def test_a_restored_server_lists_the_same_jobs_and_serves_the_same_endpoints(tmp_path: Path) -> None:
    file, copy = tmp_path / "server.aiaas", tmp_path / "copy"
    with served(tmp_path / "state") as server:
        done = server.submit({"do": "write", "path": "logs/fit.csv", "text": "epoch,loss"}, {"do": "finish", "result": "the weights"})
        assert server.result(done) == b"the weights"
        failed = server.submit({"do": "epochs", "count": 2}, {"do": "crash"})
        server.end(failed)
        endpoint = deploy(server)
        running = server.submit({"do": "epochs", "count": 3}, {"do": "wait", "seconds": 600, "attempts": [1]})
        server.wait_for(running, Checkpointed, 3)
        before = views(server)

        shown = aiaas("backup", file, "--state", server.folder)

        assert "without tokens" in shown.stderr
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert views(server) == before, "the server went on"
        token, canceled = server.token, server.transport.post(f"/v1/jobs/{running}/cancel", None, JobView)
        assert canceled.state in {JobState.STOPPING, JobState.CANCELLED}
        server.end(running)

    shown = aiaas("restore", file, "--into", copy)

    assert f"were running, and go on or end when the server starts: {running}" in shown.stderr
    assert {path.name for path in copy.iterdir()} == {"audit", "blobs", "dropbox", "jobs", "lock", "records.sqlite", "serving"}
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in (copy, *copy.rglob("*")))
    with served(copy) as server:
        assert server.token != token
        after = {view.id: view for view in views(server)}
        assert [view.id for view in before] == list(after)
        for view in before:
            if view.state.final:
                assert after[view.id] == view
        assert server.result(done) == b"the weights"
        assert server.transport.read(f"/v1/jobs/{done}/files/logs/fit.csv") == b"epoch,loss"
        assert server.transport.get(f"/v1/jobs/{failed}/checkpoint", object)["epoch"] == 2  # type: ignore[index]
        assert server.transport.get("/v1/endpoints/churn", EndpointView).versions[0].artefact == endpoint.versions[0].artefact
        assert server.transport.read(f"/v1/blobs/{endpoint.versions[0].artefact}") == b"a model"
        # The job that was running goes on from its checkpoint, and says why.
        assert server.end(running).state is JobState.SUCCEEDED
        assert any("restored from a backup" in event.reason for event in server.events(running, StateChanged))
        again = server.events(running, AttemptStarted)[-1]
        assert again.from_epoch == 3
        new = server.submit({"do": "finish"})
        assert int(new) == int(running) + 1
    report = checked(lines_of(copy / "audit"))
    assert report.broken is None, "the audit log goes on from the backup's"


def test_a_stopped_server_can_be_backed_up_too_and_moved_with_its_tokens(tmp_path: Path) -> None:
    with served(tmp_path / "state", "--pool", "stub") as server:
        deploy(server)
        token = server.token
    manifest = back_up_into(server.folder, tmp_path / "b", with_tokens=True)

    with (tmp_path / "b").open("rb") as stream:
        restored = restore(stream, tmp_path / "copy")

    assert manifest == restored.manifest
    assert restored.endpoints == ("churn",)
    head = AuditHead.parse(manifest.audit_head)
    assert checked(lines_of(tmp_path / "copy" / "audit"), anchor=head).broken is None
    with served(tmp_path / "copy", "--pool", "stub") as server:
        assert server.token == token


def test_a_backup_without_tokens_holds_none(tmp_path: Path) -> None:
    with served(tmp_path / "state", "--pool", "stub") as server:
        deploy(server)
        server.transport.post("/v1/users", UserView(name="ada", role=Role.USER), UserView)
        server.transport.post("/v1/tokens", NewToken(user="ada"), MadeToken)
        with sqlite3.connect(server.folder / "records.sqlite") as records:
            ((digest,),) = records.execute("SELECT digest FROM tokens").fetchall()
        records.close()
        data = io.BytesIO()
        back_up(server.folder, data, scratch=tmp_path)

        assert server.token.encode() not in data.getvalue()
        assert digest not in data.getvalue()

        back_up(server.folder, data, scratch=tmp_path, with_tokens=True)
        assert server.token.encode() in data.getvalue()
        assert digest in data.getvalue()
        assert sorted(path.name for path in tmp_path.iterdir() if "backup" in path.name) == [], "nothing stays in the scratch folder"


def test_a_backup_goes_through_a_pipe(tmp_path: Path) -> None:
    with served(tmp_path / "state", "--pool", "stub") as server:
        deploy(server)
        aiaas_line = f"{sys.executable} -m aiaas_magics"
        pipe = f"{aiaas_line} backup - --state {server.folder} | {aiaas_line} restore - --into {tmp_path / 'copy'}"  # as through ssh
        done = subprocess.run(["bash", "-o", "pipefail", "-c", pipe], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert "Restored 0 jobs and 1 endpoints" in done.stderr


def test_a_backup_fits_together_while_jobs_come_end_and_are_swept(tmp_path: Path) -> None:
    with served(tmp_path / "state", "--pool", "stub") as server:
        over = threading.Event()

        def work() -> None:
            with contextlib.suppress(Exception):
                while not over.is_set():
                    deploy(server, artefact=bytes(str(len(views(server))), "ascii") * 1000)
                    server.submit({"do": "finish"})
                    server.raw("POST", "/v1/storage/free")

        worker = threading.Thread(target=work)
        worker.start()
        try:
            for number in range(5):
                data = io.BytesIO()
                back_up(server.folder, data, scratch=tmp_path)
                data.seek(0)
                restore(data, tmp_path / f"copy-{number}")  # refuses what does not fit together
        finally:
            over.set()
            worker.join(30)
        assert server.transport.post("/v1/storage/free", None, Freed).bytes >= 0


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    (into / "mine.txt").write_text("mine")

    with pytest.raises(InvalidSpec, match="is not empty"):
        restore(io.BytesIO(b""), into)

    assert [path.name for path in into.iterdir()] == ["mine.txt"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("whole")
    with served(folder / "state", "--pool", "stub") as server:
        deploy(server, artefact=bytes(range(256)) * 400)
    data = io.BytesIO()
    back_up(server.folder, data, scratch=folder)
    return data.getvalue()


def refused(data: bytes, into: Path) -> str:
    with pytest.raises((InvalidSpec, BlobDamaged)) as error:
        restore(io.BytesIO(data), into)
    assert not into.exists(), "a failed restore leaves nothing"
    return str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_backup_that_was_cut_off_is_refused(whole: bytes, tmp_path: Path, share: float) -> None:
    end = whole.index(backup_file.MANIFEST.encode())

    assert "cut off" in refused(whole[: int(end * share)], tmp_path / "copy")


def test_a_backup_with_a_changed_byte_is_refused(whole: bytes, tmp_path: Path) -> None:
    place = whole.index(bytes(range(256))) + 100
    changed = bytearray(whole)
    changed[place] ^= 1

    text = refused(bytes(changed), tmp_path / "copy")

    assert "other bytes" in text or "another hash" in text


def rewritten(whole: bytes, *, change: Mapping[str, bytes | None] = NOTHING, extra: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    """The backup with other members, and, as a forger would, a manifest that fits."""
    target, files = io.BytesIO(), []
    with tarfile.open(fileobj=io.BytesIO(whole)) as source, tarfile.open(fileobj=target, mode="w") as tar:
        for member in source:
            data = source.extractfile(member).read()  # type: ignore[union-attr]
            if member.name == backup_file.MANIFEST:
                manifest = wire.decode(data, backup_file.BackupManifest)
                continue
            data = change.get(member.name, data)  # type: ignore[assignment]
            if data is None:
                continue
            files.append(backup_file.BackedUpFile(member.name, len(data), hashlib.sha256(data).hexdigest()))
            header = tarfile.TarInfo(member.name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
        for header in extra:
            tar.addfile(header, io.BytesIO(b"x" * header.size))
            files.append(backup_file.BackedUpFile(header.name, header.size, hashlib.sha256(b"x" * header.size).hexdigest()))
        data = wire.encode(msgspec.structs.replace(manifest, files=tuple(files)))
        header = tarfile.TarInfo(backup_file.MANIFEST)
        header.size = len(data)
        tar.addfile(header, io.BytesIO(data))
    return target.getvalue()


def names_in(whole: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        return tar.getnames()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, target
    return header


@pytest.mark.parametrize(
    "header",
    [
        member("../outside"),
        member("/etc/cron.d/outside"),
        member("jobs/1/files/../../../outside"),
        member("jobs/1/files//outside"),
        member("server.json"),
        member("serving/control.sock"),
        member("blobs/short"),
        member("jobs/1/files/a\0b"),
        member("jobs/1/files/x", tarfile.SYMTYPE, "/etc/passwd"),
        member("jobs/1/files/x", tarfile.LNKTYPE, "records.sqlite"),
        member("jobs/1/files/x", tarfile.FIFOTYPE),
        member("jobs/1/files/x", tarfile.DIRTYPE),
        member("records.sqlite"),
    ],
    ids=lambda header: f"{header.name}-{header.type.decode()}".replace("\0", "0"),
)
def test_a_forged_backup_writes_nothing_but_a_servers_files(whole: bytes, tmp_path: Path, header: tarfile.TarInfo) -> None:
    refused(rewritten(whole, extra=(header,)), tmp_path / "copy")

    assert not (tmp_path / "outside").exists()


def test_a_backup_whose_records_refer_to_what_is_not_in_it_is_refused(whole: bytes, tmp_path: Path) -> None:
    blob = next(name for name in names_in(whole) if name.startswith("blobs/"))

    assert "is not there" in refused(rewritten(whole, change={blob: None}), tmp_path / "copy")
    assert "another hash" in refused(rewritten(whole, change={blob: b"other"}), tmp_path / "copy")
    assert "no records" in refused(rewritten(whole, change={"records.sqlite": None}), tmp_path / "copy")


def test_the_same_bytes_rewritten_are_restored(whole: bytes, tmp_path: Path) -> None:
    """The refusals above are not for the rewriting."""
    assert restore(io.BytesIO(rewritten(whole)), tmp_path / "copy").endpoints == ("churn",)


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_a_blob_that_is_missing_or_damaged_is_named_and_can_be_left_out(tmp_path: Path, harm: str) -> None:
    with served(tmp_path / "state", "--pool", "stub") as server:
        sha = deploy(server).versions[0].artefact
    path = server.folder / "blobs" / sha[:2] / sha
    path.chmod(0o600)
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(b"rotten")

    with pytest.raises(BlobDamaged) as error:
        back_up_into(server.folder, tmp_path / "b")

    assert sha[:12] in str(error.value)
    assert [path.name for path in tmp_path.iterdir() if path.name not in {"state", "state.log"}] == []
    shown = aiaas("backup", tmp_path / "b", "--state", server.folder, "--skip-damaged")
    assert sha in shown.stderr
    aiaas("restore", tmp_path / "b", "--into", tmp_path / "copy")


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    with served(tmp_path / "state", "--pool", "stub") as server:
        pass
    (tmp_path / "b").write_text("mine")

    with pytest.raises(InvalidSpec, match="exists already"):
        back_up_into(server.folder, tmp_path / "b")

    assert (tmp_path / "b").read_text() == "mine"


def test_a_folder_without_a_server_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="no records"):
        back_up(tmp_path, io.BytesIO(), scratch=tmp_path)


@MOUNTS
def test_a_full_disk_is_told_and_leaves_nothing(whole: bytes, tmp_path: Path) -> None:
    with served(tmp_path / "state", "--pool", "stub") as server:
        deploy(server, artefact=b"m" * 3_000_000)
    with small_disk(tmp_path / "disk", megabytes=1) as disk:
        with pytest.raises(StoreNotWritable, match=r"No space left|is full"):
            back_up_into(server.folder, disk / "b")
        assert list(disk.iterdir()) == []
        with full(disk), pytest.raises(StoreNotWritable):
            restore(io.BytesIO(whole), disk / "copy")
        assert not (disk / "copy").exists()


def test_what_a_job_linked_to_stays_out(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("not-for-a-backup")
    with served(tmp_path / "state") as server:
        job = server.submit(
            {"do": "link", "path": "link.txt", "to": str(secret)}, {"do": "write", "path": "plain.txt", "text": "plain"}, {"do": "finish"}
        )
        server.end(job)
        data = io.BytesIO()
        back_up(server.folder, data, scratch=tmp_path)

    assert f"jobs/{job}/files/plain.txt" in names_in(data.getvalue())
    assert b"not-for-a-backup" not in data.getvalue()
