"""SavedModels that reach beyond themselves, and some that do not: made here, and checked. Run by a test in a process of its own.

    python saved_models.py FOLDER

prints a JSON object: what each does -> why it is refused, or "" where it is not; and "refusal" -> what one of them says of an
input. `FOLDER/writes.zip` is one of them, whole.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from safetensors.numpy import save_file
from tensorflow.core.framework import op_def_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.client import pywrap_tf_session

from aiaas_magics.backend.serving.engines.saved_model_check import check_saved_model
from aiaas_magics.backend.serving.engines.saved_model_child import Model, sentence_of
from aiaas_magics.backend.serving.engines.saved_model_operators import OPERATORS, STATELESS

raw = tf.raw_ops
ELSEWHERE = "/etc/hostname"


def text_of(x: tf.Tensor) -> tf.Tensor:
    return tf.strings.as_string(tf.reduce_sum(x))


def writes(x: tf.Tensor) -> tf.Tensor:
    tf.io.write_file(FOLDER + "/written", text_of(x))
    return x


def saves(x: tf.Tensor) -> tf.Tensor:
    raw.SaveV2(prefix=FOLDER + "/saved", tensor_names=["x"], shape_and_slices=[""], tensors=[x])
    return x


def prints(x: tf.Tensor) -> tf.Tensor:
    tf.print(x, output_stream=f"file://{FOLDER}/printed")
    return x


def in_a_branch(x: tf.Tensor) -> tf.Tensor:
    return tf.cond(tf.reduce_sum(x) > 0, lambda: tf.strings.length(tf.io.read_file(text_of(x))), lambda: 0)


def counts_lines(x: tf.Tensor) -> tf.Tensor:
    return tf.data.TextLineDataset(text_of(x)).reduce(0, lambda count, _: count + 1)


def table_of(name: Any) -> Callable[[tf.Tensor], tf.Tensor]:
    def looks_up(x: tf.Tensor) -> tf.Tensor:
        table = raw.HashTableV2(key_dtype=tf.string, value_dtype=tf.int64)
        file = text_of(x) if name is None else name
        raw.InitializeTableFromTextFileV2(table_handle=table, filename=file, key_index=-2, value_index=-1, vocab_size=-1, delimiter="\t")
        return x + tf.cast(raw.LookupTableSizeV2(table_handle=table), tf.float32)

    return looks_up


CAPTURED = tf.constant(ELSEWHERE)
BODIES: dict[str, Callable[[tf.Tensor], Any]] = {
    "reads a file that the caller names": lambda x: tf.io.read_file(text_of(x)),
    "writes a file": writes,
    "calls Python": lambda x: tf.numpy_function(np.sin, [x], tf.float32),
    "calls Python eagerly": lambda x: tf.py_function(lambda y: y, [x], tf.float32),
    "lists files": lambda x: tf.io.matching_files(text_of(x)),
    "reads a file in a branch": in_a_branch,
    "reads lines": counts_lines,
    "saves a tensor": saves,
    "restores a tensor": lambda x: raw.RestoreV2(prefix=text_of(x), tensor_names=["x"], shape_and_slices=[""], dtypes=[tf.float32])[0],
    "prints into a file": prints,
    "maps a file": lambda x: x + raw.ImmutableConst(dtype=tf.float32, shape=[1], memory_region_name=ELSEWHERE),
    "reads the host's vocabulary": lambda x: (
        x
        + tf.cast(
            raw.GenerateVocabRemapping(new_vocab_file=ELSEWHERE, old_vocab_file=ELSEWHERE, new_vocab_offset=0, num_new_vocab=1)[1],
            tf.float32,
        )
    ),
    "an operator that is not known here": lambda x: (
        x + tf.cast(raw.QueueSizeV2(handle=raw.FIFOQueueV2(component_types=[tf.float32])) * 0, tf.float32)
    ),
    "reads a table that the caller names": table_of(None),
    "reads a table of the host's": table_of(ELSEWHERE),
    "reads a table of the host's by a captured name": table_of(CAPTURED),
    "adds": lambda x: x + 1.0,
    "looks up": lambda x: tf.gather(tf.constant([0.0, 1.0, 2.0, 3.0]), tf.cast(x, tf.int32)),
}


def saved(folder: Path, body: Callable[[tf.Tensor], Any]) -> Path:
    module = tf.Module()
    module.weight = tf.Variable(1.0)  # so that there is something to restore
    module.captured = CAPTURED

    @tf.function(input_signature=[tf.TensorSpec((None, 1), tf.float32, name="x")])
    def serve(x: tf.Tensor) -> dict[str, Any]:
        return {"y": body(x * module.weight)}

    module.serve = serve
    tf.saved_model.save(module, str(folder), signatures={"serving_default": serve})
    return folder


def with_words(folder: Path) -> dict[str, Path]:
    """Keras' own: a vocabulary in the layer, and one in a file, which becomes an asset."""
    words = folder / "words.txt"
    words.write_text("a\nb\n")
    made = {}
    for name, vocabulary in (("a vocabulary", ["a", "b"]), ("a vocabulary in a file", str(words))):
        model = keras.Sequential([keras.Input((1,), dtype="string"), keras.layers.StringLookup(vocabulary=vocabulary)])
        made[name] = folder / name
        model.export(str(made[name]), format="tf_saved_model", verbose=False)
    return made


def changed(source: Path, target: Path, change: Callable[[Any], None]) -> Path:
    shutil.copytree(source, target)
    file = target / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    change(model.meta_graphs[0])
    file.write_bytes(model.SerializeToString())
    return target


def verdict(folder: Path) -> str:
    try:
        check_saved_model(saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes()))
    except ValueError as error:
        return str(error)
    return ""


def refusal(folder: Path) -> str:
    """What a caller reads whose input this model cannot compute."""
    try:
        Model(folder, ["x"], ["y"]).run({"x": np.full((1, 1), 9, np.float32)})
    except tf.errors.InvalidArgumentError as error:
        return sentence_of(error)
    return ""


def check_the_list() -> None:
    """Every operator that may be used is one of TensorFlow's, and those that are called stateless are."""
    listed = op_def_pb2.OpList.FromString(pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList()))
    stateful = {op.name: op.is_stateful for op in listed.op}
    assert not OPERATORS - stateful.keys(), OPERATORS - stateful.keys()
    assert not [name for name in STATELESS if stateful[name]]


def main(folder: Path) -> None:
    check_the_list()
    made = {what: saved(folder / what.replace("/", " "), body) for what, body in BODIES.items()} | with_words(folder)
    by_file = made["a vocabulary in a file"]
    made["an asset elsewhere"] = changed(
        by_file, folder / "elsewhere", lambda meta: setattr(meta.asset_file_def[0], "filename", "../../../.." + ELSEWHERE)
    )
    made["of TensorFlow 1"] = changed(made["adds"], folder / "first", lambda meta: meta.ClearField("object_graph_def"))
    shutil.make_archive(str(folder / "writes"), "zip", made["writes a file"])
    x = np.ones((3, 1), np.float32)
    save_file({"input/x": x, "output/y": x}, folder / "writes.safetensors")
    assert not (folder / "written").exists()
    print(json.dumps({what: verdict(where) for what, where in made.items()} | {"refusal": refusal(made["looks up"])}))


if __name__ == "__main__":
    FOLDER = sys.argv[1]
    main(Path(FOLDER))
