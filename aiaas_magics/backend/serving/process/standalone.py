"""Stand-alone serving: the inference process with one endpoint from a folder, without a server and without a notebook.

Owns reading the folder (`core.bundle`), checking that its files are those that the export named, and the order of starting. Serving itself
belongs to `inference_process`.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiaas_magics.backend.folders.small_files import write_private
from aiaas_magics.backend.net.event_loop import fast_loop
from aiaas_magics.backend.serving.models.model_loader import Loader
from aiaas_magics.backend.serving.process import inference_process
from aiaas_magics.backend.serving.process.inference_process import STOCK, InferenceOptions
from aiaas_magics.backend.serving.process.state_directory import Files, RunningProcess
from aiaas_magics.core import bundle, snippets, wire
from aiaas_magics.core.errors import BlobDamaged, InvalidSpec
from aiaas_magics.core.routing import Routing
from aiaas_magics.core.spec import DeploySpec

GARBAGE_AFTER: Final = 100_000  # as in the process that a server starts


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedBundle:
    """An endpoint's folder, read and checked."""

    spec: DeploySpec
    artefact: Path
    samples: Path


def read_bundle(folder: Path) -> ServedBundle:
    """The endpoint in `folder`.

    Raises:
        InvalidSpec: it holds none.
        BlobDamaged: a file is not the one that was exported.
    """
    path = folder / bundle.ENDPOINT
    if not path.is_file():
        raise InvalidSpec(
            f"The folder {str(folder)!r} has no {bundle.ENDPOINT}. Give the folder `model` of an export: %aiaas_export MODEL --for docker."
        )
    try:
        spec = wire.decode(path.read_bytes(), DeploySpec)
        artefact = folder / bundle.MODELS[spec.format]
    except (wire.Malformed, KeyError) as error:
        raise InvalidSpec(f"{str(path)!r} cannot be read ({error}). Export the model anew.") from error
    samples = folder / bundle.SAMPLES
    for file, sha in ((artefact, spec.artefact), (samples, spec.samples)):
        if not file.is_file():
            raise InvalidSpec(f"The folder {str(folder)!r} has no {file.name}. Copy the whole folder of the export.")
        if sha256_of(file) != sha:
            raise BlobDamaged(sha, f"{str(file)!r} is another file than the export wrote")
    return ServedBundle(spec=spec, artefact=artefact, samples=samples)


def sha256_of(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def serve(folder: Path, options: InferenceOptions, *, token: str, on_ready: Callable[[str, RunningProcess], None]) -> None:
    """Serve the endpoint in `folder` until SIGTERM or SIGINT.

    Args:
        token: for predictions; "" keeps the one of last time, or makes one.
        on_ready: called with the endpoint's name and what the process says of itself, once the model answers as it did where it was
            exported.

    Raises:
        InvalidSpec, BlobDamaged: the folder holds no endpoint that was exported, or the token is too short.
        ProofFailed: the model answers otherwise here.
        CannotStart: a port cannot be had, or the state folder is in use.
    """
    served = read_bundle(folder)
    files = Files(Path(options.state))
    files.make()
    if token:
        write_private(files.folder / "token", checked_token(token).encode())

    async def preload(loader: Loader, running: RunningProcess) -> None:
        await loader.load(served.spec, 1, artefact=served.artefact, samples=served.samples)
        await loader.route(served.spec.name, Routing(live=1), restores=True)
        on_ready(served.spec.name, running)

    os.umask(0o077)
    gc.set_threshold(GARBAGE_AFTER)
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        runner.run(inference_process.run(options, STOCK, preload=preload))


def checked_token(token: str) -> str:
    """`token` itself, if it may be one; raises `InvalidSpec` otherwise."""
    if len(token) < bundle.LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidSpec(
            f"{snippets.TOKEN} is too short or has other characters than a token: at least {bundle.LEAST_TOKEN} letters, digits and signs. "
            "Use what `python -c 'import secrets; print(secrets.token_urlsafe(24))'` prints."
        )
    return token


def token_in(environment: Mapping[str, str]) -> str:
    """The token that a process was started with; "" where there is none."""
    return environment.get(snippets.TOKEN, "")
