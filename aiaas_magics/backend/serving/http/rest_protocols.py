"""REST protocols: the ones that a server speaks, in one place.

Owns the tuple. To add a protocol, write its module and add it here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from aiaas_magics.backend.serving.protocols.discovery.discovery_routes import Discovery
from aiaas_magics.backend.serving.protocols.open_inference import open_inference_rest
from aiaas_magics.backend.serving.protocols.route_table import RestProtocol, RouteTable
from aiaas_magics.backend.serving.protocols.tfserving import tfserving_rest

REST_PROTOCOLS: Final[tuple[RestProtocol, ...]] = (tfserving_rest, open_inference_rest)


def routes_of(protocols: Iterable[RestProtocol]) -> RouteTable:
    """Their operations, and those of the server's own pages and documents."""
    protocols = tuple(protocols)
    return RouteTable((*protocols, Discovery(protocols)))


ROUTES: Final = routes_of(REST_PROTOCOLS)
