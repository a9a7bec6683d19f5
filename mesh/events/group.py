"""One consumer of a consumer group: reads, claims, keeps alive, acknowledges and buries events."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from mesh.keys import DEAD, DEAD_KEPT
from mesh.wire.script import Script

BURY = Script.beside(__file__, "bury.lua")
KEEP_ALIVE = Script.beside(__file__, "keep_alive.lua")
FORGET = Script.beside(__file__, "forget.lua")

#: A consumer without pending events that is silent for this long belongs to a process that is gone.
SILENCE_MS = 60_000
#: How much longer than its BLOCK a read may take before the connection counts as broken.
READ_GRACE_S = 2.0


@dataclass(frozen=True, slots=True)
class DeliveredEvent:
    """An event as a handler gets it. `deliveries` includes this one.

    Bytes that are not UTF-8 become lone surrogates (`surrogateescape`), so that no byte is lost.
    """

    id: str
    fields: Mapping[str, str]
    deliveries: int = 1


@dataclass(frozen=True, slots=True)
class Pending:
    """An event that was delivered and is not acknowledged yet."""

    id: str
    deliveries: int


def together(deliveries: int, batch: int) -> int:
    """Return how many events with so many deliveries may be handled at once.

    New events: a whole batch. With each death of a consumer the groups get smaller, down to one event.
    """
    match deliveries:
        case 0:
            return batch
        case 1:
            return max(1, batch // 8)
        case _:
            return 1


def next_group(pending: Sequence[Pending], batch: int) -> list[Pending]:
    """Return the events to take over next: the oldest one, and its successors with as many deliveries."""
    if not pending:
        return []
    first = pending[0]
    alike = takewhile(lambda one: one.deliveries == first.deliveries, pending)
    return list(alike)[: together(first.deliveries, batch)]


class Group:
    """One consumer's commands on its stream and group, one at a time over one connection."""

    def __init__(self, redis: Redis, stream: str, group: str, consumer: str) -> None:
        self.redis, self.stream, self.group, self.consumer = redis, stream, group, consumer
        self._bury = redis.register_script(BURY.source)
        self._keep_alive = redis.register_script(KEEP_ALIVE.source)
        self._forget = redis.register_script(FORGET.source)
        self._lock = asyncio.Lock()

    async def open(self) -> None:
        """Create the stream and its group if they do not exist, and forget consumers of dead processes."""
        try:
            await self.redis.xgroup_create(self.stream, self.group, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        await self._forget(keys=[self.stream], args=[self.group, self.consumer, SILENCE_MS])

    async def read(self, count: int, block_ms: int) -> list[DeliveredEvent]:
        """Return new events; none if there were none within `block_ms`."""
        words = ["XREADGROUP", "GROUP", self.group, self.consumer, "COUNT", count, "BLOCK", block_ms]
        async with asyncio.timeout(block_ms / 1000 + READ_GRACE_S):
            answer = await self._undecoded(*words, "STREAMS", self.stream, ">")
        return [entry_of(raw, 1) for raw in entries_in(answer)]

    async def pending(
        self, count: int, after: str = "-", *, mine: bool = False, idle_ms: int | None = None
    ) -> list[Pending]:
        """Return pending events: those of this consumer (`mine`), or those that nobody kept alive for `idle_ms`."""
        consumer = self.consumer if mine else None
        rows: Any = await self.redis.xpending_range(
            self.stream, self.group, min=after, max="+", count=count, consumername=consumer, idle=idle_ms
        )
        return [Pending(row["message_id"], row["times_delivered"]) for row in rows]

    async def claim(self, ids: Sequence[str], idle_ms: int, deliveries: int) -> list[DeliveredEvent]:
        """Claim events and set their deliveries; leave out those that are gone or claimed by another consumer."""
        words = ["XCLAIM", self.stream, self.group, self.consumer, idle_ms, *ids]
        raws = await self._undecoded(*words, "RETRYCOUNT", deliveries)
        return [entry_of(raw, deliveries) for raw in raws]

    async def keep_alive(self, ids: Sequence[str]) -> None:
        async with self._lock:
            await self._keep_alive(keys=[self.stream], args=[self.group, self.consumer, *ids])

    async def finish(self, ids: Sequence[str]) -> None:
        """Acknowledge and delete events in one step: an event that is only acknowledged would stay forever."""
        if not ids:
            return
        async with self._lock, self.redis.pipeline(transaction=True) as pipe:
            pipe.xack(self.stream, self.group, *ids)
            pipe.xdel(self.stream, *ids)
            await pipe.execute()

    async def bury(self, entry: DeliveredEvent, reason: str) -> bool:
        """Make an event a dead letter. Return False if it was settled before."""
        about: list[str | int] = [self.group, entry.id, reason, entry.deliveries, DEAD_KEPT]
        async with self._lock:
            return bool(await self._bury(keys=[self.stream, DEAD], args=about))

    async def hand_back(self, pending: Sequence[Pending], idle_ms: int) -> None:
        """Make events look idle, without counting this delivery, so that others claim them at once."""
        async with self.redis.pipeline(transaction=False) as pipe:
            for one in pending:
                pipe.xclaim(
                    self.stream,
                    self.group,
                    self.consumer,
                    0,
                    [one.id],
                    idle=idle_ms,
                    retrycount=max(0, one.deliveries - 1),
                    justid=True,
                )
            await pipe.execute()

    async def _undecoded(self, *words: Any) -> Any:
        """Run a command whose reply stays bytes: one event that is not text must not spoil its batch."""
        return await self.redis.execute_command(*words, NEVER_DECODE=True)


def entries_in(answer: Any) -> list[Any]:
    """Return the entries of the one stream in a reply to XREADGROUP, in the shape of RESP2 or RESP3."""
    if not answer:
        return []
    if isinstance(answer, dict):
        return [raw for pages in answer.values() for page in pages for raw in page]
    return list(answer[0][1])


def entry_of(raw: tuple[bytes, Mapping[bytes, bytes]], deliveries: int) -> DeliveredEvent:
    """Return an event from an entry as the server sends it."""
    id, fields = raw
    return DeliveredEvent(id.decode(), {text_of(name): text_of(value) for name, value in fields.items()}, deliveries)


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
