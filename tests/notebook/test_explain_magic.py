"""%aiaas_explain in a real kernel, against the real local server: models on workers, and endpoints."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Iterator

import numpy as np
import pytest

from aiaas_magics.notebook.option_values import RowsOf, rows_of
from tests.notebook.conftest import WIDGET, Kernel, started
from tests.notebook.test_training_cells import value

SETUP = """
import aiaas_magics, keras, numpy as np
keras.utils.set_random_seed(1)
rng = np.random.default_rng(0)
x_train, x_test = rng.normal(size=(80, 4)).astype("float32"), rng.normal(size=(50, 4)).astype("float32")
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="churn")
weights = np.array([[3.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, -2.0]], "float32")
model.set_weights([weights, np.zeros(2, "float32")])
""".strip()


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """A kernel with a linear model, whose explanations are known."""
    for kernel in started(tmp_path_factory.mktemp("explaining")):
        for code in ("%load_ext aiaas_magics", SETUP):
            cell = kernel.run(code)
            assert cell.ok, cell.error
        yield kernel


def test_a_model_is_explained_on_workers_with_its_figure_its_words_and_its_faithfulness(kernel: Kernel) -> None:
    cell = kernel.run("%aiaas_explain model --rows x_test[:12] --background x_train --target 0 --workers 2 -o why")

    assert cell.ok, cell.error
    assert WIDGET in cell.seen, "there was a live view"
    assert not cell.of(WIDGET), "and nothing of it is left"
    for expected in ("2 workers", "succeeded: 12 rows explained in", "compiling", "explaining", "Kernel SHAP", "auto chose Kernel SHAP"):
        assert expected in cell.text, expected
    assert any("<img" in page for page in cell.of("text/html")), "the figure"
    assert value(kernel, "why.verdict") in cell.text
    assert value(kernel, "bool(why.verdict)") is True
    expected_values = "np.allclose(why.attributions.values[0], (x_test[:12] - x_train.mean(0)) * weights[:, 0], atol=1e-4)"
    assert value(kernel, expected_values) is True
    assert value(kernel, "int(abs(why.attributions.values[0]).mean(0).argmax())") == 0


def test_several_numbers_of_workers_are_compared(kernel: Kernel) -> None:
    cell = kernel.run("%aiaas_explain model --rows x_test[:8] --background x_train --method shap --workers 1,2")

    assert cell.ok, cell.error
    assert "Explaining 8 rows" in cell.text
    assert "equal bit for bit on every number of workers" in cell.text
    assert "Ideal is T = N/n" in cell.text


def test_a_job_that_explains_is_attached_to_and_waited_for(kernel: Kernel) -> None:
    kernel.run("job = aiaas_magics.connect().explain(model, x_test[:5], method='saliency')")

    attached, waited = kernel.run("%aiaas_attach {job.id}"), kernel.run("%aiaas_wait {job.id}")

    assert attached.ok, attached.error
    assert "succeeded: 5 rows explained" in attached.text
    assert waited.ok, waited.error
    assert "job.result() is its explanation" in waited.text


def test_an_endpoint_explains_itself_with_the_background_it_was_deployed_with(kernel: Kernel) -> None:
    deployed = kernel.run("%aiaas_deploy model --name churn --sample x_test --background x_train")
    assert deployed.ok, deployed.error

    cell = kernel.run("%aiaas_explain churn --rows x_test[:3] --target 1 -o of_endpoint")

    assert cell.ok, cell.error
    assert "of churn" in cell.text
    assert value(kernel, "of_endpoint.verdict") in cell.text
    assert value(kernel, "len(of_endpoint.verdict) > 0") is True
    expected = "np.allclose(of_endpoint.attributions.values[0], (x_test[:3] - x_train.mean(0)) * weights[:, 1], atol=1e-4)"
    assert value(kernel, expected) is True


def test_metrics_are_shown_for_each_group_over_all_rows_of_the_variable(kernel: Kernel) -> None:
    kernel.run("y_test = model.predict(x_test, verbose=0).argmax(1); sex = np.where(x_test[:, 1] > 0, 'f', 'm')")
    kernel.run("y_wrong = np.where(sex == 'm', 1 - y_test, y_test)")

    cell = kernel.run("%aiaas_explain model --rows x_test[:3] --background x_train --method saliency --by sex --truth y_wrong")

    assert cell.ok, cell.error
    assert "accuracy" in cell.text
    women, men = (next(line for line in cell.text.splitlines() if line.startswith(group)) for group in ("f ", "m "))
    assert "1" in women.split()
    assert women != men


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("", "Which model, and which rows?"),
        ("model", "Which model, and which rows?"),
        ("model --rows x_test[:0]", "There are no rows to explain"),
        ("model --rows x_tset", "Variable 'x_tset' is not defined. Did you mean x_test?"),
        ("model --rows x_test[a]", "'x_test[a]' does not name rows"),
        ("x_test --rows x_test", "'x_test' is of type ndarray, not a Keras model"),
        ("nobody --rows x_test", "There is no endpoint 'nobody'"),
        ("model --rows x_test --method magic", "--method: invalid choice: 'magic'"),
        ("model --rows weights[:2]", "the model takes"),
        ("model --rows x_test[:2] --workers 99", "fewer than the 99 workers requested"),
        ("model --rows x_test[:2] --by sex", "Give both: --by sex --truth y_test."),
        ("model --rows x_test[:2] -m saliency --by age --truth x_train", "'age' is no column (the rows are no frame with columns)"),
        ("churn --rows x_test[:2] --workers 2", "--workers is for models, and churn is an endpoint. Leave it out."),
        ("churn --rows x_test[:2] --method gradcam", "Grad-CAM needs the model itself"),
    ],
)
def test_bad_lines_are_answered_in_one_sentence(kernel: Kernel, line: str, sentence: str) -> None:
    cell = kernel.run(f"%aiaas_explain {line}")

    assert not cell.ok
    assert sentence in cell.error + cell.text


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("x", RowsOf("x")),
        ("x_test[:20]", RowsOf("x_test", None, 20)),
        ("x[10:]", RowsOf("x", 10, None)),
        ("x[5:7]", RowsOf("x", 5, 7)),
        ("x[-3:]", RowsOf("x", -3, None)),
        ("x[3]", RowsOf("x", 3, 4)),
        ("x[-1]", RowsOf("x", -1, None)),
        ("x[:]", RowsOf("x")),
    ],
)
def test_rows_are_named_by_a_variable_and_a_slice(text: str, rows: RowsOf) -> None:
    assert rows_of(text) == rows


@pytest.mark.parametrize("text", ["", "x[", "x[]", "x[a]", "x[::2]", "x[1][2]", "f(x)", "1x", "x.y", "x[:]]"])
def test_what_names_no_rows_is_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError):
        rows_of(text)


def test_rows_of_several_inputs_are_taken_of_each() -> None:
    x = np.arange(6)

    taken = RowsOf("x", 0, 2).of({"a": x, "b": [x, x]})

    assert taken["a"].tolist() == [0, 1]
    assert [part.tolist() for part in taken["b"]] == [[0, 1], [0, 1]]
