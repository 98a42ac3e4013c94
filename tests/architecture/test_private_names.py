"""The tables of private names hold what the code uses, no less and no more."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiaas_magics.core.internals import jax_internals, keras_internals, tensorflow_internals
from tests.architecture.test_imports import HOMES, modules, parsed
from tests.nightly import keras_nightly

PLACES = tuple({*HOMES["keras"], *HOMES["tensorflow"]})
# Of other libraries, or no attribute at all.
OTHERS = {
    "_aiaas_job",  # ours, set on a model
    "_XlaMustCompile",  # an attribute of nodes in a graph
    "_exit",  # os
    "_fields",  # of a namedtuple
    "_get_optimizers",  # tf2onnx
    "_model_bytes",  # onnxruntime
    "_model_path",  # onnxruntime
    "_op",  # of a node of tf2onnx
    "_noinline",  # an attribute of functions in a graph
    "_getframe",  # sys
    "_pytest",  # a package
    "_val",  # what fields of a message end in
}
LISTED = {
    name
    for table in (keras_internals.ATTRIBUTES, keras_internals.PASSING, tensorflow_internals.ATTRIBUTES)
    for names in table.values()
    for name in names
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name.isidentifier() and name != "_"


def private_names(tree: ast.Module) -> Iterator[str]:
    """Attributes, and texts that look like one: `getattr`, tables of what is left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and is_private(node.value):
            yield node.value


def own_names(tree: ast.Module) -> Iterator[str]:
    """What the package itself gives a private name."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.Attribute(value=ast.Name(id="self" | "cls"), ctx=ast.Store()):
                yield node.attr
            case ast.Name(ctx=ast.Store()):
                yield node.id


def used() -> dict[str, Path]:
    return {attribute: path for name, path in modules() if name.startswith(PLACES) for attribute in private_names(parsed(path))}


def test_every_private_attribute_that_is_read_is_in_a_table() -> None:
    ours = {own for _, path in modules() for own in own_names(parsed(path))}

    missing = {attribute: path.name for attribute, path in used().items() if attribute not in ours | LISTED | OTHERS}
    assert missing == {}, "Add it to ATTRIBUTES in internals, and an object that has it to tests/packing/test_internals.py."


def test_a_table_names_no_attribute_that_nobody_reads() -> None:
    assert LISTED - used().keys() == set()


@pytest.mark.parametrize(
    "module", [keras_internals, tensorflow_internals, jax_internals], ids=lambda module: module.__name__.rpartition(".")[2]
)
def test_a_table_has_no_path_that_nobody_imports(module: object) -> None:
    imported = {
        alias.name
        for _, path in modules()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ImportFrom) and node.module == module.__name__  # type: ignore[attr-defined]
        for alias in node.names
    }

    assert module.PATHS.keys() - imported == set()  # type: ignore[attr-defined]


def test_the_report_on_another_keras_says_each_reason_once(capsys: pytest.CaptureFixture[str]) -> None:
    gone = "PrivateNameGone: no Trainer"
    said = f"FAILED a.py::one[x y] - {gone}\nERROR a.py::two - {gone}\nFAILED b.py::three\n2 failed, 1 error in 3s\n"

    keras_nightly.report("small fits", said)

    assert capsys.readouterr().out.splitlines() == [
        "",
        "small fits: 2 failed, 1 error in 3s",
        "  2 x PrivateNameGone: no Trainer, in a.py::one[x y]",
        "  1 x b.py::three, in b.py::three",
    ]
