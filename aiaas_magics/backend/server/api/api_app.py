"""API app: the routes of the HTTP API.

Owns paths and methods. Who may come in is decided in `auth` before a route is looked for;
jobs belong to `conductor`, bytes to `blobs`, endpoints to `endpoint_records`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from aiaas_magics.backend.folders.feed_folder import FeedFolder
from aiaas_magics.backend.folders.job_folder import JobFolder, refuse_link
from aiaas_magics.backend.folders.record_folder import newest_frames
from aiaas_magics.backend.folders.small_files import NotPlainFile, open_plain
from aiaas_magics.backend.server.api.api_answers import (
    announced_bytes,
    answer,
    body_of,
    number_in,
    on_bug,
    on_http_error,
    on_our_error,
    upload_of,
)
from aiaas_magics.backend.server.audit.audited import note_object
from aiaas_magics.backend.server.conductor import Conductor
from aiaas_magics.backend.server.endpoint_records import Endpoints
from aiaas_magics.backend.server.presence import Presence
from aiaas_magics.backend.server.storage.blob_store import BLOB_BYTES, BlobStore, read_chunks, receive
from aiaas_magics.backend.server.storage.quota import Room, not_writable
from aiaas_magics.backend.server.storage.usage import Storage
from aiaas_magics.backend.workers import opened_files
from aiaas_magics.core.contract import APPENDED, OPENED, BlobQuery, DroppedFile, Health, MissingBlobs, check_versions
from aiaas_magics.core.errors import AiaasError, InvalidSpec, UnknownName
from aiaas_magics.core.events import MOST_FIGURE_BYTES
from aiaas_magics.core.feed_frames import FeedView
from aiaas_magics.core.model_card import ModelCard
from aiaas_magics.core.process_id import ProcessId
from aiaas_magics.core.routing import Change, Scaling
from aiaas_magics.core.spec import About, DeploySpec, FitSpec, RecordingChange, checked_job_name

POLL_S: Final = 30.0  # contract: a long poll waits at most this long
KEY_CHARACTERS: Final = 200
BATCH_BYTES: Final = 4 * 1024**3  # guess: one batch of a kernel's data, which a worker takes into its memory whole
FEEDS: Final = ("x", "validation_data")  # arguments of `fit` whose batches a kernel may send
RECORDED_BYTES: Final = 64_000_000  # of one download where nobody says how much: what a recording may have by default
MOST_RECORDED_BYTES: Final = 1_000_000_000  # guess: the answer is in memory
FEED_LOOK_S: Final = 0.01  # a batch is asked for in time while others wait to be read; guess


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes stand on."""

    about: Callable[[], About]
    conductor: Conductor
    blobs: BlobStore
    endpoints: Endpoints
    presence: Presence
    room: Room
    storage: Storage
    job_folder: Callable[[str], JobFolder]
    stop: Callable[[], None]


def build(parts: Parts) -> Starlette:
    """The application, without its guard."""
    app = Starlette(
        routes=routes(),
        exception_handlers={AiaasError: on_our_error, HTTPException: on_http_error, Exception: on_bug},
    )
    app.state.parts = parts
    return app


