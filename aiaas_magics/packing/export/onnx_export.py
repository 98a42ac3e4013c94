"""ONNX export: a `tf.function` as an ONNX file.

Owns the conversion, and what the converter leaves to be done on the file. Whether the file computes the same is checked by `model_export`.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

# Operators that pass values on as they are: the answer is what goes into them.
PASSED_ON: Final = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Concat"})


# The converter tries every order of an equation's letters: with 5 (120 orders, attention over one axis) a model of two such
# equations exports in 0.6 s, measured; attention over two axes, with more letters, ran for minutes.
MOST_LETTERS: Final = 5
MOST_KEYS: Final = 1_000  # guess: comparisons of a value with so many keys take as long as a small product
INT32_SIGN: Final = -(2**31)


def export(function: Any) -> bytes:
    """The file. Raises whatever the converter raises over an operator that it does not know, and `ValueError`."""
    import onnx

    from aiaas_magics.core.internals.keras_internals import patch_tf2onnx

    patch_tf2onnx()
    proto = _converted(function)
    # An operator without a translation is left as TensorFlow's own, and tf2onnx only logs it.
    unknown = sorted({node.op_type for node in proto.graph.node if not onnx.defs.has(node.op_type, node.domain)})
    if unknown:
        raise ValueError(f"ONNX has no operator for {', '.join(unknown[:4])}")
    _give_shapes(proto, function)
    onnx.checker.check_model(proto)
    _hold(proto, function)
    _write_out_sigmoids(proto.graph)
    outputs = {output.name for output in proto.graph.output}
    promised = set(function.get_concrete_function().structured_outputs)
    if outputs != promised:
        raise ValueError(f"outputs are called {sorted(outputs)} instead of {sorted(promised)}")
    return bytes(proto.SerializeToString())


def _converted(function: Any) -> Any:
    """As `tf2onnx.convert.from_function`, in other steps.

    That one copies the whole graph with its weights before each of a dozen optimizations, again and again until none of them finds
    anything, in case one fails; the copies are cycles, which wait for the garbage collector (ResNet50: 6.5 GB of the kernel's memory
    for 94 MB of weights). Here they work on the graph itself, and where one fails the file is made without them.
    """
    import tensorflow as tf
    from tf2onnx import optimizer

    optimizers = {**optimizer._get_optimizers(), "einsum_optimizer": _short_einsums}
    with tf.device("/cpu:0"):
        graph = _translated(function)
        try:
            return optimizer.optimize_graph(graph, catch_errors=False, optimizers=optimizers).make_model("converted")
        except Exception:  # noqa: BLE001 - border: an optimization may fail over a graph that it does not know, and none has to be made
            del graph
        return _translated(function).make_model("converted")


def _translated(function: Any) -> Any:
    """tf2onnx's graph of the function. Nothing else holds the weights when this returns."""
    import tensorflow as tf
    from tf2onnx import convert, tfonnx

    concrete = function.get_concrete_function()
    names = [[tensor.name for tensor in side if tensor.dtype != tf.resource] for side in (concrete.inputs, concrete.outputs)]
    renamed = convert.tensor_names_from_structed(concrete, *names)
    frozen = _inlined(_frozen(concrete, *names), *names)
    handlers = OPERATORS | {"LookupTableFindV2": _lookup_in(_tables(concrete))}
    with tf.Graph().as_default() as plain:
        tf.import_graph_def(frozen, name="")
        del frozen
        graph = tfonnx.process_tf_graph(
            plain,
            continue_on_error=True,
            custom_op_handlers={name: (handler, []) for name, handler in handlers.items()},
            input_names=names[0],
            output_names=names[1],
            tensors_to_rename=dict(renamed),
        )
    # The protobuf of a constant is never read: it would be a copy of the weights, made anew with every optimization.
    for node in graph.get_nodes():
        if node.is_const():
            del node._op.attribute[:]
    graph.update_proto = lambda storage=None: [node.update_proto(storage) for node in graph.get_nodes() if not node.is_const()]
    gc.collect()  # TensorFlow's graphs are cycles, and each of them holds the weights
    return graph


