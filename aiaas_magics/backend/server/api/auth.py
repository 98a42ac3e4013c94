"""Auth: the guard in front of the API's routes.

Owns asking `backend.guard` before anything else sees a request, on whatever path: there
is no route that could forget it. The decision itself belongs to `backend.guard`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Final

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from aiaas_magics.backend.net.guard import OVER_RATE, SLOWED, STRANGERS, WRONG_TOKEN, Allow, Guard, Refuse, facts_of
from aiaas_magics.backend.net.rates import Rates, WrongTokens
from aiaas_magics.backend.server.api.api_answers import refuse
from aiaas_magics.backend.server.api.route_needs import CALLER
from aiaas_magics.backend.server.identity.callers import ROOT, ApiCaller
from aiaas_magics.core import server_proof
from aiaas_magics.core.errors import BackendRefused, NotAuthorised

log = logging.getLogger(__name__)

MINUTE_S: Final = 60.0
ADDRESSES: Final = 1000  # guess: that many addresses at once are a flood, of which not each needs a line
# What a stranger may ask. Compared with what the router matches on, not with a URL that was put
# together from headers (CVE-2026-48710).
OPEN: Final = ("GET", "/v1/health")
PROOF: Final = ("GET", server_proof.PATH)
BAD_QUESTION: Final = "A proof is asked for with nonce= and 64 hexadecimal digits. Check what sends this request."


class Refusals:
    """The log's lines about who was refused: at most one an address, reason and minute, with how many there were meanwhile.

    A flood of refusals costs neither a line each nor memory.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._noted: dict[tuple[str, int], tuple[float, int]] = {}  # when it was logged last, and how many since

    def note(self, scope: Scope, refusal: Refuse) -> None:
        address = address_of(scope)
        key, now_s = (address, refusal.status), self._clock()
        last_s, count = self._noted.get(key, (-math.inf, 0))
        if now_s - last_s < MINUTE_S:
            self._noted[key] = (last_s, count + 1)
            return
        if len(self._noted) >= ADDRESSES:
            self._noted.clear()
        self._noted[key] = (now_s, 0)
        more = f" ({count} more since the last of these lines)" if count else ""
        # Of the path only so much, and nothing that a terminal would obey; never what was sent as a token.
        path = ascii(scope["path"][:80])
        log.warning(
            "refused %s %s from %s: %d %s%s", scope["method"][:10], path, address, refusal.status, refusal.text.partition(".")[0], more
        )


def address_of(scope: Scope) -> str:
    return str((scope.get("client") or ("an unknown address",))[0])


class Guarded:
    """`app` behind the guard. `on_request` is called for each request that may pass."""

    def __init__(self, app: ASGIApp, *, guard: Guard, url: Callable[[], str], on_request: Callable[[], None]) -> None:
        self._app, self._guard, self._url, self._heard = app, guard, url, on_request
        self._refusals, self._wrong, self._rates = Refusals(), WrongTokens(), Rates()

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
        elif isinstance(decision := self._slowed(decision, scope), Refuse):
            self._refusals.note(scope, decision)
            await self._refuse(decision, scope, receive, send)
        else:
            self._heard()
            scope[CALLER] = decision.by or ROOT
            await self._app(scope, receive, send)

    def _slowed(self, decision: Allow | Refuse, scope: Scope) -> Allow | Refuse:
        """The decision, or that its caller comes too often."""
        if decision == WRONG_TOKEN:
            return decision if self._wrong.take(address_of(scope)) else SLOWED
        caller: ApiCaller | None = decision.by if isinstance(decision, Allow) else None
        if caller is not None and (per_s := caller.quotas.requests_per_s):
            return decision if self._rates.take(caller.user, per_s) else OVER_RATE
        return decision

    async def _prove(self, scope: Scope, receive: Receive, send: Send) -> None:
        proof = server_proof.answer(self._guard.key_of, scope["query_string"], scope.get("server"))
        if proof is None:
            await refuse(BackendRefused(400, BAD_QUESTION), 400)(scope, receive, send)
        else:
            await Response(proof, media_type="application/json")(scope, receive, send)

    async def _refuse(self, decision: Refuse, scope: Scope, receive: Receive, send: Send) -> None:
        # The body is not read: a stranger's bytes cost nothing but the connection.
        headers = {name.decode(): value.decode() for name, value in decision.headers} | {"connection": "close"}
        error = NotAuthorised(self._url()) if decision in STRANGERS else BackendRefused(decision.status, decision.text)
        await refuse(error, decision.status, headers)(scope, receive, send)
