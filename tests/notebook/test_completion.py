"""Tab offers the options of a magic, their choices, and the names that this kernel has seen."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell

import aiaas_magics
from aiaas_magics.notebook.completion import completions
from aiaas_magics.notebook.extension import parsers


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.hist_file = ":memory:"
    made = InteractiveShell(config=config, ipython_dir=str(tmp_path_factory.mktemp("ipython")))
    aiaas_magics.load_ipython_extension(made)
    yield made
    aiaas_magics.unload_ipython_extension(made)
    end(made)


def end(shell: Any) -> None:
    """What IPython does at exit, once."""
    shell.atexit_operations()
    atexit.unregister(shell.atexit_operations)


@pytest.fixture(params=[True, False], ids=["jedi", "no jedi"])
def offered(shell: Any, request: pytest.FixtureRequest) -> Any:
    shell.Completer.use_jedi = request.param

    def offer(text: str) -> list[str]:
        with provisionalcompleter():
            return [completion.text for completion in shell.Completer.completions(text, len(text))]

    return offer


@pytest.mark.parametrize("sign", ["%", "%%"])
def test_options_are_offered_after_a_dash(offered: Any, sign: str) -> None:
    assert offered(f"{sign}aiaas_train --wo") == ["--workers"]
    assert "--dry-run" in offered(f"{sign}aiaas_train -n 2 --")


def test_an_option_that_was_typed_is_not_offered_again(offered: Any) -> None:
    assert "--workers" not in offered("%%aiaas_train -n 2 --")


@pytest.mark.parametrize("line", ["%%aiaas_train --ui ", "%%aiaas_train --ui="])
def test_the_choices_of_an_option_are_offered(offered: Any, line: str) -> None:
    assert offered(line)[:5] == ["auto", "widget", "html", "text", "none"]


def test_the_number_of_workers_is_offered_as_examples(offered: Any) -> None:
    assert offered("%%aiaas_train -n ")[:4] == ["1", "2", "1,2", "max"]


def test_models_are_offered_to_deploy_and_arrays_to_sample(offered: Any, shell: Any) -> None:
    class Model:
        """A stand-in for Keras' class: told by name and module."""

    Model.__module__ = "keras.src.models.model"
    shell.user_ns.update(churn_model=Model(), rows=np.zeros(3), other=1)

    assert offered("%aiaas_deploy chu") == ["churn_model"]
    assert offered("%aiaas_deploy churn_model --sample ro") == ["rows"]


def test_a_second_positional_is_not_offered_where_one_is_taken() -> None:
    assert completions("%aiaas_deploy one ", parsers(), lambda kind: ["one", "two"]) == ([], "")
    assert completions("%aiaas_deploy --replicas 2 ", parsers(), lambda kind: ["one", "two"]) == (["one", "two"], "")


def test_assigning_a_line_magic_is_completed_too(offered: Any) -> None:
    assert offered("endpoint = %aiaas_deploy m --rep") == ["--replicas"]


def test_endpoints_and_jobs_that_this_kernel_saw_are_offered(offered: Any, shell: Any) -> None:
    session = shell.magics_manager.registry["AiaasMagics"].session
    session._note("endpoint", "churn")
    session._note("job", "j-1")
    session._note("job", "j-2")

    assert offered("%aiaas_bench ch") == ["churn"]
    assert offered("%aiaas_attach j-") == ["j-2", "j-1"]
    assert not session.is_connected, "completion asks nobody"


def test_the_line_above_the_cursor_decides_not_the_body_of_the_cell(offered: Any) -> None:
    assert "--workers" not in offered("%%aiaas_train -n 2\nmodel.fit(--wo")


def test_other_lines_are_left_alone(offered: Any) -> None:
    assert "--workers" not in offered("print(--wo")
    assert "--workers" not in offered("%timeit --wo")


def test_unloading_takes_the_matcher_and_the_magics_away(tmp_path: Any) -> None:
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.hist_file = ":memory:"
    made = InteractiveShell(config=config, ipython_dir=str(tmp_path))
    before = list(made.Completer.custom_matchers)
    try:
        aiaas_magics.load_ipython_extension(made)
        aiaas_magics.load_ipython_extension(made)
        assert len(made.Completer.custom_matchers) == len(before) + 1
        assert made.find_line_magic("aiaas_status")

        aiaas_magics.unload_ipython_extension(made)
        aiaas_magics.unload_ipython_extension(made)

        assert made.Completer.custom_matchers == before
        assert made.find_line_magic("aiaas_status") is None
        assert made.find_cell_magic("aiaas_train") is None
        assert "AiaasMagics" not in made.magics_manager.registry
    finally:
        end(made)
