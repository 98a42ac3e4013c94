"""The magics in a real kernel, as far as no backend is needed: loading, help, mistakes, line numbers."""

from __future__ import annotations

import pytest

from tests.notebook.conftest import WIDGET, Cell, Kernel

LOAD = "%load_ext aiaas_magics"


@pytest.fixture(autouse=True)
def loaded(kernel: Kernel) -> None:
    assert kernel.run(LOAD).ok


def test_loading_says_nothing_and_brings_nothing_heavy(fresh_kernel: Kernel) -> None:
    cell = fresh_kernel.run(
        "%load_ext aiaas_magics\nimport sys\nprint(sorted({'tensorflow', 'keras', 'matplotlib', 'httpx'} & set(sys.modules)))"
    )

    assert cell.ok
    assert cell.text == "[]\n"


def test_reloading_and_unloading_leave_one_of_each_and_then_none(kernel: Kernel) -> None:
    count = "len([m for m in get_ipython().Completer.custom_matchers if 'aiaas' in m.matcher_identifier])"

    assert kernel.run("%reload_ext aiaas_magics\n" + count).text.strip() == "1"
    assert kernel.run("%unload_ext aiaas_magics\n" + count).text.strip() == "0"

    assert "not found" in kernel.run("%aiaas_status").text
    assert kernel.run("%load_ext aiaas_magics\n" + count).text.strip() == "1"


@pytest.mark.parametrize("name", ["train", "deploy", "bench", "status", "attach", "wait", "cancel", "logs", "stop", "connect", "shutdown"])
def test_every_magic_explains_itself_and_does_nothing_then(kernel: Kernel, name: str) -> None:
    asked = kernel.run(f"%aiaas_{name} -h")
    looked_up = kernel.client.inspect(f"%aiaas_{name}", reply=True, timeout=60)["content"]

    assert asked.ok
    assert f"%aiaas_{name}" in asked.text
    assert "options:" in asked.text
    assert "--help" in looked_up["data"]["text/plain"]


def test_tab_completes_options_in_the_kernel(kernel: Kernel) -> None:
    code = "%%aiaas_train --loc"

    reply = kernel.client.complete(code, len(code), reply=True, timeout=60)["content"]

    assert reply["matches"] == ["--local-fallback"]


def test_a_typing_mistake_is_one_line_and_stops_run_all(kernel: Kernel) -> None:
    cell = kernel.run("%%aiaas_train --wrkers 2\nmodel.fit(x)")

    assert cell.reply["status"] == "error"
    assert cell.reply["ename"] == "UsageError"
    assert cell.outputs == [{"name": "stderr", "text": "UsageError: There is no option --wrkers. Did you mean --workers?\n"}]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("%aiaas_train", "needs code below it"),
        ("%aiaas_deploy", "Which model?"),
        ("%aiaas_bench", "Which endpoint?"),
        ("%aiaas_stop", "Which endpoint?"),
        ("%aiaas_monitor", "Which endpoint?"),
        ("%aiaas_promote", "Which endpoint?"),
        ("%aiaas_rollback", "Which endpoint?"),
        ("%aiaas_scale churn", "how many replicas"),
        ("%aiaas_attach", "has not submitted a job"),
        ("%aiaas_export", "Which model? Name a variable, a file or an endpoint"),
        ("m = 1\n%aiaas_export m", "In which form? Give one of --to (onnx, saved_model"),
        ("%aiaas_export m --to tfjs", "There is no converter to TensorFlow.js"),
        ("%aiaas_export m --to onnx --for triton", "--for chooses the format"),
        ("%aiaas_export m --to onnx --storage s3://b/m", "Use it with --for kserve"),
        ("%aiaas_deploy keras.Sequential()", "is not the name of a variable"),
        ("%aiaas_deploy not_there", "Variable 'not_there' is not defined"),
        ("churn_model = 3\n%aiaas_deploy churn_modl", "Did you mean churn_model?"),
        ("churn_model = 3\n%aiaas_deploy churn_model", "is of type int, not a Keras model"),
        ("%aiaas_deploy art/net.keras", "There is no file or folder 'art/net.keras' here"),
        ("art = 'art/net.onnx'\n%aiaas_deploy art", "There is no file or folder 'art/net.onnx' here"),
        ("%aiaas_connect gpu-box", "is not the address of a backend"),
        ("%aiaas_connect ftp://gpu-box", "is not the address of a backend"),
        ("%%aiaas_train --name {nobody}\nx = 1", "Variable 'nobody' is not defined"),
        ("%%aiaas_train\nimport asyncio\nawait asyncio.sleep(0)", "await is not supported in the body of a magic"),
    ],
)
def test_bad_input_gets_one_clear_line(kernel: Kernel, code: str, said: str) -> None:
    cell = kernel.run(code)

    assert cell.reply["ename"] == "UsageError"
    assert said in cell.text
    assert cell.text.count("\n") == 1


