"""A model leaves the kernel in a form that its own runtime computes as Keras does, or not at all."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiaas_magics.packing.formats import format_table, model_files
from aiaas_magics.packing.formats.export_source import CannotExport
from aiaas_magics.packing.formats.litert_file import unknown_operators
from tests.packing.formats.exported_models import MODELS, PLAIN, SAMPLES
from tests.support.packed import Namespace

pytestmark = pytest.mark.slow

Cell = Callable[..., Namespace]
Predict = Callable[[Path, dict[str, np.ndarray]], dict[str, np.ndarray]]


@pytest.fixture
def no_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format_table.settings, "installed_version", lambda distribution: "")


def needs(module: str) -> Any:
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed (extra `export`)")


# --------------------------------------------------------------------------- consumers, each written against its runtime alone


def by_onnx_runtime(path: Path, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, rows), strict=True))


def by_tensorflow(path: Path, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    tensors = {name: tf.constant(array) for name, array in rows.items()}
    return {name: tensor.numpy() for name, tensor in loaded.signatures["serving_default"](**tensors).items()}


def by_litert(path: Path, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(path)).get_signature_runner("serving_default")
    if next(iter(runner.get_input_details().values()))["shape_signature"][0] != 1:
        return {name: np.array(array) for name, array in runner(**rows).items()}
    count = len(next(iter(rows.values())))
    single = [runner(**{name: array[place : place + 1] for name, array in rows.items()}) for place in range(count)]
    return {name: np.concatenate([answer[name] for answer in single]) for name in single[0]}


def by_openvino(path: Path, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import openvino

    compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answers = compiled(rows)
    return {port.get_any_name(): np.array(answers[port]) for port in compiled.outputs}


CONSUMERS: dict[str, Predict] = {"onnx": by_onnx_runtime, "saved_model": by_tensorflow, "tflite": by_litert, "openvino": by_openvino}


def cases() -> Iterator[Any]:
    for to in CONSUMERS:
        module = {"tflite": "ai_edge_litert", "openvino": "openvino"}.get(to)
        for name in MODELS:
            marks = [] if module is None and name == PLAIN else [pytest.mark.nightly]
            yield pytest.param(to, name, marks=[*marks, *([needs(module)] if module else [])], id=f"{to}-{name}")


@pytest.mark.parametrize(("to", "name"), list(cases()))
def test_the_file_answers_in_its_own_runtime_as_keras_does(to: str, name: str, tmp_path: Path) -> None:
    model, sample = MODELS[name](), SAMPLES.get(name)

    exported = model_files.export_model(model, to, out=tmp_path, name="net", sample=sample)

    draw = np.random.default_rng(5)
    names = ["input_0"] if len(model.inputs) == 1 else [tensor.name for tensor in model.inputs]
    rows = {key: draw.normal(size=(6, *tensor.shape[1:])).astype("float32") for key, tensor in zip(names, model.inputs, strict=True)}
    if sample is not None:
        rows = {"input_0": sample[:6]}
    expected = model.predict(rows if len(rows) > 1 else rows["input_0"], verbose=0)
    expected = expected if isinstance(expected, dict) else {"output_0": expected}
    answers = CONSUMERS[to](exported.path, rows)
    assert answers.keys() == expected.keys()
    for key, own in expected.items():
        np.testing.assert_allclose(answers[key], own, rtol=1e-4, atol=1e-5)
    assert exported.rows == len(sample if sample is not None else range(32))
    assert [difference.output for difference in exported.differences] == sorted(expected)
    assert 0 <= exported.largest < 1e-5
    assert f"largest difference {exported.largest:.2g}" in exported.sentence
    assert sorted(path.name for path in tmp_path.iterdir()) == files_of(to)


def files_of(to: str) -> list[str]:
    """What is left in the folder: nothing with a temporary name."""
    return {"onnx": ["net.onnx"], "saved_model": ["net_saved_model"], "tflite": ["net.tflite"], "openvino": ["net.bin", "net.xml"]}[to]


@pytest.mark.nightly
def test_a_keras_file_is_read_by_a_process_that_never_saw_the_model(tmp_path: Path) -> None:
    model = MODELS["several"]()
    rows = {name: np.ones((2, tensor.shape[1]), "float32") for name, tensor in model.input.items()}

    exported = model_files.export_model(model, "keras", out=tmp_path / "deep" / "net.keras")

    assert exported.notes == ()
    code = "import keras, numpy as np, sys, json; m = keras.models.load_model(sys.argv[1]); "
    code += "r = m.predict({'age': np.ones((2, 4)), 'city': np.ones((2, 3))}, verbose=0); "
    code += "print(json.dumps({k: v.tolist() for k, v in r.items()}))"
    done = subprocess.run([sys.executable, "-c", code, str(exported.path)], capture_output=True, text=True, check=True, timeout=120)
    for name, own in model.predict(rows, verbose=0).items():
        np.testing.assert_allclose(json.loads(done.stdout)[name], own, rtol=1e-5)


def test_a_keras_file_says_which_code_of_the_notebook_it_needs(cell: Cell, tmp_path: Path) -> None:
    made = cell(
        "class Twice(layers.Layer):\n"
        "    def call(self, v): return 2 * v\n"
        "def halved(v): return v / 2\n"
        "model = keras.Sequential([keras.Input((6,)), Twice(), layers.Dense(2, activation=halved)])"
    )

    with pytest.raises(CannotExport, match=r"(?s)does not compute it.*Try --to onnx or --to saved_model"):
        model_files.export_model(made["model"], "keras", out=tmp_path, sample=made["x"])
    import keras

    with keras.saving.custom_object_scope({"Twice": made["Twice"], "halved": made["halved"]}):
        exported = model_files.export_model(made["model"], "keras", out=tmp_path, sample=made["x"])

    assert exported.notes == (
        "The file names Twice, halved, whose code is not in it. Before keras.models.load_model, import or define them there, "
        "or pass custom_objects.",
    )


# --------------------------------------------------------------------------- what cannot travel


def test_texts_go_into_a_saved_model_and_into_nothing_smaller(cell: Cell, tmp_path: Path) -> None:
    made = cell(
        "lookup = layers.StringLookup(vocabulary=['red', 'green'], output_mode='one_hot')\n"
        "colour = keras.Input((1,), dtype='string', name='colour')\n"
        "model = keras.Model(colour, layers.Dense(1)(lookup(colour)), name='colours')\n"
        "texts = np.array([['red'], ['green'], ['blue']], dtype=object)"
    )

    exported = model_files.export_model(made["model"], "saved_model", out=tmp_path, sample=made["texts"])

    assert exported.largest < 1e-6
    with pytest.raises(CannotExport, match=r"Model 'colours' cannot be written as ONNX: texts go into it.*--to saved_model"):
        model_files.export_model(made["model"], "onnx", out=tmp_path, sample=made["texts"])
    assert [path.name for path in tmp_path.iterdir()] == ["colours_saved_model"]


@pytest.mark.parametrize(
    ("to", "title"),
    [
        ("onnx", "ONNX"),
        pytest.param("tflite", "LiteRT", marks=[pytest.mark.nightly, needs("ai_edge_litert")]),
        pytest.param("openvino", "OpenVINO IR", marks=[pytest.mark.nightly, needs("openvino")]),
    ],
)
def test_an_operator_that_a_runtime_lacks_is_named_with_its_layer(to: str, title: str, cell: Cell, tmp_path: Path) -> None:
    made = cell(
        "class Spectrum(layers.Layer):\n"
        "    def call(self, v): return tf.math.igamma(tf.abs(v) + 1.0, tf.abs(v))\n"
        "model = keras.Sequential([keras.Input((6,)), layers.Dense(4), Spectrum(name='spectrum'), layers.Dense(1)], name='net')"
    )

    with pytest.raises(CannotExport) as refusal:
        model_files.export_model(made["model"], to, out=tmp_path, sample=made["x"])

    sentence = f"Model 'net' cannot be written as {title}: its runtime has no operator for Igamma (layer spectrum). Try --to "
    assert str(refusal.value).startswith(sentence)
    assert "--to saved_model" in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.nightly
@needs("ai_edge_litert")
@needs("openvino")
def test_what_is_no_live_model_is_written_in_what_its_form_allows(tmp_path: Path) -> None:
    folder = model_files.export_model(MODELS["several"](), "saved_model", out=tmp_path, name="net").path
    onnx_file = model_files.export_model(MODELS["several"](), "onnx", out=tmp_path, name="net").path

    written = {
        (source.name, to): model_files.export_model(source, to, out=tmp_path / "again", name=f"{source.name}_{to}")
        for source, to in [(folder, "tflite"), (folder, "openvino"), (folder, "saved_model"), (onnx_file, "openvino"), (onnx_file, "onnx")]
    }

    assert all(exported.relative < 1e-5 for exported in written.values())
    assert written[folder.name, "openvino"].origin == "TensorFlow in the kernel"
    for source, to, own in ((folder, "onnx", "saved_model"), (onnx_file, "tflite", "onnx"), (onnx_file, "keras", "onnx")):
        with pytest.raises(CannotExport, match=rf"cannot be written as .*Try --to {own}, or export the Keras model"):
            model_files.export_model(source, to, out=tmp_path / "again")


@pytest.mark.nightly
@needs("ai_edge_litert")
def test_a_loop_is_written_for_one_row_per_call_and_says_so(tmp_path: Path) -> None:
    exported = model_files.export_model(MODELS["lstm"](), "tflite", out=tmp_path)

    assert exported.notes == ("The file takes one row per call: LiteRT does not compute this model for a free number of rows.",)


@pytest.mark.nightly
@needs("ai_edge_litert")
def test_a_file_that_litert_computes_for_no_free_number_of_rows_is_written_for_one(cell: Cell, tmp_path: Path) -> None:
    """TensorFlow writes lgamma out in smaller operators, with a constant of zero rows where their number is free."""
    made = cell(
        "class Spectrum(layers.Layer):\n"
        "    def call(self, v): return tf.math.lgamma(tf.abs(v) + 1.0)\n"
        "model = keras.Sequential([keras.Input((6,)), layers.Dense(4), Spectrum(), layers.Dense(1)], name='net')"
    )

    exported = model_files.export_model(made["model"], "tflite", out=tmp_path, sample=made["x"])

    assert exported.notes == ("The file takes one row per call: LiteRT does not compute this model for a free number of rows.",)
    assert exported.relative < 1e-5


def test_messages_of_the_converter_name_operators_and_layers() -> None:
    message = (
        "Some ops are not supported by the native TFLite runtime ... TF Select ops: Erfc, TensorListReserve\nDetails: tf.Erfc "
        'loc(fused["net/dense_1/Erfc"])'
    )

    assert unknown_operators(message) == ("Erfc", "TensorListReserve")
    assert unknown_operators("error: 'tf.Lgamma' op is neither a custom op nor a flex op") == ("Lgamma",)
    assert unknown_operators("out of memory") == ()


def test_a_file_that_answers_otherwise_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer breaks one weight: what Keras itself reads from the file is another model."""
    kind = format_table.FORMATS["keras"]

    def write_broken(source: Any, path: Path) -> tuple[str, ...]:
        kernel = source.model.weights[0]
        before = kernel.numpy()
        kernel.assign(before + 0.01)
        try:
            return kind.write(source, path)
        finally:
            kernel.assign(before)

    import dataclasses

    monkeypatch.setitem(format_table.FORMATS, "keras", dataclasses.replace(kind, write=write_broken))
    (tmp_path / "net.keras").write_bytes(b"the one of before")

    with pytest.raises(CannotExport, match=r"answers otherwise than Keras: output 'output_0' differs by 0\.0.*The file was removed"):
        model_files.export_model(MODELS["mlp"](), "keras", out=tmp_path, name="net")

    assert [path.name for path in tmp_path.iterdir()] == ["net.keras"]
    assert (tmp_path / "net.keras").read_bytes() == b"the one of before"


