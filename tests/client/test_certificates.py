"""A certificate that is not believed is told as that, and one that the user accepts is the only one believed."""

from __future__ import annotations

import ipaddress
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import aiaas_magics
from aiaas_magics.backend.net.server_certificate import check_pair, fingerprint
from aiaas_magics.client import certificates
from aiaas_magics.client.load_test.load_plan import BodyForm, LoadPlan
from aiaas_magics.client.load_test.load_run import carry_out
from aiaas_magics.client.transport import Transport
from aiaas_magics.core import errors, settings, wire
from aiaas_magics.core.spec import About, Versions
from tests.support.impostors import answer_of, squatting

x509 = pytest.importorskip("cryptography.x509")

TOKEN = "aiaas_a-secret-that-nobody-may-see"
VERSIONS = Versions(python="3.11.7", keras="3.15.1", tensorflow="2.21.0", aiaas_magics="0.1.0")
ABOUT = About(backend="box", protocol=1, versions=VERSIONS, devices=(), hardware="", memory_bytes=1, started_s=0.0)


@dataclass(frozen=True)
class Pair:
    certificate: Path
    key: Path

    @property
    def print(self) -> str:
        return fingerprint(self.certificate)


def made(folder: Path, name: str, *, host: str = "localhost", days: tuple[int, int] = (-1, 1), signer: str = "") -> Pair:
    """A certificate for `host` and 127.0.0.1, valid between `days` from now, signed by itself or by an authority that is made for it."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, authority = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, signer)]) if signer else subject
    names = [x509.DNSName(host)] + ([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))] if host == "localhost" else [])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) + timedelta(days=days[0]))
        .not_valid_after(datetime.now(UTC) + timedelta(days=days[1]))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority if signer else key, hashes.SHA256())
    )
    pair = Pair(folder / f"{name}.pem", folder / f"{name}-key.pem")
    pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pair.key.touch(0o600)
    pair.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return pair


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    folder = tmp_path_factory.mktemp("pairs")
    return {
        "own": made(folder, "own"),
        "other": made(folder, "other"),
        "expired": made(folder, "expired", days=(-3, -1)),
        "future": made(folder, "future", days=(1, 2)),
        "elsewhere": made(folder, "elsewhere", host="gpu-box.example"),
        "unknown": made(folder, "unknown", signer="An authority that nobody knows"),
    }


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIAAS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("AIAAS_CA", raising=False)


class Heard:
    def __init__(self) -> None:
        self.tokens: list[str | None] = []


@contextmanager
def behind_tls(pair: Pair, port: int = 0) -> Iterator[tuple[str, Heard]]:
    """A backend behind TLS that says what it is, at https://localhost; and the tokens that it was sent."""
    heard = Heard()

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            heard.tokens.append(self.headers["Authorization"])
            body = wire.encode(ABOUT)
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            """Nothing on the test's output."""

    class Server(ThreadingHTTPServer):
        def finish_request(self, request: Any, client_address: Any) -> None:
            try:
                with context.wrap_socket(request, server_side=True) as encrypted:
                    super().finish_request(encrypted, client_address)
            except OSError:  # the client does not believe us
                return

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    with Server(("127.0.0.1", port), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"https://localhost:{server.server_port}", heard
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("own", "it is signed by itself"),
        ("unknown", "it is signed by an authority that is not known here"),
        ("expired", "it has expired"),
        ("future", "it is not valid yet"),
        ("elsewhere", "it is for another host name"),
    ],
)
def test_a_certificate_that_is_not_believed_is_told_with_its_fingerprint(
    pairs: dict[str, Pair], monkeypatch: pytest.MonkeyPatch, name: str, why: str
) -> None:
    if name in {"expired", "future", "elsewhere"}:  # vouched for, so that this is the only fault
        monkeypatch.setenv("AIAAS_CA", str(pairs[name].certificate))
    with behind_tls(pairs[name]) as (url, heard), pytest.raises(errors.CertificateRefused, match=why) as caught:
        aiaas_magics.connect(url, TOKEN)

    assert heard.tokens == []
    assert f"%aiaas_connect {url} --fingerprint {pairs[name].print}" in str(caught.value)
    assert "Could not reach" not in str(caught.value)


