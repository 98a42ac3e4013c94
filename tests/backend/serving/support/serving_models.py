"""Models for the serving tests: small ONNX graphs built here, and Keras exports made by one subprocess a session.

Run as a program (`python serving_models.py FOLDER`) it makes the Keras exports: TensorFlow stays
out of the test process.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from msgspec.structs import replace
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from aiaas_magics.core.integrity import file_hash
from aiaas_magics.core.spec import DeploySpec, TensorSpec

ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
    "bool": TensorProto.BOOL,
    "string": TensorProto.STRING,
    "float16": TensorProto.FLOAT16,
}


@dataclass(frozen=True)
class Made:
    """An artefact with its samples, ready for `load`."""

    spec: DeploySpec
    artefact: Path
    samples: Path

    @property
    def hashed(self) -> DeploySpec:
        """The spec with the hashes of the files as they are now, as a kernel sends it."""
        hashes = {name: file_hash(path) for name, path in (("artefact", self.artefact), ("samples", self.samples)) if path.is_file()}
        return replace(self.spec, **hashes)


def spec_of(name: str, inputs: list[TensorSpec], outputs: list[TensorSpec], *, replicas: int = 1, format: str = "onnx") -> DeploySpec:
    return DeploySpec(
        name=name, artefact="a" * 64, format=format, samples="b" * 64, inputs=tuple(inputs), outputs=tuple(outputs), replicas=replicas
    )


def tensor(name: str, dtype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def value(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, ONNX_TYPES[spec.dtype], [None if size < 0 else size for size in spec.shape])


def graph(
    nodes: list[onnx.NodeProto], inputs: list[TensorSpec], outputs: list[TensorSpec], constants: list[onnx.TensorProto]
) -> onnx.ModelProto:
    made = helper.make_graph(nodes, "test", [value(i) for i in inputs], [value(o) for o in outputs], constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def write(folder: Path, spec: DeploySpec, model: onnx.ModelProto, samples: dict[str, np.ndarray], *, as_name: str = "") -> Made:
    stem = folder / (as_name or spec.name)
    artefact, proof = stem.with_suffix(".onnx"), stem.with_suffix(".safetensors")
    artefact.write_bytes(model.SerializeToString())
    save_file(samples, proof)
    return Made(spec, artefact, proof)


def echo(folder: Path, name: str, dtype: str, *shape: int, replicas: int = 1) -> Made:
    """A model that answers what it was given: `x` of `(rows, *shape)` comes back as `y`."""
    x, y = tensor("x", dtype, -1, *shape), tensor("y", dtype, -1, *shape)
    model = graph([helper.make_node("Identity", ["x"], ["y"])], [x], [y], [])
    sample = np.full((4, *shape, 2), ord("a"), np.uint8) if dtype == "string" else np.ones((4, *shape), dtype)
    return write(folder, spec_of(name, [x], [y], replicas=replicas), model, {"input/x": sample, "output/y": sample})


def plus(folder: Path, name: str, amount: float, *, replicas: int = 1, expects: float | None = None) -> Made:
    """`y = x + amount` over rows of one number; the samples say `expects`, which is the truth unless given."""
    x, y = tensor("x", "float32", -1, 1), tensor("y", "float32", -1, 1)
    constant = helper.make_tensor("amount", TensorProto.FLOAT, [1], [amount])
    model = graph([helper.make_node("Add", ["x", "amount"], ["y"])], [x], [y], [constant])
    sample = np.arange(8, dtype="float32").reshape(8, 1)
    proof = sample + np.float32(amount if expects is None else expects)
    return write(
        folder, spec_of(name, [x], [y], replicas=replicas), model, {"input/x": sample, "output/y": proof}, as_name=f"{name}-{amount}"
    )


def sums(folder: Path, name: str) -> Made:
    """Two inputs, two outputs: `total = a + b` and `most = max(a, b)`; `b` whole numbers."""
    a, b = tensor("a", "float32", -1, 2), tensor("b", "int32", -1, 2)
    total, most = tensor("total", "float32", -1, 2), tensor("most", "float32", -1, 2)
    nodes = [
        helper.make_node("Cast", ["b"], ["b_float"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["a", "b_float"], ["total"]),
        helper.make_node("Max", ["a", "b_float"], ["most"]),
    ]
    model = graph(nodes, [a, b], [total, most], [])
    one, two = np.full((4, 2), 1.5, "float32"), np.full((4, 2), 3, "int32")
    samples = {"input/a": one, "input/b": two, "output/total": one + two.astype("float32"), "output/most": two.astype("float32")}
    return write(folder, spec_of(name, [a, b], [total, most]), model, samples)


def lookup(folder: Path, name: str) -> Made:
    """Row numbers into a table of four rows: any other index is an input that the engine itself refuses."""
    x, y = tensor("x", "int64", -1), tensor("y", "float32", -1, 2)
    table = helper.make_tensor("table", TensorProto.FLOAT, [4, 2], [float(n) for n in range(8)])
    model = graph([helper.make_node("Gather", ["table", "x"], ["y"])], [x], [y], [table])
    index = np.arange(4, dtype="int64")
    return write(folder, spec_of(name, [x], [y]), model, {"input/x": index, "output/y": np.arange(8, dtype="float32").reshape(4, 2)})


LINEAR_WEIGHTS = np.array([[1.0, 0.0], [-2.0, 1.0], [0.5, 3.0]], "float32")


def linear(folder: Path, name: str, *, background: np.ndarray | None = None) -> Made:
    """`y = x @ LINEAR_WEIGHTS`, three columns to two: what each column contributes is known exactly."""
    x, y = tensor("x", "float32", -1, 3), tensor("y", "float32", -1, 2)
    weights = helper.make_tensor("weights", TensorProto.FLOAT, [3, 2], LINEAR_WEIGHTS.ravel().tolist())
    sample = np.arange(12, dtype="float32").reshape(4, 3)
    samples = {"input/x": sample, "output/y": sample @ LINEAR_WEIGHTS}
    if background is not None:
        samples["background/x"] = background
    model = graph([helper.make_node("MatMul", ["x", "weights"], ["y"])], [x], [y], [weights])
    return write(folder, spec_of(name, [x], [y]), model, samples)


def matrix(folder: Path, name: str, *, size: int, steps: int) -> Made:
    """Rows of `size` numbers through `steps` multiplications: work that takes a while, and gives the rows back."""
    x, y = tensor("x", "float32", -1, size), tensor("y", "float32", -1, size)
    one = helper.make_tensor("one", TensorProto.FLOAT, [size, size], np.eye(size, dtype="float32").ravel().tolist())
    names = ["x", *(f"h{n}" for n in range(steps - 1)), "y"]
    nodes = [helper.make_node("MatMul", [before, "one"], [after]) for before, after in pairwise(names)]
    sample = np.ones((4, size), "float32")
    return write(folder, spec_of(name, [x], [y]), graph(nodes, [x], [y], [one]), {"input/x": sample, "output/y": sample})


# --------------------------------------------------------------------------- Keras exports, by a subprocess


def article_spec(format: str = "onnx") -> DeploySpec:
    return spec_of("article", [tensor("x", "float32", -1, 100)], [tensor("y", "float32", -1, 1)], format=format)


def export_article(folder: Path) -> None:
    """The article's model, Dense 64, 32 and 1 on 100 inputs, as ONNX and as a zip of a SavedModel, with Keras' own answers."""
    import shutil

    import keras

    keras.utils.set_random_seed(7)
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((100,), name="x"), layers.Dense(64, "relu"), layers.Dense(32, "relu"), layers.Dense(1, "sigmoid", name="y")]
    )
    x = np.random.default_rng(7).normal(size=(16, 100)).astype("float32")
    y = model.predict(x, verbose=0)
    model.export(str(folder / "article.onnx"), format="onnx", verbose=False)
    model.export(str(folder / "saved"), format="tf_saved_model", verbose=False)
    shutil.make_archive(str(folder / "article"), "zip", folder / "saved")
    save_file({"input/x": x, "output/y": np.asarray(y)}, folder / "article.safetensors")


if __name__ == "__main__":
    export_article(Path(sys.argv[1]))
