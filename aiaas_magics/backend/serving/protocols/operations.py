"""What a REST interface answers to, as a table, and the line of it that a request asks for.

Owns the table's form and the search in it. What a line means belongs to the protocol whose
table it is; the OpenAPI document is made from the same tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

LARGEST_VERSION: Final = 2**63 - 1
INFERRING: Final = frozenset({"predict", "classify", "regress", "infer"})
MANAGING: Final = frozenset({"load", "unload"})  # actions that change what others are answered: not for the token for predictions


@dataclass(frozen=True, slots=True)
class Operation:
    """A line of the table. `template` holds {name}, {version} and {label} where paths differ; a version is digits."""

    method: str
    template: str
    action: str
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationRoute:
    """What a request line asks for. A `name` is percent-decoded; a `version` of None or 0 is the latest."""

    action: str
    name: str = ""
    version: int | None = None
    label: str | None = None
    template: str = ""  # the operation's

    @property
    def infers(self) -> bool:
        return self.action in INFERRING


@dataclass(frozen=True, slots=True)
class Missed:
    """No line of the table; `allowed` are the verbs of the path, none for a path that is in no line."""

    allowed: tuple[str, ...] = ()


class BadVersion(ValueError):
    """Digits beyond what a version can be."""


@dataclass(slots=True)
class _Node:
    literals: dict[str, _Node] = field(default_factory=dict)
    parameter: str = ""
    behind: _Node | None = None
    operations: dict[str, Operation] = field(default_factory=dict)


class PathTable:
    """Finds a request's operation by walking its path, segment by segment; each request does this once."""

    def __init__(self, operations: Iterable[Operation], *, any_case: bool = False) -> None:
        self.operations = tuple(operations)
        self._any_case = any_case
        self._root = _Node()
        for operation in self.operations:
            node = self._root
            for segment in _segments(operation.template):
                if segment.startswith("{"):
                    node.parameter = segment[1:-1]
                    node.behind = node.behind or _Node()
                    node = node.behind
                else:
                    node = node.literals.setdefault(segment, _Node())
            node.operations[operation.method] = operation

    def find(self, method: str, path: str) -> OperationRoute | Missed:
        """The route of a request line; `path` is as it came, percent-encoded.

        Raises:
            BadVersion: a version of more than 63 bits, with its digits.
        """
        node, values = self._root, {}
        segments = _segments(path)
        last = len(segments) - 1
        for index, segment in enumerate(segments):
            literal = node.literals.get(segment.lower() if self._any_case else segment)
            # A model may be called like a word of the table ("stats"): then the path goes on where the word has nothing.
            if literal is not None and (index == last or literal.literals or literal.behind):
                node = literal
            elif node.behind is not None and _fits(segment, node.parameter):
                values[node.parameter] = segment
                node = node.behind
            else:
                return Missed()
        operation = node.operations.get(method)
        return route_of(operation, values) if operation is not None else Missed(tuple(node.operations))


def route_of(operation: Operation, values: Mapping[str, str]) -> OperationRoute:
    digits = values.get("version")
    if digits is not None and (len(digits) > 19 or int(digits) > LARGEST_VERSION):
        raise BadVersion(digits)
    label = values.get("label")
    return OperationRoute(
        action=operation.action,
        name=unquote(values.get("name", "")),
        version=int(digits) if digits is not None else None,
        label=unquote(label) if label is not None else None,
        template=operation.template,
    )


def _segments(path: str) -> list[str]:
    """A colon begins a segment of its own, and stays with it: TensorFlow Serving's verbs stand behind one."""
    return path.replace(":", "/:").split("/")


def _fits(segment: str, parameter: str) -> bool:
    if parameter == "version":
        return segment.isascii() and segment.isdigit()
    return segment != "" and not segment.startswith(":")
