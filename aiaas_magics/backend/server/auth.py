"""The guard at the server's only door.

Owns asking `backend.guard` before anything else sees a request, on whatever path: there
is no route that could forget it. The decision itself belongs to `backend.guard`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from aiaas_magics import server_proof
from aiaas_magics.backend.guard import STRANGERS, Guard, Refuse, facts_of
from aiaas_magics.backend.server.answers import refuse
from aiaas_magics.errors import BackendRefused, NotAuthorised

# What a stranger may ask. Compared with what the router matches on, not with a URL that was put
# together from headers (CVE-2026-48710, facts/reliability 1.7).
OPEN: Final = ("GET", "/v1/health")
PROOF: Final = ("GET", server_proof.PATH)
BAD_QUESTION: Final = "A proof is asked for with nonce= and 64 hexadecimal digits. Check what sends this request."


class Guarded:
    """`app` behind the guard. `heard` is called for each request that may pass."""

    def __init__(self, app: ASGIApp, *, guard: Guard, url: Callable[[], str], heard: Callable[[], None]) -> None:
        self._app, self._guard, self._url, self._heard = app, guard, url, heard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # websockets: there are none
            return
        decision = self._guard.decide(facts_of(scope["headers"], scope["query_string"]))
        if (scope["method"], scope["path"]) == PROOF and (decision in STRANGERS or not isinstance(decision, Refuse)):
            await self._prove(scope, receive, send)
        elif decision in STRANGERS and (scope["method"], scope["path"]) == OPEN:
            await self._app(scope, receive, send)
        elif isinstance(decision, Refuse):
            await self._refuse(decision, scope, receive, send)
        else:
            self._heard()
            await self._app(scope, receive, send)

    async def _prove(self, scope: Scope, receive: Receive, send: Send) -> None:
        proof = server_proof.answer(self._guard.token, scope["query_string"], scope.get("server"))
        if proof is None:
            await refuse(BackendRefused(400, BAD_QUESTION), 400)(scope, receive, send)
        else:
            await Response(proof, media_type="application/json")(scope, receive, send)

    async def _refuse(self, decision: Refuse, scope: Scope, receive: Receive, send: Send) -> None:
        # The body is not read: a stranger's bytes cost nothing but the connection.
        headers = {name.decode(): value.decode() for name, value in decision.headers} | {"connection": "close"}
        error = NotAuthorised(self._url()) if decision in STRANGERS else BackendRefused(decision.status, decision.text)
        await refuse(error, decision.status, headers)(scope, receive, send)
