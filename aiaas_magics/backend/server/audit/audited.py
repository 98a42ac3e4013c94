"""Audited: sees every request and its outcome, and records those that matter.

Owns which requests get an entry (all that change something, and all that were refused), the ids of requests, and how a flood is folded.
The entries themselves belong to `audit_log`. It stands in front of the guard, so that it sees who was kept out.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aiaas_magics.backend.server.audit.audit_chain import AuditFact
from aiaas_magics.backend.server.audit.audit_log import AuditLog
from aiaas_magics.core import log_lines

MINUTE_S: Final = 60.0
MOST_FOLDS: Final = 1000  # guess: what comes from more addresses at once is one flood
READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
READING_ACTIONS: Final = frozenset({"missing_blobs"})  # a POST for its long list of names
FREQUENT_ACTIONS: Final = frozenset({"put_batch"})  # thousands in one fit: one entry per minute says how many
ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
TOKEN_LIKE: Final = re.compile(r"aiaas[_.][A-Za-z0-9_.-]{8,}", re.ASCII)
OBJECTS: Final = "aiaas.audit_objects"  # of an ASGI scope
CALLER: Final = "aiaas.caller"
REQUEST_ID: Final = "aiaas.request_id"
STRANGER: Final = "stranger"


def note_object(request: Request, **objects: str) -> None:
    """What a request turned out to be about, where its path does not say: the number of a new job."""
    request.scope.setdefault(OBJECTS, {}).update(objects)


def request_id_in(scope: Scope) -> str:
    """The id that the sender chose in `X-Request-Id`, if it is a plain word, else a new one."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    for name, value in headers:
        if name == b"x-request-id" and ID.fullmatch(text := value.decode("latin-1")):
            return text
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class _Fold:
    """Entries that are alike and came within a minute, beyond the first."""

    since_s: float
    last: AuditFact
    more: int = 0


class Folds:
    """Of entries that are alike the first is written at once, and within a minute one more that says how many there were."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._folds: dict[tuple[Any, ...], _Fold] = {}

    def worth_writing(self, fact: AuditFact) -> list[AuditFact]:
        """What is to be written now, with older folds whose minute is over."""
        facts = self.due()
        key = (fact.who, fact.address, fact.action, fact.status)
        fold = self._folds.get(key)
        if fold is not None:
            self._folds[key] = _Fold(fold.since_s, fact, fold.more + 1)
            return facts
        if len(self._folds) >= MOST_FOLDS:
            facts += self.due(all_of_them=True)
        self._folds[key] = _Fold(self._clock(), fact)
        return [*facts, fact]

    def due(self, *, all_of_them: bool = False) -> list[AuditFact]:
        now_s = self._clock()
        over = [key for key, fold in self._folds.items() if all_of_them or now_s - fold.since_s >= MINUTE_S]
        folds = [self._folds.pop(key) for key in over]
        return [replace(fold.last, count=fold.more) for fold in folds if fold.more]


class Audited:
    """`app`, whose requests are recorded. `own_name` is what the server's own token is called in the log."""

    def __init__(self, app: ASGIApp, *, audit: AuditLog, own_name: str) -> None:
        self._app, self._audit, self._own_name = app, audit, own_name
        self._folds = Folds()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope[REQUEST_ID] = request_id_in(scope)
        log_lines.REQUEST_ID.set(request_id)  # each request has a task of its own
        is_answered = False

        async def send_recorded(message: Message) -> None:
            nonlocal is_answered
            if message["type"] == "http.response.start" and not is_answered:
                is_answered = True
                message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", request_id.encode())]}
                # Before the answer: what a client was told has its entry.
                await self._record(scope, message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_recorded)
        finally:
            if not is_answered and scope["method"] not in READS:  # its task was cancelled, or it failed without a word
                self._audit.begin(self._fact(scope, 0))

    async def write_due(self, *, at_end: bool = False) -> None:
        """Write the folds whose minute is over, or all of them."""
        for fact in self._folds.due(all_of_them=at_end):
            await self._audit.record(fact)

    async def record_own(self, action: str, on: Mapping[str, str]) -> None:
        """Something that the server did without being asked: it started, or ended."""
        await self._audit.record(AuditFact(at_s=time.time(), who="server", action=action, outcome="done", on=on))

    async def _record(self, scope: Scope, status: int) -> None:
        fact = self._fact(scope, status)
        changes = scope["method"] not in READS and fact.action not in READING_ACTIONS
        if fact.outcome == "refused" or (changes and fact.action in FREQUENT_ACTIONS):
            facts = self._folds.worth_writing(fact)
        elif changes:
            facts = [fact]
        else:
            return
        for entry in facts:
            await self._audit.record(entry)

    def _fact(self, scope: Scope, status: int) -> AuditFact:
        endpoint = scope.get("endpoint")
        names: Mapping[str, Any] = scope.get("path_params", {})
        objects = {kind: str(name) for kind, name in {**names, **scope.get(OBJECTS, {})}.items()}
        if endpoint is None:
            objects = {"path": TOKEN_LIKE.sub("aiaas_...", scope["path"][:100])}
        return AuditFact(
            at_s=time.time(),
            who=self._name_of_caller(scope, status),
            action=getattr(endpoint, "__name__", scope["method"][:10]),
            outcome="done" if 0 < status < 400 else "refused" if 400 <= status < 500 else "failed",
            status=status,
            on=objects,
            address=str((scope.get("client") or ("",))[0]),
            request=scope[REQUEST_ID],
        )

    def _name_of_caller(self, scope: Scope, status: int) -> str:
        """The id of the caller's token, where callers have one each; only a caller who may pass gets as far as a route."""
        caller = scope.get(CALLER)
        if caller is None and scope.get("endpoint") is None and "app" not in scope:
            return STRANGER
        return str(getattr(caller, "token_id", "")) or self._own_name
