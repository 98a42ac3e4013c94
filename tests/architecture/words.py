"""The names of the package, read off its syntax trees, and those that say nothing.

Owns the list of words that are no names and the counting. What share of them passes belongs to `test_words`.

`python -m tests.architecture.words [PREFIX ...]` lists them by file, as the lines of a to-do list: line, scope, name.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).parents[2] / "aiaas_magics"
# A bare participle does not say of what, and a pronoun stands for a noun that the reader has to go and look for. Not `done` (a future's),
# not `other` (of `__eq__`), not `rest` (a noun).
PARTICIPLES: Final = (
    "asked chosen drawn found given gone got heard held kept known left made meant said seen sent taken told wanted written"
)
PRONOUNS: Final = (
    "both each everything here it mine nobody none nothing one ones others ours somebody something that theirs them there these this "
    "those what which who whoever whose"
)
FORBIDDEN: Final = frozenset(f"{PARTICIPLES} {PRONOUNS}".split())


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class BoundName:
    """A variable, parameter, attribute of `self`, function or class: once for each scope that binds it."""

    module: str  # the path below the package
    line: int
    scope: str  # dotted; empty at the top of a module
    name: str

    @property
    def is_forbidden(self) -> bool:
        return self.name.strip("_").lower() in FORBIDDEN


def bound_names(source: str, module: str) -> list[BoundName]:
    """Every name that `source` binds, once a scope, at the first line that binds it. Imports are none: their names are others' choice.

    >>> [(bound.scope, bound.name) for bound in bound_names("def send(told):\\n    told = [one for one in told]", "m.py")]
    [('', 'send'), ('send', 'told'), ('send', 'one')]
    """
    first: dict[tuple[str, str], BoundName] = {}
    for scope, name, line in _bindings(ast.parse(source), ""):
        first.setdefault((scope, name), BoundName(module=module, line=line, scope=scope, name=name))
    return list(first.values())


def names_of_package(root: Path = PACKAGE) -> list[BoundName]:
    return [
        bound
        for path in sorted(root.rglob("*.py"))
        for bound in bound_names(path.read_text(encoding="utf-8"), path.relative_to(root).as_posix())
    ]


def share_forbidden(names: list[BoundName]) -> float:
    """The part of `names` that are forbidden, 0 to 1."""
    return sum(bound.is_forbidden for bound in names) / len(names)


def _bindings(node: ast.AST, scope: str) -> Iterator[tuple[str, str, int]]:
    """Scope, name and line of each binding below `node`, in the order of the source."""
    for child in ast.iter_child_nodes(node):
        inner = scope
        match child:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield scope, child.name, child.lineno
                inner = f"{scope}.{child.name}".lstrip(".")
            case ast.arg():
                yield scope, child.arg, child.lineno
            case ast.Name(ctx=ast.Store()):
                yield scope, child.id, child.lineno
            case ast.Attribute(ctx=ast.Store(), value=ast.Name(id="self")):
                yield scope.rpartition(".")[0], child.attr, child.lineno
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield scope, name, child.lineno
        yield from _bindings(child, inner)


def main(prefixes: list[str]) -> None:
    """Print the forbidden names of the modules that begin with one of `prefixes`, or of all, and the shares."""
    names = [bound for bound in names_of_package() if bound.module.startswith(tuple(prefixes) or "")]
    if not names:
        raise SystemExit(f"No module of the package begins with {' or '.join(prefixes)}. Give paths below {PACKAGE.name}/, packing/ say.")
    forbidden = sorted(bound for bound in names if bound.is_forbidden)
    for module in sorted({bound.module for bound in forbidden}):
        here = [bound for bound in forbidden if bound.module == module]
        print(f"{module}: {len(here)}")
        for bound in here:
            print(f"  {bound.line}: {'.'.join(filter(None, (bound.scope, bound.name)))}")
    print(f"{len(forbidden)} of {len(names)} names: {share_forbidden(names):.2%}")


if __name__ == "__main__":
    main(sys.argv[1:])
