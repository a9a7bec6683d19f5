"""Durable events: one group of consumers over a stream, for effects outside Redis, such as rows in SQL.

A commit in SQL and an acknowledgement in Redis cannot be one step, so the order is: effect, then
acknowledgement. Whoever dies between the two leaves events that are handled once more; the handler makes that
harmless (a unique key), so each event has its effect exactly once. For effects in Redis use a transaction.

    an event is read by one consumer, and its batch handled
        done                 acknowledged and deleted
        refused              dead letter at once, with the handler's reason
        the handler raises   the batch is halved until the bad one stands alone and the others are through;
                             that one is tried again later, and is a dead letter after `max_deliveries`
        Unavailable          (a database is down) tried again for ever, kept alive meanwhile, nothing buried
        the consumer dies    nobody keeps it alive, so another takes it over, in smaller and smaller company:
                             an event that kills its process takes no other with it to the dead letters. Nor is
                             one buried whose effect is there: its consumers had another reason to die

Done events are deleted, not only acknowledged: their effect is the record, and the stream stays as short as
the work that waits (XLEN is the lag). MAXLEN instead would delete unread ones. Hence one group per stream.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from types import TracebackType
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from mesh.errors import Unavailable
from mesh.keys import DEAD, DEAD_KEPT
from mesh.wire.script import Script

log = structlog.get_logger(__name__)

BURY = Script.beside(__file__, "bury.lua")
KEEP_ALIVE = Script.beside(__file__, "keep_alive.lua")
FORGET = Script.beside(__file__, "forget.lua")

#: A consumer that has been silent this long belongs to a process that is gone.
SILENCE_MS = 60_000
#: How much longer than its BLOCK a read may take before the connection counts as broken.
READ_GRACE_S = 2.0

#: What Redis not answering looks like.
UNREACHABLE = (RedisError, OSError, TimeoutError)


@dataclass(frozen=True, slots=True)
class Entry:
    """One event. Bytes that are no UTF-8 come as lone surrogates (`surrogateescape`), so none are lost.

    `deliveries` counts this one.
    """

    id: str
    fields: Mapping[str, str]
    deliveries: int = 1


@dataclass(frozen=True, slots=True)
class Pending:
    """An event that was delivered and not yet acknowledged."""

    id: str
    deliveries: int


#: Makes the effects of events durable, all of these or none, and returns those it refuses with the reason. It
#: may see an event again. Raises Unavailable where trying later helps.
Handle = Callable[[Sequence[Entry]], Awaitable[Mapping[str, str]]]


#: Whether an event's effect is there already. Raises Unavailable where trying later helps.
IsDone = Callable[[Entry], Awaitable[bool]]


async def not_known(entry: Entry) -> bool:
    """Nobody can say."""
    return False


def together(deliveries: int, batch: int) -> int:
    """How many events that were delivered so often already may be handled at once.

    Fresh ones by the batch. Each death of a consumer makes the company smaller, until a suspect stands alone.
    """
    match deliveries:
        case 0:
            return batch
        case 1:
            return max(1, batch // 8)
        case _:
            return 1


def next_group(pending: Sequence[Pending], batch: int) -> list[Pending]:
    """The events to take over next: the oldest one and those right behind it that may share its fate."""
    if not pending:
        return []
    first = pending[0]
    alike = takewhile(lambda one: one.deliveries == first.deliveries, pending)
    return list(alike)[: together(first.deliveries, batch)]


def pauses(least: float = 0.1, most: float = 5.0) -> Iterator[float]:
    """Growing pauses in seconds, each at random from half of it up, so that replicas don't march in step."""
    pause = least
    while True:
        yield pause * random.uniform(0.5, 1.0)
        pause = min(2 * pause, most)


