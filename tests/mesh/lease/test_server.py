"""What a server may answer to a replica without a lease, and whether waiting can help."""

from __future__ import annotations

from typing import Any, cast

import pytest
from redis import exceptions as redis_errors
from redis._parsers.base import BaseParser
from redis.asyncio import Redis

from mesh.errors import ServerTooOld, SetupError, Unavailable, WrongCredentials
from mesh.lease import server


class Answering:
    """A client of a server that answers INFO with this."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    async def info(self) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


async def check(answer: Any) -> tuple[int, ...]:
    return await server.check(cast(Redis, Answering(answer)))


@pytest.mark.parametrize(
    ("said", "meant", "names"),
    [
        ("BUSY Redis is busy running a script.", Unavailable, "busy running"),
        ("LOADING Redis is loading the dataset in memory", Unavailable, "loading"),
        ("OOM command not allowed when used memory > 'maxmemory'.", Unavailable, "memory"),
        ("ERR max number of clients reached", Unavailable, "max number of clients"),
        ("ERR DB index is out of range", SetupError, "REDIS_DB and MESH_DATABASES"),
        ("ERR SELECT is not allowed in cluster mode", SetupError, "numbered databases"),
        ("DENIED Redis is running in protected mode", SetupError, "REDIS_PASSWORD"),
        ("NOPERM User x has no permissions to run the 'info' command", SetupError, "lacks a right"),
        ("WRONGPASS invalid username-password pair", WrongCredentials, "user or the password"),
        ("NOAUTH Authentication required.", WrongCredentials, "user or the password"),
        ("ERR unknown command 'INFO'", SetupError, "was renamed"),
    ],
)
async def test_an_answer_means_to_wait_or_to_end(said: str, meant: type[Exception], names: str) -> None:
    """A script comes to its end; a setting stays what it is. The sentence says what to do."""
    with pytest.raises(meant, match=names):
        await check(BaseParser.parse_error(said))


@pytest.mark.parametrize(
    "error", [redis_errors.ConnectionError("refused"), redis_errors.TimeoutError("slow"), OSError("no route")]
)
async def test_a_server_that_cannot_be_reached_is_waited_for(error: Exception) -> None:
    """Redis may start later than the replica."""
    with pytest.raises(Unavailable):
        await check(error)


async def test_the_version_is_read() -> None:
    """7.0 is the oldest that will do."""
    assert await check({"redis_version": "7.0.15"}) == (7, 0, 15)
    with pytest.raises(ServerTooOld, match=r"6\.2\.14"):
        await check({"redis_version": "6.2.14"})
