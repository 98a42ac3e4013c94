"""With no descriptor left a process goes on: what cannot be read says nothing of who owns the folder."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aiaas_magics.backend.serving.process import inference_process
from aiaas_magics.backend.serving.process.state_directory import Files, RunningProcess
from aiaas_magics.core import process_id


class Ending:
    should_exit = False


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Nothing can be opened in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def running(pid: int) -> RunningProcess:
    return RunningProcess(pid=pid, started=process_id.start_mark(os.getpid()), url="", host="", tls="", control="", secret="", version="")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    files = Files(tmp_path)
    files.make()
    return files


async def ends(files: Files, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a process of this folder ends itself while it looks some times."""
    monkeypatch.setattr(inference_process, "DISOWNED_S", 0.001)
    server = Ending()
    looking = asyncio.create_task(inference_process._end_when_disowned(files, server))  # type: ignore[arg-type]
    for _ in range(200):
        await asyncio.sleep(0.001)
        if server.should_exit or looking.done():
            break
    assert not looking.done(), looking.exception()
    looking.cancel()
    return server.should_exit


async def test_a_process_without_descriptors_is_not_disowned(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    files.keep_running(running(os.getpid()))

    with no_descriptors():
        with pytest.raises(OSError, match="Too many open files"):
            files.log.open("a")
        assert not await ends(files, monkeypatch)


async def test_a_process_is_disowned_where_the_folder_names_another_or_none(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await ends(files, monkeypatch)
    files.keep_running(running(os.getpid() + 1))
    assert await ends(files, monkeypatch)


def test_the_record_of_a_process_that_had_front_ends_is_still_read(files: Files) -> None:
    (files.folder / "process.json").write_bytes(
        b'{"pid":7,"started":8,"url":"http://127.0.0.1:1","host":"127.0.0.1","tls":"","control":"tcp:2","secret":"s","version":"0.1.0",'
        b'"grpc":"127.0.0.1:3","front_ends":4,"cors":["https://app.example"]}'
    )

    record = files.running()

    assert record is not None
    assert (record.pid, record.grpc, record.cors) == (7, "127.0.0.1:3", ("https://app.example",))