def _frozen(concrete: Any, inputs: list[str], outputs: list[str]) -> Any:
    """The function with constants for its variables, as of `tf_loader.from_function`, which keeps two copies more meanwhile."""
    import tensorflow as tf
    from tf2onnx import tf_loader

    from aiaas_magics.core.internals.tensorflow_internals import convert_variables_to_constants_v2

    try:
        frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False, aggressive_inlining=True)
    except ValueError:  # an assignment in the graph, which that one mends
        return tf_loader.from_function(concrete, inputs, outputs)
    definition = frozen.graph.as_graph_def(add_shapes=True)
    del frozen
    gc.collect()
    definition = tf_loader.fix_freezing_errors_part2(definition)
    with tf.Graph().as_default():
        return tf_loader.tf_optimize(inputs, outputs, definition)


def _inlined(frozen: Any, inputs: list[str], outputs: list[str]) -> Any:
    """The graph without calls of functions for XLA to compile, as which Keras writes grouped convolutions: TensorFlow has none on a CPU."""
    import tensorflow as tf
    from tf2onnx import tf_loader

    calls = ("PartitionedCall", "StatefulPartitionedCall")
    if not any(node.op in calls for node in frozen.node):
        return frozen
    for function in frozen.library.function:
        for attribute in ("_XlaMustCompile", "_noinline"):
            function.attr.pop(attribute, None)
        for node in function.node_def:
            node.attr.pop("_XlaMustCompile", None)
    for node in frozen.node:
        node.attr.pop("_XlaMustCompile", None)
    with tf.Graph().as_default():
        tf.import_graph_def(frozen, name="")
        return tf_loader.tf_optimize(inputs, outputs, frozen)


def _short_einsums() -> Any:
    """tf2onnx's products in the place of an Einsum, but for long equations, which ONNX Runtime computes as they are."""
    from tf2onnx.optimizer.einsum_optimizer import EinsumOptimizer

    class ShortEinsums(EinsumOptimizer):  # type: ignore[misc]
        def _optimize_einsum(self, node: Any, graph: Any) -> bool:
            letters = {letter for letter in node.attr["equation"].s.decode("ascii") if letter.isalpha()}
            return len(letters) <= MOST_LETTERS and bool(super()._optimize_einsum(node, graph))

    return ShortEinsums()


# --------------------------------------------------------------------------- operators that tf2onnx does not know


def _erfc(context: Any, node: Any, name: str, arguments: Any) -> None:
    """1 - erf(x), which is gelu's."""
    unit = _constant(context, node, np.float32(1))
    erf = context.make_node("Erf", [node.input[0]])
    _replace(context, node, "Sub", [unit, erf.output[0]])


def _expm1(context: Any, node: Any, name: str, arguments: Any) -> None:
    """exp(x) - 1, as far as float32 goes: what is lost near zero is 6e-8."""
    unit = _constant(context, node, np.float32(1))
    power = context.make_node("Exp", [node.input[0]])
    _replace(context, node, "Sub", [power.output[0], unit])


def _log1p(context: Any, node: Any, name: str, arguments: Any) -> None:
    """log(1 + x) with the digits of a small x: log(u) * x / (u - 1) for u = 1 + x (Kahan; Goldberg 1991, theorem 4)."""
    x, unit = node.input[0], _constant(context, node, np.float32(1))
    above = context.make_node("Add", [x, unit]).output[0]
    rest = context.make_node("Sub", [above, unit]).output[0]
    is_small = context.make_node("Equal", [above, unit]).output[0]
    divisor = context.make_node("Where", [is_small, unit, rest]).output[0]
    product = context.make_node("Mul", [context.make_node("Log", [above]).output[0], x]).output[0]
    _replace(context, node, "Where", [is_small, x, context.make_node("Div", [product, divisor]).output[0]])


