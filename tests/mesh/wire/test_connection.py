"""One connection to a real server, used without a link."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis import exceptions as redis_errors

from mesh import Connections, RedisSettings
from mesh.wire.clients import Credentials
from mesh.wire.connection import RedisConnection
from mesh.wire.failures import is_fenced
from tests.support import tls


@pytest.fixture
async def connection(server) -> AsyncIterator[RedisConnection]:
    """A connection to a real server."""
    found = Connections(server.settings).connection("test")
    yield found
    await found.aclose()


async def test_several_commands_are_one_round_trip_answered_in_order(connection: RedisConnection) -> None:
    """redis-py does not reshape the replies: they are flat, and text."""
    answers = await connection.send([("HSET", "h", "field", "ä"), ("HGETALL", "h"), ("INCR", "n"), ("GET", "nothing")])
    assert answers == [1, ["field", "ä"], 1, None]


async def test_an_error_is_the_answer_of_its_command_alone(connection: RedisConnection) -> None:
    """The other commands of the trip have their replies, and the connection stays open."""
    set_, wrong, got = await connection.send([("SET", "key", "text"), ("INCR", "key"), ("GET", "key")])
    assert isinstance(wrong, redis_errors.ResponseError)
    assert (set_, got) == ("OK", "text")


async def test_what_is_no_text_is_read_all_the_same(connection: RedisConnection, server) -> None:
    """Somebody else may have written bytes that are not UTF-8. The other replies of the trip are read as usual."""
    server.redis().set("bytes", b"a\xff\xfeb")
    assert await connection.send([("GET", "bytes"), ("ECHO", "after")]) == ["a\ufffd\ufffdb", "after"]


async def test_what_cannot_be_encoded_is_refused_before_anything_is_sent(connection: RedisConnection) -> None:
    """None of the commands is sent, and the connection stays open."""
    for word in (None, [1], "\ud800"):
        with pytest.raises(redis_errors.DataError, match="cannot be sent"):
            await connection.send([("INCR", "n"), ("SET", "key", word)])
    assert await connection.execute("INCR", "n") == 1


async def test_long_answers_and_many_come_whole(connection: RedisConnection) -> None:
    """Replies that arrive in many pieces are put together."""
    text = "ü" * 300_000
    await connection.execute("SET", "long", text)
    answers = await connection.send([("GET", "long"), ("ECHO", "short")] * 10)
    assert answers == [text, "short"] * 10


async def test_each_trip_has_the_whole_time(server) -> None:
    """One timer serves all trips. It does not end a trip at the time-out of an earlier one."""
    connection = Connections(server.settings.model_copy(update={"timeout_ms": 600})).connection("test")
    try:
        for _ in range(4):
            assert await connection.execute("BLPOP", "empty", "0.25") is None
    finally:
        await connection.aclose()


@tls.needed
async def test_an_encrypted_connection_is_taken_over(server, tmp_path: Path) -> None:
    """Over TLS, too, long replies arrive whole, and a cancelled command leaves no reply to the next one."""
    certificate = await tls.certificate(tmp_path)
    async with tls.before(server.settings.port, certificate) as port:
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate.path}"
        connection = Connections(RedisSettings(url=url)).connection("test")
        try:
            assert await connection.send([("SET", "long", "x" * 300_000), ("STRLEN", "long")]) == ["OK", 300_000]
            waiting = asyncio.create_task(connection.execute("BLPOP", "empty", "5"))
            await asyncio.sleep(0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await connection.execute("GET", "long") == "x" * 300_000
        finally:
            await connection.aclose()


async def test_asking_one_command_raises_its_error(connection: RedisConnection) -> None:
    """`execute` returns the reply of its one command, or raises the error."""
    assert await connection.execute("SET", "key", "text") == "OK"
    with pytest.raises(redis_errors.ResponseError, match="not an integer"):
        await connection.execute("INCR", "key")


async def test_a_cancelled_command_leaves_no_reply_behind(connection: RedisConnection) -> None:
    """The next command gets its own reply, not the one that was still on its way."""
    await connection.execute("SET", "key", "mine")
    waiting = asyncio.create_task(connection.execute("BLPOP", "empty", "1"))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await connection.execute("GET", "key") == "mine"


async def test_silence_ends_with_a_time_out_and_a_fresh_connection(server) -> None:
    """A server that does not answer causes a TimeoutError. The next command does not get the late reply."""
    connections = Connections(server.settings.model_copy(update={"timeout_ms": 200}))
    connection = connections.connection("test")
    try:
        await connection.execute("SET", "key", "mine")
        server.redis().client_pause(600)
        with pytest.raises(redis_errors.TimeoutError):
            await connection.execute("GET", "key")
        server.redis().client_unpause()
        assert await connection.execute("GET", "key") == "mine"
    finally:
        await connection.aclose()


async def test_a_cut_connection_raises_once_and_is_made_again(connection: RedisConnection, server) -> None:
    """A connection repeats no command by itself. The next command connects again."""
    await connection.execute("PING")
    server.redis().client_kill_filter(_type="normal")
    with pytest.raises(redis_errors.ConnectionError):
        await connection.execute("INCR", "n")
    assert await connection.execute("INCR", "n") == 1


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (None, "the connection to Redis was closed"),
        (ConnectionResetError("reset by peer"), "the connection to Redis was closed: reset by peer"),
    ],
)
async def test_a_lost_connection_says_why_if_anybody_knows(
    connection: RedisConnection, error: Exception | None, says: str
) -> None:
    """A server that ends says nothing; the network may."""
    await connection.execute("PING")
    assert connection._protocol is not None
    waiting = asyncio.create_task(connection.execute("BLPOP", "empty", "5"))
    await asyncio.sleep(0.05)
    connection._protocol.connection_lost(error)
    with pytest.raises(redis_errors.ConnectionError) as told:
        await waiting
    assert str(told.value) == says


async def test_a_user_that_is_gone_is_told(server) -> None:
    """The server closes the connection. The attempt to connect again raises an error that means that we are fenced."""
    server.redis().acl_setuser("one", enabled=True, passwords=["+secret"], keys="*", commands=["+@all"])
    connection = Connections(server.settings, Credentials("one", "secret")).connection("test")
    try:
        await connection.execute("PING")
        server.redis().acl_deluser("one")
        with pytest.raises(redis_errors.ConnectionError):
            await connection.execute("PING")
        with pytest.raises(redis_errors.RedisError) as told:
            await connection.execute("PING")
        assert is_fenced(told.value)
    finally:
        await connection.aclose()
