"""One connection to Redis, without redis-py's overhead.

For every command redis-py uses a pool, retries, a timer, a task and metrics, and it reshapes the reply. This costs a
replica more time than the command itself, and asyncio's streams cost as much again. So a `RedisConnection` lets
redis-py connect and log in, and then takes over the transport. It sends several commands in one write, parses replies
in the protocol's `data_received`, and wakes its caller once, when all replies are there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import hiredis
from redis import exceptions as redis_errors
from redis.asyncio import Redis

from mesh.wire.codec import ENCODER

#: A command for Redis: its name and its words.
Command = tuple[Any, ...]

#: What the parser returns while no further reply has arrived completely.
_NO_REPLY_YET = object()
_CLOSED_TEXT = "the connection to Redis was closed"

#: The most bytes that one round trip sends. Redis closes a connection that sends a gigabyte at once. With a smaller
#: bound the next trip would begin sooner, but more commands would be refused as too large.
MOST_BYTES = 64 * 2**20
#: This part of the MOST_BYTES is left for the keys and the fixed arguments of the script that runs a batch. An item of
#: the batch has at most the other bytes.
_BYTES_FOR_COMMAND = 2**16

_ENCODE = ENCODER.encode
_NO_LONG_WORDS: Sequence[str] = ()

#: Each 2**WEIGHT_SHIFT bytes of JSON, or characters of a command, count for one more word. So `link.MOST_WORDS`, the
#: bound for the words of a batch, bounds its bytes, too: to 640 kB, unless a single item is larger.
WEIGHT_SHIFT = 5

#: A word of more characters is sent as an argument of its own, because the server reads a long word in JSON slowly. A
#: short word costs more as an argument than in JSON. An item whose JSON has at most this number of bytes has no long
#: word, because a character takes at least one byte.
LONG_WORD_CHARS = 65536

#: An item of a batch, encoded. It has four values:
#: - the JSON of a list, without its brackets. The first element is the number of all elements, itself included; then
#:   come the words of the item
#: - the weight: for how many words the item counts in a round trip
#: - the long words of the item, for which the JSON has null
#: - whether the plain variant of the script can run the item (see `Variants` in script.py)
Encoded = tuple[bytes, int, Sequence[str], bool]


class TooLarge(redis_errors.DataError):
    """The commands have more bytes than one round trip may send."""


def pack(commands: Iterable[Command]) -> bytes:
    """Return commands as bytes. Raises DataError for a value that cannot be encoded, TooLarge for too many bytes."""
    try:
        packed = b"".join(map(hiredis.pack_command, commands))
    except (TypeError, ValueError) as error:
        raise redis_errors.DataError(f"a value cannot be sent to Redis: {error}") from error
    if len(packed) > MOST_BYTES:
        raise _too_large(len(packed))
    return packed


def encode_words(words: Sequence[Any], is_plain: bool = False) -> Encoded:
    """Encode the words of one item of a batch as JSON, which costs less than one argument for each word.

    `batch.lua` reads the JSON. `is_plain` says whether the plain variant of the script can run the item.
    Raises DataError for text that cannot be encoded, TooLarge for too many bytes.
    """
    element_count = len(words) + 1
    try:
        text = _ENCODE([element_count, *words])[1:-1]
    except (TypeError, ValueError) as error:
        raise redis_errors.DataError(f"a value cannot be sent to Redis: {error}") from error
    byte_count = len(text)
    if byte_count > MOST_BYTES - _BYTES_FOR_COMMAND:
        raise _too_large(byte_count)
    if byte_count <= LONG_WORD_CHARS:
        return text, element_count + (byte_count >> WEIGHT_SHIFT), _NO_LONG_WORDS, is_plain
    long_indexes = [index for index, word in enumerate(words) if word.__class__ is str and len(word) > LONG_WORD_CHARS]
    if long_indexes:
        elements: list[Any] = [element_count, *words]
        for index in long_indexes:
            # The first element is the number of elements, so + 1. batch.lua puts the long word in place of the null.
            elements[index + 1] = None
        text = _ENCODE(elements)[1:-1]
    # The weight counts the long words, too, because they are part of the trip.
    return text, element_count + (byte_count >> WEIGHT_SHIFT), [words[index] for index in long_indexes], is_plain


def _too_large(byte_count: int) -> TooLarge:
    return TooLarge(
        f"the command cannot be sent to Redis: {byte_count} bytes, and at most {MOST_BYTES} fit in one trip"
    )


class _ReplyProtocol(asyncio.Protocol):
    """Collects the replies of one round trip at a time. Each connection to Redis has an object of this class.

    One timer serves all round trips, because a timer for each one costs more. If the timer fires before the present
    round trip is overdue, it is set again.
    """

    # `error_from_text` makes an exception of the text of an error reply. `decode_errors` is as in `RedisConnection`.
    def __init__(self, former_protocol: Any, error_from_text: Any, timeout_s: float, decode_errors: str) -> None:
        #: redis-py's own protocol for this transport; it must learn when the connection is lost
        self._former_protocol = former_protocol
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._reply_parser = hiredis.Reader(
            protocolError=redis_errors.InvalidResponse,
            replyError=error_from_text,
            encoding="utf-8",
            errors=decode_errors,
            notEnoughData=_NO_REPLY_YET,
        )
        self._expected_reply_count = 0
        self._replies: list[Any] = []
        self._waiter: asyncio.Future[list[Any]] | None = None
        #: when the present round trip has taken too long, on the clock of the event loop
        self._overdue_at = 0.0
        self._overdue_timer: asyncio.TimerHandle | None = None

    def expect(self, reply_count: int) -> asyncio.Future[list[Any]]:
        """Return a future of the next `reply_count` replies. Its exceptions are those of redis-py.

        Call this only when the future of the round trip before is done: each call replaces the list of replies and the
        future. A reply that nobody expects is appended to the list of the last trip, which its caller has already.
        """
        self._expected_reply_count = reply_count
        self._replies = []
        self._overdue_at = self._loop.time() + self._timeout_s
        if self._overdue_timer is None:
            self._overdue_timer = self._loop.call_at(self._overdue_at, self._fail_if_overdue)
        self._waiter = waiter = self._loop.create_future()
        return waiter

    def data_received(self, data: bytes) -> None:
        parser, replies = self._reply_parser, self._replies
        try:
            parser.feed(data)
            while (reply := parser.gets()) is not _NO_REPLY_YET:
                replies.append(reply)
        except (redis_errors.RedisError, ValueError) as error:
            self._fail_if_waiting(redis_errors.InvalidResponse(f"Redis sent a reply that cannot be parsed: {error}"))
            return
        # There are more replies than expected only if the server is faulty. The link ignores those at the end.
        if len(replies) >= self._expected_reply_count and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(replies)

    def _fail_if_overdue(self) -> None:
        """Fail the waiter if its replies are overdue; else set the timer again. The timer calls this."""
        self._overdue_timer = None
        if self._waiter is None or self._waiter.done():
            return
        if self._loop.time() < self._overdue_at:
            self._overdue_timer = self._loop.call_at(self._overdue_at, self._fail_if_overdue)
        else:
            self._fail_if_waiting(redis_errors.TimeoutError(f"Redis did not answer within {self._timeout_s:g} s"))

    def _fail_if_waiting(self, error: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    def connection_lost(self, error: Exception | None) -> None:
        if self._overdue_timer is not None:
            self._overdue_timer.cancel()
        self._fail_if_waiting(redis_errors.ConnectionError(f"{_CLOSED_TEXT}: {error}" if error else _CLOSED_TEXT))
        # When redis-py closes the connection, it waits until its own protocol gets this call.
        self._former_protocol.connection_lost(error)


class RedisConnection:
    """The one connection of a redis-py client. A round trip takes at most `timeout_s`; the socket needs no time-out.

    `errors` says how bytes that are not UTF-8 are read, as in `bytes.decode`. The default is not "strict", because a
    value that is not UTF-8 must not make the other replies of its trip unreadable.
    """

    def __init__(self, client: Redis, timeout_s: float, errors: str = "replace") -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._decode_errors = errors
        self._redis_py_connection: Any = None
        self._transport: Any = None
        #: collects the replies; None while there is no connection
        self._protocol: _ReplyProtocol | None = None

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """Make one round trip and return the replies; an error reply is returned, not raised.

        Calls must not overlap. So each connection belongs to one object, which waits for the replies before it sends
        again. If the trip fails or is cancelled, the connection is closed, because nobody knows which replies are still
        to come. The next call connects again. Raises redis.exceptions.*, OSError.
        """
        packed = pack(commands)
        try:
            if self._protocol is None:
                await self._connect()
            return await self._write(packed, len(commands))
        except BaseException:
            await self._disconnect()
            raise

    def _write(self, packed: bytes, reply_count: int) -> asyncio.Future[list[Any]]:
        """Send the bytes of some commands, and return a future of their `reply_count` replies."""
        protocol = self._protocol
        if protocol is None or self._transport.is_closing():
            raise redis_errors.ConnectionError(_CLOSED_TEXT)
        waiter = protocol.expect(reply_count)
        self._transport.write(packed)
        return waiter

    async def execute(self, *command: Any) -> Any:
        """Run one command and return its reply. An error reply is raised."""
        (reply,) = await self.send([command])
        if isinstance(reply, redis_errors.RedisError):
            raise reply
        return reply

    async def _connect(self) -> None:
        """Connect through redis-py if needed, and let `_ReplyProtocol` read the replies, not redis-py."""
        async with asyncio.timeout(self._timeout_s):
            if self._redis_py_connection is None:
                self._redis_py_connection = await self._client.connection_pool.get_connection()
            elif not self._redis_py_connection.is_connected:
                await self._redis_py_connection.connect()
        redis_py_connection = self._redis_py_connection
        self._transport = redis_py_connection._writer.transport
        self._protocol = _ReplyProtocol(
            self._transport.get_protocol(),
            redis_py_connection._parser.parse_error,
            self._timeout_s,
            self._decode_errors,
        )
        self._transport.set_protocol(self._protocol)

    async def _disconnect(self) -> None:
        self._protocol = None
        if self._redis_py_connection is not None:
            # nowait: the caller may be cancelled, so it does not wait for the end of the transport.
            await self._redis_py_connection.disconnect(nowait=True)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._client.aclose()
