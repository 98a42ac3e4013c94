"""An exception as data: what is kept of it, and which lines are the user's."""

from __future__ import annotations

import json

import pytest

from aiaas_magics.backend.training import error_report
from aiaas_magics.backend.training.error_report import is_user, report_of


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


@pytest.mark.parametrize("file", [json.__file__, pytest.__file__, error_report.__file__, "<frozen importlib._bootstrap>"])
def test_libraries_and_our_own_files_are_not(file: str) -> None:
    assert not is_user(file)


def test_a_report_is_bounded() -> None:
    code = "def again(n):\n    return again(n - 1) if n else 1 / 0\nagain(300)\n"

    found = report_of(raised_in_cell(code, "<ipython-input-1>"), rank=0)

    assert found.type == "ZeroDivisionError"
    assert len(found.frames) <= error_report.FRAMES
    assert len(found.traceback) <= error_report.TEXT + 10


def test_a_message_of_a_megabyte_is_cut() -> None:
    assert len(report_of(ValueError("x" * 2**20), rank=0).message) == error_report.TEXT


class Told(Exception):
    pass


GRAPH = """Graph execution error:

Detected at node compile_loss/mean/Cast defined at (most recent call last):
  File "<frozen runpy>", line 198, in _run_module_as_main

  File "{ours}", line 7, in work

  File "/tmp/ipykernel_12/345.py", line 3, in train_step

Detected at node compile_loss/mean/Cast defined at (most recent call last):
  File "/tmp/ipykernel_12/345.py", line 3, in train_step

2 root error(s) found.
  (0) UNIMPLEMENTED:  Cast string to float is not supported
\t [[{{{{node compile_loss/mean/Cast}}}}]]
\t [[loop/_2]]
  (1) UNIMPLEMENTED:  Cast string to float is not supported
\t [[{{{{node compile_loss/mean/Cast}}}}]]
0 successful operations.
0 derived errors ignored. [Op:__inference_run_577]"""


def test_an_operation_that_fails_in_a_compiled_step_is_told_by_its_sentence_and_the_users_line() -> None:
    simple = GRAPH.split("Detected")[1]
    error = Told(
        f"Graph execution error:\n\nDetected{simple}Cast string to float is not supported\n"
        "\t [[{{node compile_loss/mean/Cast}}]] [Op:__run_5]"
    )

    found = report_of(error, rank=0)
    twice = report_of(Told(GRAPH.format(ours=error_report.__file__)), rank=0)

    assert found.message == twice.message
    assert twice.message == "Cast string to float is not supported (at the operation compile_loss/mean/Cast)"
    assert [(frame.file, frame.line, frame.function) for frame in twice.frames if frame.user] == [
        ("/tmp/ipykernel_12/345.py", 3, "train_step")
    ]


def test_what_keras_wraps_around_an_error_of_a_layer_is_left_out() -> None:
    error = ValueError(
        "Exception encountered when calling Mine.call().\n\n\x1b[1mno such thing\x1b[0m\n\nArguments received by Mine.call():\n  \u2022 x=1"
    )

    assert report_of(error, rank=0).message == "no such thing (in Mine.call())"
