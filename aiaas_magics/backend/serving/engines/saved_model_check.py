"""SavedModel check: refuses what is unsafe before TensorFlow loads it.

Owns the rules. A SavedModel is a program: it may use the operators that only compute (`saved_model_operators`), and its own
functions. Two others stand in what Keras exports, and are looked at more closely: those that save and restore variables, which
nothing that is ever run may reach, and tables that are read from a file, which must be one of the artefact's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any, Final

from aiaas_magics.backend.serving.engines.saved_model_operators import OPERATORS

SAVING: Final = frozenset({"SaveV2", "RestoreV2", "MergeV2Checkpoints", "ShardedFilename"})
FROM_FILE: Final = frozenset({"InitializeTableFromTextFile", "InitializeTableFromTextFileV2"})
FILE_NAME_INPUT: Final = 1  # of those two


def check_saved_model(saved: Any) -> None:
    """Raises `ValueError` for a SavedModel that must not be loaded. `saved` is the message in its file."""
    # Others are of TensorFlow 1, whose loader runs any node of the graph that the file names.
    if len(saved.meta_graphs) != 1 or not saved.meta_graphs[0].HasField("object_graph_def"):
        raise ValueError("it is no SavedModel of TensorFlow 2, as Keras exports it")
    (meta,) = saved.meta_graphs
    for asset in meta.asset_file_def:
        path = PurePosixPath(asset.filename)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"the path {asset.filename[:80]!r} in it leads elsewhere")
    functions = {function.signature.name: function for function in meta.graph_def.library.function}
    nodes = [*meta.graph_def.node, *(node for function in functions.values() for node in function.node_def)]
    _refuse(node.op for node in nodes if node.op not in OPERATORS and node.op not in SAVING and node.op not in functions)
    callable_ones = meta.object_graph_def.concrete_functions
    run = _reached(callable_ones, functions)
    _refuse(node.op for name in run for node in functions[name].node_def if node.op in SAVING)
    for name in run:
        for node in functions[name].node_def:
            if node.op in FROM_FILE and not _reads_an_asset(node, functions[name], meta.object_graph_def):
                raise ValueError("a table in it is read from a file that is none of its own")


def _refuse(operators: Iterable[str]) -> None:
    if refused := sorted(set(operators)):
        named = ", ".join(name[:60] for name in refused[:5]) + (f" and {len(refused) - 5} more" if len(refused) > 5 else "")
        raise ValueError(f"it uses {named}, not among the operators that only compute")


def _reached(roots: Iterable[str], functions: dict[str, Any]) -> set[str]:
    """The functions that may be run: whatever Python may call once the model is loaded, and what these call."""
    reached, ahead = set[str](), [name for name in roots if name in functions]
    while ahead:
        name = ahead.pop()
        if name not in reached:
            reached.add(name)
            ahead += [called for node in functions[name].node_def for called in _called(node) if called in functions]
    return reached


def _called(node: Any) -> Iterable[str]:
    yield node.op  # a function's name may stand where an operator's does
    for value in node.attr.values():
        yield value.func.name
        yield from (function.name for function in value.list.func)


def _reads_an_asset(node: Any, function: Any, objects: Any) -> bool:
    """Whether the name of the file that a table is read from is one of the model's assets: bound by its loader, and by nobody else."""
    own = function.signature.name
    arguments = [argument.name for argument in function.signature.input_arg]
    bound = list(objects.concrete_functions[own].bound_inputs) if own in objects.concrete_functions else []
    binds = dict(zip(reversed(arguments), reversed(bound), strict=False))  # what is bound comes behind what a caller gives
    tensor = binds.get(node.input[FILE_NAME_INPUT])
    return tensor is not None and bool(objects.nodes[tensor].WhichOneof("kind") == "asset")