# --------------------------------------------------------------------------- names and places


def test_a_folder_of_an_export_is_replaced_and_no_other(tmp_path: Path) -> None:
    first = model_files.export_model(MODELS["mlp"](), "saved_model", out=tmp_path, name="net")
    second = model_files.export_model(MODELS["mlp"](), "saved_model", out=tmp_path, name="net")

    report = json.loads((second.path / model_files.REPORT).read_bytes())
    assert first.sha256 != second.sha256 == report["sha256"] == model_files.hash_of(second.path)
    assert report["runtime"].startswith("TensorFlow 2.")
    assert report["differences"]["output_0"]["largest"] == second.largest
    (tmp_path / "other_saved_model").mkdir()
    (tmp_path / "other_saved_model" / "thesis.tex").write_text("mine")
    with pytest.raises(CannotExport, match=r"no export wrote it\. Give another --out"):
        model_files.export_model(MODELS["mlp"](), "saved_model", out=tmp_path, name="other")
    assert (tmp_path / "other_saved_model" / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize(
    ("to", "sentence"),
    [
        ("tfjs", r"no converter to TensorFlow\.js that is kept for Keras 3.*Use --to onnx and ONNX Runtime Web"),
        ("pmml", r"'pmml' is no format of a model file\. Use one of onnx, saved_model, keras"),
        ("huggingface", r"KerasHub writes language models .*Try --to keras or --to saved_model"),
    ],
)
def test_a_format_that_cannot_be_had_is_one_sentence(to: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "check_installed", lambda kind: None)

    with pytest.raises(CannotExport, match=sentence):
        model_files.export_model(MODELS["mlp"](), to, out=tmp_path)


@pytest.mark.usefixtures("no_extras")
def test_a_missing_runtime_is_one_sentence_with_the_line_that_installs_it(tmp_path: Path) -> None:
    with pytest.raises(CannotExport) as refusal:
        model_files.export_model(MODELS["mlp"](), "openvino", out=tmp_path)

    assert str(refusal.value) == (
        "OpenVINO IR is compared with Keras by openvino, which is not installed. Run %pip install 'aiaas_magics[export]', "
        "or %pip install openvino."
    )


def test_a_file_is_exported_under_its_own_name(tmp_path: Path) -> None:
    MODELS["mlp"]().save(tmp_path / "churn.keras")

    exported = model_files.export_model(tmp_path / "churn.keras", "onnx", out=tmp_path)

    assert exported.path == tmp_path / "churn.onnx"
    assert exported.origin == "Keras"


def test_a_suffix_says_the_format() -> None:
    assert [model_files.format_of_path(path).name for path in ("a.onnx", "b/c.keras", "d.tflite", "e.xml", "folder")] == [
        *("onnx", "keras", "tflite", "openvino", "saved_model")
    ]
    with pytest.raises(CannotExport, match=r"'net.pt' says no format\. Use a path that ends with one of \.onnx"):
        model_files.format_of_path("net.pt")


def test_an_export_changes_nothing_of_the_model_and_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = MODELS["mlp"]()
    before = [weight.numpy() for weight in model.weights]

    for to in ("onnx", "saved_model", "keras"):
        model_files.export_model(model, to, out=tmp_path)

    assert capfd.readouterr() == ("", "")
    assert all(np.array_equal(weight.numpy(), value) for weight, value in zip(model.weights, before, strict=True))
