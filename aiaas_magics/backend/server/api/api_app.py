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

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from aiaas_magics.backend.folders.feed_folder import FeedFolder
from aiaas_magics.backend.folders.job_folder import JobFolder, refuse_link
from aiaas_magics.backend.folders.record_folder import newest_frames
from aiaas_magics.backend.folders.small_files import NotPlainFile, open_plain
from aiaas_magics.backend.server.api.account_routes import Accounts, account_routes
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
from aiaas_magics.backend.server.api.ownership import Ownership
from aiaas_magics.backend.server.api.route_needs import DeclaredRoute, Need, Of, caller_of
from aiaas_magics.backend.server.audit.audited import note_object
from aiaas_magics.backend.server.conductor import Conductor
from aiaas_magics.backend.server.endpoint_records import Endpoints
from aiaas_magics.backend.server.identity.blob_spaces import BlobSpaces
from aiaas_magics.backend.server.identity.callers import ROOT, ApiCaller
from aiaas_magics.backend.server.presence import Presence
from aiaas_magics.backend.server.storage.blob_store import BLOB_BYTES, BlobStore, read_chunks, receive
from aiaas_magics.backend.server.storage.quota import Room, not_writable
from aiaas_magics.backend.server.storage.usage import Storage
from aiaas_magics.backend.workers import opened_files
from aiaas_magics.core.accounts import EndpointSharing, Role
from aiaas_magics.core.contract import APPENDED, OPENED, BlobQuery, DroppedFile, Health, MissingBlobs, check_versions
from aiaas_magics.core.errors import AiaasError, InvalidSpec, QuotaExceeded, UnknownName
from aiaas_magics.core.events import MOST_FIGURE_BYTES
from aiaas_magics.core.feed_frames import FeedView
from aiaas_magics.core.model_card import ModelCard
from aiaas_magics.core.process_id import ProcessId
from aiaas_magics.core.routing import Change, Scaling
from aiaas_magics.core.spec import About, DeploySpec, EndpointView, FitSpec, RecordingChange, checked_job_name

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
    spaces: BlobSpaces
    ownership: Ownership
    accounts: Accounts


def build(parts: Parts) -> Starlette:
    """The application, without its guard."""
    app = Starlette(
        routes=routes(),
        exception_handlers={AiaasError: on_our_error, HTTPException: on_http_error, Exception: on_bug},
    )
    app.state.parts = parts
    app.state.ownership = parts.ownership
    app.state.accounts = parts.accounts
    return app


LOOK: Final = Need(role=Role.VIEWER)
LOOK_AT_JOB: Final = Need(role=Role.VIEWER, of=Of.JOB)
CHANGE_JOB: Final = Need(role=Role.USER, of=Of.JOB)
LOOK_AT_ENDPOINT: Final = Need(role=Role.VIEWER, of=Of.ENDPOINT, shared=True)
CHANGE_ENDPOINT: Final = Need(role=Role.USER, of=Of.ENDPOINT)
OWN_TRAFFIC: Final = Need(role=Role.USER, of=Of.ENDPOINT)  # what callers have sent: for whom the endpoint belongs to
WORK: Final = Need(role=Role.USER)
OPERATE: Final = Need(role=Role.ADMIN)


