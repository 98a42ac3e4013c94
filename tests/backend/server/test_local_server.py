"""The local server as a notebook meets it: found, started once, stopped; and the same from a terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from aiaas_magics import cli
from aiaas_magics.client import local_server
from aiaas_magics.client.transport import Transport
from aiaas_magics.core import settings
from aiaas_magics.core.accounts import Role, WhoAmI
from aiaas_magics.core.errors import BackendStopped, BackendTooSlow, CannotStart, StoreNotWritable, VersionSkew
from aiaas_magics.core.spec import About
from tests.backend.server.served import served, until
from tests.conftest import processes_of
from tests.support.launchers import FORKED

pytestmark = pytest.mark.process


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("AIAAS_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    local_server.stop_local()
    until(lambda: not processes_of(tmp_path), f"left behind: {processes_of(tmp_path)}")


def note() -> dict[str, object]:
    return json.loads((settings.local_state() / "server.json").read_text())  # type: ignore[no-any-return]


def test_a_server_is_started_when_first_needed_and_found_after_that(own_home: Path) -> None:
    assert local_server.find_local() is None

    url, token = local_server.ensure_local()

    assert local_server.ensure_local() == (url, token) == local_server.find_local()
    with Transport(url, token=token) as transport:
        about = transport.get("/v1/about", About)
    assert about.backend == "local"
    assert about.dropbox == str(settings.local_state() / "dropbox")
    assert (settings.local_state() / "token").stat().st_mode & 0o077 == 0


def test_the_server_is_small_and_knows_no_framework(own_home: Path) -> None:
    local_server.ensure_local()

    process = psutil.Process(int(str(note()["pid"])))

    assert process.memory_info().rss < 120e6
    assert not [mapped.path for mapped in process.memory_maps() if "tensorflow" in mapped.path or "onnxruntime" in mapped.path]


def test_many_notebooks_that_start_at_once_share_one_server(own_home: Path) -> None:
    script = "from aiaas_magics.client import local_server; print(*local_server.ensure_local())"

    def notebook(_: int) -> str:
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60).stdout

    with ThreadPoolExecutor(5) as pool:
        told = set(pool.map(notebook, range(5)))

    assert len(told) == 1
    assert len([process for process in processes_of(own_home) if "serve" in process.cmdline()]) == 1


def test_port_and_token_survive_a_kill(own_home: Path) -> None:
    before = local_server.ensure_local()
    os.kill(int(str(note()["pid"])), signal.SIGKILL)

    assert local_server.ensure_local() == before


@pytest.mark.parametrize(
    ("module", "options"), [("backend.serving", ("--state",)), ("backend.workers.local.launcher", ("--preload", "json", "--folder"))]
)
def test_a_process_whose_server_died_before_it_could_say_where_it_is_ends_by_itself(
    tmp_path: Path, module: str, options: tuple[str, ...]
) -> None:
    """Nobody would ever find it: a server that was killed right after its start left such ones behind."""
    command = [sys.executable, "-m", f"aiaas_magics.{module}", *options, str(tmp_path)]
    script = f"import os, subprocess; subprocess.Popen({command!r} + ['--parent', str(os.getpid())], start_new_session=True)"
    # A launcher of its own, as users have: whoever stands in for one in the tests has another parent.
    environment = {name: value for name, value in os.environ.items() if name != FORKED} | {"KERAS_BACKEND": "tensorflow"}

    # Into no pipe of ours: `run` would wait for the end of whoever has it open.
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, **quiet)

    until(lambda: not processes_of(tmp_path), f"left behind: {processes_of(tmp_path)}")
    assert list(tmp_path.rglob("process.json")) + list(tmp_path.rglob("launcher.json")) == []


def test_a_taken_port_is_no_obstacle(own_home: Path) -> None:
    import socket

    url, token = local_server.ensure_local()
    local_server.stop_local()
    with socket.create_server(("127.0.0.1", int(url.rpartition(":")[2]))):
        again, fresh = local_server.ensure_local()

        assert again != url
        assert fresh != token, "whoever sits on the port may have been sent the old one"


def test_a_note_of_a_process_that_is_another_now_is_not_believed(own_home: Path) -> None:
    url, _ = local_server.ensure_local()
    told = note()
    local_server.stop_local()
    (settings.local_state() / "server.json").write_text(json.dumps({**told, "pid": os.getpid()}))

    assert local_server.find_local() is None
    assert local_server.stop_local() is False
    assert local_server.ensure_local()[0] == url


def test_a_server_of_another_version_is_named_with_the_way_out(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local_server.ensure_local()
    folder = settings.local_state()
    monkeypatch.setattr(settings, "local_state", lambda: folder)
    monkeypatch.setattr(settings, "package_version", lambda: "99.0")

    with pytest.raises(VersionSkew, match="aiaas stop"):
        local_server.ensure_local()

    assert local_server.stop_local() is True  # the way out is open


def test_a_server_that_cannot_start_names_its_log(own_home: Path) -> None:
    folder = settings.local_state()
    folder.mkdir(parents=True)
    (folder / "records.sqlite").write_bytes(b"this is no database" * 100)

    with pytest.raises(CannotStart, match=r"server\.log"):
        local_server.ensure_local()


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AIAAS_HOME", str(tmp_path / "file"))

    with pytest.raises(StoreNotWritable, match="AIAAS_HOME"):
        local_server.ensure_local()


def run(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "aiaas_magics", *arguments], capture_output=True, text=True, timeout=timeout, check=False)


def test_the_terminal_shows_stops_and_says_when_there_is_nothing(own_home: Path) -> None:
    assert run("status").returncode == 1
    assert "No server is running here" in run("stop").stdout
    assert run("token").returncode == 2

    _, token = local_server.ensure_local()

    shown = run("status")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "local at http://127.0.0.1:" in shown.stdout
    assert run("token").stdout == token + "\n"
    assert "The server has stopped" in run("stop").stdout
    assert local_server.find_local() is None


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--host", "0.0.0.0"), "--tls-cert"),
        (("--host", "0.0.0.0", "--tls-cert", "absent.pem"), "--tls-key"),
        (("--host", "0.0.0.0", "--tls-cert", "absent.pem", "--tls-key", "absent.pem"), "no such file"),
        (("--port", "99999"), "--port"),
        (("--host", "192.0.2.1", "--port", "1"), "--tls-cert"),
        (("--hots", "x"), "--host"),
        (("--cors", "*"), "every-origin"),
    ],
)
def test_what_must_not_be_served_is_refused_by_the_name_of_the_flag(tmp_path: Path, options: tuple[str, ...], text: str) -> None:
    told = run("serve", "--state", str(tmp_path / "state"), *options)

    assert told.returncode == 2
    assert text in told.stderr
    assert "Traceback" not in told.stderr


def test_beyond_loopback_the_server_speaks_tls(tmp_path: Path) -> None:
    from datetime import UTC, datetime, timedelta

    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (tmp_path / "key.pem").chmod(0o600)
    pems = ("--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"))
    command = [sys.executable, "-m", "aiaas_magics", "serve", "--state", str(tmp_path / "state"), "--host", "0.0.0.0", *pems]
    os.environ["AIAAS_CA"] = str(tmp_path / "cert.pem")
    printed = []
    try:
        for start in range(2):
            with (tmp_path / f"{start}.log").open("wb") as log:
                process = subprocess.Popen(command, stdout=log, stderr=log)
            try:
                note = until(partial(note_of, tmp_path / "state", process.pid), "not up")
                token = (tmp_path / "state" / "token").read_text().strip()

                with Transport(note["url"].replace(socket.gethostname(), "localhost"), token=token) as transport:
                    assert transport.get("/v1/about", About).devices
                printed.append(re.findall(r"shown this once: (\S+)", (tmp_path / f"{start}.log").read_text()))
                with Transport(transport.url, token=printed[0][0]) as admin:
                    assert (admin.get("/v1/whoami", WhoAmI).user, admin.get("/v1/whoami", WhoAmI).role) == ("admin", Role.ADMIN)
            finally:
                process.terminate()
                assert process.wait(30) == 0
    finally:
        os.environ.pop("AIAAS_CA", None)
    assert [len(tokens) for tokens in printed] == [1, 0], "on a fresh folder, this once"
    until(lambda: not processes_of(tmp_path), f"left behind: {processes_of(tmp_path)}")


def note_of(state: Path, pid: int) -> dict[str, Any] | None:
    try:
        note: dict[str, Any] = json.loads((state / "server.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return note if note["pid"] == pid else None


def test_a_server_that_was_stopped_is_told_as_such_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_server, "HEALTH_S", 0.3)
    with served(tmp_path / "state") as server:
        pid = server.process.pid
        os.kill(pid, signal.SIGSTOP)
        until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "it did not stop")
        try:
            with pytest.raises(BackendStopped, match=f"kill -CONT {pid}"):
                local_server.find_at(server.folder)
            shown = CliRunner().invoke(cli.main, ["status", "--state", str(server.folder)])
            with Transport(server.url, token=server.token, answer_s=0.3, on_silence=lambda: local_server._check_goes_on(told)) as transport:
                told = local_server._note(server.folder)
                with pytest.raises(BackendStopped):
                    transport.get("/v1/about", About)
            with pytest.raises(BackendTooSlow, match=r"did not answer within 0\.2 s"):
                server.transport.get("/v1/about", About, answer_s=0.2)
        finally:
            os.kill(pid, signal.SIGCONT)

        assert (shown.exit_code, f"(process {pid}) is stopped (SIGSTOP)" in shown.output) == (2, True)
        assert local_server.find_at(server.folder) == (server.url, server.token)


def test_the_token_of_another_backend_is_in_the_environment_of_no_process_of_a_server(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    environment = {**os.environ, "AIAAS_TOKEN": "aiaas_of_another_backend", "AIAAS_BACKEND": "https://elsewhere"}
    command = [sys.executable, "-m", "aiaas_magics", "serve", "--state", str(folder)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until((folder / "server.json").exists, "it did not come up")
            assert json.loads((folder / "server.json").read_text())["pid"] == process.pid
            server = psutil.Process(process.pid)
            until(lambda: len(server.children()) >= 2, "its launcher and its inference process did not come up")

            for one in (server, *server.children(recursive=True)):
                assert "AIAAS_TOKEN" not in one.environ()
                assert "AIAAS_BACKEND" not in one.environ()
        finally:
            process.terminate()
    until(lambda: not processes_of(tmp_path), "left behind")


def test_a_token_that_could_be_guessed_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / "token").write_text("secret\n")
    command = [sys.executable, "-m", "aiaas_magics.testing.scripted_server", "--state", str(tmp_path / "state")]

    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert ended.returncode == 2
    assert "is shorter than 32 characters or malformed" in ended.stderr
    assert "secret" not in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_what_is_made_of_the_path_of_the_state_folder_is_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    (tmp_path / "there").mkdir(mode=0o755)
    folder = tmp_path / "there" / "home" / "local"
    before = os.umask(umask)
    try:
        settings.make_private(folder)
    finally:
        os.umask(before)

    assert [path.stat().st_mode & 0o777 for path in (folder, folder.parent, folder.parents[1])] == [0o700, 0o700, 0o755]
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        settings.make_private(tmp_path / "file" / "home")