def routes() -> list[Route]:
    return [
        Route("/v1/health", health, methods=["GET"]),
        Route("/v1/about", about, methods=["GET"]),
        Route("/v1/kernels", kernel_here, methods=["POST"]),
        Route("/v1/blobs/missing", missing_blobs, methods=["POST"]),
        Route("/v1/blobs/{sha}", put_blob, methods=["PUT"]),
        Route("/v1/blobs/{sha}", get_blob, methods=["GET"]),
        Route("/v1/blobs/{sha}/adopt", adopt_blob, methods=["POST"]),
        Route("/v1/jobs", submit_job, methods=["POST"]),
        Route("/v1/jobs", list_jobs, methods=["GET"]),
        Route("/v1/jobs/{job}", get_job, methods=["GET"]),
        Route("/v1/jobs/{job}/events", get_events, methods=["GET"]),
        Route("/v1/jobs/{job}/cancel", cancel_job, methods=["POST"]),
        Route("/v1/jobs/{job}/checkpoint", get_checkpoint, methods=["GET"]),
        Route("/v1/jobs/{job}/feed/{name}", get_feed, methods=["GET"]),
        Route("/v1/jobs/{job}/feed/{name}/{number:int}/{index:int}", put_batch, methods=["PUT"]),
        Route("/v1/jobs/{job}/files/{path:path}", get_file, methods=["GET"]),
        Route("/v1/jobs/{job}/figures/{attempt:int}/{number:int}", get_figure, methods=["GET"]),
        Route("/v1/endpoints", deploy, methods=["POST"]),
        Route("/v1/endpoints", list_endpoints, methods=["GET"]),
        Route("/v1/endpoints/{name}", get_endpoint, methods=["GET"]),
        Route("/v1/endpoints/{name}", retire, methods=["DELETE"]),
        Route("/v1/endpoints/{name}/cards/{version:int}", get_card, methods=["GET"]),
        Route("/v1/endpoints/{name}/cards/{version:int}", put_card, methods=["PUT"]),
        Route("/v1/endpoints/{name}/routing", change_routing, methods=["POST"]),
        Route("/v1/endpoints/{name}/replicas", scale, methods=["POST"]),
        Route("/v1/endpoints/{name}/recording", change_recording, methods=["POST"]),
        Route("/v1/endpoints/{name}/recording", get_recording, methods=["GET"]),
        Route("/v1/endpoints/{name}/recorded", get_recorded, methods=["GET"]),
        Route("/v1/endpoints/{name}/recorded", forget_recorded, methods=["DELETE"]),
        Route("/v1/endpoints/{name}/drift", get_drift, methods=["GET"]),
        Route("/v1/storage", get_storage, methods=["GET"]),
        Route("/v1/storage/free", free_storage, methods=["POST"]),
        Route("/v1/stop", stop, methods=["POST"]),
    ]


def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


# --------------------------------------------------------------------------- who and where


async def health(request: Request) -> Response:
    """Say that the server is alive, with its version. The only route without a token, besides the proof."""
    return answer(Health(_parts(request).about().versions.aiaas_magics))


async def about(request: Request) -> Response:
    """The backend's versions, devices, hardware and memory: `About`."""
    return answer(_parts(request).about())


async def kernel_here(request: Request) -> Response:
    """Register a kernel of this machine, so that the local server stays as long as it lives."""
    kernel = await body_of(request, ProcessId)
    _parts(request).presence.add(kernel)
    return Response(status_code=204)


async def get_storage(request: Request) -> Response:
    """What the state folder holds, and how full its disk is: `StorageView`."""
    return answer(await _parts(request).storage.view())


async def free_storage(request: Request) -> Response:
    """Remove what nothing needs: `Freed`."""
    return answer(await _parts(request).storage.free())


async def stop(request: Request) -> Response:
    """Stop the server, with its jobs and endpoints."""
    _parts(request).stop()
    return Response(status_code=202)


# --------------------------------------------------------------------------- blobs


async def missing_blobs(request: Request) -> Response:
    """Of the SHA-256 names in `blobs`, those that the server does not have."""
    query = await body_of(request, BlobQuery)
    return answer(MissingBlobs(await asyncio.to_thread(_parts(request).blobs.missing, query.blobs)))


async def put_blob(request: Request) -> Response:
    """Upload bytes under their SHA-256."""
    body = upload_of(request, most_bytes=BLOB_BYTES)
    _parts(request).room.check(announced_bytes(request))
    await _parts(request).blobs.put(request.path_params["sha"], body)
    return Response(status_code=201)


async def get_blob(request: Request) -> Response:
    """Download a blob."""
    return _file(open_plain(_parts(request).blobs.get_path(request.path_params["sha"]), links=None))


async def adopt_blob(request: Request) -> Response:
    """Take a file from the dropbox as a blob: for clients of the same account."""
    parts = _parts(request)
    if parts.about().dropbox is None:
        raise InvalidSpec("This server has no dropbox. Send the bytes over HTTP instead.")
    dropped = await body_of(request, DroppedFile)
    parts.room.check()
    await asyncio.to_thread(parts.blobs.adopt, request.path_params["sha"], dropped.file)
    return Response(status_code=201)


def _file(file: BinaryIO, more: Mapping[str, str] = {}) -> Response:
    size = os.fstat(file.fileno()).st_size
    headers = {**more, "content-length": str(size), "x-content-type-options": "nosniff"}
    return StreamingResponse(read_chunks(file, size), media_type="application/octet-stream", headers=headers)


