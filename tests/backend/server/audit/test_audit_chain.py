"""What the chain of the audit log shows, and what it cannot."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas_magics.backend.server.audit.audit_chain import AuditFact, AuditHead, ChainReport, checked, entry_in, linked
from aiaas_magics.core.errors import InvalidSpec

FACT = AuditFact(at_s=1_700_000_000.0, who="t1", action="submit_job", outcome="done", status=201, on={"job": "7"}, request="r1")


def chain_of(count: int) -> tuple[list[bytes], list[AuditHead]]:
    lines, heads, head = [], [], AuditHead()
    for number in range(count):
        line, head = linked(AuditFact(at_s=number, who="t1", action="cancel_job", outcome="done", on={"job": str(number)}), head)
        lines.append(line)
        heads.append(head)
    return lines, heads


def check(lines: list[bytes], anchor: AuditHead | None = None) -> ChainReport:
    return checked([("a.jsonl", number, line) for number, line in enumerate(lines, start=1)], anchor=anchor)


def test_a_line_is_canonical_and_anybody_can_compute_its_hash() -> None:
    line, head = linked(FACT, AuditHead())

    body, _, rest = line.partition(b',"hash":"')
    assert hashlib.sha256(body).hexdigest() == head.hash == rest[:64].decode()
    members = json.loads(line)
    assert list(members)[:-1] == sorted(list(members)[:-1])
    assert members["previous"] == "0" * 64
    assert members["seq"] == 1
    assert line.isascii()
    assert b" " not in line


def test_an_untouched_chain_fits() -> None:
    lines, heads = chain_of(5)

    assert check(lines) == ChainReport(entries=5, head=heads[-1])


@given(st.data())
def test_any_altered_byte_is_named(data: st.DataObject) -> None:
    lines, _ = chain_of(4)
    which = data.draw(st.integers(0, 3))
    line = bytearray(lines[which])
    place = data.draw(st.integers(0, len(line) - 2))  # its end of line has a test of its own
    line[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte not in (line[place], 10)))
    lines[which] = bytes(line)

    report = check(lines)

    assert report.broken is not None
    assert report.broken.line == which + 1
    assert report.entries == which


def test_a_removed_entry_is_named() -> None:
    lines, _ = chain_of(5)
    del lines[2]

    report = check(lines)

    assert report.broken is not None
    assert (report.broken.line, report.broken.seq) == (3, 4)
    assert report.broken.why == "entry 3 is not before it: removed, or put elsewhere"


def test_two_swapped_entries_are_named() -> None:
    lines, _ = chain_of(5)
    lines[1], lines[2] = lines[2], lines[1]

    report = check(lines)

    assert report.broken is not None
    assert (report.broken.line, report.broken.seq) == (2, 3)


def test_a_doubled_entry_is_out_of_order() -> None:
    lines, _ = chain_of(3)

    report = check([*lines, lines[1]])

    assert report.broken is not None
    assert report.broken.why == "it is out of order: entry 4 should be here"


def test_an_entry_in_the_place_of_another_does_not_follow() -> None:
    lines, heads = chain_of(3)
    forged, _ = linked(AuditFact(at_s=1, who="t1", action="get_job", outcome="done"), heads[0])

    report = check([lines[0], forged, lines[2]])

    assert report.broken is not None
    assert report.broken.why == "it does not follow entry 2: one of the two was replaced"


def test_half_an_entry_at_the_end_is_named() -> None:
    lines, _ = chain_of(3)

    for end in (lines[2][:-1], lines[2][:40]):
        report = check([*lines[:2], end])
        assert report.broken is not None
        assert report.broken.why == "it was cut off in the middle"
        assert report.entries == 2


def test_an_end_that_was_cut_shows_against_an_anchor_only() -> None:
    lines, heads = chain_of(5)

    assert check(lines[:3]).broken is None  # a chain alone cannot know how long it was
    report = check(lines[:3], heads[4])

    assert report.broken is not None
    assert "the log ends at entry 3, before the entry 5" in report.broken.why
    assert check(lines, heads[4]).broken is None
    assert check(lines, heads[2]).broken is None


def test_a_log_that_was_written_anew_shows_against_an_anchor_only() -> None:
    _, heads = chain_of(3)
    anew, head = [], AuditHead()
    for _ in range(3):
        line, head = linked(FACT, head)
        anew.append(line)

    assert check(anew).broken is None
    report = check(anew, heads[1])

    assert report.broken is not None
    assert "written anew" in report.broken.why


def test_older_files_may_be_kept_elsewhere_if_the_anchor_says_what_they_ended_with() -> None:
    lines, heads = chain_of(5)

    assert check(lines[3:]).broken is not None
    assert check(lines[3:], heads[2]) == ChainReport(entries=2, head=heads[-1])
    assert check(lines[3:], AuditHead(seq=3, hash="1" * 64)).broken is not None


@pytest.mark.parametrize("text", ["", "3", "3:abc", f"-1:{'0' * 64}", f"3:{'G' * 64}"])
def test_what_is_no_head_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpec, match="aiaas audit verify"):
        AuditHead.parse(text)


def test_a_head_survives_its_own_text() -> None:
    _, heads = chain_of(2)

    assert AuditHead.parse(str(heads[1])) == heads[1]


def test_no_text_makes_an_entry_large_or_more_than_one_line() -> None:
    line, _ = linked(AuditFact(at_s=0, who="\n\x1b" * 10_000, action="é" * 1000, outcome="done", on={"path": "\u2028" * 1000}), AuditHead())

    assert line.count(b"\n") == 1
    assert len(line) < 8192
    assert entry_in(line.rstrip(b"\n")) is not None
