"""An exception as data: what is kept of it, and which lines are the user's."""

from __future__ import annotations

import json

import pytest

from aiaas_magics.backend.training import report
from aiaas_magics.backend.training.report import is_user, report_of


def raised_in_cell(code: str, file: str) -> BaseException:
    try:
        exec(compile(code, file, "exec"), {"json": json})
    except BaseException as error:  # noqa: BLE001 - whatever the code raises is what is wanted
        return error
    raise AssertionError("nothing was raised")


def test_frames_keep_the_names_of_their_cells() -> None:
    error = raised_in_cell("def inner():\n    json.loads('{')\ninner()\n", "/tmp/ipykernel_12/345.py")

    found = report_of(error, rank=2, phase="training")

    assert (found.type, found.ranks, found.phase) == ("JSONDecodeError", (2,), "training")
    users = [(frame.file, frame.line, frame.function) for frame in found.frames if frame.user]
    assert users[-2:] == [("/tmp/ipykernel_12/345.py", 3, "<module>"), ("/tmp/ipykernel_12/345.py", 2, "inner")]
    assert not found.frames[-1].user
    assert "JSONDecodeError" in found.traceback


@pytest.mark.parametrize("file", ["<ipython-input-3-abc>", "/tmp/ipykernel_1/9.py", "/home/me/helpers.py"])
def test_cells_and_helpers_are_the_users(file: str) -> None:
    assert is_user(file)


@pytest.mark.parametrize("file", [json.__file__, pytest.__file__, report.__file__, "<frozen importlib._bootstrap>"])
def test_libraries_and_our_own_files_are_not(file: str) -> None:
    assert not is_user(file)


def test_a_report_is_bounded() -> None:
    code = "def again(n):\n    return again(n - 1) if n else 1 / 0\nagain(300)\n"

    found = report_of(raised_in_cell(code, "<ipython-input-1>"), rank=0)

    assert found.type == "ZeroDivisionError"
    assert len(found.frames) <= report.FRAMES
    assert len(found.traceback) <= report.TEXT + 10


def test_a_message_of_a_megabyte_is_cut() -> None:
    assert len(report_of(ValueError("x" * 2**20), rank=0).message) == report.TEXT
