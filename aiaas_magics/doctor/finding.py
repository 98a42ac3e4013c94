"""Finding: what one check of the doctor saw, and what to do about it.

Owns the value and the words for a list of them. What is looked at belongs to the modules beside this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from aiaas_magics.core.value import Value


class Severity(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"  # works, with less than there could be
    FAILS = "fails"  # would break a job


class Finding(Value, frozen=True, kw_only=True):
    """What a check saw. `fix` is the next move, empty where there is none to make."""

    check: str
    health: Severity
    text: str
    fix: str = ""


MARKS: Final = {Severity.OK: "ok", Severity.NOTE: "note", Severity.FAILS: "FAILS"}


def ok(check: str, text: str) -> Finding:
    return Finding(check=check, health=Severity.OK, text=text)


def note(check: str, text: str, fix: str = "") -> Finding:
    return Finding(check=check, health=Severity.NOTE, text=text, fix=fix)


def fails(check: str, text: str, fix: str) -> Finding:
    return Finding(check=check, health=Severity.FAILS, text=text, fix=fix)


def would_break_a_job(findings: Sequence[Finding]) -> bool:
    return any(finding.health is Severity.FAILS for finding in findings)


def as_text(findings: Sequence[Finding]) -> str:
    """One line per finding, and one more for its fix."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{MARKS[finding.health]:5}  {finding.check:{width}}  {finding.text}")
        if finding.fix:
            lines.append(f"{'':5}  {'':{width}}  -> {finding.fix}")
    return "\n".join(lines)
