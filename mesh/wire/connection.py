"""One connection to Redis, without redis-py's overhead.

redis-py adds a pool, retries, a timer, a task, metrics and reshaped replies to every command. That costs a replica
more than the command itself, and asyncio's streams cost as much again. A `RedisConnection` lets redis-py connect and
log in, and then takes over the transport: several commands leave in one write, replies are parsed in the protocol's
`data_received`, and the caller wakes up once, when all replies are there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import hiredis
from redis import exceptions as redis_errors
from redis.asyncio import Redis

from mesh.wire.codec import ENCODER

Command = tuple[Any, ...]

#: The parser's value for a reply that has not arrived completely.
_MORE = object()
_CLOSED = "the connection to Redis was closed"


#: Most bytes of one round trip. Redis closes a connection that sends a gigabyte, and one trip must not hold up others.
MOST_BYTES = 64 * 2**20
#: Room for what stands around a list of words.
_REST = 2**16

_ENCODE = ENCODER.encode
_NONE: Sequence[str] = ()

#: A long word counts for several: for one more with each 2^5 bytes.
WORD_BITS = 5

#: A word of more characters is sent as it is, because a server reads a text faster than JSON.
LONG = 65536

#: An item of a batch: its words as JSON, after each other and without brackets; for how many words it counts in a round
#: trip; its long words, which are null there; and whether the plain variant of the script is enough for it.
Encoded = tuple[bytes, int, Sequence[str], bool]


class TooLarge(redis_errors.DataError):
    """The commands have more bytes than one round trip may have."""


def pack(commands: Iterable[Command]) -> bytes:
    """Return the bytes of some commands. Raises DataError for what cannot be encoded, TooLarge for too many bytes."""
    try:
        packed = b"".join(map(hiredis.pack_command, commands))
    except (TypeError, ValueError) as error:
        raise redis_errors.DataError(f"it cannot be sent to Redis: {error}") from error
    if len(packed) > MOST_BYTES:
        raise _too_large(len(packed))
    return packed


def encode_words(words: Sequence[Any], plain: bool = False) -> Encoded:
    """Return the words of one item of a batch, which `batch.lua` reads. They cost less than as many arguments.

    Raises DataError for text that cannot be encoded, TooLarge for too many bytes.
    """
    number = len(words) + 1
    try:
        text = _ENCODE([number, *words])[1:-1]
    except (TypeError, ValueError) as error:
        raise redis_errors.DataError(f"it cannot be sent to Redis: {error}") from error
    size = len(text)
    if size > MOST_BYTES - _REST:
        raise _too_large(size)
    if size <= LONG:
        return text, number + (size >> WORD_BITS), _NONE, plain
    places = [at for at, word in enumerate(words) if word.__class__ is str and len(word) > LONG]
    if places:
        kept: list[Any] = [number, *words]
        for at in places:
            kept[at + 1] = None
        text = _ENCODE(kept)[1:-1]
    return text, number + (size >> WORD_BITS), [words[at] for at in places], plain


def _too_large(size: int) -> TooLarge:
    return TooLarge(f"it cannot be sent to Redis: {size} bytes, and at most {MOST_BYTES} fit in one trip")


class _Answers(asyncio.Protocol):
    """Collects the replies of one round trip at a time. It ends with its connection.

    One timer serves all round trips: when it fires too early, it is set again.
    """

    def __init__(self, former: Any, parse_error: Any, timeout_s: float, errors: str) -> None:
        self._former = former
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(
            protocolError=redis_errors.InvalidResponse,
            replyError=parse_error,
            encoding="utf-8",
            errors=errors,
            notEnoughData=_MORE,
        )
        self._count = 0
        self._answers: list[Any] = []
        self._waiter: asyncio.Future[list[Any]] | None = None
        self._end = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def expect(self, count: int) -> asyncio.Future[list[Any]]:
        """Return a future of the next `count` replies. Its exceptions are those of redis-py."""
        self._count = count
        self._answers = []
        self._end = self._loop.time() + self._timeout_s
        if self._timer is None:
            self._timer = self._loop.call_at(self._end, self._check_time)
        self._waiter = waiter = self._loop.create_future()
        return waiter

    def data_received(self, data: bytes) -> None:
        reader, answers = self._reader, self._answers
        try:
            reader.feed(data)
            while (answer := reader.gets()) is not _MORE:
                answers.append(answer)
        except (redis_errors.RedisError, ValueError) as error:
            self._fail(redis_errors.InvalidResponse(f"Redis sent a reply that cannot be parsed: {error}"))
            return
        if len(answers) >= self._count and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(answers)

    def _check_time(self) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        if self._loop.time() < self._end:
            self._timer = self._loop.call_at(self._end, self._check_time)
        else:
            self._fail(redis_errors.TimeoutError(f"Redis did not answer within {self._timeout_s:g} s"))

    def _fail(self, error: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._fail(redis_errors.ConnectionError(f"{_CLOSED}: {error}" if error else _CLOSED))
        # redis-py's own protocol; its `close` waits for this call.
        self._former.connection_lost(error)


class RedisConnection:
    """The one connection of a redis-py client. `timeout_s` bounds a round trip; the socket needs no time-out.

    `errors` is how bytes that are not UTF-8 are read, as in `bytes.decode`. A value may be any bytes, and must not keep
    the replies around it from being read.
    """

    def __init__(self, client: Redis, timeout_s: float, errors: str = "replace") -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._errors = errors
        self._connection: Any = None
        self._transport: Any = None
        self._answers: _Answers | None = None

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """Make one round trip and return the replies; an error reply is returned, not raised.

        Any failure on the way, and a cancellation, closes the connection, because it is not known which replies are
        still to come. The next call connects again. Raises redis.exceptions.*, OSError.
        """
        packed = pack(commands)
        try:
            if self._answers is None:
                await self._connect()
            return await self._write(packed, len(commands))
        except BaseException:
            await self._disconnect()
            raise

    def _write(self, packed: bytes, count: int) -> asyncio.Future[list[Any]]:
        answers = self._answers
        if answers is None or self._transport.is_closing():
            raise redis_errors.ConnectionError(_CLOSED)
        waiter = answers.expect(count)
        self._transport.write(packed)
        return waiter

    async def execute(self, *command: Any) -> Any:
        """Run one command and return its reply. Raises an error reply, too."""
        (answer,) = await self.send([command])
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
        self._answers = _Answers(
            self._transport.get_protocol(), connection._parser.parse_error, self._timeout_s, self._errors
        )
        self._transport.set_protocol(self._answers)

    async def _disconnect(self) -> None:
        self._answers = None
        if self._connection is not None:
            await self._connection.disconnect(nowait=True)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._client.aclose()
