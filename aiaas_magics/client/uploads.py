"""Uploads: sends arrays and bytes to a backend, each once.

Owns naming (SHA-256 of what is stored), the memory of what was sent, and the two ways to
send: writing into the dropbox of a server of the same account, or streaming over HTTP.

An array is stored as the bytes of its `.npy` file, so that workers can map it. Hashing
1 GB takes longer than reading it twice; therefore an array that was sent before is
recognised by a fingerprint of *all* its bytes (XXH3, 128 bits, 25 GB/s measured on 2
cores), never by its address alone: a changed element is always seen. The fingerprint only
guards against change by accident, and only within this process; the name is the SHA-256.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import xxhash

from aiaas_magics.client.transport import Transport
from aiaas_magics.core.contract import BlobQuery, DroppedFile, MissingBlobs
from aiaas_magics.core.errors import CannotTravel, StoreNotWritable

CHUNK_BYTES: Final = 8 * 1024 * 1024  # guess: large enough that the loop is free, small enough to stay in cache
FINGERPRINT_THREADS: Final = min(4, os.cpu_count() or 1)
REMEMBERED: Final = 4096

ArrayKey = tuple[str, tuple[int, ...], bytes]  # dtype, shape, fingerprint


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes to store: a header and a body, so that an array is never copied into one piece."""

    head: bytes
    body: memoryview

    @property
    def size(self) -> int:
        return len(self.head) + self.body.nbytes

    def chunks(self) -> Iterator[bytes | memoryview]:
        if self.head:
            yield self.head
        for start in range(0, self.body.nbytes, CHUNK_BYTES):
            yield self.body[start : start + CHUNK_BYTES]


def array_content(array: np.ndarray) -> Content:
    """`array` as the bytes of its `.npy` file, version 1.0 or later as needed.

    Raises:
        CannotTravel: for an array of Python objects.
    """
    if array.dtype.hasobject:
        raise CannotTravel(f"an array of dtype {array.dtype}", "its elements are Python objects", "Convert it to numbers first.")
    flat = np.ascontiguousarray(array)
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(flat))
    return Content(head.getvalue(), _bytes_of(flat))


def _bytes_of(flat: np.ndarray) -> memoryview:
    if flat.size == 0:
        return memoryview(b"")
    return flat.reshape(-1).view(np.uint8).data


class SentArrays:
    """What this process knows of the blobs a backend has. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: dict[ArrayKey, str] = {}

    def name_of(self, key: ArrayKey) -> str | None:
        """The blob's name, if these very bytes were sent before."""
        with self._lock:
            return self._names.get(key)

    def remember(self, key: ArrayKey, sha: str) -> None:
        with self._lock:
            self._names[key] = sha
            while len(self._names) > REMEMBERED:
                self._names.pop(next(iter(self._names)))


@dataclass(frozen=True, slots=True)
class ArrayUpload:
    """An array on its way, with what recognises it; its bytes are read for that once, when it is looked up."""

    array: np.ndarray
    key: ArrayKey
    is_there: bool  # whether the backend has it, as far as it said when it was asked


def key_of(array: np.ndarray) -> ArrayKey:
    """What recognises an array. Reads all its bytes."""
    return (array.dtype.str, array.shape, fingerprint(_bytes_of(np.ascontiguousarray(array))))