def _bucketize(context: Any, node: Any, name: str, arguments: Any) -> None:
    """How many boundaries are not above x."""
    from onnx import TensorProto

    places = context.make_const(f"{node.name}/axis", np.array([-1], np.int64)).output[0]
    boundaries = context.make_const(f"{node.name}/boundaries", np.array(node.get_attr_value("boundaries"), np.float32)).output[0]
    values = context.make_node("Cast", [node.input[0]], attr={"to": TensorProto.FLOAT}).output[0]
    column = context.make_node("Unsqueeze", [values, places]).output[0]
    below = context.make_node("Less", [column, boundaries]).output[0]
    reached = context.make_node("Cast", [context.make_node("Not", [below]).output[0]], attr={"to": TensorProto.INT32}).output[0]
    _replace(context, node, "ReduceSum", [reached, places], {"keepdims": 0})


def _bitcast(context: Any, node: Any, name: str, arguments: Any) -> None:
    """The bits of a float32 where only its sign is asked for, as Keras' argmax does to tell -0.0 from 0.0."""
    from onnx import TensorProto

    for consumer in context.find_output_consumers(node.output[0]):
        masks = [operand.get_tensor_value() for operand in consumer.inputs if operand.is_const()]
        if consumer.type != "BitwiseAnd" or masks != [INT32_SIGN] or context.get_dtype(node.input[0]) != TensorProto.FLOAT:
            raise ValueError("ONNX has no operator for Bitcast")
    zero = _constant(context, node, np.float32(0))
    unit = context.make_const(f"{node.name}/one", np.float32(1)).output[0]
    bits = [context.make_const(f"{node.name}/bits_{place}", np.int32(value)).output[0] for place, value in enumerate((INT32_SIGN, 0))]
    inverse = context.make_node("Div", [unit, node.input[0]])
    signs = [context.make_node("Less", [value, zero]).output[0] for value in (node.input[0], inverse.output[0])]
    _replace(context, node, "Where", [context.make_node("Or", signs).output[0], *bits])


def _bitwise_and(context: Any, node: Any, name: str, arguments: Any) -> None:
    """Of what `_bitcast` made, which has no bit but the sign."""
    if not any(operand.type == "Where" and operand.name.startswith("aiaas_") for operand in node.inputs):
        raise ValueError("ONNX has no operator for BitwiseAnd")
    value = next(operand.output[0] for operand in node.inputs if not operand.is_const())
    _replace(context, node, "Identity", [value])


OPERATORS: Final = {
    "Bitcast": _bitcast,
    "BitwiseAnd": _bitwise_and,
    "Bucketize": _bucketize,
    "Erfc": _erfc,
    "Expm1": _expm1,
    "Log1p": _log1p,
}


