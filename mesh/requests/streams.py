"""Reading request and reply streams. Scripts write them.

A reader that blocks has a connection of its own. Entries of a read that failed or was cancelled may have been
delivered to us: then they are in our own pending entries, which a read of new entries (`>`) never returns. So the next
read is of the pending entries.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

from redis import exceptions as redis_errors

from mesh import keys
from mesh.requests.protocol import Body, Reply, Request
from mesh.requests.scripts import BOOKS, BURY, END, KEEP_ALIVE, OPEN, RECLAIM, REDELIVER, SWEEP
from mesh.wire.codec import encode
from mesh.wire.connection import RedisConnection
from mesh.wire.link import Link

#: How long a reader blocks, and so how long a stopping reader may take.
BLOCK_MS = 250
#: A blocking read that returns nothing sooner than this did not block.
_TOO_SOON_S = BLOCK_MS / 4000
#: Replies that stay on the stream after they were read, for people to look at; none after so many bytes of replies.
REPLIES_KEPT, REPLY_BYTES_KEPT = 256, 1 << 20
#: How long replies are parsed before the event loop gets its turn.
PARSE_S = 0.004
#: How long after its deadline a request is left to its caller and its worker.
SWEEP_GRACE_MS = 2000

Fields = dict[str, str]


async def _not_too_fast(started: float) -> None:
    if time.monotonic() - started < _TOO_SOON_S:
        await asyncio.sleep(0.01)


class RequestReader:
    """One consumer of the group of one request stream."""

    def __init__(
        self, connection: RedisConnection, link: Link, stream: str, consumer: str, all_streams: Sequence[str]
    ) -> None:
        self.stream = stream
        self._connection = connection
        self._link = link
        self._consumer = consumer
        self._all = [stream, *(other for other in all_streams if other != stream)]
        self._recover_from = "0"

    async def open(self) -> None:
        """Create the stream and its group if they do not exist."""
        await self._link.script(OPEN, [keys.BOOKS, *self._all], 1)

    async def read(self, count: int) -> list[tuple[str, Fields | None]]:
        """Return new entries, in order, after at most BLOCK_MS; after a failed read, our own pending ones first.

        The fields of a pending entry that was deleted meanwhile are None.
        """
        recovering = self._recover_from
        after = recovering or ">"
        started = time.monotonic()
        # Until the reply is here, the entries may be delivered to us without our knowledge.
        self._recover_from = recovering or "0"
        try:
            answer = await self._connection.execute(
                "XREADGROUP", "GROUP", keys.GROUP, self._consumer, "COUNT", count, "BLOCK", BLOCK_MS,
                "STREAMS", self.stream, after,
            )  # fmt: skip
        except redis_errors.ResponseError as error:
            if "NOGROUP" not in str(error) and "UNBLOCKED" not in str(error):
                raise
            await self.open()
            await _not_too_fast(started)
            return []
        entries = _entries(answer)
        self._recover_from = entries[-1][0] if recovering and entries else ""
        if not entries and not recovering:
            await _not_too_fast(started)
        return entries

    async def keep_alive(self, ids: Sequence[str]) -> list[str]:
        """Reset the idle time of entries in progress; return those that are no longer ours."""
        lost: list[str] = await self._link.script(KEEP_ALIVE, [self.stream], self._consumer, *ids)
        return lost

    async def reclaim(self, idle_ms: int, most: int) -> list[tuple[str, int, Fields]]:
        """Take over entries that no consumer has kept alive: id, deliveries, fields."""
        taken = await self._link.script(RECLAIM, [self.stream], self._consumer, idle_ms, most)
        return [(id, int(deliveries), _fields(flat)) for id, deliveries, *flat in taken]

    async def redeliver(self, id: str) -> int:
        """Deliver an entry to us once more; return the number of its deliveries, or 0 if it is not ours."""
        return int(await self._link.script(REDELIVER, [self.stream], self._consumer, id))

    async def hand_back(self, ids: Sequence[str], idle_ms: int) -> None:
        """Make entries look idle, so that other consumers claim them at once."""
        if ids:
            await self._link.shared(
                "XCLAIM", self.stream, keys.GROUP, self._consumer, 0, *ids, "IDLE", idle_ms, "JUSTID"
            )

    async def bury(self, id: str, reply_to: str, reason: str, deliveries: int, status: str, body: Body) -> bool:
        """Make an entry of ours a dead letter, and answer its caller. Return False if it is not ours."""
        names = [keys.BOOKS, keys.DEAD, self.stream, *([reply_to] if reply_to else [])]
        words = (id, self._consumer, reason, deliveries, status, encode(body), keys.DEAD_KEPT)
        return bool(await self._link.script(BURY, names, *words))


async def end(link: Link, ended: Sequence[tuple[str, str, str]]) -> int:
    """Remove requests without an effect: (stream, id, "expired" or "cancelled"). Return how many still existed."""
    return int(await link.script(END, [keys.BOOKS], json.dumps(ended))) if ended else 0


async def sweep(link: Link, streams: Sequence[str]) -> int:
    """Remove requests that are long past their deadline. Return how many there were."""
    return int(await link.script(SWEEP, [keys.BOOKS, *streams], SWEEP_GRACE_MS, 100))


async def books(link: Link, streams: Sequence[str]) -> dict[str, int]:
    """Return the books at one moment; `accepted` is the sum of all others."""
    return to_books(await link.script(BOOKS, [keys.BOOKS, *streams]))


def to_books(values: Sequence[Any]) -> dict[str, int]:
    """Name the numbers that the script answers."""
    names = ("accepted", "answered", "expired", "cancelled", "dead", "lost", "in_flight")
    return dict(zip(names, map(int, values), strict=True))


class ReplyReader:
    """The reader of the stream of replies to this replica."""

    def __init__(self, connection: RedisConnection, stream: str) -> None:
        self._connection = connection
        self._stream = stream
        self._last = "0"
        self._kept: list[str] = []
        self._kept_bytes = 0

    async def read(self) -> list[Reply]:
        """Return the replies since the last read, after at most BLOCK_MS, and trim old ones."""
        started = time.monotonic()
        most = 0 if self._kept_bytes > REPLY_BYTES_KEPT else REPLIES_KEPT
        if len(self._kept) > 2 * most:
            first = self._kept[-most - 1]
            await self._connection.execute("XTRIM", self._stream, "MINID", first)
            self._kept = self._kept[-most - 1 :]
            self._kept_bytes = 0
        answer = await self._connection.execute(
            "XREAD", "COUNT", 512, "BLOCK", BLOCK_MS, "STREAMS", self._stream, self._last
        )
        entries = _entries(answer)
        if not entries:
            await _not_too_fast(started)
            return []
        self._last = entries[-1][0]
        replies: list[Reply] = []
        pause_s = time.monotonic() + PARSE_S
        for id, fields in entries:
            self._kept.append(id)
            if fields and "request" in fields:
                self._kept_bytes += len(fields.get("body", ""))
                replies.append(Reply.from_entry(fields))
            if time.monotonic() > pause_s:
                await asyncio.sleep(0)
                pause_s = time.monotonic() + PARSE_S
        return replies


def _entries(answer: Any) -> list[tuple[str, Fields | None]]:
    """Return the entries of the one stream in an answer. The fields of a deleted entry are None."""
    if not answer:
        return []
    return [(id, flat and _fields(flat)) for id, flat in answer[0][1]]


def _fields(flat: Sequence[str]) -> Fields:
    words = iter(flat)
    return dict(zip(words, words))  # noqa: B905 - one iterator, twice


def to_request(stream: str, id: str, fields: Fields, deliveries: int = 1) -> Request | ValueError:
    """Return an entry as a request, or the error that says why it is none."""
    try:
        return Request.from_entry(stream, id, fields, deliveries)
    except ValueError as error:
        return error
