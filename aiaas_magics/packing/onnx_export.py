"""A `tf.function` as an ONNX file.

Owns the conversion, and what the converter leaves to be done on the file. Whether the file computes the same is checked by `servable`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

# Operators that pass values on as they are: the answer is what goes into them.
PASSED_ON: Final = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Concat"})


def export(function: Any) -> bytes:
    """The file. Raises whatever the converter raises over an operator that it does not know, and `ValueError`."""
    import onnx
    import tf2onnx
    from keras.src.export.tf2onnx_lib import patch_tf2onnx

    patch_tf2onnx()
    proto, _ = tf2onnx.convert.from_function(function, input_signature=function.input_signature)
    # An operator without a translation is left as TensorFlow's own, and tf2onnx only logs it; the checker does not know it.
    onnx.checker.check_model(proto)
    _hold(proto, function)
    _write_out_sigmoids(proto.graph)
    made = {output.name for output in proto.graph.output}
    promised = set(function.get_concrete_function().structured_outputs)
    if made != promised:
        raise ValueError(f"outputs are called {sorted(made)} instead of {sorted(promised)}")
    return bytes(proto.SerializeToString())


def _hold(proto: Any, function: Any) -> None:
    """Tensors that the function closes over (an adapted Normalization's mean, say) into the file; tf2onnx makes inputs of them."""
    import tensorflow as tf
    from onnx import numpy_helper

    concrete = function.get_concrete_function()
    held = {inside.name: outside for outside, inside in concrete.graph.captures if outside.dtype != tf.resource}
    for given in [given for given in proto.graph.input if given.name in held]:
        proto.graph.initializer.append(numpy_helper.from_array(held[given.name].numpy(), given.name))
        proto.graph.input.remove(given)


def _write_out_sigmoids(graph: Any) -> None:
    """1 / (1 + exp(-x)) in the place of each Sigmoid that gives an answer.

    ONNX Runtime's own is an approximation that is 0 below -18 (MLAS, logistic.cpp): probabilities of rare events would lose their
    order, and no absolute difference would show it. Inside a model it stays, where it is quicker and nothing is lost.
    """
    from onnx import TensorProto, helper, numpy_helper

    makers = {name: node for node in graph.node for name in node.output}
    floats = [output.name for output in graph.output if output.type.tensor_type.elem_type == TensorProto.FLOAT]
    waiting, answering = list(floats), set()
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.op_type == "Sigmoid":
            answering.add(node.output[0])
        elif node is not None and node.op_type in PASSED_ON:
            waiting.extend(node.input if node.op_type == "Concat" else node.input[:1])
    if not answering:
        return
    nodes, one = [], "aiaas/one"
    for node in graph.node:
        if node.op_type != "Sigmoid" or node.output[0] not in answering:
            nodes.append(node)
            continue
        (given,), (answer,) = node.input, node.output
        parts = [f"{answer}/{part}" for part in ("negative", "exp", "sum")]
        nodes += [
            helper.make_node("Neg", [given], [parts[0]]),
            helper.make_node("Exp", parts[:1], [parts[1]]),
            helper.make_node("Add", [parts[1], one], [parts[2]]),
            helper.make_node("Reciprocal", [parts[2]], [answer]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.append(numpy_helper.from_array(np.float32(1), one))
