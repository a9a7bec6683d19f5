"""One connection, spoken to directly.

What redis-py's client puts around every command (a pool, retries, a timer and a task for each, metrics, reshaping)
costs a replica more than the command itself, and asyncio's streams as much again. So a line lets redis-py connect and
log in, and then takes the transport over: several commands go out as one, what arrives is parsed where it arrives,
answers come back as the server sent them, and whoever asked is woken once, when all of them are there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import hiredis
from redis import exceptions as redis_errors
from redis.asyncio import Redis

Command = tuple[Any, ...]

#: What the parser says when an answer has not arrived whole.
_MORE = object()
_CLOSED = "the connection to Redis was closed"


#: Most bytes of one round trip. Redis closes a connection that sends a gigabyte, and one trip must not hold up others.
MOST_BYTES = 64 * 2**20


class TooLarge(redis_errors.DataError):
    """The commands of one round trip have more bytes than it may have."""


def pack(commands: Iterable[Command]) -> bytes:
    """Commands as they are sent. Raises redis.exceptions.DataError for a word that is no text, number or bytes."""
    try:
        packed = b"".join(map(hiredis.pack_command, commands))
    except (TypeError, ValueError) as error:
        raise redis_errors.DataError(f"it cannot be sent to Redis: {error}") from error
    if len(packed) > MOST_BYTES:
        raise TooLarge(f"it cannot be sent to Redis: {len(packed)} bytes, and at most {MOST_BYTES} fit in one trip")
    return packed


class _Answers(asyncio.Protocol):
    """Collects the answers of one trip at a time; lost for good with its connection.

    One timer serves trip after trip: it is set anew when it goes off too early.
    """

    def __init__(self, former: Any, parse_error: Any, timeout_s: float) -> None:
        self._former = former
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(
            protocolError=redis_errors.InvalidResponse,
            replyError=parse_error,
            encoding="utf-8",
            # What somebody wrote by hand may be anything; it must not keep the answers around it from being read.
            errors="replace",
            notEnoughData=_MORE,
        )
        self._count = 0
        self._answers: list[Any] = []
        self._waiter: asyncio.Future[list[Any]] | None = None
        self._end = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def expect(self, count: int) -> asyncio.Future[list[Any]]:
        """So many answers, once all are there. Raises redis.exceptions.*."""
        self._count = count
        self._answers = []
        self._end = self._loop.time() + self._timeout_s
        if self._timer is None:
            self._timer = self._loop.call_at(self._end, self._look_at_time)
        self._waiter = waiter = self._loop.create_future()
        return waiter

    def data_received(self, data: bytes) -> None:
        reader, answers = self._reader, self._answers
        try:
            reader.feed(data)
            while (answer := reader.gets()) is not _MORE:
                answers.append(answer)
        except (redis_errors.RedisError, ValueError) as error:
            self._fail(redis_errors.InvalidResponse(f"Redis answered what nobody understands: {error}"))
            return
        if len(answers) >= self._count and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(answers)

    def _look_at_time(self) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        if self._loop.time() < self._end:
            self._timer = self._loop.call_at(self._end, self._look_at_time)
        else:
            self._fail(redis_errors.TimeoutError("Redis did not answer in time"))

    def _fail(self, error: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._fail(redis_errors.ConnectionError(f"{_CLOSED}: {error}" if error else _CLOSED))
        # redis-py waits for this when it closes.
        self._former.connection_lost(error)


class Line:
    """The one connection of a client. The client's own sockets need no time-out: `timeout_s` is for the whole trip."""

    def __init__(self, client: Redis, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._connection: Any = None
        self._transport: Any = None
        self._answers: _Answers | None = None

    async def say(self, commands: Sequence[Command]) -> list[Any]:
        """One round trip; an error that the server answers is an answer.

        Whatever goes wrong on the way, a cancellation too, disconnects, since nobody knows which answers are still to
        come; the next words connect anew. Raises redis.exceptions.*, OSError.
        """
        packed = pack(commands)
        try:
            if self._answers is None:
                await self._connect()
            return await self._ask(packed, len(commands))
        except BaseException:
            await self._disconnect()
            raise

    def _ask(self, packed: bytes, count: int) -> asyncio.Future[list[Any]]:
        answers = self._answers
        if answers is None or self._transport.is_closing():
            raise redis_errors.ConnectionError(_CLOSED)
        waiter = answers.expect(count)
        self._transport.write(packed)
        return waiter

    async def ask(self, *command: Any) -> Any:
        """Say one command. Raises the error that the server answers, too."""
        (answer,) = await self.say([command])
        if isinstance(answer, redis_errors.RedisError):
            raise answer
        return answer

    async def _connect(self) -> None:
        async with asyncio.timeout(self._timeout_s):
            if self._connection is None:
                self._connection = await self._client.connection_pool.get_connection()
            elif not self._connection.is_connected:
                await self._connection.connect()
        connection = self._connection
        self._transport = connection._writer.transport
        self._answers = _Answers(self._transport.get_protocol(), connection._parser.parse_error, self._timeout_s)
        self._transport.set_protocol(self._answers)

    async def _disconnect(self) -> None:
        self._answers = None
        if self._connection is not None:
            await self._connection.disconnect(nowait=True)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._client.aclose()
