"""Who takes the next connection of a socket that several listen on: the rule, and real sockets in one event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiaas_magics.backend.serving.front_ends import accept_balancing
from aiaas_magics.backend.serving.front_ends.accept_balancing import Table, Taking, is_anothers_turn


class Counted(asyncio.Protocol):
    """A connection that is one of its taker's, and says a word."""

    def __init__(self, all_of_it: set[asyncio.Protocol]) -> None:
        self._all_of_it = all_of_it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._all_of_it.add(self)
        transport.write(b"taken")

    def connection_lost(self, exc: Exception | None) -> None:
        self._all_of_it.discard(self)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        yield listener


def take(listener: socket.socket, connections: set[asyncio.Protocol], table: Table) -> Taking:
    return Taking(listener, protocol=lambda: Counted(connections), connections=connections, table=table)


async def connected(listener: socket.socket, number: int) -> list[asyncio.StreamWriter]:
    """So many connections at once, when all were taken."""
    opened = await asyncio.gather(*(asyncio.open_connection(*listener.getsockname()) for _ in range(number)))
    for reader, _ in opened:
        assert await asyncio.wait_for(reader.readexactly(5), 30) == b"taken"
    return [writer for _, writer in opened]


async def closed(writers: list[asyncio.StreamWriter]) -> None:
    for writer in writers:
        writer.close()
        await writer.wait_closed()


def test_the_next_connection_is_for_whoever_has_fewest() -> None:
    assert not is_anothers_turn(3, [3, 5])
    assert is_anothers_turn(4, [3, 5])
    assert not is_anothers_turn(4, []), "nobody else is there"


def test_the_table_is_one_for_all_who_map_it_and_begins_anew_with_the_first(tmp_path: Path) -> None:
    first, other = Table(tmp_path / "connections", 0), Table(tmp_path / "connections", 1)

    first.say(5)
    assert (first.others(), other.others()) == ([], [5])
    other.say(0)
    assert first.others() == [0]
    first.leave(1)
    assert first.others() == []
    assert Table(tmp_path / "connections", 0).others() == []
    assert other.others() == []


async def test_connections_that_come_at_once_are_shared_out_evenly(
    tmp_path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept_balancing, "MOMENT_S", 0.05)
    taken: list[set[asyncio.Protocol]] = [set(), set()]
    with listener.dup() as its:
        takers = [take(mine, taken[index], Table(tmp_path / "connections", index)) for index, mine in enumerate((listener, its))]

        writers = await connected(listener, 20)

        assert sorted(map(len, taken)) in ([9, 11], [10, 10])
        for taker in takers:
            taker.close()
        await closed(writers)


async def test_one_that_has_more_leaves_the_next_ones_to_the_other(
    tmp_path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept_balancing, "MOMENT_S", 1000.0)
    mine, its = set[asyncio.Protocol](), set[asyncio.Protocol]()
    one = take(listener, mine, Table(tmp_path / "connections", 0))
    writers = await connected(listener, 6)
    with listener.dup() as second:
        other = take(second, its, Table(tmp_path / "connections", 1))

        writers += await connected(listener, 6)

        assert (len(mine), len(its)) == (6, 6)
        one.close()
        other.close()
        await closed(writers)


async def test_nobody_waits_for_one_that_has_fewest_and_takes_none(tmp_path: Path, listener: socket.socket) -> None:
    """It is stopped, say."""
    Table(tmp_path / "connections", 0)
    Table(tmp_path / "connections", 2).say(0)
    mine = set[asyncio.Protocol]()
    one = take(listener, mine, Table(tmp_path / "connections", 1))

    writers = await connected(listener, 6)

    assert len(mine) == 6
    one.close()
    await closed(writers)