def test_the_body_runs_in_the_notebooks_namespace_and_a_cell_without_fit_says_so(kernel: Kernel) -> None:
    cell = kernel.run("%%aiaas_train\nhere = 41 + 1")

    assert "No fit was called in this cell" in cell.text
    assert kernel.run("here").text.strip() == "42"


def test_variables_in_the_line_are_filled_in(kernel: Kernel) -> None:
    kernel.run("n, seed = 0, 'x'")

    assert "0 workers cannot train" in kernel.run("%%aiaas_train -n {n}\nx = 1").text
    assert "'x' is not a whole number" in kernel.run("%%aiaas_train --seed $seed\nx = 1").text


def frames(cell: Cell) -> list[str]:
    return [line for line in cell.error.splitlines() if line.startswith(("Cell ", "File "))]


def test_an_exception_of_the_cell_is_shown_at_the_cells_own_lines_without_our_frames(kernel: Kernel) -> None:
    cell = kernel.run("%%aiaas_train -n 2\n\ndef f(x):\n    return 1 / x\n\nf(0)")

    assert cell.reply["ename"] == "ZeroDivisionError"
    number = cell.reply["execution_count"]
    assert frames(cell) == [f"Cell In[{number}], line 6", f"Cell In[{number}], line 4, in f(x)"]
    assert "----> 4     return 1 / x" in cell.error
    assert "aiaas_magics" not in cell.error


def test_a_syntax_error_is_shown_at_its_line_and_nothing_ran(kernel: Kernel) -> None:
    cell = kernel.run("%%aiaas_train\nran = True\ny = (1 +\n")

    assert f"Cell In[{cell.reply['execution_count']}], line 3" in cell.error
    assert "SyntaxError: '(' was never closed" in cell.error
    assert "NameError" in kernel.run("ran").error


def test_an_exception_of_a_function_from_an_earlier_cell_names_that_cell(kernel: Kernel) -> None:
    first = kernel.run("def broken():\n    raise KeyError('k')")
    second = kernel.run("%%aiaas_train\nbroken()")

    assert frames(second) == [
        f"Cell In[{second.reply['execution_count']}], line 2",
        f"Cell In[{first.reply['execution_count']}], line 2, in broken()",
    ]


def test_magics_and_shell_assignments_inside_the_body_work(kernel: Kernel) -> None:
    kernel.run("%%aiaas_train\nwhere = %pwd\nlisted = !echo one")

    assert kernel.run("listed[0], where != ''").text.strip() == "('one', True)"


def test_configuration_sets_the_kind_of_view(kernel: Kernel) -> None:
    assert kernel.run("%config AiaasMagics.ui = 'text'").ok
    assert kernel.run("get_ipython().magics_manager.registry['AiaasMagics']._ui(None)").text.strip() == "'text'"
    kernel.run("%config AiaasMagics.ui = ''")
    assert kernel.run("get_ipython().magics_manager.registry['AiaasMagics']._ui(None)").text.strip() == "'widget'"


VIEW = """
from aiaas_magics.notebook.views.job_panel import LiveJob
from aiaas_magics.core.spec import JobState
from aiaas_magics.core.story import JobStory
import time
with LiveJob({kind!r}, title="Job 7") as view:
    for epoch in range(3):
        view.tell(JobStory(state=JobState.RUNNING, epochs=3, epoch=epoch, step=1, steps=2, logs={{"loss": 1.0}}))
        time.sleep(0.3)
    view.freeze([{{"text/html": "<b>table</b>", "text/plain": "the table"}}, {{"image/png": "", "text/plain": "the figure"}}])
"""


@pytest.mark.parametrize("kind", ["widget", "html"])
def test_a_live_view_is_replaced_by_static_outputs(kernel: Kernel, kind: str) -> None:
    cell = kernel.run(VIEW.format(kind=kind))

    assert cell.ok, cell.error
    assert (WIDGET in cell.seen) == (kind == "widget")
    assert [output["data"]["text/plain"] for output in cell.outputs] == ["the table", "the figure"]
    assert not cell.of(WIDGET)
    assert kernel.run("from ipywidgets.widgets import widget; len(widget._instances)").text.strip() == "0"


def test_an_html_view_moves_while_the_cell_runs(kernel: Kernel) -> None:
    cell = kernel.run(VIEW.format(kind="html"))

    assert cell.seen.count("text/html") >= 3


def test_a_text_view_prints_lines_and_the_text_twins(kernel: Kernel) -> None:
    cell = kernel.run(VIEW.format(kind="text"))

    assert "Job 7: epoch 1 of 3" in cell.text
    assert cell.text.endswith("the table\nthe figure\n")


def test_no_view_leaves_no_output(kernel: Kernel) -> None:
    assert kernel.run(VIEW.format(kind="none")).outputs == []
