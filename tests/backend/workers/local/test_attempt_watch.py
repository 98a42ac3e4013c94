"""Reading on where one stopped, whatever the writers do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiaas_magics.backend.training.worker_command import WorkerLine
from aiaas_magics.backend.workers.local import attempt_watch as watching
from aiaas_magics.backend.workers.local.attempt_folder import AttemptFolder, Exit, write_value
from aiaas_magics.backend.workers.local.attempt_watch import AttemptWatch, FolderNews, shown
from aiaas_magics.core import wire
from aiaas_magics.core.events import Compiled, Notice, Output
from aiaas_magics.core.process_id import ProcessId
from tests.support import waiting


def line(text: str) -> bytes:
    return wire.encode(WorkerLine(at_s=1.0, event=Notice(text=text))) + b"\n"


def notices(seen: FolderNews) -> list[str]:
    return [found.event.text for _, found in seen.lines if isinstance(found.event, Notice)]


def outputs(seen: FolderNews) -> list[str]:
    return [found.event.text for _, found in seen.lines if isinstance(found.event, Output)]


@pytest.fixture
def folder(tmp_path: Path) -> AttemptFolder:
    return AttemptFolder(tmp_path)


@settings(max_examples=40)
@given(cuts=st.lists(st.integers(0, 400), max_size=12), restarts=st.sets(st.integers(0, 12)))
def test_every_line_is_given_once_however_it_is_written_and_whoever_reads_on(
    cuts: list[int], restarts: set[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = AttemptFolder(tmp_path_factory.mktemp("attempt"))
    texts = [f"number {i}" for i in range(6)]
    data = b"".join(map(line, texts))
    watch, offsets, found = AttemptWatch(folder, ranks=1), {}, []
    for step, (begin, end) in enumerate(zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True)):
        with folder.events(0).open("ab") as file:
            file.write(data[begin:end])
        seen = watch.look()
        found += notices(seen)
        offsets |= seen.offsets
        if step in restarts:
            watch = AttemptWatch(folder, ranks=1, offsets=offsets)

    assert found == texts


def test_a_torn_last_line_is_never_given(folder: AttemptFolder) -> None:
    folder.events(0).write_bytes(line("whole") + line("torn")[:-5])
    write_value(folder.exit(0), Exit(signal=9))

    seen = AttemptWatch(folder, ranks=1).look()

    assert notices(seen) == ["whole"]
    assert seen.ended == [(0, Exit(signal=9))]


def test_a_line_that_is_no_event_is_passed_over(folder: AttemptFolder) -> None:
    folder.events(0).write_bytes(b"print('hello')\n" + b'{"at_s": 1}\n' + b"\xff\xfe\n" + line("good"))

    assert notices(AttemptWatch(folder, ranks=1).look()) == ["good"]


def test_a_rank_ends_after_everything_it_wrote(folder: AttemptFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "LOOK_BYTES", 200)
    folder.events(0).write_bytes(b"".join(line(f"number {i}") for i in range(20)))
    write_value(folder.exit(0), Exit(code=0))
    watch = AttemptWatch(folder, ranks=1)

    found: list[str] = []
    while not watch.is_over:
        seen = watch.look()
        found += notices(seen)
        assert not seen.ended or len(found) == 20


def test_a_line_longer_than_what_is_read_does_not_stop_the_rest(folder: AttemptFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "LOOK_BYTES", 500)
    folder.events(0).write_bytes(line("x" * 5_000) + line("after"))
    watch = AttemptWatch(folder, ranks=1)

    found = [text for _ in range(20) for text in notices(watch.look())]

    assert found == ["after"]


def test_a_process_that_is_gone_without_an_exit_file_has_ended_without_a_word(
    folder: AttemptFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_value(folder.pid(0), ProcessId(pid=os.getpid(), started=1))  # another process has the pid now
    watch = AttemptWatch(folder, ranks=1)
    assert watch.look().ended == []  # its launcher may be about to say how it ended

    monkeypatch.setattr(watching, "REAP_S", 0.0)

    assert watch.look().ended == [(0, Exit())]
    assert Exit().how == "ended without a word"


@pytest.mark.process
def test_a_stopped_process_is_told_at_once_and_given_up_only_when_it_does_not_go_on(
    folder: AttemptFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "STOPPED_LOOK_S", 0.0)
    with subprocess.Popen(["sleep", "600"]) as process:
        write_value(folder.pid(0), ProcessId.of(process.pid))
        watch, status = AttemptWatch(folder, ranks=1), psutil.Process(process.pid).status
        watch.look()
        process.send_signal(signal.SIGSTOP)
        waiting.until(lambda: status() == psutil.STATUS_STOPPED, "it did not stop", 10)
        assert [watch.look().stopped, watch.look().stopped] == [[0], []]
        process.send_signal(signal.SIGCONT)
        waiting.until(lambda: status() != psutil.STATUS_STOPPED, "it did not go on", 10)
        monkeypatch.setattr(watching, "STOPPED_S", 0.0)
        assert watch.look().stuck == []

        process.send_signal(signal.SIGSTOP)
        waiting.until(lambda: status() == psutil.STATUS_STOPPED, "it did not stop", 10)

        assert watch.look().stopped == [0]
        assert [watch.look().stuck, watch.look().stuck] == [[0], []]
        process.kill()


@pytest.mark.process
def test_a_process_that_goes_on_between_two_looks_at_it_stopped_is_not_given_up(
    folder: AttemptFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "STOPPED_LOOK_S", 0.0)
    monkeypatch.setattr(watching, "STOPPED_S", 0.0)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        write_value(folder.pid(0), ProcessId.of(process.pid))
        watch, seen_of = AttemptWatch(folder, ranks=1), psutil.Process(process.pid)

        def stop() -> FolderNews:
            process.send_signal(signal.SIGSTOP)
            waiting.until(lambda: seen_of.status() == psutil.STATUS_STOPPED, "it did not stop", 10)
            return watch.look()

        assert stop().stopped == [0]
        for _ in range(3):
            spent_s = sum(seen_of.cpu_times()[:2])
            process.send_signal(signal.SIGCONT)
            waiting.until(lambda spent_s=spent_s: sum(seen_of.cpu_times()[:2]) > spent_s + 0.05, "it did not go on", 10)
            again = stop()
            assert (again.stopped, again.stuck) == ([], [])

        assert watch.look().stuck == [0]
        process.kill()


def test_a_rank_that_was_never_started_is_waited_for_until_it_is_given_up(folder: AttemptFolder) -> None:
    watch = AttemptWatch(folder, ranks=2)
    write_value(folder.exit(1), Exit(code=0))
    assert watch.look().ended == [(1, Exit(code=0))]
    assert not watch.is_over

    assert watch.end_unstarted() == [0]

    assert watch.is_over


def test_output_is_what_a_terminal_would_have_left() -> None:
    assert shown(b"1/3\r2/3\r3/3\nnext\r\n") == "3/3\nnext"
    assert shown("\xff grün".encode("latin-1")) == "\ufffd gr\ufffdn"


def test_output_is_kept_to_a_bound_and_says_so(folder: AttemptFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "OUTPUT_BYTES", 1000)
    monkeypatch.setattr(watching, "OUTPUT_LOOK_BYTES", 600)
    folder.output(0).write_bytes(b"a line\n" * 1000)
    write_value(folder.exit(0), Exit(code=0))
    watch = AttemptWatch(folder, ranks=1)

    text = ""
    while not watch.is_over:
        text += "".join(outputs(watch.look()))

    assert len(text) < 2000
    assert text.endswith("the rest is left out)")


def test_a_long_line_is_shown_in_linear_time() -> None:
    """The pattern that stood here took 2.6 s of CPU for 64 KB and 170 s for what this test gives it."""
    began_s = time.thread_time()

    assert len(shown(b"x" * 8 * 64 * 1024)) == 8 * 64 * 1024
    assert shown(b"\r".join([b"1234567"] * 64 * 1024)) == "1234567"
    assert time.thread_time() - began_s < 5.0  # it takes 10 ms; thread time counts no other process


def test_output_beyond_the_bound_is_not_looked_at_and_its_disk_is_given_back(
    folder: AttemptFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "OUTPUT_BYTES", 1000)
    monkeypatch.setattr(watching, "OUTPUT_SLACK_BYTES", 1000)
    watch = AttemptWatch(folder, ranks=1)
    with folder.output(0).open("ab") as file:
        file.write(b"a line\n" * 200)
        file.flush()
        assert outputs(watch.look())[0].endswith("the rest is left out)")
        file.write(b"a line\n" * 1_000_000)
        file.flush()

        assert not watch.look()

        assert folder.output(0).stat().st_size == 1000
        file.write(b"still appended")
        file.flush()
        assert folder.output(0).stat().st_size == 1014
    write_value(folder.exit(0), Exit(code=0))
    assert watch.look().ended == [(0, Exit(code=0))]


@pytest.mark.parametrize("kind", ["pipe", "endless", "folder", "other name"])
def test_a_file_that_a_worker_made_something_else_of_is_not_read_and_its_end_is_seen_all_the_same(
    folder: AttemptFolder, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    secret = tmp_path_factory.mktemp("elsewhere") / "secret"
    secret.write_bytes(line("of somebody else"))
    for path in (folder.events(0), folder.output(0), folder.pid(0)):
        match kind:
            case "pipe":
                os.mkfifo(path)
            case "endless":
                path.symlink_to("/dev/zero")
            case "folder":
                path.mkdir()
            case "other name":
                os.link(secret, path)
    watch = AttemptWatch(folder, ranks=1)
    assert not watch.look()

    write_value(folder.exit(0), Exit(code=0))

    assert watch.look().ended == [(0, Exit(code=0))]
    assert watch.is_over


def test_output_of_an_unfinished_line_comes_when_the_rank_ends(folder: AttemptFolder) -> None:
    folder.output(0).write_bytes(b"no newline")
    watch = AttemptWatch(folder, ranks=1)
    assert outputs(watch.look()) == []

    write_value(folder.exit(0), Exit(code=0))

    assert outputs(watch.look()) == ["no newline"]


def test_a_process_is_known_by_its_pid_and_its_start() -> None:
    me = ProcessId.of(os.getpid())

    assert me.is_alive()
    assert not ProcessId(pid=me.pid, started=me.started - 60).is_alive()


def test_the_kinds_of_events_survive_the_file(folder: AttemptFolder) -> None:
    folder.events(0).write_bytes(wire.encode(WorkerLine(at_s=2.5, event=Compiled(seconds=0.5))) + b"\n")

    assert AttemptWatch(folder, ranks=1).look().lines == [(0, WorkerLine(at_s=2.5, event=Compiled(seconds=0.5)))]


def test_output_keeps_blank_lines_and_loses_colours(folder: AttemptFolder) -> None:
    folder.output(0).write_bytes(b"one\n\n\x1b[1m1/2\x1b[0m \x1b[37mbar\x1b[0m\r\x1b[1m2/2\x1b[0m\n\n")
    watch = AttemptWatch(folder, ranks=1)

    (first,) = outputs(watch.look())
    with folder.output(0).open("ab") as file:
        file.write(b"\n")

    assert first.split("\n") == ["one", "", "2/2", ""]
    assert outputs(watch.look()) == [""]


def test_a_line_is_not_torn_where_a_look_ends(folder: AttemptFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "OUTPUT_LOOK_BYTES", 10)
    folder.output(0).write_bytes(b"12345\n12345\n1")
    write_value(folder.exit(0), Exit(code=0))
    watch = AttemptWatch(folder, ranks=1)

    found = []
    while not watch.is_over:
        found += outputs(watch.look())

    assert "\n".join(found).split("\n") == ["12345", "12345", "1"]