def test_the_fingerprint_is_the_one_that_openssl_prints(pairs: dict[str, Pair]) -> None:
    command = ["openssl", "x509", "-noout", "-fingerprint", "-sha256", "-in", str(pairs["own"].certificate)]

    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert printed.strip().rpartition("=")[2] == pairs["own"].print


@pytest.mark.parametrize("form", [str, str.lower, lambda text: text.replace(":", "")], ids=["as printed", "lower", "no colons"])
def test_an_accepted_certificate_is_believed_in_later_kernels_too_and_no_other(pairs: dict[str, Pair], form: Any) -> None:
    own, other = pairs["own"], pairs["other"]
    with behind_tls(own) as (url, heard):
        with aiaas_magics.connect(url, TOKEN, fingerprint=form(own.print)) as backend:
            assert backend.name == "box"
        with aiaas_magics.connect(url, TOKEN) as backend:
            assert backend.transport.fingerprint == own.print
        port = int(url.rpartition(":")[2])
    with behind_tls(other, port) as (url, replaced), pytest.raises(errors.CertificateChanged, match="Nothing was sent") as caught:
        aiaas_magics.connect(url, TOKEN)

    assert set(heard.tokens) == {f"Bearer {TOKEN}"}
    assert replaced.tokens == []
    assert f"accepted: {own.print}\nseen:     {other.print}\n" in str(caught.value)
    assert (settings.home() / "pins.json").stat().st_mode & 0o077 == 0


def test_a_fingerprint_that_is_another_ones_is_not_kept(pairs: dict[str, Pair]) -> None:
    with behind_tls(pairs["own"]) as (url, heard):
        with pytest.raises(errors.CertificateChanged):
            aiaas_magics.connect(url, TOKEN, fingerprint=pairs["other"].print)

        assert certificates.pinned(url) == ""
    assert heard.tokens == []


def test_a_file_of_accepted_fingerprints_that_is_damaged_is_no_first_use() -> None:
    settings.home().mkdir(parents=True)
    (settings.home() / "pins.json").write_text("{damaged")

    with pytest.raises(errors.InvalidSpec, match=r"pins\.json cannot be read"):
        Transport("https://gpu-box:8443", token=TOKEN)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "local"])
def test_a_fingerprint_belongs_to_a_certificate(url: str) -> None:
    with pytest.raises(errors.InvalidSpec, match=r"[Ll]eave it out\."):
        aiaas_magics.connect(url, TOKEN, fingerprint="ab" * 32)


@pytest.mark.parametrize("text", ["", "abc", "g" * 64, "ab" * 33])
def test_what_is_no_fingerprint_is_told_so(text: str) -> None:
    with pytest.raises(errors.InvalidSpec, match="64 hexadecimal digits"):
        certificates.checked_fingerprint(text)


def test_an_authority_file_that_is_missing_or_none_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.pem").write_text("no certificate")
    for file, why in (
        (tmp_path / "nope", "No such file"),
        (tmp_path / "text.pem", "no certificate in that file"),
        (tmp_path, "director|no cer"),
    ):
        monkeypatch.setenv("AIAAS_CA", str(file))
        with pytest.raises(errors.InvalidSpec, match=rf"AIAAS_CA={file}: .*({why})"):
            aiaas_magics.connect("https://gpu-box:8443", TOKEN)


