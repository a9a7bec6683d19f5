"""One connection, spoken to directly."""

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
async def line(server) -> AsyncIterator[RedisConnection]:
    """A line to a real server."""
    found = Connections(server.settings).connection("test")
    yield found
    await found.aclose()


async def test_several_commands_are_one_round_trip_answered_in_order(line: RedisConnection) -> None:
    """Answers come as the server sends them, flat and as text."""
    answers = await line.send([("HSET", "h", "field", "ä"), ("HGETALL", "h"), ("INCR", "n"), ("GET", "nothing")])
    assert answers == [1, ["field", "ä"], 1, None]


async def test_an_error_is_the_answer_of_its_command_alone(line: RedisConnection) -> None:
    """The commands around it are not touched, and the connection stays."""
    set_, wrong, got = await line.send([("SET", "key", "text"), ("INCR", "key"), ("GET", "key")])
    assert isinstance(wrong, redis_errors.ResponseError)
    assert (set_, got) == ("OK", "text")


async def test_what_is_no_text_is_read_all_the_same(line: RedisConnection, server) -> None:
    """Somebody else may have written it; the answers around it are none the worse."""
    server.redis().set("bytes", b"a\xff\xfeb")
    assert await line.send([("GET", "bytes"), ("ECHO", "after")]) == ["a\ufffd\ufffdb", "after"]


async def test_what_cannot_be_encoded_is_refused_before_anything_is_sent(line: RedisConnection) -> None:
    """And the connection stays as it was."""
    for word in (None, [1], "\ud800"):
        with pytest.raises(redis_errors.DataError, match="cannot be sent"):
            await line.send([("INCR", "n"), ("SET", "key", word)])
    assert await line.execute("INCR", "n") == 1


async def test_long_answers_and_many_come_whole(line: RedisConnection) -> None:
    """However many pieces they arrive in."""
    text = "ü" * 300_000
    await line.execute("SET", "long", text)
    answers = await line.send([("GET", "long"), ("ECHO", "short")] * 10)
    assert answers == [text, "short"] * 10


async def test_each_trip_has_the_whole_time(server) -> None:
    """The timer that serves them all is not the first one's."""
    line = Connections(server.settings.model_copy(update={"timeout_ms": 600})).connection("test")
    try:
        for _ in range(4):
            assert await line.execute("BLPOP", "empty", "0.25") is None
    finally:
        await line.aclose()


@tls.needed
async def test_a_line_takes_over_an_encrypted_connection(server, tmp_path: Path) -> None:
    """Long answers, and the next connection after a cancelled question, as without."""
    certificate = await tls.certificate(tmp_path)
    async with tls.before(server.settings.port, certificate) as port:
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate.path}"
        line = Connections(RedisSettings(url=url)).connection("test")
        try:
            assert await line.send([("SET", "long", "x" * 300_000), ("STRLEN", "long")]) == ["OK", 300_000]
            waiting = asyncio.create_task(line.execute("BLPOP", "empty", "5"))
            await asyncio.sleep(0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await line.execute("GET", "long") == "x" * 300_000
        finally:
            await line.aclose()


async def test_asking_one_command_raises_its_error(line: RedisConnection) -> None:
    """Whoever asks one thing wants the answer or the error."""
    assert await line.execute("SET", "key", "text") == "OK"
    with pytest.raises(redis_errors.ResponseError, match="not an integer"):
        await line.execute("INCR", "key")


async def test_a_cancelled_question_leaves_no_answer_behind(line: RedisConnection) -> None:
    """The next question gets its own answer, not the one that was still on its way."""
    await line.execute("SET", "key", "mine")
    waiting = asyncio.create_task(line.execute("BLPOP", "empty", "1"))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await line.execute("GET", "key") == "mine"


async def test_silence_ends_with_a_time_out_and_a_fresh_connection(server) -> None:
    """A server that does not answer is a passing error; the late answer reaches nobody."""
    connections = Connections(server.settings.model_copy(update={"timeout_ms": 200}))
    line = connections.connection("test")
    try:
        await line.execute("SET", "key", "mine")
        server.redis().client_pause(600)
        with pytest.raises(redis_errors.TimeoutError):
            await line.execute("GET", "key")
        server.redis().client_unpause()
        assert await line.execute("GET", "key") == "mine"
    finally:
        await line.aclose()


async def test_a_cut_connection_raises_once_and_is_made_again(line: RedisConnection, server) -> None:
    """Nothing is repeated behind the speaker's back; the next words connect."""
    await line.execute("PING")
    server.redis().client_kill_filter(_type="normal")
    with pytest.raises(redis_errors.ConnectionError):
        await line.execute("INCR", "n")
    assert await line.execute("INCR", "n") == 1


async def test_a_user_that_is_gone_is_told(server) -> None:
    """A fenced member learns of it from its next words, whatever their kind."""
    server.redis().acl_setuser("one", enabled=True, passwords=["+secret"], keys="*", commands=["+@all"])
    line = Connections(server.settings, Credentials("one", "secret")).connection("test")
    try:
        await line.execute("PING")
        server.redis().acl_deluser("one")
        with pytest.raises(redis_errors.ConnectionError):
            await line.execute("PING")
        with pytest.raises(redis_errors.RedisError) as told:
            await line.execute("PING")
        assert is_fenced(told.value)
    finally:
        await line.aclose()
