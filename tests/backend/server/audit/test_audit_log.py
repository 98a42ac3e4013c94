"""The files of the audit log: rotation, restarts, torn ends, a full disk, and somebody who removes them."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest

from aiaas_magics.backend.server.audit import audit_log
from aiaas_magics.backend.server.audit.audit_chain import AuditFact, checked, entry_in
from aiaas_magics.backend.server.audit.audit_log import AuditLog, files_of, lines_of
from aiaas_magics.backend.server.audit.audited import Folds
from aiaas_magics.core.errors import StoreNotWritable
from aiaas_magics.testing import FakeClock
from tests.support.small_disk import MOUNTS, full, small_disk


def fact(number: int) -> AuditFact:
    return AuditFact(at_s=number, who="t1", action="cancel_job", outcome="done", status=200, on={"job": str(number)})


async def written(folder: Path, *numbers: int, file_bytes: int = audit_log.FILE_BYTES) -> None:
    audit = AuditLog(folder, file_bytes=file_bytes)
    for number in numbers:
        await audit.record(fact(number))
    audit.close()


def jobs_in(folder: Path) -> list[str]:
    return [(entry_in(line.rstrip(b"\n")) or {})["on"].get("job", "") for _, _, line in lines_of(folder)]


async def test_an_entry_is_in_a_private_file_when_it_is_acknowledged(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path / "audit")

    await audit.record(fact(1))

    assert jobs_in(tmp_path / "audit") == ["1"]
    [file] = files_of(tmp_path / "audit")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    audit.close()


async def test_the_chain_goes_on_across_files_and_restarts(tmp_path: Path) -> None:
    for first in (1, 11, 21):
        await written(tmp_path, *range(first, first + 10), file_bytes=1000)

    report = checked(lines_of(tmp_path))

    assert report.broken is None
    assert report.entries == 30
    assert len(files_of(tmp_path)) > 5
    assert jobs_in(tmp_path) == [str(number) for number in range(1, 31)]


async def test_entries_that_come_together_keep_their_order(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path)

    await asyncio.gather(*(audit.record(fact(number)) for number in range(200)))
    audit.close()

    assert jobs_in(tmp_path) == [str(number) for number in range(200)]
    assert checked(lines_of(tmp_path)).broken is None


async def test_a_removed_file_in_the_middle_is_named(tmp_path: Path) -> None:
    await written(tmp_path, *range(1, 11), file_bytes=1000)
    files_of(tmp_path)[1].unlink()

    report = checked(lines_of(tmp_path))

    assert report.broken is not None
    assert "removed" in report.broken.why


async def test_half_an_entry_of_a_dying_machine_is_removed_and_told(tmp_path: Path) -> None:
    await written(tmp_path, 1, 2)
    [file] = files_of(tmp_path)
    with file.open("ab") as torn:
        torn.write(b'{"action":"cancel_j')

    await written(tmp_path, 3)

    assert checked(lines_of(tmp_path)).broken is None
    entries = [entry_in(line.rstrip(b"\n")) or {} for _, _, line in lines_of(tmp_path)]
    assert [entry["action"] for entry in entries] == ["cancel_job", "cancel_job", "audit_recovered", "cancel_job"]
    assert entries[2]["on"] == {"torn_bytes": "19"}


async def test_an_altered_last_entry_stays_named_after_a_restart(tmp_path: Path) -> None:
    await written(tmp_path, 1, 2)
    [file] = files_of(tmp_path)
    file.write_bytes(file.read_bytes().replace(b'"job":"2"', b'"job":"9"'))

    await written(tmp_path, 3)

    report = checked(lines_of(tmp_path))
    assert report.broken is not None
    assert report.broken.line == 2
    assert "altered" in report.broken.why


async def test_a_file_that_is_removed_or_cut_under_a_running_server_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for harm in ("remove", "cut"):
        folder = tmp_path / harm
        audit = AuditLog(folder)
        await audit.record(fact(1))
        await audit.record(fact(2))
        [file] = files_of(folder)
        if harm == "remove":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes().splitlines(keepends=True)[0])

        await audit.record(fact(3))
        audit.close()

        assert "somebody else changed" in caplog.text
        caplog.clear()
        report = checked(lines_of(folder))
        assert report.broken is not None, harm
        assert report.broken.seq == 3


def test_a_link_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_bytes(b"")
    folder = tmp_path / "audit"
    folder.mkdir()
    (folder / "audit-000000000001.jsonl").symlink_to(target)

    with pytest.raises(StoreNotWritable, match="is a link"):
        AuditLog(folder)


@MOUNTS
@pytest.mark.process
async def test_on_a_full_disk_entries_wait_and_are_written_in_their_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with small_disk(tmp_path / "disk", megabytes=4) as disk:
        audit = AuditLog(disk / "audit")
        await audit.record(fact(1))
        with full(disk):
            for number in range(2, 40):
                await audit.record(fact(number))
            assert audit.unwritten > 0
            assert "the audit log cannot be written" in caplog.text
            assert len(caplog.records) == 1  # once per minute
        await audit.record(fact(40))

        assert audit.unwritten == 0
        assert jobs_in(disk / "audit") == [str(number) for number in range(1, 41)]
        assert checked(lines_of(disk / "audit")).broken is None
        audit.close()


@MOUNTS
@pytest.mark.process
async def test_what_finds_no_room_in_memory_either_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_log, "WAITING", 40)
    with small_disk(tmp_path / "disk", megabytes=4) as disk:
        audit = AuditLog(disk / "audit")
        await audit.record(fact(0))
        with full(disk):
            for number in range(1, 100):
                await audit.record(fact(number))
        await audit.record(fact(100))
        audit.close()

        entries = [entry_in(line.rstrip(b"\n")) or {} for _, _, line in lines_of(disk / "audit")]
        lost = [entry for entry in entries if entry["action"] == "audit_lost"]
        kept = [entry for entry in entries if entry["action"] == "cancel_job"]
        assert sum(entry["count"] for entry in lost) + len(kept) == 101
        assert lost


def test_a_flood_is_one_entry_and_one_more_per_minute() -> None:
    clock = FakeClock()
    folds = Folds(clock.monotonic_s)
    refused = AuditFact(at_s=0, who="stranger", action="GET", outcome="refused", status=401, address="10.0.0.9")

    written = [entry for _ in range(1000) for entry in folds.worth_writing(refused)]
    assert [entry.count for entry in written] == [1]

    clock.pass_s(61)
    assert [entry.count for entry in folds.due()] == [999]
    assert folds.due(all_of_them=True) == []
