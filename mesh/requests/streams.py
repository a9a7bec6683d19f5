"""The readers of request and reply streams, and functions that remove and count requests.

Scripts write to these streams. A reader blocks its connection, so it does not share the connection with others.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from redis.exceptions import RedisError, ResponseError

from mesh import keys
from mesh.errors import LeaseLost
from mesh.groups.reader import BLOCK_MS, GroupReader, entries_of, pause_if_not_blocked
from mesh.requests.protocol import Body, Reply, reply_of
from mesh.requests.scripts import BOOKS, BURY, END, GIVE_BACK, MINUTE, OPEN, PLAIN_SWEEP, REDELIVER, SWEEP
from mesh.wire.codec import encode
from mesh.wire.connection import RedisConnection
from mesh.wire.failures import PASSING, is_fenced
from mesh.wire.link import Link

log = structlog.get_logger(__name__)

#: About REPLIES_KEPT replies stay on the stream after they were read, so that people can look at them. But if the
#: bodies of the replies since the last trim have more than REPLY_CHARACTERS_KEPT characters, the next trim leaves only
#: the last reply.
REPLIES_KEPT, REPLY_CHARACTERS_KEPT = 256, 1 << 20
#: After parsing replies for this long, the reader lets the event loop run other tasks. A longer time makes them wait; a
#: shorter one costs more turns of the event loop.
PARSE_S = 0.004
#: Pause after replies could not be read. Callers wait meanwhile, so it is short. A shorter one costs more commands
#: while Redis is away.
READ_PAUSE_S = 0.1
#: A sweep removes a request this long after its deadline. Until then its caller or its worker can end it. With a longer
#: time, requests without an owner stay on their streams for longer; with a shorter one, sweeps have more to do.
SWEEP_GRACE_MS = 2000


class RequestReader(GroupReader):
    """Reads a request stream as one consumer of its group."""

    def __init__(
        self, connection: RedisConnection, link: Link, stream: str, consumer: str, all_streams: Sequence[str]
    ) -> None:
        super().__init__(connection.execute, link, stream, keys.GROUP, consumer)
        #: all request streams of the mesh, ours first: open.lua counts the requests on all, and creates only the first
        self._streams = [stream, *(other for other in all_streams if other != stream)]

    async def _create(self) -> None:
        await self._commands.script(OPEN, [keys.BOOKS, *self._streams], 1)  # 1: create the first stream only

    async def redeliver(self, id: str) -> int:
        """Deliver an entry to this consumer again; return the number of its deliveries, or 0 if it is not ours."""
        return int(await self._commands.script(REDELIVER, [self.stream], self.consumer, id))

    async def give_back(self, id: str) -> bool:
        """Leave an entry of ours pending, so that another replica can take it over. Return False if it is not ours."""
        return bool(await self._commands.script(GIVE_BACK, [self.stream], self.consumer, id))

    async def bury(self, id: str, reply_to: str, reason: str, deliveries: int, status: str, body: Body) -> bool:
        """Make an entry of ours a dead letter, and answer its caller with `status` and `body`.

        Return False if the entry is not ours.
        """
        key_names = [keys.BOOKS, keys.DEAD, self.stream, *([reply_to] if reply_to else [])]
        words = (id, self.consumer, reason, deliveries, status, encode(body), keys.DEAD_KEPT)
        return bool(await self._commands.script(BURY, key_names, *words))


#: A request to remove before it has an effect: stream, id, "expired" or "cancelled", and a fourth item. `name` is the
#: caller's name for the request, the field `request` of its entry. end.lua tells the forms of the fourth item apart by
#: type and length:
#:     False or True                            whether the request has options
#:     (limit, name)                            the request waits or has waited for its limit
#:     (operation, idempotency key, name)       a caller with an idempotency key no longer waits
Removal = tuple[str, str, str, bool | tuple[str, ...]]


async def remove(link: Link, removals: Sequence[Removal]) -> int:
    """Remove requests before they have an effect. Return how many were removed.

    A request with an idempotency key is not removed while other callers of the key wait for it.

    `Calls` does this for requests that its callers no longer wait for, and a consumer for requests past their deadline.
    """
    # END is end.lua: it ends requests that have had no effect.
    return int(await link.script(END, [keys.BOOKS], json.dumps(removals)))


async def sweep(link: Link, streams: Sequence[str]) -> int:
    """Remove requests whose deadline passed more than SWEEP_GRACE_MS ago. Return how many were removed.

    Every replica calls this again and again.
    """
    key_names = [keys.BOOKS, *streams]
    # One run looks at 100 entries of each stream at most, because the server does nothing else meanwhile. -1: the plain
    # variant has found work that it cannot do.
    removed_count = int(await link.script(PLAIN_SWEEP, key_names, SWEEP_GRACE_MS, 100))
    return removed_count if removed_count >= 0 else int(await link.script(SWEEP, key_names, SWEEP_GRACE_MS, 100))


async def keep_minute(link: Link, streams: Sequence[str]) -> bool:
    """Correct the books for changes by hand, and store a copy of them if this minute has none.

    Return whether this call stored the copy. Every replica calls this after `sweep`; the copies show how the books
    changed.
    """
    return bool(await link.script(MINUTE, [keys.BOOKS, keys.MINUTES, *streams], keys.MINUTES_KEPT))


async def read_books(link: Link, streams: Sequence[str]) -> dict[str, int]:
    """Return the books at one moment; `accepted` is the sum of all others."""
    return to_books(await link.script(BOOKS, [keys.BOOKS, *streams]))


def to_books(counts: Sequence[Any]) -> dict[str, int]:
    """Return the numbers that books.lua answers, by name."""
    names = ("accepted", "answered", "expired", "cancelled", "dead", "lost", "in_flight", "waiting")
    return dict(zip(names, map(int, counts), strict=True))


class ReplyReader:
    """The reader of the stream of replies to this replica. `listen` reads while somebody waits for replies.

    The reply to a request in place is on the stream only so that people can read it: its caller has it from the commit.
    After such a reply, nothing is read until somebody waits or as many replies are unread as the stream keeps. So
    replies in place wake nobody.
    """

    def __init__(self, connection: RedisConnection, stream: str) -> None:
        self._connection = connection
        self.stream = stream
        #: id of the last reply that was read. "0" reads from the start: each membership or client has a new stream
        self._last_id = "0"
        #: ids of the replies that were read and are still on the stream
        self._kept_ids: list[str] = []
        #: how long the bodies of the replies that were read since the last trim are together, in characters
        self._characters_since_trim = 0
        #: how many calls wait for replies
        self._waiting_count = 0
        #: how many replies to requests in place came since the last read, and how long their bodies are together
        self._in_place_count, self._in_place_characters = 0, 0
        #: set if `listen` is to read
        self._is_needed = asyncio.Event()
        self._is_needed.set()

    def add_waiting(self) -> None:
        """Note that one more call waits for replies."""
        self._waiting_count += 1
        self._is_needed.set()

    def remove_waiting(self) -> None:
        """Note that a call of `add_waiting` no longer waits."""
        self._waiting_count -= 1

    def note_in_place(self, body: str) -> None:
        """Note that a reply with this body is on the stream, and that its caller has it already."""
        self._in_place_count += 1
        self._in_place_characters += len(body)
        is_much = self._in_place_count >= REPLIES_KEPT or self._in_place_characters > REPLY_CHARACTERS_KEPT
        if self._waiting_count or is_much:
            self._is_needed.set()
        else:
            self._is_needed.clear()

    async def listen(self, take: Callable[[Reply, Sequence[str]], None]) -> None:
        """Read replies until cancelled. Raises LeaseLost."""
        while True:
            await self._is_needed.wait()
            try:
                await self.read(take)
            # An error of Redis does not end the reading; only a lost lease does.
            except (*PASSING, ResponseError) as error:
                if is_fenced(error):
                    raise LeaseLost("the Redis user of this lease is gone") from error
                log.warning("replies could not be read", error=str(error))
                await asyncio.sleep(READ_PAUSE_S)
                continue
            # Two turns of the event loop: the callers go on, and the link sends their next requests. Then read again.
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def read(self, take: Callable[[Reply, Sequence[str]], None]) -> None:
        """Wait for new replies, at most BLOCK_MS; call `take` with each and the words of its entry; trim old ones."""
        read_began = time.monotonic()
        self._in_place_count, self._in_place_characters = 0, 0
        # At most 512 replies at once, to bound the memory of one answer. A smaller number would need more trips.
        commands: list[tuple[Any, ...]] = [
            ("XREAD", "COUNT", 512, "BLOCK", BLOCK_MS, "STREAMS", self.stream, self._last_id)
        ]
        most_kept = 0 if self._characters_since_trim > REPLY_CHARACTERS_KEPT else REPLIES_KEPT
        # A trim is due when more than twice `most_kept` replies are on the stream, so that few reads need a trim. It
        # keeps one more than `most_kept`: MINID needs the id of a reply that stays, also when `most_kept` is 0.
        if is_trim_due := len(self._kept_ids) > 2 * most_kept:
            commands.insert(0, ("XTRIM", self.stream, "MINID", self._kept_ids[-most_kept - 1]))
        answers = await self._connection.send(commands)
        for answer in answers:  # `send` returns errors of single commands in place of their answers
            if isinstance(answer, RedisError):
                raise answer
        if is_trim_due:
            self._kept_ids = self._kept_ids[-most_kept - 1 :]
            self._characters_since_trim = 0
        entries = entries_of(answers[-1])
        if not entries:
            await pause_if_not_blocked(read_began)  # a server that does not block must not make this loop spin
            return
        self._last_id = entries[-1][0]
        pause_at = time.monotonic() + PARSE_S
        for id, flat in entries:
            self._kept_ids.append(id)
            if (reply := reply_of(flat)) is not None:
                self._characters_since_trim += len(reply[3])  # the body: see `protocol.Reply`
                take(reply, flat)
            if time.monotonic() > pause_at:
                await asyncio.sleep(0)
                pause_at = time.monotonic() + PARSE_S