def fingerprint(data: memoryview) -> bytes:
    """128 bits of XXH3 over all of `data`, in one part a thread."""
    part = -(-data.nbytes // FINGERPRINT_THREADS)
    if part < CHUNK_BYTES:
        return xxhash.xxh3_128_digest(data)
    parts = [data[start : start + part] for start in range(0, data.nbytes, part)]
    with ThreadPoolExecutor(len(parts)) as pool:
        return xxhash.xxh3_128_digest(b"".join(pool.map(xxhash.xxh3_128_digest, parts)))


class BlobSender:
    """Sends blobs to one backend and says what they are called there."""

    def __init__(self, transport: Transport, *, dropbox: str | None) -> None:
        self._transport = transport
        self._dropbox = Path(dropbox) if dropbox and os.path.isdir(dropbox) and os.access(dropbox, os.W_OK) else None
        self._sent_arrays = SentArrays()

    def look_up(self, arrays: Sequence[np.ndarray]) -> tuple[ArrayUpload, ...]:
        """For each array whether the backend has it already, and what `send_arrays` needs to know. Nothing is sent."""
        keys = [key_of(array) for array in arrays]
        names = [self._sent_arrays.name_of(key) for key in keys]
        missing = self._missing([name for name in names if name])
        there = [name is not None and name not in missing for name in names]
        return tuple(map(ArrayUpload, arrays, keys, there))

    def send_arrays(self, uploads: Sequence[ArrayUpload], *, on_progress: Callable[[int], None] = lambda _: None) -> tuple[str, ...]:
        """Send what the backend has not got; the names of all, in order.

        What was sent since they were looked up is found. An array must not change in between: it would be taken for what it was.

        Args:
            on_progress: called with the number of bytes after each array that was sent.
        """
        names_before = [self._sent_arrays.name_of(upload.key) for upload in uploads]
        missing = self._missing([name for name in names_before if name])
        names = []
        for upload, name in zip(uploads, names_before, strict=True):
            if name is None or name in missing:
                content = array_content(upload.array)
                name = self._send_new(content)
                self._sent_arrays.remember(upload.key, name)
                on_progress(content.size)
            names.append(name)
        return tuple(names)

    def send_bytes(self, data: bytes) -> str:
        """Send `data` unless the backend has it; its name."""
        content = Content(b"", memoryview(data))
        sha = _sha256(content)
        if self._missing([sha]):
            self._send(content, sha)
        return sha

    def _missing(self, names: list[str]) -> set[str]:
        if not names:
            return set()
        return set(self._transport.post("/v1/blobs/missing", BlobQuery(names), MissingBlobs, key=secrets.token_hex(8)).missing)

    def _send_new(self, content: Content) -> str:
        """Send what has no name yet. Into the dropbox it is written while another thread hashes the same memory."""
        if self._dropbox is None:
            sha = _sha256(content)
            if self._missing([sha]):
                self._send(content, sha)
            return sha
        with ThreadPoolExecutor(1) as pool:
            hashing = pool.submit(_sha256, content)
            self._drop(content, self._dropbox, hashing.result)
            return hashing.result()

    def _send(self, content: Content, sha: str) -> None:
        if self._dropbox is not None:
            self._drop(content, self._dropbox, lambda: sha)
        else:
            self._transport.upload(f"/v1/blobs/{sha}", content.chunks(), size=content.size)

    def _drop(self, content: Content, dropbox: Path, sha: Callable[[], str]) -> None:
        """Write into the dropbox and have it adopted under the name that `sha` gives by then."""
        path = dropbox / secrets.token_hex(16)
        try:
            _write_file(content, path)
            self._transport.post(f"/v1/blobs/{sha()}/adopt", DroppedFile(path.name), type(None), key=path.name)
        finally:
            path.unlink(missing_ok=True)


def _write_file(content: Content, path: Path) -> None:
    """Raises `StoreNotWritable`."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb", buffering=0) as file:
            for chunk in content.chunks():
                _write_all(file, memoryview(chunk))
    except OSError as error:
        free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
        why = f"{error.strerror or error} ({content.size / 1e6:,.1f} MB are sent, {free / 1e6:,.1f} MB are free there)"
        raise StoreNotWritable(str(path.parent.parent), why) from error


def _write_all(file: io.FileIO, chunk: memoryview) -> None:
    while chunk:
        chunk = chunk[file.write(chunk) :]


def _sha256(content: Content) -> str:
    digest = hashlib.sha256()
    for chunk in content.chunks():
        digest.update(chunk)
    return digest.hexdigest()
