"""Signed deployments on real processes: who is refused at the deploy, and who after a restart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

import aiaas_magics
from aiaas_magics.backend.serving.process.supervisor import Recorded
from aiaas_magics.client.serving import signing_keys
from aiaas_magics.core import integrity
from aiaas_magics.core.errors import AiaasError, BlobDamaged, SignatureRefused
from aiaas_magics.core.spec import DeploySpec, EndpointView
from tests.backend.server.served import Served, served
from tests.backend.serving.support.serving_models import Made, plus
from tests.backend.serving.support.serving_rig import Rig
from tests.contracts.recipes import server_by_hand

pytestmark = pytest.mark.process


class Key:
    """A key pair in files."""

    def __init__(self, file: Path) -> None:
        signing_keys.make(file)
        self.file, self.public_file = file, file.with_name(file.name + ".pub")
        self.private, self.public = signing_keys.read_private(file), signing_keys.read_public(self.public_file)

    def sign(self, spec: DeploySpec) -> DeploySpec:
        return replace(spec, signature=integrity.sign(spec, self.private, "key", signed_s=1_700_000_000))


@pytest.fixture
def key(tmp_path: Path) -> Key:
    return Key(tmp_path / "key")


def signed(made: Made, key: Key) -> Made:
    return Made(key.sign(made.hashed), made.artefact, made.samples)


def recorded(made: Made) -> Recorded:
    return Recorded(spec=made.spec, version=1, artefact=str(made.artefact), samples=str(made.samples))


def names(rig: Rig) -> set[str]:
    return {name for name, views in rig.run(rig.host.status()).items() if any(view.state == "AVAILABLE" for view in views)}


def test_a_process_that_demands_signatures_loads_signed_versions_alone(tmp_path: Path, key: Key) -> None:
    other = Key(tmp_path / "other")
    with Rig(tmp_path / "state", trusted_keys=key.public) as rig:
        view = rig.load(signed(plus(tmp_path, "good", 1.0), key))
        assert view.signer == integrity.fingerprint(key.public[0])
        page = rig.call("GET", "/endpoints/good", headers={"Accept": "text/html"}).body.decode()
        assert view.signer in page

        with pytest.raises(SignatureRefused, match="not signed"):
            rig.load(plus(tmp_path, "bare", 1.0))
        with pytest.raises(SignatureRefused, match="not among the trusted"):
            rig.load(signed(plus(tmp_path, "foreign", 1.0), other))
        replayed = replace(plus(tmp_path, "replayed", 3.0).hashed, signature=signed(plus(tmp_path, "good", 1.0), key).spec.signature)
        with pytest.raises(SignatureRefused, match="is not for this"):
            rig.run(rig.host.load(replayed, 1, tmp_path / "replayed.onnx", tmp_path / "replayed.safetensors"))
        assert names(rig) == {"good"}


def test_after_a_restart_only_signed_and_whole_versions_come_back(tmp_path: Path, key: Key) -> None:
    good, altered, bare = (plus(tmp_path, name, 1.0) for name in ("good", "altered", "bare"))
    good, altered = signed(good, key), signed(altered, key)
    bytes_on_disk = bytearray(altered.artefact.read_bytes())
    bytes_on_disk[len(bytes_on_disk) // 2] ^= 1
    altered.artefact.write_bytes(bytes_on_disk)

    records = (recorded(good), recorded(altered), recorded(Made(bare.hashed, bare.artefact, bare.samples)))
    with Rig(tmp_path / "state", recorded=records, trusted_keys=key.public) as rig:
        assert names(rig) == {"good"}
        assert "is served from holds other bytes" in rig.host.faults["altered"]
        assert "it is not signed" in rig.host.faults["bare"]


def test_a_living_process_that_demands_none_is_not_adopted_by_a_server_that_does(tmp_path: Path, key: Key) -> None:
    bare = plus(tmp_path, "bare", 1.0)
    first = Rig(tmp_path / "state")
    first.__enter__()
    first.load(bare)
    pid = first.host.pid
    first.leave()

    with Rig(tmp_path / "state", recorded=(recorded(Made(bare.hashed, bare.artefact, bare.samples)),), trusted_keys=key.public) as rig:
        assert rig.host.pid != pid
        assert names(rig) == set()


def test_an_altered_byte_is_refused_without_any_signature(tmp_path: Path) -> None:
    made = plus(tmp_path, "one", 1.0)
    with Rig(tmp_path / "state") as rig:
        spec = made.hashed
        made.samples.write_bytes(made.samples.read_bytes()[:-1] + b"\0")

        with pytest.raises(BlobDamaged, match="one is served from holds other bytes"):
            rig.run(rig.host.load(spec, 1, made.artefact, made.samples))


# --------------------------------------------------------------------------- the server


def spec_on(server: Served, artefact: bytes = b"an artefact", name: str = "churn") -> DeploySpec:
    return DeploySpec(name=name, artefact=server.put(artefact), format="onnx", samples=server.put(b"samples"), inputs=(), outputs=())


def test_a_server_that_demands_signatures_keeps_to_it_over_a_restart(tmp_path: Path, key: Key) -> None:
    """From the deploy to a byte that is altered on the server's disk while it is down."""
    state, rows = tmp_path / "state", np.ones((4, 1), np.float32)
    state.mkdir(mode=0o700)
    specs = {name: plus(tmp_path, name, amount) for name, amount in (("good", 1.0), ("altered", 2.0))}
    with server_by_hand(state, "--require-signed", str(key.public_file)) as (url, token), aiaas_magics.connect(url, token) as backend:
        for made in specs.values():
            for file in (made.artefact, made.samples):
                backend.blobs.send_bytes(file.read_bytes())
        with pytest.raises(SignatureRefused, match="not signed"):
            backend.transport.post("/v1/endpoints", specs["good"].hashed, EndpointView)
        for made in specs.values():
            backend.transport.post("/v1/endpoints", key.sign(made.hashed), EndpointView)
        assert backend.endpoint("altered").predict(rows).tolist() == [[3.0]] * 4
        (version,) = backend.endpoint("altered").versions
        assert version.signer == integrity.fingerprint(key.public[0])
    blob = state / "blobs" / version.artefact[:2] / version.artefact
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.chmod(0o600)
    blob.write_bytes(data)

    with server_by_hand(state, "--require-signed", str(key.public_file)) as (url, token), aiaas_magics.connect(url, token) as backend:
        assert backend.endpoint("good").predict(rows).tolist() == [[2.0]] * 4
        (version,) = backend.endpoint("altered").versions
        assert version.state == "END"
        assert "is served from holds other bytes" in version.fault
        with pytest.raises(AiaasError):
            backend.endpoint("altered").predict(rows)