def _tables(concrete: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Keys and values of the tables that the function looks numbers up in, by the name of the handle."""
    import tensorflow as tf

    handles = {inside.name: outside for outside, inside in concrete.graph.captures if outside.dtype == tf.resource}
    tables = {}
    for operation in concrete.graph.get_operations():
        if operation.type == "LookupTableFindV2" and operation.inputs[0].name in handles and operation.inputs[1].dtype != tf.string:
            keys, values = tf.raw_ops.LookupTableExportV2(
                table_handle=handles[operation.inputs[0].name], Tkeys=operation.inputs[1].dtype, Tvalues=operation.outputs[0].dtype
            )
            if values.dtype != tf.string:
                tables[operation.inputs[0].name] = keys.numpy(), values.numpy()
    return tables


def _lookup_in(tables: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Any:
    """The number that stands behind a key in one of `tables`, or the default: one comparison with each key."""

    def lookup(context: Any, node: Any, name: str, arguments: Any) -> None:
        from onnx import TensorProto

        if node.input[0] not in tables:
            raise ValueError("ONNX has no tables of texts")
        keys, values = tables[node.input[0]]
        if not 0 < len(keys) <= MOST_KEYS:
            raise ValueError(f"a table of {len(keys):,} keys is too large for comparisons")
        last = context.make_const(f"{node.name}/axis", np.array([-1], np.int64)).output[0]
        known_keys, known_values = (
            context.make_const(f"{node.name}/{label}", array).output[0] for label, array in (("keys", keys), ("values", values))
        )
        column = context.make_node("Unsqueeze", [node.input[1], last]).output[0]
        equal = context.make_node("Equal", [column, known_keys]).output[0]
        hits = context.make_node("Cast", [equal], attr={"to": TensorProto.INT32}).output[0]
        place = context.make_node("ArgMax", [hits], attr={"axis": -1, "keepdims": 0}).output[0]
        count = context.make_node("ReduceSum", [hits, last], attr={"keepdims": 0}).output[0]
        is_hit = context.make_node("Cast", [count], attr={"to": TensorProto.BOOL}).output[0]
        value = context.make_node("Gather", [known_values, place]).output[0]
        _replace(context, node, "Where", [is_hit, value, node.input[2]])

    return lookup


def _constant(context: Any, node: Any, value: np.generic) -> str:
    """A constant of the type that goes into `node`."""
    from tf2onnx import utils

    dtype = utils.map_onnx_to_numpy_type(context.get_dtype(node.input[0]))
    return str(context.make_const(f"{node.name}/constant", np.asarray(value, dtype)).output[0])


def _replace(context: Any, node: Any, operator: str, inputs: list[str], attributes: dict[str, Any] | None = None) -> None:
    dtype, shape = context.get_dtype(node.output[0]), context.get_shape(node.output[0])
    outputs = list(node.output)
    context.remove_node(node.name)
    context.make_node(operator, inputs, attr=attributes or {}, name=f"aiaas_{node.name}", outputs=outputs, dtypes=[dtype], shapes=[shape])


# --------------------------------------------------------------------------- the file


def _give_shapes(proto: Any, function: Any) -> None:
    """The outputs' shapes as they were traced, where the converter lost them (behind a table, say); the checker wants some."""
    structured = function.get_concrete_function().structured_outputs
    for output in proto.graph.output:
        kind = output.type.tensor_type
        if not kind.HasField("shape") and output.name in structured and structured[output.name].shape.rank is not None:
            kind.shape.SetInParent()
            for place, size in enumerate(structured[output.name].shape):
                dim = kind.shape.dim.add()
                if size is None:
                    dim.dim_param = f"free_{output.name}_{place}"
                else:
                    dim.dim_value = size


def _hold(proto: Any, function: Any) -> None:
    """Tensors that the function closes over (an adapted Normalization's mean, say) into the file; tf2onnx makes inputs of them."""
    import tensorflow as tf
    from onnx import numpy_helper

    concrete = function.get_concrete_function()
    captured = {inside.name: outside for outside, inside in concrete.graph.captures if outside.dtype != tf.resource}
    for tensor in [tensor for tensor in proto.graph.input if tensor.name in captured]:
        proto.graph.initializer.append(numpy_helper.from_array(captured[tensor.name].numpy(), tensor.name))
        proto.graph.input.remove(tensor)


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
    nodes, unit = [], "aiaas/one"
    for node in graph.node:
        if node.op_type != "Sigmoid" or node.output[0] not in answering:
            nodes.append(node)
            continue
        (operand,), (answer,) = node.input, node.output
        parts = [f"{answer}/{part}" for part in ("negative", "exp", "sum")]
        nodes += [
            helper.make_node("Neg", [operand], [parts[0]]),
            helper.make_node("Exp", parts[:1], [parts[1]]),
            helper.make_node("Add", [parts[1], unit], [parts[2]]),
            helper.make_node("Reciprocal", [parts[2]], [answer]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.append(numpy_helper.from_array(np.float32(1), unit))
