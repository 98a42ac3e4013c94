"""Samples of two sizes leave that size free, and what `predict` does before the model is served with it, or stays in the kernel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiaas_magics.backend.serving.engines.onnx_engine import OnnxEngine
from aiaas_magics.backend.serving.engines.saved_model_engine import SavedModelEngine
from aiaas_magics.backend.serving.models.parity_check import ParityResult, check_parity, read_samples
from aiaas_magics.client.serving.deployment import notes_of
from aiaas_magics.core.errors import DataMismatch, InvalidSpec, ProofFailed
from aiaas_magics.core.spec import DeploySpec
from aiaas_magics.packing.export import model_export, sample_bytes, samples
from aiaas_magics.packing.export.export_request import QuantizationOptions
from aiaas_magics.packing.export.model_export import Servable
from aiaas_magics.packing.export.onnx_session import onnx_form
from aiaas_magics.packing.export.samples import NoSamples
from tests.support.packed import Namespace

pytestmark = pytest.mark.slow  # each exports a model

Cell = Callable[..., Namespace]

SEQUENCES = """
class Net(keras.Model):
    def __init__(self):
        super().__init__()
        self.lookup, self.memory, self.last = layers.Embedding(20, 4), layers.GRU(3), layers.Dense(2)
    def call(self, ids): return self.last(self.memory(self.lookup(ids)))
net = Net()
short, long = np.arange(32 * 7).reshape(32, 7) % 20, np.arange(32 * 12).reshape(32, 12) % 20
"""
TASKS = """
class Task(keras.Model):
    # As a task of KerasHub: predict maps its input, call does not.
    def preprocess_samples(self, x, y=None, sample_weight=None): return keras.utils.pack_x_y_sample_weight(self.preprocessor(x), y)
    def predict(self, x, **more): return super().predict(self.preprocess_samples(tf.constant(x)), **more)
    def generate(self, prompt): return prompt
class Counted(layers.Layer):
    def call(self, texts):
        sizes = tf.stack([tf.strings.length(texts), tf.strings.length(tf.strings.regex_replace(texts, " ", ""))], axis=-1)
        return {"sizes": tf.cast(sizes, "float32"), "is_long": tf.strings.length(texts) > 5}
class CountedInPython(layers.Layer):
    def call(self, texts):
        sizes = [[len(text), len(text.replace(b" ", b""))] for text in texts.numpy()]
        return {"sizes": tf.constant(sizes, "float32"), "is_long": tf.constant([size > 5 for size, _ in sizes])}
class Both(layers.Layer):
    def call(self, x): return ops.concatenate([x["sizes"], ops.cast(x["is_long"], "float32")[:, None]], axis=-1)
def task(preprocessor):
    inputs = {"sizes": keras.Input((2,), name="sizes"), "is_long": keras.Input((), dtype="bool", name="is_long")}
    hidden = layers.Dense(64, "relu")(layers.Dense(256, "relu")(Both()(inputs)))
    made = Task(inputs, layers.Dense(2, name="scores")(hidden), name="task")
    made.preprocessor = preprocessor
    return made
