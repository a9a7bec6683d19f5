"""Durable events: one consumer group over a stream, for effects outside Redis, such as rows in SQL.

A commit in SQL and an acknowledgement in Redis cannot be one step. So the effect comes first, then the acknowledgement.
A process that dies between them leaves events that are handled once more. The handler makes the second time harmless
(a unique key), so each event has its effect exactly once. For effects in Redis, use a transaction.

    a batch of events is read by one consumer and handled
        done                 acknowledged and deleted
        refused              dead letter at once, with the handler's reason
        the handler raises   the batch is halved until the event that fails stands alone, and the others are done;
                             that event is tried again later, and is a dead letter after `max_deliveries`
        Unavailable          (a database is down) tried again without end, kept alive meanwhile, never buried
        the consumer dies    another takes its events over, in smaller and smaller groups, so that an event which
                             kills its process takes no other event to the dead letters. An event whose effect
                             exists is not buried: its consumers died of something else

Done events are deleted, not only acknowledged. Their effect is the record, and the length of the stream (XLEN) is the
work that waits. MAXLEN would delete unread events. So a stream has one group only.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from types import TracebackType

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mesh.errors import Unavailable
from mesh.events.group import READ_GRACE_S, DeliveredEvent, Group, Pending, next_group

log = structlog.get_logger(__name__)

#: Errors of a Redis that does not answer.
UNREACHABLE = (RedisError, OSError, TimeoutError)

#: Makes the effects of these events durable, all or none, and returns the refused ids with the reasons. It may get an
#: event again. Raises Unavailable if a later try may succeed.
Handle = Callable[[Sequence[DeliveredEvent]], Awaitable[Mapping[str, str]]]


#: Returns whether the effect of an event exists. Raises Unavailable if a later try may succeed.
IsDone = Callable[[DeliveredEvent], Awaitable[bool]]


async def not_known(entry: DeliveredEvent) -> bool:
    """Return False: it is not known whether there is an effect."""
    return False


def pauses(least: float = 0.1, most: float = 5.0) -> Iterator[float]:
    """Yield growing pauses in seconds, each with random jitter, so that replicas do not retry in step."""
    pause = least
    while True:
        yield pause * random.uniform(0.5, 1.0)
        pause = min(2 * pause, most)


class Events:
    """An async context manager that consumes a stream. On exit it finishes its batch and hands the rest back.

    `connect` opens a client for this consumer only, because its read blocks. `consumer` is a name that no other live
    consumer has. `handle` gets at most `batch` events and `handle_timeout_ms` for them. The events of a dead consumer
    are taken over after `claim_idle_ms`. The exit waits at most `drain_ms` for the batch. `on_buried` is called for
    each dead letter. `is_done` is called once before an event is buried because its consumers died.
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
        on_buried: Callable[[DeliveredEvent, str], None] = lambda entry, reason: None,
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

    # Open, recover, then read and settle. After any error all of it begins again, because a failed read may have left
    # events in our pending entries, which no later read returns.

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
                log.exception("events consumer failed, starting again", stream=self.stream)
            await self._stopped_within(next(delays))

    async def _consume(self) -> None:
        while not self._stopping.is_set():
            if time.monotonic() >= self._take_over_at:
                await self._take_over()
            await self._settle(await self._read())

    async def _stopped_within(self, seconds: float) -> bool:
        """Wait; return whether the consumer is stopped."""
        # Not wait_for: in Python 3.11 it can lose a cancellation.
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        return self._stopping.is_set()

    # Three sources of events: the stream, our own pending entries, and those of dead consumers.

    async def _read(self) -> list[DeliveredEvent]:
        self._reading = True
        try:
            return await self._group.read(self._batch, self._block_ms)
        finally:
            self._reading = False

    async def _recover(self) -> None:
        """Settle the events that are already delivered to this consumer.

        The first time, they may have killed a former process of this name, so the delivery counts. Later they have
        not, and it does not count: otherwise an unstable network would bury good events.
        """
        after = "-"
        while group := next_group(await self._group.pending(self._batch, after, mine=True), self._batch):
            after = f"({group[-1].id}"
            await self._claim_and_settle(group, idle_ms=0, count=not self._recovered_once)
        self._recovered_once = True

    async def _take_over(self) -> None:
        """Settle the events that nobody has kept alive, group by group."""
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

    async def _give_up(self, entry: DeliveredEvent) -> None:
        """Bury an event whose consumers died, unless its effect exists. This is asked once: it may kill, too."""
        if entry.deliveries == self._max_deliveries + 1:
            async with asyncio.timeout(self._handle_timeout_s):
                if await self._is_done(entry):
                    await self._group.finish([entry.id])
                    return
        await self._bury(entry, f"{self._max_deliveries} consumers had it and none of them finished it")

    # What becomes of events.

    async def _settle(self, entries: Sequence[DeliveredEvent]) -> None:
        if entries:
            async with self._kept_alive(entries):
                await self._handle(entries)

    async def _handle(self, entries: Sequence[DeliveredEvent]) -> None:
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

    async def _attempt(self, entries: Sequence[DeliveredEvent]) -> Mapping[str, str] | None:
        """Call the handler until what it needs is available. Return None if this consumer stops first."""
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

    async def _isolate(self, entries: Sequence[DeliveredEvent], error: Exception) -> None:
        """Find the event that fails, and settle the others."""
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

    async def _bury(self, entry: DeliveredEvent, reason: str) -> None:
        printable = reason.encode("utf-8", "backslashreplace").decode()
        if await self._group.bury(entry, printable):
            log.warning("event is a dead letter", stream=self.stream, id=entry.id, reason=printable)
            self._on_buried(entry, printable)

    @asynccontextmanager
    async def _kept_alive(self, entries: Sequence[DeliveredEvent]) -> AsyncIterator[None]:
        """Keep events alive while the block lasts, so that no other consumer claims them."""
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
                # At worst another consumer handles them, too, which is harmless.
                log.info("events are not kept alive", stream=self.stream, error=told(error))

    async def _hand_back(self) -> None:
        try:
            async with asyncio.timeout(READ_GRACE_S):
                mine = await self._group.pending(self._batch, mine=True)
                await self._group.hand_back(mine, 10 * self._claim_idle_ms)
        except UNREACHABLE as error:
            log.info("events are left to be taken over", stream=self.stream, error=told(error))


def shorter_than_timeout(block_ms: int, redis: Redis) -> int:
    """Return a BLOCK well below the client's time-out: otherwise a read without events would look broken."""
    timeout: float | None = redis.get_connection_kwargs().get("socket_timeout")
    return block_ms if timeout is None else max(1, min(block_ms, int(timeout * 500)))


def told(error: BaseException) -> str:
    """Return an error's class and message in one line."""
    return f"{type(error).__name__}: {error}"
