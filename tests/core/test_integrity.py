"""Signatures of deployments: what they cover, and what is refused."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from aiaas_magics.client.serving import signing_keys
from aiaas_magics.core import integrity
from aiaas_magics.core.errors import BlobDamaged, InvalidSpec, SignatureRefused
from aiaas_magics.core.precision import of
from aiaas_magics.core.spec import DeploySpec, TensorSpec

TENSOR = TensorSpec(name="x", dtype="float32", shape=(-1, 3))
SPEC = DeploySpec(name="churn", artefact="a" * 64, format="onnx", samples="b" * 64, inputs=(TENSOR,), outputs=(TENSOR,))


def pair(folder: Path, name: str = "key") -> tuple[bytes, tuple[str, ...]]:
    signing_keys.make(folder / name)
    return signing_keys.read_private(folder / name), signing_keys.read_public(folder / f"{name}.pub")


def signed(spec: DeploySpec, private: bytes) -> DeploySpec:
    return replace(spec, signature=integrity.sign(spec, private, "key", signed_s=1_700_000_000))


def test_a_signed_deployment_is_accepted_by_its_key_alone(tmp_path: Path) -> None:
    private, public = pair(tmp_path)
    _, other = pair(tmp_path, "other")

    integrity.verify(signed(SPEC, private), public)
    integrity.verify(signed(SPEC, private), (*other, *public))
    integrity.verify(signed(SPEC, private))
    integrity.verify(SPEC)

    with pytest.raises(SignatureRefused, match="not among the trusted"):
        integrity.verify(signed(SPEC, private), other)
    with pytest.raises(SignatureRefused, match="not among the trusted"):
        integrity.verify(signed(SPEC, private), public, other)
    with pytest.raises(SignatureRefused, match="not signed"):
        integrity.verify(SPEC, public)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"artefact": "c" * 64},
        {"samples": "c" * 64},
        {"format": "saved_model"},
        {"inputs": (replace(TENSOR, name="y"),)},
        {"inputs": (replace(TENSOR, shape=(-1, 4)),)},
        {"outputs": ()},
        {"precision": of("int8")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_signature_is_for_one_artifact_name_and_interface(tmp_path: Path, change: dict[str, Any]) -> None:
    """A signature replayed for anything else is refused, also where nobody demands one."""
    private, public = pair(tmp_path)
    replayed = replace(signed(SPEC, private), **change)

    with pytest.raises(SignatureRefused, match="is not for this"):
        integrity.verify(replayed, public)
    with pytest.raises(SignatureRefused, match="is not for this"):
        integrity.verify(replayed)


def test_what_may_change_later_is_not_signed(tmp_path: Path) -> None:
    private, public = pair(tmp_path)

    integrity.verify(replace(signed(SPEC, private), replicas=4, max_delay_us=100, model="net", trusted_keys=public), public)


@pytest.mark.parametrize(
    "change", [{"signature": "AAAA"}, {"signature": "no base64!"}, {"signed_s": 1}, {"key": "ssh-ed25519 AAAA"}, {"key": ""}]
)
def test_a_changed_signature_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    private, _ = pair(tmp_path)
    spec = signed(SPEC, private)
    assert spec.signature is not None

    with pytest.raises(SignatureRefused):
        integrity.verify(replace(spec, signature=replace(spec.signature, **change)))


def test_a_foreign_key_cannot_stand_in_for_a_trusted_one(tmp_path: Path) -> None:
    """Its signature is valid, and the key that it names is the trusted one."""
    _, public = pair(tmp_path)
    other_private, _ = pair(tmp_path, "other")
    spec = signed(SPEC, other_private)
    assert spec.signature is not None

    with pytest.raises(SignatureRefused):
        integrity.verify(replace(spec, signature=replace(spec.signature, key=public[0])), public)


def test_keys_are_files_that_only_their_owner_reads(tmp_path: Path) -> None:
    made = signing_keys.make(tmp_path / "key")

    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert made.fingerprint.startswith("SHA256:")
    assert signing_keys.read_public(made.public)[0].startswith("ssh-ed25519 ")
    with pytest.raises(InvalidSpec, match="is there already"):
        signing_keys.make(tmp_path / "key")
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(InvalidSpec, match="chmod 600"):
        signing_keys.read_private(tmp_path / "key")


def test_files_that_hold_no_keys_are_refused(tmp_path: Path) -> None:
    (tmp_path / "none").write_text("# a comment\n\n")
    (tmp_path / "rsa").write_text("ssh-rsa AAAAB3NzaC1yc2E= me\n")

    with pytest.raises(InvalidSpec, match="0 public keys"):
        signing_keys.read_public(tmp_path / "none")
    with pytest.raises(InvalidSpec, match="Line 1"):
        signing_keys.read_public(tmp_path / "rsa")
    with pytest.raises(InvalidSpec, match="Could not read"):
        signing_keys.read_public(tmp_path / "absent")
    with pytest.raises(InvalidSpec, match="no private key"):
        integrity.sign(SPEC, b"nothing", "key", signed_s=1)


@pytest.mark.process
@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="OpenSSH is not installed")
def test_openssh_knows_our_keys_and_its_keys_sign(tmp_path: Path) -> None:
    made = signing_keys.make(tmp_path / "ours")
    told = subprocess.run(["ssh-keygen", "-l", "-f", str(made.public)], check=True, capture_output=True, text=True).stdout
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "theirs")], check=True)

    assert made.fingerprint in told
    integrity.verify(signed(SPEC, signing_keys.read_private(tmp_path / "theirs")), signing_keys.read_public(tmp_path / "theirs.pub"))


def test_a_file_with_another_byte_is_damaged(tmp_path: Path) -> None:
    artefact, samples = tmp_path / "artefact", tmp_path / "samples"
    artefact.write_bytes(b"model")
    samples.write_bytes(b"rows")
    spec = replace(SPEC, artefact=integrity.file_hash(artefact), samples=integrity.file_hash(samples))

    integrity.check_files(spec, artefact, samples)
    artefact.write_bytes(b"modem")

    with pytest.raises(BlobDamaged, match="churn is served from holds other bytes"):
        integrity.check_files(spec, artefact, samples)


def test_the_bytes_that_are_signed_stay_the_same() -> None:
    """Signatures of today must be valid after the next release."""
    assert integrity.signed_bytes(SPEC, 5) == (
        b"aiaas_magics deployment, version 1\n"
        b'{"artifact":"' + b"a" * 64 + b'","format":"onnx","inputs":[["x","float32",[-1,3],""]],"name":"churn",'
        b'"outputs":[["x","float32",[-1,3],""]],"precision":["",0.0001,0.00001,0.00001],"samples":"' + b"b" * 64 + b'","signed_s":5}'
    )
