"""A worker's exception, as data, shown at the cell's own lines."""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from aiaas_magics.core.errors import DataMismatch, NotCompiled, RemoteTrainingError
from aiaas_magics.core.remote_error import ErrorReport, Frame
from aiaas_magics.notebook import tracebacks
from aiaas_magics.notebook.tracebacks import Interrupted, remote_block

FILE = "ipykernel_1/123.py"
SOURCE = [
    "%%aiaas_train -n 2\n",
    "class Net(keras.Model):\n",
    "    def train_step(self, data):\n",
    "        x, y = data\n",
    "        return boom(x)\n",
]


class Shell:
    """As much of a shell as the mapping to cells needs."""

    class compile:
        _filename_map: ClassVar = {FILE: 3}

        @staticmethod
        def format_code_name(name: str) -> tuple[str, str] | None:
            return ("Cell", "In[3]") if name == FILE else None


@pytest.fixture(autouse=True)
def cell() -> Iterator[None]:
    linecache.cache[FILE] = (0, None, SOURCE, FILE)
    yield
    linecache.cache.pop(FILE)


def library(line: int) -> Frame:
    return Frame(file="/somewhere/venv/lib/python3.11/site-packages/keras/src/trainer.py", line=line, function="fit", source="step()")


def report(**changes: Any) -> ErrorReport:
    values: dict[str, Any] = {
        "type": "ValueError",
        "message": "bad shape (3, 4)",
        "frames": (library(10), Frame(file=FILE, line=5, function="train_step", user=True), library(20), library(21)),
        "ranks": (0, 1),
        "phase": "compiling",
    }
    return ErrorReport(**{**values, **changes})


def test_the_users_frame_is_shown_with_its_lines_and_an_arrow() -> None:
    lines = remote_block(report(), Shell())

    assert lines[0] == "ValueError on workers 0, 1 while compiling"
    assert lines[1] == "Cell In[3], line 5, in train_step"
    assert lines[2:5] == ["      3     def train_step(self, data):", "      4         x, y = data", "----> 5         return boom(x)"]
    assert "ValueError: bad shape (3, 4)" in lines


def test_library_frames_are_counted_and_no_folder_of_the_machine_is_told() -> None:
    told = "\n".join(remote_block(report(), Shell()))

    assert "(then 2 frames in libraries, the last in fit, src/trainer.py:21)" in told
    assert "somewhere" not in told


def test_without_a_frame_of_the_users_the_last_one_is_shown() -> None:
    lines = remote_block(report(frames=(library(10), library(20))), Shell())

    assert lines[1:3] == ["File src/trainer.py, line 20, in fit", "----> 20 step()"]


def test_without_a_frame_of_the_users_the_cells_line_that_called_fit_is_shown() -> None:
    called = Frame(file=FILE, line=2, function="<module>", user=True)

    lines = remote_block(report(frames=(library(10), library(20))), Shell(), [called])

    assert lines[1] == "Cell In[3], line 2"
    assert "  (then 2 frames in libraries, the last in fit, src/trainer.py:20)" in lines


@pytest.mark.parametrize("kind", ["FileNotFoundError", "NotFoundError"])
def test_a_file_that_is_not_there_is_told_with_where_workers_run(kind: str) -> None:
    assert remote_block(report(type=kind), Shell())[-1].startswith("Workers run in their own folder")


def test_without_any_frame_type_and_message_are_enough() -> None:
    lines = remote_block(report(frames=(), ranks=(), phase=""), Shell())

    assert lines[0] == "ValueError on the backend"
    assert "ValueError: bad shape (3, 4)" in lines


def test_a_recursion_is_cut_in_the_middle() -> None:
    frames = tuple(Frame(file=FILE, line=5, function=f"f{n}", user=True) for n in range(40))

    told = "\n".join(remote_block(report(frames=frames), Shell()))

    assert "... 34 more of your frames ..." in told
    assert "in f0" in told
    assert "in f39" in told
    assert "in f20" not in told


def test_a_workers_error_is_shown_from_its_report() -> None:
    error = RemoteTrainingError(report())

    lines = tracebacks.block(error, Shell())

    assert lines[1] == "Cell In[3], line 5, in train_step"


def test_an_error_raised_in_the_cell_shows_the_cells_line_and_the_next_move() -> None:
    scope: dict[str, Any] = {"NotCompiled": NotCompiled}
    linecache.cache[FILE] = (0, None, ["%%aiaas_train\n", "raise NotCompiled('model')\n"], FILE)
    with pytest.raises(NotCompiled) as caught:
        exec(compile("\nraise NotCompiled('model')", FILE, "exec"), scope)

    lines = tracebacks.block(caught.value, Shell())

    assert lines[0] == "Cell In[3], line 2"
    assert lines[2] == "----> 2 raise NotCompiled('model')"
    assert lines[-1].startswith("NotCompiled: Model 'model' is not compiled. Call model.compile(")


def test_an_error_of_a_line_magic_alone_in_its_cell_is_one_line() -> None:
    linecache.cache[FILE] = (0, None, ["get_ipython().run_line_magic('aiaas_wait', '7')\n"], FILE)
    scope: dict[str, Any] = {"get_ipython": lambda: Magic()}
    with pytest.raises(NotCompiled) as caught:
        exec(compile("get_ipython().run_line_magic('aiaas_wait', '7')", FILE, "exec"), scope)

    assert len(tracebacks.block(caught.value, Shell())) == 1


def test_lines_of_cells_within_what_a_library_says_have_the_cells_name() -> None:
    error = DataMismatch(f'Keras says: in user code: File "{FILE}", line 4, in train_step.')

    assert tracebacks.block(error, Shell())[-1] == "DataMismatch: Keras says: in user code: Cell In[3], line 4, in train_step."


class Magic:
    def run_line_magic(self, name: str, line: str) -> None:
        raise NotCompiled("model")


def test_an_interrupt_is_one_line_and_still_a_keyboard_interrupt() -> None:
    error = Interrupted("Interrupted: job 7 is cancelled.")

    assert isinstance(error, KeyboardInterrupt)
    assert error._render_traceback_() == ["Interrupted: job 7 is cancelled."]