in_graph, in_python = task(Counted()), task(CountedInPython())
texts = np.array(["a good film", "bad", "the bad film", ""] * 3, dtype=object)
"""


def proved(exported: Servable, folder: Path) -> ParityResult:
    artefact, samples = folder / "artefact", folder / "samples"
    artefact.write_bytes(exported.artefact)
    samples.write_bytes(exported.samples)
    blob = "0" * 64
    spec = DeploySpec(name="m", artefact=blob, format=exported.format, samples=blob, inputs=exported.inputs, outputs=exported.outputs)
    onnx = exported.format == "onnx"
    engine = OnnxEngine(spec, artefact, threads=1) if onnx else SavedModelEngine(spec, artefact, threads=1, scratch=folder)
    try:
        return check_parity(engine, read_samples(samples, spec), spec)
    finally:
        engine.close()


def test_one_sample_fixes_the_time_steps_of_a_subclassed_model_and_two_leave_them_free(cell: Cell, tmp_path: Path) -> None:
    made = cell(SEQUENCES)

    fixed = model_export.export(made["net"], made["short"])
    free = model_export.export(made["net"], made["short"], other_samples=[made["long"]])

    assert [spec.shape for spec in fixed.inputs] == [(-1, 7)]
    assert [spec.shape for spec in free.inputs] == [(-1, -1)]
    assert proved(free, tmp_path).batchable
    other = np.arange(6).reshape(2, 3) % 20
    answers = onnx_form(free.artefact)({"input_0": other.astype(free.inputs[0].dtype)})["output_0"]
    np.testing.assert_allclose(answers, made["net"](other), rtol=1e-4, atol=1e-5)


def test_the_host_checks_the_answers_to_each_size(cell: Cell, tmp_path: Path) -> None:
    made = cell(SEQUENCES)
    exported = model_export.export(made["net"], made["short"], other_samples=[made["long"]])
    rows = [{"input_0": made[name].astype(exported.inputs[0].dtype)} for name in ("short", "long")]
    answers = [{"output_0": np.asarray(made["net"](made[name]))} for name in ("short", "long")]
    wrong = Servable(**{name: getattr(exported, name) for name in Servable.__slots__} | {
        "samples": sample_bytes.as_safetensors(rows, [answers[0], {"output_0": answers[1]["output_0"] + 0.5}])
    })  # fmt: skip

    with pytest.raises(ProofFailed):
        proved(wrong, tmp_path)


@pytest.mark.nightly
def test_samples_of_another_size_that_lack_an_output_are_refused(cell: Cell, tmp_path: Path) -> None:
    made = cell(SEQUENCES)
    exported = model_export.export(made["net"], made["short"], other_samples=[made["long"]])
    rows = [{"input_0": made[name].astype(exported.inputs[0].dtype)} for name in ("short", "long")]
    broken = Servable(**{name: getattr(exported, name) for name in Servable.__slots__} | {
        "samples": sample_bytes.as_safetensors(rows, [{"output_0": np.asarray(made["net"](made["short"]))}, {}])
    })  # fmt: skip

    with pytest.raises(InvalidSpec, match="hold no 1/output 'output_0'"):
        proved(broken, tmp_path)


def test_a_size_that_the_model_declares_stays_as_it_is(cell: Cell) -> None:
    made = cell("model = keras.Sequential([keras.Input((6,)), layers.Dense(2)])")

    with pytest.raises(DataMismatch, match=r"have the shape \(4, 5\), the model takes \(None, 6\)"):
        model_export.export(made["model"], np.ones((4, 6)), other_samples=[np.ones((4, 5))])


def test_texts_go_into_an_endpoint_whose_preprocessor_is_a_graph(cell: Cell, tmp_path: Path) -> None:
    made = cell(TASKS)

    exported = model_export.export(made["in_graph"], list(made["texts"]))

    assert [(spec.dtype, spec.shape) for spec in exported.inputs] == [("string", (-1,))]
    assert exported.preprocess is None
    assert exported.example == '"a good film"'
    assert proved(exported, tmp_path).largest < 1e-5
    assert notes_of(exported)[-1] == "What is served is task.predict: scores for the next token at each place. generate() is not served."


def test_what_cannot_be_traced_is_mapped_in_the_kernel_and_the_note_says_what_http_takes(cell: Cell) -> None:
    made = cell(TASKS)
    model, texts = made["in_python"], made["texts"]

    exported = model_export.export(model, texts)

    assert exported.format == "onnx"
    assert {spec.name: (spec.dtype, spec.shape) for spec in exported.inputs} == {"is_long": ("bool", (-1,)), "sizes": ("float32", (-1, 2))}
    rows = {name: np.asarray(array) for name, array in exported.preprocess(list(texts)).items()}
    np.testing.assert_allclose(onnx_form(exported.artefact)(rows)["scores"], model.predict(texts, verbose=0), rtol=1e-4, atol=1e-5)
    note = exported.notes[0]
    assert "TensorFlow cannot trace it" in note
    assert "over HTTP and gRPC the endpoint takes what the preprocessor makes: is_long bool [rows], sizes float32 [rows, 2]." in note


@pytest.mark.nightly
def test_fewer_bits_of_a_task_are_measured_on_what_its_preprocessor_makes(cell: Cell) -> None:
    made = cell(TASKS)

    exported = model_export.export(
        made["in_python"], quantization_options=QuantizationOptions(precision="float16", validation_data=made["texts"])
    )

    assert exported.change is not None
    assert exported.change.rows == len(made["texts"])


def test_a_sample_that_the_preprocessor_does_not_take_is_refused_with_its_sentence(cell: Cell) -> None:
    made = cell(TASKS)

    with pytest.raises(DataMismatch, match=r"The preprocessor of 'task' does not take this sample .* Give rows as the model's predict"):
        model_export.export(made["in_python"], np.ones((4, 2)))


def test_a_fitted_task_is_deployed_on_what_its_preprocessor_has_made_and_the_note_asks_for_a_sample(cell: Cell) -> None:
    made = cell(TASKS)
    model, texts = made["in_graph"], made["texts"]
    samples.remember_data(model, {name: np.asarray(part) for name, part in model.preprocessor(texts).items()}, dataset=None, streams=())

    exported = model_export.export(model)

    assert {spec.name for spec in exported.inputs} == {"is_long", "sizes"}
    rows = {name: np.asarray(array) for name, array in exported.preprocess(list(texts)).items()}
    np.testing.assert_allclose(onnx_form(exported.artefact)(rows)["scores"], model.predict(texts, verbose=0), rtol=1e-4, atol=1e-5)
    assert "what it takes is not known. Give rows of that with --sample ARRAY to have it served." in exported.notes[0]


@pytest.mark.nightly
def test_a_sample_of_what_the_preprocessor_makes_is_taken_as_that(cell: Cell) -> None:
    made = cell(TASKS)
    model, texts = made["in_python"], made["texts"]

    exported = model_export.export(model, model.preprocessor(tf_texts(texts)))

    assert {spec.name for spec in exported.inputs} == {"is_long", "sizes"}
    assert exported.preprocess is not None
    assert "the sample is what it makes. Give rows of what it takes to have it served." in exported.notes[0]


def tf_texts(texts: np.ndarray) -> Any:
    import tensorflow as tf

    return tf.constant(texts)


def test_without_a_sample_a_task_is_not_guessed(cell: Cell) -> None:
    with pytest.raises(NoSamples, match="Give some with --sample ARRAY"):
        model_export.export(cell(TASKS)["in_python"])