def test_an_authority_that_vouches_is_believed(pairs: dict[str, Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIAAS_CA", str(pairs["own"].certificate))

    with behind_tls(pairs["own"]) as (url, _), aiaas_magics.connect(url, TOKEN) as backend:
        assert backend.transport.fingerprint == ""


def test_tls_to_a_plain_server_is_told_as_that() -> None:
    with (
        squatting(answer=answer_of(b"{}", status="400 Bad Request")) as plain,
        pytest.raises(errors.WrongProtocol, match="does not speak TLS"),
    ):
        aiaas_magics.connect(f"https://127.0.0.1:{plain.port}", TOKEN)

    assert TOKEN.encode() not in plain.received


def test_plain_http_to_a_tls_server_is_told_as_that(pairs: dict[str, Pair]) -> None:
    with behind_tls(pairs["own"]) as (url, heard), pytest.raises(errors.WrongProtocol, match=rf"Use {url} instead"):
        aiaas_magics.connect(url.replace("https", "http"), TOKEN)

    assert heard.tokens == []


def test_the_load_generator_believes_the_accepted_certificate_and_no_other(pairs: dict[str, Pair]) -> None:
    form = BodyForm(name="json", path="/v1/models/m:predict", bodies=(b"{}",))

    def plan(url: str, pair: Pair) -> LoadPlan:
        return LoadPlan(
            url=url, token=TOKEN, fingerprint=pair.print, forms=(form,), concurrency=(1,), duration_s=0.1, warm_up_s=0.0, rows=1, rates=()
        )

    with behind_tls(pairs["own"]) as (url, heard):
        with pytest.raises(errors.BackendRefused, match="different certificate"):
            carry_out(plan(url, pairs["other"]))
        assert heard.tokens == []
        assert carry_out(plan(url, pairs["own"])).points[0].requests > 0


def test_a_real_server_prints_the_fingerprint_that_connects(pairs: dict[str, Pair], tmp_path: Path) -> None:
    from tests.contracts.recipes import server_by_hand

    own = pairs["own"]
    (tmp_path / "state").mkdir(mode=0o700)
    with server_by_hand(tmp_path / "state", "--tls-cert", str(own.certificate), "--tls-key", str(own.key)) as (url, token):
        with pytest.raises(errors.CertificateRefused) as caught:
            aiaas_magics.connect(url, token)
        with pytest.raises(errors.WrongProtocol, match="speaks TLS"):
            aiaas_magics.connect(url.replace("https", "http"), token)
        with aiaas_magics.connect(url, token, fingerprint=caught.value.fingerprint) as backend:
            assert backend.about().devices
    assert caught.value.fingerprint in (tmp_path / "state" / "serve.log").read_text()


# --------------------------------------------------------------------------- the server's side


def test_a_pair_that_belongs_together_is_taken(pairs: dict[str, Pair]) -> None:
    check_pair(pairs["own"].certificate, pairs["own"].key)


# The inference process asks the same function: two of its sentences are enough to see that it does.
FAULTS = [("api", kind) for kind in ("mismatch", "no key", "open key", "encrypted", "swapped", "missing", "no PEM")]
FAULTS += [("inference", "mismatch"), ("inference", "open key")]


@pytest.mark.parametrize(("server", "kind"), FAULTS)
def test_a_pair_that_cannot_be_served_with_is_one_sentence(pairs: dict[str, Pair], tmp_path: Path, kind: str, server: str) -> None:
    from cryptography.hazmat.primitives import serialization

    own = pairs["own"]
    key = tmp_path / "key.pem"
    key.touch(0o600)
    key.write_bytes(own.key.read_bytes())
    certificate = own.certificate
    match kind:
        case "mismatch":
            certificate, why = pairs["other"].certificate, "is not the key of"
        case "no key":
            key.write_bytes(b"")
            why = "cannot be used"
        case "open key":
            key.chmod(0o644)
            why = f"Run chmod 600 {key}"
        case "encrypted":
            loaded = serialization.load_pem_private_key(own.key.read_bytes(), None)
            encryption = serialization.BestAvailableEncryption(b"secret")
            key.write_bytes(loaded.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
            why = "is encrypted"
        case "swapped":
            certificate, why = key, "cannot be used"
        case "missing":
            key, why = tmp_path / "nope", "there is no such file"
        case _:
            certificate, why = tmp_path / "x", "cannot be used"
            certificate.write_text("no PEM")
    module = ["aiaas_magics", "serve"] if server == "api" else ["aiaas_magics.backend.serving"]

    command = [sys.executable, "-m", *module, "--state", str(tmp_path / "state"), "--tls-cert", str(certificate), "--tls-key", str(key)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)

    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert why in line


def test_a_key_that_a_group_may_read_is_taken(pairs: dict[str, Pair], tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.touch(0o640)
    key.write_bytes(pairs["own"].key.read_bytes())
    os.chmod(key, 0o640)

    check_pair(pairs["own"].certificate, key)