class Group:
    """What one consumer says to Redis about its stream and group, one thing at a time over one connection."""

    def __init__(self, redis: Redis, stream: str, group: str, consumer: str) -> None:
        self.redis, self.stream, self.group, self.consumer = redis, stream, group, consumer
        self._bury = redis.register_script(BURY.source)
        self._keep_alive = redis.register_script(KEEP_ALIVE.source)
        self._forget = redis.register_script(FORGET.source)
        self._line = asyncio.Lock()

    async def open(self) -> None:
        """Make sure of the stream and its group, and forget consumers that are gone."""
        try:
            await self.redis.xgroup_create(self.stream, self.group, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        await self._forget(keys=[self.stream], args=[self.group, self.consumer, SILENCE_MS])

    async def read(self, count: int, block_ms: int) -> list[Entry]:
        """New events; none when the wait was over first."""
        words = ["XREADGROUP", "GROUP", self.group, self.consumer, "COUNT", count, "BLOCK", block_ms]
        async with asyncio.timeout(block_ms / 1000 + READ_GRACE_S):
            answer = await self._undecoded(*words, "STREAMS", self.stream, ">")
        return [entry_of(raw, 1) for raw in entries_in(answer)]

    async def pending(
        self, count: int, after: str = "-", *, mine: bool = False, idle_ms: int | None = None
    ) -> list[Pending]:
        """Events delivered and not acknowledged: to this consumer, or to any and not kept alive since."""
        consumer = self.consumer if mine else None
        rows: Any = await self.redis.xpending_range(
            self.stream, self.group, min=after, max="+", count=count, consumername=consumer, idle=idle_ms
        )
        return [Pending(row["message_id"], row["times_delivered"]) for row in rows]

    async def claim(self, ids: Sequence[str], idle_ms: int, deliveries: int) -> list[Entry]:
        """Make these ours, delivered so often. What another took first, or what is gone, is left out."""
        words = ["XCLAIM", self.stream, self.group, self.consumer, idle_ms, *ids]
        raws = await self._undecoded(*words, "RETRYCOUNT", deliveries)
        return [entry_of(raw, deliveries) for raw in raws]

    async def keep_alive(self, ids: Sequence[str]) -> None:
        async with self._line:
            await self._keep_alive(keys=[self.stream], args=[self.group, self.consumer, *ids])

    async def finish(self, ids: Sequence[str]) -> None:
        """Acknowledge and delete in one step: an event that is only acknowledged would stay for ever."""
        if not ids:
            return
        async with self._line, self.redis.pipeline(transaction=True) as pipe:
            pipe.xack(self.stream, self.group, *ids)
            pipe.xdel(self.stream, *ids)
            await pipe.execute()

    async def bury(self, entry: Entry, reason: str) -> bool:
        """Make it a dead letter. False where it was settled before."""
        about: list[str | int] = [self.group, entry.id, reason, entry.deliveries, DEAD_KEPT]
        async with self._line:
            return bool(await self._bury(keys=[self.stream, DEAD], args=about))

    async def hand_back(self, pending: Sequence[Pending], idle_ms: int) -> None:
        """Make them look idle for that long, this delivery not counted: others take them over now, whole."""
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
        """A command whose answer stays bytes: one event that is no text must not spoil the batch it is in."""
        return await self.redis.execute_command(*words, NEVER_DECODE=True)


class Events:
    """Consumes a stream while entered. Leaving it finishes the batch in hand and hands the rest back.

    `connect` opens a client for this consumer alone, for its read blocks; `consumer` is unique among all that
    live. `handle` gets up to `batch` events, and `handle_timeout_ms` for them. A dead consumer's events are
    taken over after `claim_idle_ms`. Leaving waits up to `drain_ms` for the batch in hand. `on_buried` hears
    of each dead letter. `is_done` is asked once before an event is buried because its consumers died.
    """

    def __init__(
        self,
        connect: Callable[[], Redis],
        stream: str,
        group: str,
        consumer: str,
        handle: Handle,
        *,
        batch: int = 500,
        block_ms: int = 1000,
        claim_idle_ms: int = 5000,
        max_deliveries: int = 5,
        handle_timeout_ms: int = 60_000,
        drain_ms: int = 2000,
        on_buried: Callable[[Entry, str], None] = lambda entry, reason: None,
        is_done: IsDone = not_known,
    ) -> None:
        self.stream, self.group, self.consumer = stream, group, consumer
        self._connect, self._handler, self._on_buried, self._is_done = connect, handle, on_buried, is_done
        self._batch, self._max_deliveries = batch, max_deliveries
        self._block_ms, self._claim_idle_ms = block_ms, claim_idle_ms
        self._handle_timeout_s, self._drain_s = handle_timeout_ms / 1000, drain_ms / 1000
        self._stopping = asyncio.Event()
        self._reading = False
        self._recovered_once = False
        self._take_over_at = 0.0

    async def __aenter__(self) -> Events:
        self._redis = self._connect()
        self._group = Group(self._redis, self.stream, self.group, self.consumer)
        self._block_ms = shorter_than_timeout(self._block_ms, self._redis)
        self._task = asyncio.create_task(self._run(), name=f"events of {self.stream}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        if self._reading:
            self._task.cancel()
        try:
            await asyncio.wait({self._task}, timeout=self._drain_s)
        finally:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=self._drain_s)
            try:
                await self._hand_back()
            finally:
                await self._redis.aclose()

    # Life: open, recover, then read and settle. After any error from the start, for a broken read may have
    # left events with us that no later read shows.

    async def _run(self) -> None:
        delays = pauses()
        while not self._stopping.is_set():
            try:
                await self._group.open()
                await self._recover()
                delays = pauses()
                await self._consume()
            except UNREACHABLE as error:
                log.warning("events wait for Redis", stream=self.stream, error=told(error))
            except Exception:
                log.exception("events met the unexpected; beginning again", stream=self.stream)
            await self._stopped_within(next(delays))

    async def _consume(self) -> None:
        while not self._stopping.is_set():
            if time.monotonic() >= self._take_over_at:
                await self._take_over()
            await self._settle(await self._read())

    async def _stopped_within(self, seconds: float) -> bool:
        """Wait; whether the end came first."""
        # Not wait_for: Python 3.11's forgets a cancellation that comes together with the event.
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        return self._stopping.is_set()

    # Where events come from: the stream, our own pending ones, those of the dead.

    async def _read(self) -> list[Entry]:
        self._reading = True
        try:
            return await self._group.read(self._batch, self._block_ms)
        finally:
            self._reading = False

    async def _recover(self) -> None:
        """Settle what is already ours.

        The first time these may have killed a former process of our name, so they count as delivered once
        more. Later we know that they did not: the count stays, or a flapping network would bury good events.
        """
        after = "-"
        while group := next_group(await self._group.pending(self._batch, after, mine=True), self._batch):
            after = f"({group[-1].id}"
            await self._claim_and_settle(group, idle_ms=0, count=not self._recovered_once)
        self._recovered_once = True

    async def _take_over(self) -> None:
        """Settle what nobody has kept alive, a group at a time: a group claimed is a group begun."""
        after, idle_ms = "-", self._claim_idle_ms
        while group := next_group(await self._group.pending(self._batch, after, idle_ms=idle_ms), self._batch):
            after = f"({group[-1].id}"
            await self._claim_and_settle(group, idle_ms=idle_ms, count=True)
            if self._stopping.is_set():
                return
        self._take_over_at = time.monotonic() + idle_ms / 2000

    async def _claim_and_settle(self, group: Sequence[Pending], *, idle_ms: int, count: bool) -> None:
        deliveries = group[0].deliveries + count
        entries = await self._group.claim([one.id for one in group], idle_ms, deliveries)
        if deliveries <= self._max_deliveries:
            await self._settle(entries)
            return
        for entry in entries:
            await self._give_up(entry)

    async def _give_up(self, entry: Entry) -> None:
        """Its consumers died, one after the other. It is asked about once, lest even this kill the next one."""
        if entry.deliveries == self._max_deliveries + 1:
            async with asyncio.timeout(self._handle_timeout_s):
                if await self._is_done(entry):
                    await self._group.finish([entry.id])
                    return
        await self._bury(entry, f"{self._max_deliveries} consumers had it and none of them finished it")

    # What becomes of them.

    async def _settle(self, entries: Sequence[Entry]) -> None:
        if entries:
            async with self._kept_alive(entries):
                await self._handle(entries)

    async def _handle(self, entries: Sequence[Entry]) -> None:
        try:
            refused = await self._attempt(entries)
        except Exception as error:
            await self._isolate(entries, error)
            return
        if refused is None:
            return
        await self._group.finish([entry.id for entry in entries if entry.id not in refused])
        for entry in entries:
            if entry.id in refused:
                await self._bury(entry, refused[entry.id])

    async def _attempt(self, entries: Sequence[Entry]) -> Mapping[str, str] | None:
        """Hand over to the handler, for as long as what it needs is down. None: we stopped first."""
        for attempt, delay in enumerate(pauses()):
            try:
                async with asyncio.timeout(self._handle_timeout_s):
                    return await self._handler(entries)
            except (Unavailable, TimeoutError) as error:
                say = log.debug if attempt else log.warning
                say("events wait for their handler", stream=self.stream, error=told(error))
            if await self._stopped_within(delay):
                break
        return None

    async def _isolate(self, entries: Sequence[Entry], error: Exception) -> None:
        """Find the one that fails and let the others through."""
        if len(entries) > 1:
            middle = len(entries) // 2
            await self._handle(entries[:middle])
            await self._handle(entries[middle:])
            return
        entry = entries[0]
        reason = told(error)
        log.warning("event failed", stream=self.stream, id=entry.id, deliveries=entry.deliveries, error=reason)
        if entry.deliveries >= self._max_deliveries:
            await self._bury(entry, reason)

    async def _bury(self, entry: Entry, reason: str) -> None:
        printable = reason.encode("utf-8", "backslashreplace").decode()
        if await self._group.bury(entry, printable):
            log.warning("event is a dead letter", stream=self.stream, id=entry.id, reason=printable)
            self._on_buried(entry, printable)

    @asynccontextmanager
    async def _kept_alive(self, entries: Sequence[Entry]) -> AsyncIterator[None]:
        """Nobody takes these over meanwhile, however long it takes."""
        beating = asyncio.create_task(self._beat([entry.id for entry in entries]))
        try:
            yield
        finally:
            beating.cancel()
            await asyncio.wait({beating})

    async def _beat(self, ids: Sequence[str]) -> None:
        while True:
            await asyncio.sleep(self._claim_idle_ms / 4000)
            try:
                await self._group.keep_alive(ids)
            except UNREACHABLE as error:
                # At worst another handles them too, which is harmless; the work itself finds out about Redis.
                log.info("events are not kept alive", stream=self.stream, error=told(error))

    async def _hand_back(self) -> None:
        try:
            async with asyncio.timeout(READ_GRACE_S):
                mine = await self._group.pending(self._batch, mine=True)
                await self._group.hand_back(mine, 10 * self._claim_idle_ms)
        except UNREACHABLE as error:
            log.info("events are left to be taken over", stream=self.stream, error=told(error))


def shorter_than_timeout(block_ms: int, redis: Redis) -> int:
    """A BLOCK that ends well before the client's own time-out, or every quiet read would look broken."""
    timeout: float | None = redis.get_connection_kwargs().get("socket_timeout")
    return block_ms if timeout is None else max(1, min(block_ms, int(timeout * 500)))


def told(error: BaseException) -> str:
    """An error in one line; the clients' own `repr` leave the text out."""
    return f"{type(error).__name__}: {error}"


def entries_in(answer: Any) -> list[Any]:
    """The entries of the one stream in an answer to XREADGROUP, in either protocol's shape."""
    if not answer:
        return []
    if isinstance(answer, dict):
        return [raw for pages in answer.values() for page in pages for raw in page]
    return list(answer[0][1])


def entry_of(raw: tuple[bytes, Mapping[bytes, bytes]], deliveries: int) -> Entry:
    """An entry as the server sent it."""
    id, fields = raw
    return Entry(id.decode(), {text_of(name): text_of(value) for name, value in fields.items()}, deliveries)


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
