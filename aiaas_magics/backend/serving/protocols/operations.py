"""Operations: what a REST interface answers, one row each, and the search for the row of a request line.

Owns the row and the table. What an operation means belongs to the protocol whose table it is. Everybody else reads the row: the
request handler, the guard, the fast path, the OpenAPI document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

from aiaas_magics.backend.serving.protocols import FormOf, Request, StreamReader

LARGEST_VERSION: Final = 2**63 - 1
JSON_TYPE: Final = "application/json"
BINARY_TYPE: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of a table. `template` holds {name}, {version} and {label} where paths differ; a version is digits.

    Args:
        infers: Whether a model answers; then the answer comes from the protocol's `read`, else from its `look`.
        manages: Whether it changes what others are answered: the token for predictions does not suffice.
        body: The component of the OpenAPI document that a request's body is; empty for no body.
        body_required: Whether a request without a body is refused.
        answer: The component that an answer is; empty for a document without a narrower form.
        takes: Media types of the body. Where binary tensors are among them, the limit on JSON does not hold for these.
        gives: Media types of the answer.
        plain_form: How plain requests are read and answered in batches, for the fast path.
        read_stream: Reads a request that is answered by a stream; None where none is.
        locate: Names the model by a request's body, where the path does not.
        any_token: Whether the token of one endpoint suffices though no endpoint is named. One that names an endpoint takes its
            token; every other takes the server's own.
        id: Name of the function in generated clients, where it is not the action.
    """

    method: str
    template: str
    action: str
    summary: str
    infers: bool = False
    manages: bool = False
    any_token: bool = False
    body: str = ""
    body_required: bool = True
    answer: str = ""
    takes: tuple[str, ...] = (JSON_TYPE,)
    gives: tuple[str, ...] = (JSON_TYPE,)
    plain_form: FormOf | None = None
    read_stream: StreamReader | None = None
    locate: Callable[[OperationRoute, Request], OperationRoute] | None = None
    id: str = ""

    @property
    def names_endpoint(self) -> bool:
        """Whether the path, or the body, names the endpoint that is asked about."""
        return "{name}" in self.template or self.locate is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationRoute:
    """What a request line asks for. A `name` is percent-decoded; a `version` of None or 0 is the latest."""

    operation: Operation
    name: str = ""
    version: int | None = None
    label: str | None = None

    @property
    def action(self) -> str:
        return self.operation.action

    @property
    def infers(self) -> bool:
        return self.operation.infers

    @property
    def template(self) -> str:
        return self.operation.template


@dataclass(frozen=True, slots=True)
class Missed:
    """No row for a request line.

    Args:
        allowed: The methods of the path; none for a path that is in no row.
        bad_version: Digits in the place of a version that are beyond what a version can be.
    """

    allowed: tuple[str, ...] = ()
    bad_version: str = ""


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
            for segment in segments_of(operation.template):
                if segment.startswith("{"):
                    node.parameter = segment[1:-1]
                    node.behind = node.behind or _Node()
                    node = node.behind
                else:
                    node = node.literals.setdefault(segment, _Node())
            node.operations[operation.method] = operation

    def route(self, action: str, *, name: str = "", version: int | None = None, label: str | None = None) -> OperationRoute:
        """A route of the first row with this action, for a caller who came by no path."""
        operation = next(operation for operation in self.operations if operation.action == action)
        return OperationRoute(operation=operation, name=name, version=version, label=label)

    def find(self, method: str, path: str) -> OperationRoute | Missed:
        """The route of a request line; `path` is as it came, percent-encoded."""
        return self.find_segments(method, segments_of(path))

    def find_segments(self, method: str, segments: list[str]) -> OperationRoute | Missed:
        node, values = self._root, {}
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
        return _route_of(operation, values) if operation is not None else Missed(tuple(node.operations))


def _route_of(operation: Operation, values: Mapping[str, str]) -> OperationRoute | Missed:
    digits = values.get("version")
    if digits is not None and (len(digits) > 19 or int(digits) > LARGEST_VERSION):
        return Missed(bad_version=digits)
    label = values.get("label")
    return OperationRoute(
        operation=operation,
        name=unquote(values.get("name", "")),
        version=int(digits) if digits is not None else None,
        label=unquote(label) if label is not None else None,
    )


def segments_of(path: str) -> list[str]:
    """A colon begins a segment of its own, and stays with it: TensorFlow Serving's verbs stand behind one."""
    return path.replace(":", "/:").split("/")


def _fits(segment: str, parameter: str) -> bool:
    if parameter == "version":
        return segment.isascii() and segment.isdigit()
    return segment != "" and not segment.startswith(":")
