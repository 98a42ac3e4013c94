"""Quantization: an ONNX file with its weights in fewer bits.

Owns the rewriting: which operator's weights become what. It works on the exported graph, so the user's model is never touched
and needs no clone, and whatever exports can be reduced. What the answers become is measured by `accuracy_impact`.

* Products (`MatMul`, `Gemm`): blocks of 32 weights with a scale each, in 8 or 4 bits, computed by ONNX Runtime's `MatMulNBits`.
  It rounds the activations of a row by themselves. `DynamicQuantizeLinear`, which `quantize_dynamic` would put there, takes one
  scale for all rows of a batch: an answer would depend on the requests that it ran with.
* Tables (`Gather`): 8 bits and a scale a row; only the rows that are asked for become floats.
* Convolutions and recurrent layers: 8 bits and a scale a channel. ONNX Runtime makes floats of them when it loads the file, so
  they are smaller to keep and to send, and compute as before. So are all weights in float16, for which a CPU has no arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

BLOCK: Final = (
    32  # weights with one scale; measured on 784-2048-1760-10: 8 bits 2.5 times as quick as float32, and independent of the batch
)
LEAST: Final = 512  # guess: of a smaller tensor the scales and the node take what the bits save
INT8_ACTIVATIONS: Final = 4  # MatMulNBits' accuracy_level, ContribOperators.md of ONNX Runtime
F16_LARGEST: Final = float(np.finfo(np.float16).max)
CHANNEL: Final = {"Conv": 0, "ConvTranspose": 1}  # the axis with a scale for each; recurrent layers: all but the last
RECURRENT: Final = frozenset({"LSTM", "GRU", "RNN"})
ELSEWHERE: Final = frozenset({"MatMul", "Gemm", "Einsum"})  # where no operator takes blocks: a scale for each of the last axis


class NothingToReduce(ValueError):
    """No weights in the file that could be kept in fewer bits."""


def reduce(artefact: bytes, precision: str) -> bytes:
    """The file with its weights in `precision`; names and types of inputs and outputs stay.

    Raises:
        NothingToReduce: it holds no float32 weights of a known operator that are large enough.
    """
    import onnx

    model = onnx.load_model_from_string(artefact)
    rewriting = _Rewriting(model, precision)
    if not rewriting.run():
        raise NothingToReduce("it has no float32 weights that are large enough")
    return bytes(model.SerializeToString())


class _Rewriting:
    """One pass over a graph. Weights are initializers of the main graph; graphs inside it (loops) refer to them by name."""

    def __init__(self, model: Any, precision: str) -> None:
        from onnx import TensorProto, numpy_helper

        self._model, self._graph, self._precision = model, model.graph, precision
        self._array = numpy_helper.to_array
        self._weights = {
            tensor.name: tensor
            for tensor in self._graph.initializer
            if tensor.data_type == TensorProto.FLOAT and int(np.prod(tensor.dims, dtype=np.int64)) >= LEAST
        }
        self._before: list[Any] = []  # nodes that make floats of weights; they depend on nothing
        self._outputs: dict[str, str] = {}  # what was made already: a name of what it is -> its output

    def run(self) -> bool:
        """Whether anything was reduced."""
        changed = False
        nodes: list[Any] = []
        for node in self._graph.node:
            replaced = self._product(node) or self._lookup(node)
            changed = changed or bool(replaced)
            nodes.extend(replaced or [node])
        for node in _all_nodes(nodes):
            changed = self._stored(node) or changed
        del self._graph.node[:]
        self._graph.node.extend([*self._before, *nodes])
        self._drop_unused()
        return changed

    # ---- computed in fewer bits

    def _product(self, node: Any) -> list[Any] | None:
        """`MatMul` or `Gemm` by a matrix of weights, as `MatMulNBits`."""
        from onnx import helper

        if self._precision == "float16" or node.op_type not in ("MatMul", "Gemm") or node.input[1] not in self._weights:
            return None
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        matrix = self._array(self._weights[node.input[1]])
        if matrix.ndim != 2 or any(
            attributes.get(name, usual) != usual for name, usual in {"transA": 0, "alpha": 1.0, "beta": 1.0}.items()
        ):
            return None
        matrix = matrix.T if attributes.get("transB") else matrix
        bits = 4 if self._precision == "int4" else 8
        packed, scales = blocks(matrix, bits)
        key = f"{node.input[1]}/{int(bool(attributes.get('transB')))}"
        weights, scale = self._initializer(f"{key}/packed", packed), self._initializer(f"{key}/scales", scales)
        biased = len(node.input) > 2 and bool(node.input[2])
        output = f"{node.output[0]}/product" if biased else node.output[0]
        product = helper.make_node(
            "MatMulNBits",
            [node.input[0], weights, scale],
            [output],
            name=node.name,
            domain="com.microsoft",
            K=matrix.shape[0],
            N=matrix.shape[1],
            bits=bits,
            block_size=BLOCK,
            accuracy_level=INT8_ACTIVATIONS,
        )
        if not any(opset.domain == "com.microsoft" for opset in self._model.opset_import):
            self._model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        return [product, helper.make_node("Add", [output, node.input[2]], list(node.output))] if biased else [product]

    def _lookup(self, node: Any) -> list[Any] | None:
        """`Gather` of rows of a table: of the rows' bytes and scales."""
        from onnx import TensorProto, helper

        if self._precision == "float16" or node.op_type != "Gather" or node.input[0] not in self._weights:
            return None
        table = self._array(self._weights[node.input[0]])
        if table.ndim != 2 or any(attribute.name == "axis" and attribute.i != 0 for attribute in node.attribute):
            return None
        values, scales = channels(table, (1,))
        key, output = node.input[0], node.output[0]
        rows, row_scales, floats = f"{output}/rows", f"{output}/scales", f"{output}/floats"
        return [
            helper.make_node("Gather", [self._initializer(f"{key}/values", values), node.input[1]], [rows], axis=0),
            helper.make_node("Gather", [self._initializer(f"{key}/row scales", scales), node.input[1]], [row_scales], axis=0),
            helper.make_node("Cast", [rows], [floats], to=TensorProto.FLOAT),
            helper.make_node("Mul", [floats, row_scales], [output]),
        ]

    # ---- kept in fewer bits

    def _stored(self, node: Any) -> bool:
        changed = False
        for place, name in enumerate(node.input):
            if name not in self._weights:
                continue
            if self._precision == "float16":
                smaller = self._halved(name)
            else:
                axes = _axes_of_a_scale(node.op_type, len(self._weights[name].dims), place)
                smaller = None if axes is None else self._scaled(name, axes)
            if smaller is not None:
                node.input[place] = smaller
                changed = True
        return changed

    def _halved(self, name: str) -> str | None:
        from onnx import TensorProto, helper

        output = f"{name}/float32"
        if output not in self._outputs:
            array = self._array(self._weights[name])
            if not np.abs(array).max() <= F16_LARGEST:
                return None
            half = self._initializer(f"{name}/float16", array.astype(np.float16))
            self._before.append(helper.make_node("Cast", [half], [output], to=TensorProto.FLOAT))
            self._outputs[output] = output
        return output

    def _scaled(self, name: str, axes: tuple[int, ...]) -> str:
        from onnx import TensorProto, helper

        output = f"{name}/floats over {axes}"
        if output not in self._outputs:
            values, scales = channels(self._array(self._weights[name]), axes)
            operands = self._initializer(f"{output}/values", values), self._initializer(f"{output}/scales", scales)
            self._before.append(helper.make_node("Cast", [operands[0]], [f"{output}/cast"], to=TensorProto.FLOAT))
            self._before.append(helper.make_node("Mul", [f"{output}/cast", operands[1]], [output]))
            self._outputs[output] = output
        return output

    def _initializer(self, name: str, array: np.ndarray) -> str:
        from onnx import numpy_helper

        if name not in self._outputs:
            self._graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
            self._outputs[name] = name
        return name

    def _drop_unused(self) -> None:
        used = {name for node in _all_nodes(self._graph.node) for name in node.input} | {output.name for output in self._graph.output}
        in_use = [tensor for tensor in self._graph.initializer if tensor.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(in_use)


def blocks(matrix: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """A matrix (K, N) as `MatMulNBits` takes it: (N, blocks of K, bytes) without sign, and the scale of each block (N, blocks)."""
    inputs, outputs = matrix.shape
    count = -(-inputs // BLOCK)
    padded = np.zeros((count * BLOCK, outputs), np.float32)
    padded[:inputs] = matrix
    cut = padded.reshape(count, BLOCK, outputs)
    most = 2 ** (bits - 1)
    scales = np.abs(cut).max(axis=1) / (most - 1)
    scales[scales == 0] = 1
    values = np.clip(np.rint(cut / scales[:, None]), -most, most - 1).astype(np.int16) + most
    values = values.transpose(2, 0, 1).astype(np.uint8)
    if bits == 4:
        values = values[..., 0::2] | (values[..., 1::2] << 4)
    return values, scales.T.astype(np.float32)


def channels(array: np.ndarray, over: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """An array in 8 bits, and the scales that share the axes `over`."""
    scales = np.abs(array).max(axis=over, keepdims=True) / 127
    scales = np.where(scales == 0, 1, scales).astype(np.float32)
    return np.rint(array / scales).astype(np.int8), scales


def _axes_of_a_scale(operator: str, dims: int, place: int) -> tuple[int, ...] | None:
    """The axes that share a scale in that input of the operator; None where it is no weight."""
    if place == 1 and operator in CHANNEL:
        return tuple(axis for axis in range(dims) if axis != CHANNEL[operator])
    if place in (1, 2) and operator in RECURRENT:
        return (dims - 1,)
    if operator in ELSEWHERE and dims > 1:
        return tuple(range(dims - 1))
    return None


def _all_nodes(nodes: Any) -> Iterator[Any]:
    """Nodes and those of the graphs inside them."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _all_nodes(attribute.g.node)
            for graph in attribute.graphs:
                yield from _all_nodes(graph.node)
