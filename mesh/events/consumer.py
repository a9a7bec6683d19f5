"""Durable events: one consumer group reads them from a stream, and a handler has effects outside Redis, such as in SQL.

A commit in SQL and an acknowledgement in Redis cannot be one step. So the effect comes first, then the acknowledgement.
If a process dies between the two, another consumer gets the event again. The handler must make the second effect
harmless, for example by a unique key. So each event has its effect exactly once. For effects in Redis, use a
transaction.

    one consumer reads a batch of events, and calls the handler
        done                 the events are acknowledged and deleted
        refused              the event is a dead letter at once, with the handler's reason
        the handler raises   the handler is called again for each half of the batch, and so on, until the event that
                             fails is alone and the others are done. The event that fails is tried again later, and is
                             a dead letter after `max_deliveries`
        Unavailable          (a database is down) the batch is tried again without end, kept alive, and never buried
        the consumer dies    another one takes its events over, in smaller and smaller batches. So an event that kills
                             its process takes no other event to the dead letters. Before such an event is buried, the
                             consumer looks whether its effect exists. If so, the event is acknowledged and deleted

Events that are done are deleted, not only acknowledged. So the length of the stream (XLEN) is the number of events that
wait, and a stream can have only one group. MAXLEN cannot replace the deletion, because it deletes unread events.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType

import structlog
from redis.asyncio import Redis

from mesh.errors import Unavailable
from mesh.events.reader import READ_GRACE_S, DeliveredEvent, EventReader, SerialConnection
from mesh.groups.consumer import COMMAND_ERRORS, GroupConsumer
from mesh.groups.deliveries import is_last, is_overdelivered
from mesh.groups.reader import Delivered, fields_of
from mesh.wire.backoff import pauses

log = structlog.get_logger(__name__)

#: The longest backoff while Redis cannot be reached. No caller waits for an event, so it may be long. A shorter one
#: costs more attempts to connect.
LONGEST_PAUSE_S = 5.0

#: The handler: makes the effects of these events durable, all or none. Returns a dict from the id of each refused event
#: to the reason. It may get an event again. Raises Unavailable if a later try may succeed.
Handle = Callable[[Sequence[DeliveredEvent]], Awaitable[Mapping[str, str]]]

#: Returns whether the effect of an event exists. Raises Unavailable if a later try may succeed.
IsDone = Callable[[DeliveredEvent], Awaitable[bool]]


async def effect_unknown(event: DeliveredEvent) -> bool:
    """Return False: nobody knows whether the effect of this event exists."""
    return False


def batch_size_after(deliveries: int, full_size: int) -> int:
    """Return how many events may be handled at once if each was delivered `deliveries` times before.

    New events are handled in whole batches. After each delivery that did not settle them, the batches are smaller: an
    eighth, and then one event. So an event that kills its process is found after few deliveries of the others.
    """
    match deliveries:
        case 0:
            return full_size
        case 1:
            # A smaller share needs more claims. With a larger one, more events lose a delivery to the one that kills.
            return max(1, full_size // 8)
        case _:
            return 1


class Events(GroupConsumer[DeliveredEvent]):
    """An async context manager that consumes a stream of events.

    On exit it finishes its batch, and hands back the events that are still pending for it. A batch is here the events
    that one read returns or one claim takes over, and that the handler gets together.

    `connect` opens a redis-py client for this consumer only, because its read blocks. `consumer` is a name that no
    other live consumer has. `handle` gets at most `batch` events, and at most `handle_timeout_ms` for them. Another
    consumer takes over events that a dead one has not kept alive for `claim_idle_ms`. After `max_deliveries` deliveries
    an event becomes a dead letter. The exit waits at most `drain_ms` for the batch. `on_buried` is called for each dead
    letter, with the reason. Before an event is buried because its consumers died, `is_done` is called once.

    The defaults are trades: a larger batch costs fewer steps for each event, but an event that fails or kills delays
    more others. A shorter idle time moves the events of a dead consumer sooner, but also those of one that stalls. With
    fewer deliveries, an event whose consumers died for other reasons is buried sooner. A handler that takes longer than
    its time is called again, which a longer time delays. A longer drain lets more batches finish, and delays the exit.
    """

    _reader: EventReader

    def __init__(
        self,
        connect: Callable[[], Redis],
        stream: str,
        group: str,
        consumer: str,
        handle: Handle,
        *,
        batch: int = 500,
        claim_idle_ms: int = 5000,
        max_deliveries: int = 5,
        handle_timeout_ms: int = 60_000,
        drain_ms: int = 2000,
        on_buried: Callable[[DeliveredEvent, str], None] = lambda event, reason: None,
        is_done: IsDone = effect_unknown,
    ) -> None:
        self._connection = SerialConnection.of(connect())
        super().__init__(
            EventReader(self._connection, stream, group, consumer),
            batch,
            claim_idle_ms=claim_idle_ms,
            keep_alive_ms=claim_idle_ms // 4,  # some keep-alives may fail before another consumer takes over
            pause_s=LONGEST_PAUSE_S,
            alone=False,  # other consumers may work on pending events of this stream
        )
        self.stream = stream
        self._handle, self._on_buried, self._is_done = handle, on_buried, is_done
        self._max_deliveries = max_deliveries
        self._handle_timeout_s, self._drain_s = handle_timeout_ms / 1000, drain_ms / 1000

    async def __aenter__(self) -> Events:
        self._task = asyncio.create_task(self.run(), name=f"events of {self.stream}")
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.stop(self._drain_s)
        finally:
            await self._abandon()  # again, because `stop` may have been cancelled or failed before it did this
            await self._connection.aclose()

    # The methods of GroupConsumer that this class defines. It works on one batch at a time.

    def _most_per_claim(self, deliveries: int) -> int:
        return batch_size_after(deliveries, self._most_per_read)

    async def _accept(self, entries: Sequence[Delivered]) -> None:
        """Settle the events of one read or claim. Bury those that were delivered too often, unless they are done."""
        events = [DeliveredEvent(id, fields_of(flat), deliveries) for id, deliveries, flat in entries]
        self._works = {event.id: event for event in events}  # GroupConsumer keeps these events alive
        try:
            # All entries of one read or claim have had equally many deliveries, so the first event stands for all.
            if not is_overdelivered(events[0].deliveries, self._max_deliveries):
                await self._settle(events)
                return
            for event in events:
                await self._bury_unless_done(event)
        finally:
            self._works = {}

    async def _abandon(self) -> bool:
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=self._drain_s)  # a handler may ignore its cancellation
        return True  # the cancelled task may have left events pending: `stop` hands them back

    async def _hand_back(self) -> None:
        try:
            # If Redis does not answer, the exit must not wait longer than this.
            async with asyncio.timeout(READ_GRACE_S):
                await super()._hand_back()
        except COMMAND_ERRORS as error:
            log.info("events are left to be taken over", stream=self.stream, error=class_and_message(error))

    def _failed(self, error: Exception) -> None:
        if isinstance(error, COMMAND_ERRORS):
            log.warning("events wait for Redis", stream=self.stream, error=class_and_message(error))
        else:
            log.exception("events consumer failed, starting again", stream=self.stream, exc_info=error)

    async def _bury_unless_done(self, event: DeliveredEvent) -> None:
        """Bury an event whose consumers died, unless its effect exists.

        It looks for the effect only at the first delivery after `max_deliveries`: the look may kill the process, too.
        """
        if event.deliveries == self._max_deliveries + 1:
            async with asyncio.timeout(self._handle_timeout_s):
                if await self._is_done(event):
                    await self._reader.finish([event.id])
                    return
        await self._bury(event, f"{self._max_deliveries} consumers had it and none of them finished it")

    # What becomes of the events of a batch.

    async def _settle(self, events: Sequence[DeliveredEvent]) -> None:
        """Call the handler for these events; then acknowledge those that are done, and bury those that are refused.

        If the handler raises, `_isolate` calls this again for each half of the events, until they are single.
        """
        try:
            refusals = await self._handle_when_available(events)
        except Exception as error:
            await self._isolate(events, error)
            return
        if refusals is None:
            return  # the consumer stops; the events stay pending
        await self._reader.finish([event.id for event in events if event.id not in refusals])
        for event in events:
            if event.id in refusals:
                await self._bury(event, refusals[event.id])

    async def _handle_when_available(self, events: Sequence[DeliveredEvent]) -> Mapping[str, str] | None:
        """Call the handler until it does not raise Unavailable. Return None if this consumer stops before that."""
        for failure_count, delay in enumerate(pauses()):
            try:
                async with asyncio.timeout(self._handle_timeout_s):
                    return await self._handle(events)
            except (Unavailable, TimeoutError) as error:
                write_log = log.debug if failure_count else log.warning  # one warning for each batch
                write_log("events wait for their handler", stream=self.stream, error=class_and_message(error))
            if await self._stopped_within(delay):
                break
        return None

    async def _isolate(self, events: Sequence[DeliveredEvent], error: Exception) -> None:
        """Find the event that fails, by halving the batch, and settle the others."""
        if len(events) > 1:
            middle = len(events) // 2
            await self._settle(events[:middle])
            await self._settle(events[middle:])
            return
        event = events[0]
        reason = class_and_message(error)
        log.warning("event failed", stream=self.stream, id=event.id, deliveries=event.deliveries, error=reason)
        # Unless this was its last delivery, the event stays pending. Later a consumer takes it over and tries again.
        if is_last(event.deliveries, self._max_deliveries):
            await self._bury(event, reason)

    async def _bury(self, event: DeliveredEvent, reason: str) -> None:
        # A reason may quote bytes of the event that are not UTF-8 (see DeliveredEvent).
        printable = reason.encode("utf-8", "backslashreplace").decode()
        if await self._reader.bury(event, printable):
            log.warning("event is a dead letter", stream=self.stream, id=event.id, reason=printable)
            self._on_buried(event, printable)


def class_and_message(error: BaseException) -> str:
    """Return an error's class and message, as one text."""
    return f"{type(error).__name__}: {error}"
