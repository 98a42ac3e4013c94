"""Where the files of a job's callbacks may go: never over a file of the user's, never where something runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from aiaas_magics.backend.folders.job_folder import JobFolder
from aiaas_magics.backend.workers import opened_files
from aiaas_magics.client.training import returned_files
from aiaas_magics.client.training.returned_files import ReturnedFile, WrittenFiles, save, sentences
from aiaas_magics.core import settings
from aiaas_magics.core.errors import AiaasBug


@pytest.fixture(autouse=True)
def own_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that has had no job yet."""
    monkeypatch.setenv("AIAAS_HOME", str(tmp_path / "home"))
    new_kernel(monkeypatch)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    return folder


def new_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(returned_files, "_written", WrittenFiles())


@dataclass
class Sent:
    chunks: list[bytes]
    appended: bool
    size: int = 1


def bring(
    here: Path, *names: str, job: str = "7", content: bytes = b"from the backend", appended: bool = False, logs: tuple[str, ...] = ()
):  # type: ignore[no-untyped-def]
    asked: list[str] = []

    @contextmanager
    def fetch(name: str) -> Iterator[Sent]:
        asked.append(name)
        yield Sent([content], appended)

    files = save(job, names, here, fetch=fetch, logs=logs)
    assert asked == [file.name for file in files if file.path is not None], "what has no place is not even fetched"
    return files


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_name_that_is_free_is_taken_and_may_be_written_again(here: Path) -> None:
    bring(here, "best.keras", "logs/train/events.out.tfevents.1", content=b"first")
    files = bring(here, "best.keras", job="8", content=b"second")

    assert tree(here) == {"best.keras": b"second", "logs/train/events.out.tfevents.1": b"first"}
    assert files == (ReturnedFile(name="best.keras", path=here.resolve() / "best.keras"),)
    assert sentences("8", files) == ("Files of the callbacks: best.keras.",)


def test_a_file_of_the_users_is_replaced_by_none(here: Path) -> None:
    (here / "notes.md").write_text("precious")

    for _ in range(2):
        files = bring(here, "notes.md")

    assert tree(here) == {"notes.md": b"precious", "aiaas_files/7/notes.md": b"from the backend"}
    assert sentences("7", files) == (
        "Put into aiaas_files/7/ instead: notes.md (a file of that name is there, which no job wrote). Move what you want to keep.",
    )


def test_another_backends_job_of_the_same_number_keeps_what_it_put_aside(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "a.txt").write_text("mine")
    bring(here, "a.txt", content=b"one")
    (here / "aiaas_files" / "7" / "a.txt").write_text("one, and what I noted")
    new_kernel(monkeypatch)

    bring(here, "a.txt", content=b"two")

    assert tree(here) == {"a.txt": b"mine", "aiaas_files/7/a.txt": b"one, and what I noted", "aiaas_files/7-2/a.txt": b"two"}


def test_a_new_kernel_replaces_what_a_job_of_an_earlier_one_wrote_unless_somebody_changed_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(here, "best.keras", "log.csv", content=b"first")
    new_kernel(monkeypatch)
    (here / "log.csv").write_text("first, and my remarks")

    bring(here, "best.keras", "log.csv", job="8", content=b"second")

    assert tree(here) == {"best.keras": b"second", "log.csv": b"first, and my remarks", "aiaas_files/8/log.csv": b"second"}
    assert (settings.home() / "written_files.json").stat().st_mode & 0o077 == 0


def test_what_was_appended_is_added_to_the_users_file(here: Path) -> None:
    (here / "mine.txt").write_bytes(b"0\n")

    for _ in range(2):
        files = bring(here, "mine.txt", content=b"0\n1\n", appended=True)

    assert tree(here) == {"mine.txt": b"0\n0\n1\n0\n1\n"}
    assert sentences("7", files) == ("Files of the callbacks: mine.txt (added to).",)


def test_a_table_gets_its_first_line_once(here: Path) -> None:
    (here / "log.csv").write_bytes(b"epoch,loss\n0,1.5\n")
    (here / "other.csv").write_bytes(b"epoch,accuracy\n0,1.5\n")

    bring(here, "log.csv", "other.csv", content=b"epoch,loss\n0,0.5\n", logs=("log.csv", "other.csv"))

    assert tree(here) == {
        "log.csv": b"epoch,loss\n0,1.5\n0,0.5\n",
        "other.csv": b"epoch,accuracy\n0,1.5\nepoch,loss\n0,0.5\n",
    }


@pytest.mark.parametrize("name", ["Makefile", "config", "data.bin"])
def test_nothing_is_added_to_a_file_that_is_no_text(here: Path, name: str) -> None:
    (here / name).write_bytes(b"mine")

    bring(here, name, appended=True)

    assert (here / name).read_bytes() == b"mine"


RUN = ["numpy_helpers.py", "my.ipynb", "x.pth", "lib/libm.so.6", "x.SO", "a.sh", "a.pyc", "w.whl", "Makefile", "deep/setup.cfg", "x.py.txt"]


@pytest.mark.parametrize("name", RUN)
def test_what_something_might_run_goes_aside(here: Path, name: str) -> None:
    (file,) = bring(here, name)

    assert tree(here) == {f"aiaas_files/7/{name}": b"from the backend"}
    assert file.why == "it could be run"
    assert file.path is not None
    assert not os.access(file.path, os.X_OK)


