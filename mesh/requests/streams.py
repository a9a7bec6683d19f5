"""Reading streams and settling their entries: the only module that knows these verbs. Writing is the scripts' work.

A reader that blocks has a connection of its own. A read that failed or was cancelled may have been delivered all the
same, and then lies in our own pending list, where `>` never shows it: so the next read is of that list.
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
from mesh.wire.clients import Link
from mesh.wire.codec import encode
from mesh.wire.connection import Line

#: How long a reader blocks, and so how long a stopping reader may take.
BLOCK_MS = 250
#: A blocking read that comes back empty sooner than this did not block.
_TOO_SOON_S = BLOCK_MS / 4000
#: Replies read already that stay for people to look at, unless so many bytes of them were read since the last removal.
REPLIES_KEPT, REPLY_BYTES_KEPT = 256, 1 << 20
#: Replies are parsed for so long before the event loop gets its turn.
PARSE_S = 0.004
#: A request past its deadline is left to its sender and its worker for this long.
SWEEP_GRACE_MS = 2000

Fields = dict[str, str]


async def _not_too_fast(started: float) -> None:
    if time.monotonic() - started < _TOO_SOON_S:
        await asyncio.sleep(0.01)


class RequestReader:
    """Reads one request stream as one consumer of its group."""

    def __init__(self, line: Line, link: Link, stream: str, consumer: str, all_streams: Sequence[str]) -> None:
        self.stream = stream
        self._line = line
        self._link = link
        self._consumer = consumer
        self._all = [stream, *(other for other in all_streams if other != stream)]
        self._recover_from = "0"

    async def open(self) -> None:
        """Make the stream and its group if need be."""
        await self._link.script(OPEN, [keys.BOOKS, *self._all], 1)

    async def read(self, count: int) -> list[tuple[str, Fields | None]]:
        """New entries, in order, after up to BLOCK_MS; own pending ones first after a mishap.

        Fields are None where a pending entry was deleted meanwhile.
        """
        recovering = self._recover_from
        after = recovering or ">"
        started = time.monotonic()
        # Until the answer is here, the entries may be ours without our knowing.
        self._recover_from = recovering or "0"
        try:
            answer = await self._line.ask(
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
        """Say that these are being worked on; returns those that are no longer ours."""
        lost: list[str] = await self._link.script(KEEP_ALIVE, [self.stream], self._consumer, *ids)
        return lost

    async def reclaim(self, idle_ms: int, most: int) -> list[tuple[str, int, Fields]]:
        """Take over what nobody kept alive: id, deliveries, fields."""
        taken = await self._link.script(RECLAIM, [self.stream], self._consumer, idle_ms, most)
        return [(id, int(deliveries), _fields(flat)) for id, deliveries, *flat in taken]

    async def redeliver(self, id: str) -> int:
        """Deliver an entry of ours to us once more; returns how many deliveries that makes, 0 where it is not ours."""
        return int(await self._link.script(REDELIVER, [self.stream], self._consumer, id))

    async def hand_back(self, ids: Sequence[str], idle_ms: int) -> None:
        """Let others claim these at once, by making them look idle."""
        if ids:
            await self._link.shared(
                "XCLAIM", self.stream, keys.GROUP, self._consumer, 0, *ids, "IDLE", idle_ms, "JUSTID"
            )

    async def bury(self, id: str, reply_to: str, reason: str, deliveries: int, status: str, body: Body) -> bool:
        """Make a dead letter of an entry that is ours."""
        names = [keys.BOOKS, keys.DEAD, self.stream, *([reply_to] if reply_to else [])]
        words = (id, self._consumer, reason, deliveries, status, encode(body), keys.DEAD_KEPT)
        return bool(await self._link.script(BURY, names, *words))


async def settle(link: Link, ended: Sequence[tuple[str, str, str]]) -> int:
    """End requests without effect: (stream, id, "expired" or "cancelled") each. Returns how many were still there."""
    return int(await link.script(END, [keys.BOOKS], json.dumps(ended))) if ended else 0


async def sweep(link: Link, streams: Sequence[str]) -> int:
    """End what is long past its deadline, whoever should have."""
    return int(await link.script(SWEEP, [keys.BOOKS, *streams], SWEEP_GRACE_MS, 100))


async def books(link: Link, streams: Sequence[str]) -> dict[str, int]:
    """The accounts at one moment; accepted is the sum of all the others."""
    values = await link.script(BOOKS, [keys.BOOKS, *streams])
    names = ("accepted", "answered", "expired", "cancelled", "dead", "lost", "in_flight")
    return dict(zip(names, map(int, values), strict=True))


class ReplyReader:
    """Reads the one stream of replies to this replica."""

    def __init__(self, line: Line, stream: str) -> None:
        self._line = line
        self._stream = stream
        self._last = "0"
        self._kept: list[str] = []
        self._kept_bytes = 0

    async def read(self) -> list[Reply]:
        """Return the replies since the last read, after up to BLOCK_MS. Those read long ago are removed on the way."""
        started = time.monotonic()
        most = 0 if self._kept_bytes > REPLY_BYTES_KEPT else REPLIES_KEPT
        if len(self._kept) > 2 * most:
            first = self._kept[-most - 1]
            await self._line.ask("XTRIM", self._stream, "MINID", first)
            self._kept = self._kept[-most - 1 :]
            self._kept_bytes = 0
        answer = await self._line.ask("XREAD", "COUNT", 512, "BLOCK", BLOCK_MS, "STREAMS", self._stream, self._last)
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
    """The entries of the one stream that was read. Fields are None where an entry was deleted meanwhile."""
    if not answer:
        return []
    return [(id, flat and _fields(flat)) for id, flat in answer[0][1]]


def _fields(flat: Sequence[str]) -> Fields:
    words = iter(flat)
    return dict(zip(words, words))  # noqa: B905 - one iterator, twice


def to_request(stream: str, id: str, fields: Fields, deliveries: int = 1) -> Request | ValueError:
    """An entry as a request, or what is wrong with it."""
    try:
        return Request.from_entry(stream, id, fields, deliveries)
    except ValueError as error:
        return error