def routes() -> list[DeclaredRoute]:
    return [
        DeclaredRoute("GET", "/v1/health", health, Need(role=None)),
        DeclaredRoute("GET", "/v1/about", about, LOOK),
        DeclaredRoute("POST", "/v1/kernels", kernel_here, OPERATE),
        DeclaredRoute("POST", "/v1/blobs/missing", missing_blobs, WORK),
        DeclaredRoute("PUT", "/v1/blobs/{sha}", put_blob, WORK),
        DeclaredRoute("GET", "/v1/blobs/{sha}", get_blob, Need(role=Role.VIEWER, of=Of.BLOB)),
        DeclaredRoute("POST", "/v1/blobs/{sha}/adopt", adopt_blob, OPERATE),
        DeclaredRoute("POST", "/v1/jobs", submit_job, WORK),
        DeclaredRoute("GET", "/v1/jobs", list_jobs, LOOK),
        DeclaredRoute("GET", "/v1/jobs/{job}", get_job, LOOK_AT_JOB),
        DeclaredRoute("GET", "/v1/jobs/{job}/events", get_events, LOOK_AT_JOB),
        DeclaredRoute("POST", "/v1/jobs/{job}/cancel", cancel_job, CHANGE_JOB),
        DeclaredRoute("GET", "/v1/jobs/{job}/checkpoint", get_checkpoint, LOOK_AT_JOB),
        DeclaredRoute("GET", "/v1/jobs/{job}/feed/{name}", get_feed, CHANGE_JOB),
        DeclaredRoute("PUT", "/v1/jobs/{job}/feed/{name}/{number:int}/{index:int}", put_batch, CHANGE_JOB),
        DeclaredRoute("GET", "/v1/jobs/{job}/files/{path:path}", get_file, LOOK_AT_JOB),
        DeclaredRoute("GET", "/v1/jobs/{job}/figures/{attempt:int}/{number:int}", get_figure, LOOK_AT_JOB),
        DeclaredRoute("POST", "/v1/endpoints", deploy, WORK),
        DeclaredRoute("GET", "/v1/endpoints", list_endpoints, LOOK),
        DeclaredRoute("GET", "/v1/endpoints/{name}", get_endpoint, LOOK_AT_ENDPOINT),
        DeclaredRoute("DELETE", "/v1/endpoints/{name}", retire, CHANGE_ENDPOINT),
        DeclaredRoute("POST", "/v1/endpoints/{name}/routing", change_routing, CHANGE_ENDPOINT),
        DeclaredRoute("POST", "/v1/endpoints/{name}/replicas", scale, CHANGE_ENDPOINT),
        DeclaredRoute("POST", "/v1/endpoints/{name}/groups", share_endpoint, CHANGE_ENDPOINT),
        DeclaredRoute("GET", "/v1/endpoints/{name}/cards/{version:int}", get_card, LOOK_AT_ENDPOINT),
        DeclaredRoute("PUT", "/v1/endpoints/{name}/cards/{version:int}", put_card, CHANGE_ENDPOINT),
        DeclaredRoute("POST", "/v1/endpoints/{name}/recording", change_recording, CHANGE_ENDPOINT),
        DeclaredRoute("GET", "/v1/endpoints/{name}/recording", get_recording, OWN_TRAFFIC),
        DeclaredRoute("GET", "/v1/endpoints/{name}/recorded", get_recorded, OWN_TRAFFIC),
        DeclaredRoute("DELETE", "/v1/endpoints/{name}/recorded", forget_recorded, CHANGE_ENDPOINT),
        DeclaredRoute("GET", "/v1/endpoints/{name}/drift", get_drift, OWN_TRAFFIC),
        DeclaredRoute("GET", "/v1/storage", get_storage, OPERATE),
        DeclaredRoute("POST", "/v1/storage/free", free_storage, OPERATE),
        DeclaredRoute("POST", "/v1/stop", stop, OPERATE),
        *account_routes(),
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
    about = _parts(request).about()
    # A dropbox is the server's own account's: whoever else may reach it on this machine sends over HTTP, into a space of their own.
    return answer(about if caller_of(request) is ROOT else msgspec.structs.replace(about, dropbox=None))


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
    """Of the SHA-256 names in `blobs`, those that you have to send: another user's count as not there."""
    query = await body_of(request, BlobQuery)
    return answer(MissingBlobs(await _parts(request).spaces.missing(query.blobs, caller_of(request))))


async def put_blob(request: Request) -> Response:
    """Upload bytes under their SHA-256."""
    caller = caller_of(request)
    quota, used = caller.quotas.storage_bytes, _parts(request).spaces.bytes_of(caller.user)
    if quota and used + announced_bytes(request) > quota:
        raise QuotaExceeded("bytes of uploads", quota, used + announced_bytes(request))
    body = upload_of(request, most_bytes=min(BLOB_BYTES, quota - used) if quota else BLOB_BYTES)
    _parts(request).room.check(announced_bytes(request))
    sha = request.path_params["sha"]
    await _parts(request).blobs.put(sha, body)
    size = (await asyncio.to_thread(_parts(request).blobs.path(sha).stat)).st_size
    await _parts(request).spaces.add(sha, caller.user, size=size)
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
    caller = caller_of(request)
    await parts.ownership.check_blobs((spec.payload, *spec.arrays, *filter(None, (spec.record,))), caller)
    if spec.resume_job:
        parts.ownership.check_job(spec.resume_job, caller)
    view = await parts.conductor.submit(spec, key=key, owner=caller.user)
    note_object(request, job=view.id)
    return answer(view, 201)


async def list_jobs(request: Request) -> Response:
    """Your jobs, oldest first: a list of `JobView`. An admin's are everybody's."""
    caller = caller_of(request)
    return answer([view for view in _parts(request).conductor.views() if caller.owns(view.owner)])


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
    """Serve the model of a `DeploySpec`: `EndpointView`. A user's endpoint is called USER.NAME."""
    parts, caller = _parts(request), caller_of(request)
    parts.room.check()
    spec = await body_of(request, DeploySpec)
    name, owner = parts.ownership.name_to_deploy(spec.name, caller)
    note_object(request, name=name)
    await parts.ownership.check_blobs((spec.artefact, spec.samples), caller)
    owned = parts.ownership.endpoints_owned_by(owner)
    if (most := caller.quotas.endpoints) and name not in owned and len(owned) >= most:
        raise QuotaExceeded("endpoints", most, len(owned) + 1)
    spec = spec if name == spec.name else msgspec.convert(msgspec.to_builtins(spec) | {"name": name}, DeploySpec)
    return answer(_shown(await parts.endpoints.deploy(spec, owner=owner), caller, parts), 201)


async def change_routing(request: Request) -> Response:
    """Promote, roll back, change the canary's share or move a label (`Change`): `EndpointView`."""
    parts = _parts(request)
    return answer(_shown(await parts.endpoints.change(_name(request), await body_of(request, Change)), caller_of(request), parts))


async def scale(request: Request) -> Response:
    """Change the number of replicas (`Scaling`): `EndpointView`."""
    parts = _parts(request)
    return answer(_shown(await parts.endpoints.scale(_name(request), await body_of(request, Scaling)), caller_of(request), parts))


async def share_endpoint(request: Request) -> Response:
    """Let members of your groups see and ask the endpoint (`EndpointSharing`): `EndpointView`. No groups: nobody."""
    parts, caller = _parts(request), caller_of(request)
    sharing = await body_of(request, EndpointSharing)
    if not caller.is_admin and (others := set(sharing.groups) - caller.groups):
        raise UnknownName("group", min(others), tuple(sorted(caller.groups)))
    return answer(_shown(await parts.endpoints.share(_name(request), sharing.groups), caller, parts))


async def change_recording(request: Request) -> Response:
    """Change what is recorded of requests and answers (`RecordingChange`): `EndpointView`."""
    parts = _parts(request)
    return answer(_shown(await parts.endpoints.record(_name(request), await body_of(request, RecordingChange)), caller_of(request), parts))


async def get_recording(request: Request) -> Response:
    """What is recorded of the endpoint: `RecordingCounts`."""
    return answer(await _parts(request).endpoints.recorded_counts(_name(request)))


async def get_recorded(request: Request) -> Response:
    """The newest recorded requests as frames, oldest first: at most `most_bytes` (default 64 MB) of them."""
    endpoints, name = _parts(request).endpoints, _name(request)
    most_bytes = int(min(number_in(request, "most_bytes", RECORDED_BYTES), MOST_RECORDED_BYTES))
    await endpoints.recorded_counts(name)  # puts into the files what waits for it
    parts = await asyncio.to_thread(newest_frames, endpoints.recorded_folder(name), most_bytes=most_bytes)
    headers = {"content-length": str(sum(map(len, parts))), "x-content-type-options": "nosniff", "cache-control": "no-store"}
    return StreamingResponse(iter(parts), media_type="application/octet-stream", headers=headers)


async def forget_recorded(request: Request) -> Response:
    """Remove what is recorded of the endpoint. Recording itself goes on."""
    await _parts(request).endpoints.forget_recorded(_name(request))
    return Response(status_code=204)


async def get_drift(request: Request) -> Response:
    """How the recorded rows of `version` (0, the default, is the live one) differ from the data it was deployed with: `DriftReport`."""
    version = int(number_in(request, "version", 0))
    return answer(await _parts(request).endpoints.drift(_name(request), version))


async def list_endpoints(request: Request) -> Response:
    """Your endpoints and those that your groups share: a list of `EndpointView`."""
    parts, caller = _parts(request), caller_of(request)
    views = await parts.endpoints.views(parts.ownership.endpoints_of(caller, shared=True))
    return answer([_shown(view, caller, parts) for view in views])


async def get_endpoint(request: Request) -> Response:
    """One endpoint: `EndpointView`."""
    return answer(_shown(await _parts(request).endpoints.view(_name(request)), caller_of(request), _parts(request)))


async def get_card(request: Request) -> Response:
    """The model card of a version, 0 for the one that answers: `ModelCard`."""
    return answer(await _parts(request).endpoints.card(_name(request), request.path_params["version"]))


async def put_card(request: Request) -> Response:
    """Keep another `ModelCard` for a version, 0 for the one that answers."""
    _parts(request).room.check()
    card = await body_of(request, ModelCard)
    await _parts(request).endpoints.keep_card(_name(request), request.path_params["version"], card)
    return Response(status_code=204)


async def retire(request: Request) -> Response:
    """Take the endpoint down, with all its versions."""
    await _parts(request).endpoints.retire(_name(request))
    return Response(status_code=204)


def _name(request: Request) -> str:
    name: str = request.path_params["name"]
    return name


def _shown(view: EndpointView, caller: ApiCaller, parts: Parts) -> EndpointView:
    """The endpoint with the token that this caller may have: an admin's opens all, a user's this one, a viewer gets none."""
    if caller.is_admin:
        return view
    token = parts.endpoints.token_of(view.name, caller.user) if caller.role.includes(Role.PREDICTOR) else ""
    return msgspec.structs.replace(view, token=token)
