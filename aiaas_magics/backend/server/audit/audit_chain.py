"""Audit chain: one entry per line, each with the hash of the one before, and the check of such lines.

Owns the encoding, the hashes and what a broken chain is called. It opens nothing; files belong to `audit_log`.

A line is a JSON object in ASCII, without blanks, its members sorted by name; `hash` stands last, apart from that order. It is the
SHA-256 of the bytes before `,"hash":`, so that a check compares bytes and encodes nothing again. `previous` is the hash of the
entry before, and 64 zeros in the first.

What a chain alone cannot show: that its end was cut off, or that somebody who may write the file wrote all of it anew. A head
(number and hash of the last entry) that was kept elsewhere shows both.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from aiaas_magics.core.errors import InvalidSpec

GENESIS: Final = "0" * 64
TEXT_CHARACTERS: Final = 200  # of one text; an entry stays below 4 KB
HEAD: Final = re.compile(r"(\d{1,15}):([0-9a-f]{64})", re.ASCII)
_HASH: Final = re.compile(rb',"hash":"([0-9a-f]{64})"}')
_HASH_BYTES: Final = len(b',"hash":"') + 64 + len(b'"}')


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFact:
    """Something that happened, before it has its place in the chain.

    Args:
        at_s: unix time.
        who: the id of the token, "local" of the local server's own, "stranger" without a right token, "server" of what it does itself.
        action: the name of the route, or the method where no route was looked for.
        on: the ids that it was about, by kind: job, name of an endpoint, SHA-256 of a blob.
        outcome: "done", "refused" or "failed".
        status: of HTTP; 0 where there is none.
        request: the request's id.
        count: how many of the same kind this entry stands for.
    """

    at_s: float
    who: str
    action: str
    outcome: str
    status: int = 0
    on: Mapping[str, str] = field(default_factory=dict)
    address: str = ""
    request: str = ""
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditHead:
    """The last entry of a chain: its number, from 1, and its hash."""

    seq: int = 0
    hash: str = GENESIS

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> AuditHead:
        """The head that `str` made; raises `InvalidSpec`."""
        match = HEAD.fullmatch(text.strip())
        if match is None:
            raise InvalidSpec(f"{text[:40]!r} is not the head of an audit log. Use NUMBER:HASH, as `aiaas audit verify` prints it.")
        return cls(seq=int(match[1]), hash=match[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenEntry:
    """The first entry that does not fit: its place (file and line, from 1), its number where it has one, and a clause that says why."""

    file: str
    line: int
    seq: int | None
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainReport:
    """How many entries fit, the last of them, and what came after."""

    entries: int
    head: AuditHead
    broken: BrokenEntry | None = None


def linked(fact: AuditFact, head: AuditHead) -> tuple[bytes, AuditHead]:
    """The line of the entry that follows `head`, with its end of line, and the new head."""
    members = {
        "action": _cut(fact.action),
        "address": _cut(fact.address),
        "at_s": round(fact.at_s, 3),
        "count": fact.count,
        "on": {_cut(kind): _cut(name) for kind, name in fact.on.items()},
        "outcome": _cut(fact.outcome),
        "previous": head.hash,
        "request": _cut(fact.request),
        "seq": head.seq + 1,
        "status": fact.status,
        "who": _cut(fact.who),
    }
    body = json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")[:-1]
    digest = hashlib.sha256(body).hexdigest()
    return body + b',"hash":"' + digest.encode("ascii") + b'"}\n', AuditHead(seq=head.seq + 1, hash=digest)


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_CHARACTERS else text[: TEXT_CHARACTERS - 1] + "…"


def entry_in(line: bytes) -> dict[str, Any] | None:
    """The members of a line; None where it is no entry, or another one than its hash says."""
    match = _HASH.fullmatch(line[-_HASH_BYTES:])
    if match is None or hashlib.sha256(line[:-_HASH_BYTES]).hexdigest().encode() != match[1]:
        return None
    try:
        members = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_entry = isinstance(members, dict) and isinstance(members.get("seq"), int) and isinstance(members.get("previous"), str)
    return members if is_entry else None


def checked(lines: Iterable[tuple[str, int, bytes]], *, anchor: AuditHead | None = None) -> ChainReport:
    """Follow the chain through `lines` (file, number of the line, its bytes with the end of line) to the first that does not fit.

    Args:
        anchor: a head of this log that was kept elsewhere. The log must contain it, or go on right behind it.
    """
    head, entries, anchored = AuditHead(), 0, anchor is None
    for file, number, line in lines:
        members = entry_in(line.removesuffix(b"\n"))
        seq = None if members is None else int(members["seq"])
        if anchor is not None and not entries and seq == anchor.seq + 1:
            head, anchored = anchor, True  # what came before was moved elsewhere
        why = "" if line.endswith(b"\n") else "it was cut off in the middle"
        why = why or _why_broken(members, head)
        if not why and anchor is not None and seq == anchor.seq:
            anchored = members is not None and line[: -len(b'"}\n')].endswith(anchor.hash.encode())
            why = "" if anchored else "it is another entry than the one with the hash that was kept elsewhere: the log was written anew"
        if why:
            return ChainReport(entries=entries, head=head, broken=BrokenEntry(file=file, line=number, seq=seq, why=why))
        head, entries = AuditHead(seq=head.seq + 1, hash=line[-67:-3].decode("ascii")), entries + 1
    if not anchored and anchor is not None:
        why = f"the log ends at entry {head.seq}, before the entry {anchor.seq} whose hash was kept elsewhere: its end was removed"
        return ChainReport(entries=entries, head=head, broken=BrokenEntry(file="", line=0, seq=head.seq + 1, why=why))
    return ChainReport(entries=entries, head=head)


def _why_broken(members: dict[str, Any] | None, head: AuditHead) -> str:
    """A clause about an entry that should follow `head`; empty where it does."""
    expected = head.seq + 1
    if members is None:
        return "it was altered: its bytes do not have its hash"
    seq = members["seq"]
    if seq > expected:
        missing = f"entry {expected} is" if seq == expected + 1 else f"entries {expected} to {seq - 1} are"
        return f"{missing} not before it: removed, or put elsewhere"
    if seq < expected:
        return f"it is out of order: entry {expected} should be here"
    return "" if members["previous"] == head.hash else f"it does not follow entry {head.seq}: one of the two was replaced"
