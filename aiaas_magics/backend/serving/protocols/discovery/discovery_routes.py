"""Discovery routes: a server's endpoints, a page for each, its metrics and the OpenAPI document.

Owns these paths and their content as values. How a page looks belongs to `page`, schemas to
`openapi`. The guard stands before all of it: a browser cannot send the token, so the pages say
how to fetch them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, NoReturn

import orjson

from aiaas_magics.backend.serving import protocols
from aiaas_magics.backend.serving.models.registry import NotServed, Registry, Version
from aiaas_magics.backend.serving.models.stats import EndpointStats
from aiaas_magics.backend.serving.protocols import BadValue, Request, Response, error
from aiaas_magics.backend.serving.protocols.discovery import openapi, page, prometheus
from aiaas_magics.backend.serving.protocols.discovery.page import Counted, EndpointPage, ExampleCall
from aiaas_magics.backend.serving.protocols.operations import JSON_TYPE, Missed, Operation, PathTable
from aiaas_magics.backend.serving.protocols.route_table import RestProtocol
from aiaas_magics.core import snippets, wire
from aiaas_magics.core.spec import DeploySpec

PAGE: Final = (JSON_TYPE, "text/html")
TEXT: Final = ("text/plain",)
CARD: Final = ("text/markdown", "text/html")
HOST: Final = re.compile(rb"[A-Za-z0-9._:\[\]-]{1,255}")


class Discovery:
    """The REST interface of a server's own: what is here, for people and for programs.

    Args:
        protocols: The others that this server speaks; their operations stand in the OpenAPI document too.
    """

    NAME = "discovery"
    TITLE = "This server"
    ABOUT = "Its pages, this document and its metrics"
    PATHS = PathTable(
        (
            Operation("GET", "/", "home", "That the server is alive, and its endpoints", gives=PAGE),
            Operation("GET", "/endpoints/{name}", "page", "An endpoint: its interface, example calls, versions and figures", gives=PAGE),
            Operation("GET", "/endpoints/{name}/card", "card", "The model card of the version that answers, as Markdown", gives=CARD),
            Operation(
                "GET",
                "/endpoints/{name}/versions/{version}/card",
                "card",
                "The model card of a version, as Markdown",
                gives=CARD,
                id="version_card",
            ),
            Operation("GET", "/openapi.json", "openapi", "This document"),
            Operation("GET", "/metrics", "metrics", "Figures of every version, for Prometheus", gives=TEXT),
            Operation(
                "GET",
                "/monitoring/prometheus/metrics",
                "metrics",
                "The same, where TensorFlow Serving has them",
                gives=TEXT,
                id="tfserving_metrics",
            ),
        )
    )

    def __init__(self, protocols: Iterable[RestProtocol] = ()) -> None:
        self._protocols = (self, *protocols)

    def no_route(self, _method: str, path: str, missed: Missed) -> Response:
        """A path that nobody here knows is a bare 404, as TensorFlow Serving's."""
        if missed.allowed:
            return error(405, "Method Not Allowed", ((b"allow", ", ".join(missed.allowed).encode()),))
        if path.startswith("/endpoints/"):
            return error(404, "There is no such page of an endpoint. A version is a number, as in /endpoints/NAME/versions/1/card.")
        return Response(404, b"")

    def look(self, registry: Registry, route: protocols.InferenceRoute, request: Request) -> Response:
        """The page or the document, whichever the caller accepts."""
        url = address_of(request)
        match route.action:
            case "openapi":
                return Response(200, orjson.dumps(openapi.document(self._protocols, registry, url)))
            case "metrics":
                return Response(200, prometheus.text(registry), content_type=prometheus.CONTENT_TYPE)
            case "home":
                names = registry.names()
                document = {"status": "alive", "endpoints": [{"name": name, "url": f"{url}/endpoints/{name}"} for name in names]}
                return page.home(url, names) if wants_page(request) else Response(200, orjson.dumps(document))
            case "card":
                return self._card(registry, route, request)
            case _:
                try:
                    description = describe(registry, route.name, url)
                except NotServed:
                    return self.not_found(route)
                return page.endpoint(description) if wants_page(request) else Response(200, wire.encode(description))

    def _card(self, registry: Registry, route: protocols.InferenceRoute, request: Request) -> Response:
        try:
            version = version_of(registry, route.name, route.version or None)
        except NotServed:
            return self.not_found(route)
        card = version.spec.card
        if card is None:
            return error(404, f"Version {version.number} of {route.name} has no model card. Make one with %aiaas_card {route.name}.")
        if wants_page(request):
            return page.card(card, version.number)
        return Response(200, card.to_markdown().encode(), page.HEADERS, b"text/markdown; charset=utf-8")

    def read(self, _route: protocols.InferenceRoute, _request: Request, _version: Version) -> NoReturn:
        raise BadValue("Nothing is computed at this address.", 404)

    def not_found(self, route: protocols.InferenceRoute) -> Response:
        return error(404, f"There is no endpoint {route.name[:100]!r} here. GET / lists those there are.")

    def not_ready(self, route: protocols.InferenceRoute) -> Response:
        return self.not_found(route)

    def unknown_label(self, label: str) -> Response:
        return error(404, f"There is no label {label[:100]!r} here.")