def test_an_endpoint_that_demands_a_signature_demands_it_of_the_next_version(tmp_path: Path, key: Key) -> None:
    other = Key(tmp_path / "other")
    with served(tmp_path / "state", "--pool", "stub") as server:

        def deploy(spec: DeploySpec) -> EndpointView:
            return server.transport.post("/v1/endpoints", spec, EndpointView)

        deploy(key.sign(replace(spec_on(server), trusted_keys=key.public)))
        with pytest.raises(SignatureRefused, match="not signed"):
            deploy(spec_on(server, b"second"))
        with pytest.raises(SignatureRefused, match="not among the trusted"):
            deploy(other.sign(replace(spec_on(server, b"second"), trusted_keys=other.public)))
        deploy(key.sign(spec_on(server, b"third")))
        with pytest.raises(SignatureRefused, match="not signed"):
            deploy(spec_on(server, b"fourth"))
        deploy(spec_on(server, b"elsewhere", name="other"))


def test_a_server_does_not_start_with_a_file_that_holds_no_keys(tmp_path: Path) -> None:
    import subprocess
    import sys

    (tmp_path / "keys").write_text("nothing of use\n")
    command = [
        sys.executable,
        "-m",
        "aiaas_magics",
        "serve",
        "--state",
        str(tmp_path / "state"),
        "--require-signed",
        str(tmp_path / "keys"),
    ]

    done = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert done.returncode == 2
    assert "is no Ed25519 public key" in done.stderr


def test_the_command_line_makes_a_key_pair(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from aiaas_magics.cli import main

    made = CliRunner().invoke(main, ["key", str(tmp_path / "mine")])
    again = CliRunner().invoke(main, ["key", str(tmp_path / "mine")])

    assert made.exit_code == 0
    assert made.stdout.strip() == integrity.fingerprint(signing_keys.read_public(tmp_path / "mine.pub")[0])
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o600
    assert again.exit_code == 2
    assert "is there already" in again.stderr