ODD = ["", "/etc/cron.d/x", "../x", "a/../../x", "a//b", "a/", "~/x", "..\\x", ".bashrc", ".ssh/authorized_keys", "a/.git/config", "."]
ODD += [".ipython/profile_default/startup/00.py", "a\x1b[31m", "a\nb", "a\x00", "\u202egpj.exe", "x. ", "dir./x", "n" * 300]


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_what_leads_elsewhere_or_is_hidden_stays_on_the_backend(here: Path, tmp_path: Path, name: str) -> None:
    files = bring(here, name, "good.txt")

    assert tree(here) == {"good.txt": b"from the backend"}
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["notebooks"]
    line = sentences("7", files)[-1]
    assert line.startswith("Left on the backend: ")
    assert line.isprintable()


def test_no_link_is_followed(here: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x.txt").write_text("precious")
    (here / "logs").symlink_to(elsewhere)
    (here / "link.txt").symlink_to(elsewhere / "x.txt")
    (here / "dangling").symlink_to(elsewhere / "new.txt")
    (here / "plain").write_text("a file, no folder")

    bring(here, "logs/x.txt", "logs/new.txt", "link.txt", "dangling", "plain/inner.txt", appended=True)

    assert {path.name: path.read_text() for path in elsewhere.iterdir()} == {"x.txt": "precious"}
    aside = {path.relative_to(here / "aiaas_files" / "7").as_posix() for path in (here / "aiaas_files").rglob("*") if path.is_file()}
    assert aside == {"logs/x.txt", "logs/new.txt", "link.txt", "dangling", "plain/inner.txt"}


@pytest.mark.parametrize("job", ["../7", "", "a/b", "x" * 65, "7\n"])
def test_a_job_that_is_called_like_a_path_is_a_bug(here: Path, job: str) -> None:
    with pytest.raises(AiaasBug):
        bring(here, "a.txt", job=job)


def test_a_download_that_breaks_off_leaves_what_was_there(here: Path) -> None:
    bring(here, "best.keras", content=b"whole")

    @contextmanager
    def fetch(_: str) -> Iterator[Sent]:
        def chunks() -> Iterator[bytes]:
            yield b"half"
            raise ConnectionError

        yield Sent(chunks(), appended=False)  # type: ignore[arg-type]

    with pytest.raises(ConnectionError):
        save("8", ["best.keras"], here, fetch=fetch)

    assert tree(here) == {"best.keras": b"whole"}


def test_a_file_that_does_not_fit_on_the_disk_stays_on_the_backend(here: Path) -> None:
    @contextmanager
    def fetch(_: str) -> Iterator[Sent]:
        yield Sent([], appended=False, size=2**62)

    files = save("8", ["big.bin"], here, fetch=fetch)

    assert files[0].path is None
    assert "bytes" in sentences("8", files)[0]
    assert tree(here) == {}


# --------------------------------------------------------------------------- how a worker's files were opened

SCRIPT = """
import os, sys, pathlib, shutil
from aiaas_magics.backend.folders.job_folder import JobFolder
from aiaas_magics.backend.workers import opened_files
os.chdir(sys.argv[2])
opened_files.record(JobFolder(pathlib.Path(sys.argv[1])))
exec(sys.argv[3])
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("open('a.txt', 'a').close()", {"a.txt"}),
        ("pathlib.Path('d').mkdir(); open(os.path.abspath('d/a.txt'), 'ab').close()", {"d/a.txt"}),
        ("os.close(os.open(b'a.txt', os.O_WRONLY | os.O_CREAT | os.O_APPEND))", {"a.txt"}),
        ("open('a.txt', 'a').close(); open('a.txt').read(); open('a.txt', 'a').close()", {"a.txt"}),
        ("import logging; logging.FileHandler('a.log').close()", {"a.log"}),
        ("open('a.txt', 'w').close(); open('a.txt', 'a').close()", set()),
        ("open('a.txt', 'a').close(); open('a.txt', 'w').close()", set()),
        ("open('a.txt', 'a').close(); os.remove('a.txt'); open('a.txt', 'a').close()", set()),
        ("open('t', 'a').close(); os.replace('t', 'a.txt')", {"t"}),
        ("open('a.txt', 'x').close(); pathlib.Path('b').write_text(''); shutil.copy('b', 'c')", set()),
        ("open('/dev/null', 'a').close(); open('../elsewhere', 'a').close()", set()),
        ("open(os.dup(1), 'a').close()", set()),
    ],
)
def test_how_a_file_was_opened_is_on_record(tmp_path: Path, code: str, found: set[str]) -> None:
    (tmp_path / "job" / "files").mkdir(parents=True)

    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "job"), str(tmp_path / "job" / "files"), code], check=True, timeout=60)

    assert opened_files.appended(JobFolder(tmp_path / "job")) == found


def test_a_second_attempts_record_goes_on_from_the_firsts(tmp_path: Path) -> None:
    lines = [["written", "a"], ["appended", "a"], ["appended", "b"], ["appended", "b"], ["appended", "c"], ["written", "c"]]
    JobFolder(tmp_path).opened.write_text("".join(json.dumps(line) + "\n" for line in lines) + "[1]\nnot json\n{}\n[[], {}]\n")

    assert opened_files.appended(JobFolder(tmp_path)) == {"b"}
