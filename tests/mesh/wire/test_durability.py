"""Waiting for copies of Redis."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis import exceptions as redis_errors

from mesh import Connections
from mesh.errors import Unavailable
from mesh.raw import Replica
from mesh.wire.connection import RedisConnection
from mesh.wire.durability import Durability
from tests.support.backend import Backend
from tests.support.server import Server
from tests.support.waiting import eventually

KEY = "written"


class Scripted(RedisConnection):
    """A connection whose replies the test gives, one list for each round trip."""

    def __init__(self) -> None:
        self.said: list[Sequence[tuple[Any, ...]]] = []
        self.answers: asyncio.Queue[list[Any] | Exception] = asyncio.Queue()

    async def send(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        self.said.append(commands)
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer


@asynccontextmanager
async def running(connection: RedisConnection) -> AsyncIterator[Durability]:
    copies = Durability(connection, KEY, keep_ms=60_000, copies=1, timeout_ms=300)
    task = asyncio.create_task(copies.run())
    yield copies
    task.cancel()
    await asyncio.wait([task])


async def why_not(copies: Durability | Replica) -> str:
    """Return why the writes are not confirmed, or ""."""
    try:
        await copies.confirm()
    except Unavailable as error:
        return str(error)
    return ""


def confirmed_by(copies: Durability | Replica) -> Callable[[], Awaitable[bool]]:
    """Return a condition for `eventually`: the writes are confirmed."""

    async def confirmed() -> bool:
        return await why_not(copies) == ""

    return confirmed


async def asked(copies: Durability, count: int) -> list[asyncio.Task[str]]:
    tasks = [asyncio.create_task(why_not(copies)) for _ in range(count)]
    await asyncio.sleep(0.01)
    return tasks


async def test_who_asks_during_a_round_waits_for_the_next() -> None:
    """A WAIT says nothing of what was written after it began. The next WAIT serves all who came meanwhile."""
    connection = Scripted()
    async with running(connection) as copies:
        (first,) = await asked(copies, 1)
        later = await asked(copies, 20)
        connection.answers.put_nowait([1, 1])
        assert await first == ""
        assert not any(task.done() for task in later)
        connection.answers.put_nowait([1, 1])
        assert await asyncio.gather(*later) == [""] * 20
    assert connection.said == [(("PEXPIRE", KEY, 60_000), ("WAIT", 1, 300))] * 2


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ([1, 0], "only 0 of 1 copies"),
        ([0, 1], "cannot say"),
        ([redis_errors.ReadOnlyError("READONLY"), redis_errors.ResponseError("WAIT cannot be used")], "READONLY"),
        ([1, redis_errors.ResponseError("WAIT cannot be used with replica instances")], "cannot say"),
    ],
)
async def test_whatever_is_not_a_confirmation_is_none(answer: list[Any], says: str) -> None:
    """The caller gets the reason, and the next call sends a WAIT again."""
    connection = Scripted()
    async with running(connection) as copies:
        connection.answers.put_nowait(answer)
        said = await why_not(copies)
        assert said.startswith("done, but ")
        assert says in said
        connection.answers.put_nowait([1, 1])
        assert await why_not(copies) == ""


@pytest.mark.parametrize("error", [redis_errors.TimeoutError("Redis did not answer in time"), ConnectionRefusedError()])
async def test_a_new_connection_speaks_for_nobody_who_asked_before(error: Exception) -> None:
    """After a failover the new connection may lead to a server that never got the writes."""
    connection = Scripted()
    async with running(connection) as copies:
        for answer, says in ((error, "could confirm"), (error, "could confirm"), (["PONG"], "was lost")):
            connection.answers.put_nowait(answer)
            assert says in await why_not(copies)
        connection.answers.put_nowait([1, 1])
        assert await why_not(copies) == ""
    assert [[command[0] for command in said] for said in connection.said] == [
        ["PEXPIRE", "WAIT"], ["PING"], ["PING"], ["PEXPIRE", "WAIT"],
    ]  # fmt: skip


async def test_one_that_stops_waiting_leaves_the_others_their_answer() -> None:
    connection = Scripted()
    async with running(connection) as copies:
        first, second = await asked(copies, 2)
        first.cancel()
        await asyncio.wait([first])
        connection.answers.put_nowait([1, 1])
        assert await second == ""


async def test_who_waits_at_the_end_is_told_so() -> None:
    """Callers of the round in progress, of the next round, and later callers get an error when the mesh is left."""
    connection = Scripted()
    async with running(connection) as copies:
        waiting = [*await asked(copies, 1), *await asked(copies, 2)]
    said = [*await asyncio.gather(*waiting), await why_not(copies)]
    assert all("left the mesh" in each for each in said)
    assert len(said) == 4


def cut(server: Server) -> None:
    """Close the connections of all clients, so that they connect again."""
    with server.redis() as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


async def test_a_new_connection_is_not_content_with_a_copy_that_hangs(
    make_server: Callable[..., Server], server: Server
) -> None:
    """On Valkey, WAIT counts a copy that hangs if its own connection has written nothing; so a write precedes it."""
    copy = make_server("--replicaof", "127.0.0.1", str(server.port))
    assert copy.process is not None
    connection = Connections(server.settings).connection("copies", block_ms=300)
    server.redis().set(KEY, "1")
    async with running(connection) as copies:
        confirmed = confirmed_by(copies)
        await eventually(confirmed, 20)
        copy.process.send_signal(signal.SIGSTOP)
        cut(server)
        assert "could confirm" in await why_not(copies), "nobody knows whether it is the same server"
        assert "was lost" in await why_not(copies)
        assert "only 0 of 1" in await why_not(copies)
        copy.process.send_signal(signal.SIGCONT)
        await eventually(confirmed, 20)
    await connection.aclose()


async def test_a_member_that_has_asked_for_nothing_yet_is_confirmed(
    make_server: Callable[..., Server], server: Server
) -> None:
    """It may have shown a client what another member wrote, so it must be able to confirm that."""
    make_server("--replicaof", "127.0.0.1", str(server.port))
    async with Backend(server.settings.model_copy(update={"wait_replicas": 1})) as members:
        await eventually(confirmed_by(await members.join()), 20)