# --------------------------------------------------------------------------- jobs


async def submit_job(request: Request) -> Response:
    """Submit a `FitSpec`: `JobView`. An `Idempotency-Key` makes a repetition harmless."""
    parts = _parts(request)
    key = request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= KEY_CHARACTERS:
        raise InvalidSpec(f"An Idempotency-Key must have 1 to {KEY_CHARACTERS} characters. Use a random one for each job.")
    spec = await body_of(request, FitSpec)
    checked_job_name(spec.name)
    check_versions(spec.versions, parts.about().versions)
    missing = await asyncio.to_thread(parts.blobs.missing, (spec.payload, *spec.arrays, *filter(None, (spec.record,))))
    if missing:
        raise UnknownName("blob", missing[0])
    view = await parts.conductor.submit(spec, key=key)
    note_object(request, job=view.id)
    return answer(view, 201)


async def list_jobs(request: Request) -> Response:
    """Every job, oldest first: a list of `JobView`."""
    return answer(_parts(request).conductor.views())


async def get_job(request: Request) -> Response:
    """One job: `JobView`."""
    return answer(_parts(request).conductor.view(request.path_params["job"]))


async def get_events(request: Request) -> Response:
    """Entries of the job's log after sequence number `after`. Waits up to `wait_s` seconds (at most 30) for the first."""
    after, wait_s = int(number_in(request, "after", 0)), min(number_in(request, "wait_s", 0), POLL_S)
    return answer(await _parts(request).conductor.entries(request.path_params["job"], after=after, wait_s=wait_s))


async def cancel_job(request: Request) -> Response:
    """Stop the job: `JobView`."""
    return answer(await _parts(request).conductor.cancel(request.path_params["job"]))


async def get_checkpoint(request: Request) -> Response:
    """The checkpoint that an ended job left to resume from: `CheckpointView`."""
    return answer(await _parts(request).conductor.checkpoint(request.path_params["job"]))


async def get_file(request: Request) -> Response:
    """Download a file that the job's callbacks wrote. It must be listed, and lie where it says it lies."""
    parts, path = _parts(request), request.path_params["path"]
    view = parts.conductor.view(request.path_params["job"])
    folder = parts.job_folder(view.id)
    try:
        refuse_link(folder.files)
        root = folder.files.resolve()
        target = (root / path).resolve() if path in view.files else root
        if not target.is_relative_to(root):
            raise NotPlainFile("lies elsewhere")
        appended = path in await asyncio.to_thread(opened_files.appended, folder)
        return _file(open_plain(target), {OPENED: APPENDED} if appended else {})
    except (OSError, NotPlainFile) as error:
        raise UnknownName("file", path, view.files) from error


async def get_figure(request: Request) -> Response:
    """Download a figure that the job's code showed, as PNG, also while it runs. Links are not followed."""
    parts, numbers = _parts(request), request.path_params
    folder = parts.job_folder(parts.conductor.view(numbers["job"]).id)
    figure = folder.figure(numbers["attempt"], numbers["number"])
    try:
        refuse_link(folder.figures)
        return _file(open_plain(figure, most_bytes=MOST_FIGURE_BYTES))
    except (OSError, NotPlainFile) as error:
        raise UnknownName("figure", figure.stem) from error


async def get_feed(request: Request) -> Response:
    """How far the job has read the data that is sent to it: `FeedView`. Waits until that differs from `known`."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + min(number_in(request, "wait_s", 0), POLL_S)
    while True:
        view = _feed_view(request)
        if str(view) != request.query_params.get("known") or clock() >= deadline:
            return answer(view)
        await asyncio.sleep(FEED_LOOK_S)


async def put_batch(request: Request) -> Response:
    """Send one batch of the kernel's data to the job: `FeedView`."""
    view, numbers = _feed_view(request), request.path_params
    if not view.open:
        return answer(view)
    body = upload_of(request, most_bytes=BATCH_BYTES)
    _parts(request).room.check(announced_bytes(request))
    await receive(body, _feed(request).frame(numbers["number"], numbers["index"]))
    return answer(_feed_view(request))