def wants_page(request: Request) -> bool:
    return b"text/html" in (request.header(b"accept") or b"")


def address_of(request: Request) -> str:
    """This server's address as the caller wrote it; the guard has looked at the name already."""
    host = request.header(b"host") or b""
    return f"{request.scheme}://{host.decode() if HOST.fullmatch(host) else 'localhost'}"


def version_of(registry: Registry, name: str, number: int | None = None) -> Version:
    """The version of that number, or else the live one, or the newest.

    Raises:
        NotServed: there is none.
    """
    versions = registry.versions(name)
    if number is None:
        routing = registry.routing(name)
        number = versions[0].number if routing is None else routing.live
    version = next((version for version in versions if version.number == number), None)
    if version is None:
        raise NotServed(name, number)
    return version


def describe(registry: Registry, name: str, url: str) -> EndpointPage:
    """An endpoint as it is now.

    Raises:
        NotServed: there is none of this name.
    """
    versions = registry.versions(name)
    routing = registry.routing(name)
    live = next((version for version in versions if routing is not None and version.number == routing.live), None)
    shown = live or versions[0]
    spec = shown.spec
    return EndpointPage(
        name=name,
        url=url,
        model=spec.model,
        live=live.number if live is not None else None,
        versions=tuple(version.view() for version in versions),
        inputs=spec.inputs,
        outputs=spec.outputs,
        calls=tuple(examples_of(spec, url)),
        figures=counted(shown.stats),
        recording=None if shown.recorder is None else shown.recorder.counts,
        card=spec.card,
    )


def counted(stats: EndpointStats) -> Counted:
    return Counted(
        requests=stats.requests,
        rows=stats.rows,
        failed=stats.failed,
        refused=stats.refused,
        batches=sum(spent.count for spent in stats.batches.values()),
        p50_ms=stats.latency.percentile(50) / 1000,
        p99_ms=stats.latency.percentile(99) / 1000,
        p999_ms=stats.latency.percentile(99.9) / 1000,
    )


def examples_of(spec: DeploySpec, url: str) -> Iterator[ExampleCall]:
    if snippets.takes_json(spec.inputs):
        yield ExampleCall(client="curl", text=snippets.curl(url, spec.name, spec.inputs, spec.example))
        yield ExampleCall(client="Python alone", text=snippets.python(url, spec.name, spec.inputs, spec.example))
    yield ExampleCall(client="tritonclient", text=snippets.triton(url, spec.name, spec.inputs, spec.outputs, spec.example))
