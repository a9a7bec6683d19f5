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
    """A line that is told what the server says, round by round."""

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
async def running(line: RedisConnection) -> AsyncIterator[Durability]:
    copies = Durability(line, KEY, keep_ms=60_000, copies=1, timeout_ms=300)
    task = asyncio.create_task(copies.run())
    yield copies
    task.cancel()
    await asyncio.wait([task])


async def why_not(copies: Durability | Replica) -> str:
    """What is said to somebody who wants to know, or ""."""
    try:
        await copies.confirm()
    except Unavailable as error:
        return str(error)
    return ""


def confirmed_by(copies: Durability | Replica) -> Callable[[], Awaitable[bool]]:
    """A condition to wait for."""

    async def confirmed() -> bool:
        return await why_not(copies) == ""

    return confirmed


async def asked(copies: Durability, count: int) -> list[asyncio.Task[str]]:
    tasks = [asyncio.create_task(why_not(copies)) for _ in range(count)]
    await asyncio.sleep(0.01)
    return tasks


async def test_who_asks_during_a_round_waits_for_the_next() -> None:
    """What was written after a WAIT began is none of its business; and the next serves all of them at once."""
    line = Scripted()
    async with running(line) as copies:
        (first,) = await asked(copies, 1)
        later = await asked(copies, 20)
        line.answers.put_nowait([1, 1])
        assert await first == ""
        assert not any(task.done() for task in later)
        line.answers.put_nowait([1, 1])
        assert await asyncio.gather(*later) == [""] * 20
    assert line.said == [(("PEXPIRE", KEY, 60_000), ("WAIT", 1, 300))] * 2


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
    """And the next round is asked anew."""
    line = Scripted()
    async with running(line) as copies:
        line.answers.put_nowait(answer)
        said = await why_not(copies)
        assert said.startswith("done, but ")
        assert says in said
        line.answers.put_nowait([1, 1])
        assert await why_not(copies) == ""


@pytest.mark.parametrize("error", [redis_errors.TimeoutError("Redis did not answer in time"), ConnectionRefusedError()])
async def test_a_new_connection_speaks_for_nobody_who_asked_before(error: Exception) -> None:
    """It may be to another server, which was made the master without what had been written."""
    line = Scripted()
    async with running(line) as copies:
        for answer, says in ((error, "could confirm"), (error, "could confirm"), (["PONG"], "was lost")):
            line.answers.put_nowait(answer)
            assert says in await why_not(copies)
        line.answers.put_nowait([1, 1])
        assert await why_not(copies) == ""
    assert [[command[0] for command in said] for said in line.said] == [
        ["PEXPIRE", "WAIT"], ["PING"], ["PING"], ["PEXPIRE", "WAIT"],
    ]  # fmt: skip


async def test_one_that_stops_waiting_leaves_the_others_their_answer() -> None:
    line = Scripted()
    async with running(line) as copies:
        first, second = await asked(copies, 2)
        first.cancel()
        await asyncio.wait([first])
        line.answers.put_nowait([1, 1])
        assert await second == ""


async def test_who_waits_at_the_end_is_told_so() -> None:
    """In the round that is under way, in the next one, and afterwards."""
    line = Scripted()
    async with running(line) as copies:
        waiting = [*await asked(copies, 1), *await asked(copies, 2)]
    said = [*await asyncio.gather(*waiting), await why_not(copies)]
    assert all("left the mesh" in each for each in said)
    assert len(said) == 4


def cut(server: Server) -> None:
    """Have every client connect anew."""
    with server.redis() as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


async def test_a_new_connection_is_not_content_with_a_copy_that_hangs(
    make_server: Callable[..., Server], server: Server
) -> None:
    """WAIT alone would be, on Valkey: a connection that has written nothing waits for nothing."""
    copy = make_server("--replicaof", "127.0.0.1", str(server.port))
    assert copy.process is not None
    line = Connections(server.settings).connection("copies", block_ms=300)
    server.redis().set(KEY, "1")
    async with running(line) as copies:
        confirmed = confirmed_by(copies)
        await eventually(confirmed, 20)
        copy.process.send_signal(signal.SIGSTOP)
        cut(server)
        assert "could confirm" in await why_not(copies), "nobody knows whether it is the same server"
        assert "was lost" in await why_not(copies)
        assert "only 0 of 1" in await why_not(copies)
        copy.process.send_signal(signal.SIGCONT)
        await eventually(confirmed, 20)
    await line.aclose()


async def test_a_member_that_has_asked_for_nothing_yet_is_confirmed(
    make_server: Callable[..., Server], server: Server
) -> None:
    """What another wrote is shown by it, perhaps."""
    make_server("--replicaof", "127.0.0.1", str(server.port))
    async with Backend(server.settings.model_copy(update={"wait_replicas": 1})) as members:
        await eventually(confirmed_by(await members.join()), 20)