def _feed_view(request: Request) -> FeedView:
    view = _parts(request).conductor.view(request.path_params["job"])
    if view.state.final:
        return FeedView(open=False, reading=-1, waiting=0)
    feed = _feed(request)
    try:
        feed.touch()
    except OSError as error:
        raise not_writable(feed.path, error.strerror or str(error)) from error
    return FeedView(open=True, reading=feed.reading, waiting=feed.waiting())


def _feed(request: Request) -> FeedFolder:
    parts, name = _parts(request), request.path_params["name"]
    if name not in FEEDS:
        raise UnknownName("feed", name, FEEDS)
    folder = parts.job_folder(parts.conductor.view(request.path_params["job"]).id)
    try:
        return folder.feed(name).made()
    except OSError as error:
        raise not_writable(folder.path.parent, error.strerror or str(error)) from error


# --------------------------------------------------------------------------- endpoints


async def deploy(request: Request) -> Response:
    """Serve the model of a `DeploySpec`: `EndpointView`."""
    _parts(request).room.check()
    spec = await body_of(request, DeploySpec)
    note_object(request, name=spec.name)
    return answer(await _parts(request).endpoints.deploy(spec), 201)


async def change_routing(request: Request) -> Response:
    """Promote, roll back, change the canary's share or move a label (`Change`): `EndpointView`."""
    return answer(await _parts(request).endpoints.change(request.path_params["name"], await body_of(request, Change)))


async def scale(request: Request) -> Response:
    """Change the number of replicas (`Scaling`): `EndpointView`."""
    return answer(await _parts(request).endpoints.scale(request.path_params["name"], await body_of(request, Scaling)))


async def change_recording(request: Request) -> Response:
    """Change what is recorded of requests and answers (`RecordingChange`): `EndpointView`."""
    return answer(await _parts(request).endpoints.record(request.path_params["name"], await body_of(request, RecordingChange)))


async def get_recording(request: Request) -> Response:
    """What is recorded of the endpoint: `RecordingCounts`."""
    return answer(await _parts(request).endpoints.recorded_counts(request.path_params["name"]))


async def get_recorded(request: Request) -> Response:
    """The newest recorded requests as frames, oldest first: at most `most_bytes` (default 64 MB) of them."""
    endpoints, name = _parts(request).endpoints, request.path_params["name"]
    most_bytes = int(min(number_in(request, "most_bytes", RECORDED_BYTES), MOST_RECORDED_BYTES))
    await endpoints.recorded_counts(name)  # puts into the files what waits for it
    parts = await asyncio.to_thread(newest_frames, endpoints.recorded_folder(name), most_bytes=most_bytes)
    headers = {"content-length": str(sum(map(len, parts))), "x-content-type-options": "nosniff", "cache-control": "no-store"}
    return StreamingResponse(iter(parts), media_type="application/octet-stream", headers=headers)


async def forget_recorded(request: Request) -> Response:
    """Remove what is recorded of the endpoint. Recording itself goes on."""
    await _parts(request).endpoints.forget_recorded(request.path_params["name"])
    return Response(status_code=204)


async def get_drift(request: Request) -> Response:
    """How the recorded rows of `version` (0, the default, is the live one) differ from the data it was deployed with: `DriftReport`."""
    version = int(number_in(request, "version", 0))
    return answer(await _parts(request).endpoints.drift(request.path_params["name"], version))


async def list_endpoints(request: Request) -> Response:
    """Every endpoint: a list of `EndpointView`."""
    return answer(await _parts(request).endpoints.views())


async def get_endpoint(request: Request) -> Response:
    """One endpoint: `EndpointView`."""
    return answer(await _parts(request).endpoints.view(request.path_params["name"]))


async def get_card(request: Request) -> Response:
    """The model card of a version, 0 for the one that answers: `ModelCard`."""
    return answer(await _parts(request).endpoints.card(request.path_params["name"], request.path_params["version"]))


async def put_card(request: Request) -> Response:
    """Keep another `ModelCard` for a version, 0 for the one that answers."""
    _parts(request).room.check()
    card = await body_of(request, ModelCard)
    await _parts(request).endpoints.keep_card(request.path_params["name"], request.path_params["version"], card)
    return Response(status_code=204)


async def retire(request: Request) -> Response:
    """Take the endpoint down, with all its versions."""
    await _parts(request).endpoints.retire(request.path_params["name"])
    return Response(status_code=204)
