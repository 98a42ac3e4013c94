"""Route table: the operations of all REST protocols of a server, searched as one.

Owns which protocol answers a request line. Two protocols may share the beginning of a path; the first one that has the whole path
answers. A path that nobody has is refused in the words of the protocol whose clients send such paths.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from aiaas_magics.backend.serving.protocols import InferenceProtocol, Response
from aiaas_magics.backend.serving.protocols.operations import Missed, Operation, OperationRoute, PathTable, segments_of


class RestProtocol(InferenceProtocol, Protocol):
    """One REST interface: a table of operations, and pure functions from requests to tensors and documents."""

    @property
    def TITLE(self) -> str:
        """What the OpenAPI document calls it."""
        ...

    @property
    def ABOUT(self) -> str:
        """What it is, for the OpenAPI document."""
        ...

    @property
    def PATHS(self) -> PathTable: ...

    def no_route(self, method: str, path: str, missed: Missed) -> OperationRoute | Response | None:
        """What a request line without a row is answered with; None where this path is not of this protocol's kind."""
        ...


class RouteTable:
    """Finds the protocol and the operation of a request.

    Args:
        protocols: In the order in which they are asked. The last one answers every path.

    Raises:
        ValueError: two protocols have the same method and path.
    """

    def __init__(self, protocols: Iterable[RestProtocol]) -> None:
        self.protocols = tuple(protocols)
        paths: set[tuple[str, str]] = set()
        for _, operation in self.operations():
            line = operation.method, operation.template
            if line in paths:
                raise ValueError(f"{' '.join(line)} is in two protocols' tables. Take it out of one of them.")
            paths.add(line)

    def operations(self) -> Iterator[tuple[RestProtocol, Operation]]:
        for protocol in self.protocols:
            for operation in protocol.PATHS.operations:
                yield protocol, operation

    def find(self, method: str, path: str) -> tuple[RestProtocol, OperationRoute | Response]:
        """The route of a request line with its protocol, or the answer to one that has none. `path` is as it came, percent-encoded."""
        segments = segments_of(path)
        misses: list[tuple[RestProtocol, Missed]] = []
        for protocol in self.protocols:
            match protocol.PATHS.find_segments(method, segments):
                case OperationRoute() as route:
                    return protocol, route
                case missed:
                    misses.append((protocol, missed))
        misses.sort(key=lambda miss: miss[1] == Missed())  # who knows the path comes before who knows such paths
        for protocol, missed in misses:
            answer = protocol.no_route(method, path, missed)
            if answer is not None:
                return protocol, answer
        return self.protocols[-1], Response(404, b"")
