"""One consumer of a consumer group: its loops, the same for requests and events. Subclasses work on the entries.

    open the group
      -> recover: take over the entries that are already pending for this consumer
      -> until stopped: take over entries that nobody keeps alive; read new entries; `_accept` both
      -> after any error: pause, and begin again
    meanwhile: keep alive the entries in progress
    stop: read no more, finish the entries in progress, hand back those that take too long

If the answer to a read is lost, Redis may have delivered entries that this consumer never got. They are pending for it,
and no read of new entries returns them. So after each error the consumer recovers first.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

import structlog
from redis.exceptions import RedisError

from mesh.groups.deliveries import next_to_claim
from mesh.groups.reader import BLOCK_MS, Delivered, GroupReader
from mesh.wire.backoff import pauses

log = structlog.get_logger(__name__)

W = TypeVar("W")

#: What a command may raise: Redis cannot be reached, or it refuses the command. A consumer logs it and tries again.
COMMAND_ERRORS = (RedisError, OSError, TimeoutError)


class GroupConsumer(ABC, Generic[W]):
    """Reads a stream for its group, at most `most_per_read` entries at a time.

    At its start and after each error, it takes over the entries that are pending for itself. `alone` says that no other
    consumer works on entries of this stream. A consumer that is alone takes over all pending entries at its start.
    Any other consumer takes over, again and again, entries that nobody has kept alive for `claim_idle_ms`.

    `pause_s` is the longest backoff after an error. `W` is the type of the object that the consumer keeps for each
    entry in progress.
    """

    def __init__(
        self,
        reader: GroupReader,
        most_per_read: int,
        *,
        claim_idle_ms: int,
        keep_alive_ms: int,
        pause_s: float,
        alone: bool,
    ) -> None:
        self._reader = reader
        self._most_per_read, self._alone = most_per_read, alone
        self._claim_idle_ms, self._keep_alive_s, self._longest_pause_s = claim_idle_ms, keep_alive_ms / 1000, pause_s
        #: The entries in progress, by id. The subclass adds an entry when it begins to work on it, and removes the
        #: entry when this work ends. This class keeps the entries alive, and `_kept_alive` learns which ones are lost.
        self._works: dict[str, W] = {}
        #: whether `_recover` has succeeded in this process
        self._recovered = False
        #: when to look for entries of other consumers again, on the monotonic clock, in seconds
        self._take_over_at = 0.0
        #: set when `stop` was called
        self._stopping = asyncio.Event()
        #: set when `run` has ended
        self._ended = asyncio.Event()

    @abstractmethod
    async def _accept(self, entries: Sequence[Delivered]) -> None:
        """Work on entries until they are settled, or begin to work on them.

        A subclass that only begins keeps the tasks, and waits at the end of its `_read_all` until they have ended.
        """

    @abstractmethod
    async def _abandon(self) -> bool:
        """Stop working on the entries in progress, so that `run` can end.

        Return whether some entries may be pending: then `stop` hands them back.
        """

    @abstractmethod
    def _failed(self, error: Exception) -> None:
        """Log an error of the loop, or raise it: then the consumer ends."""

    def room_now(self) -> int:
        """Return how many more entries the consumer can accept now; 0 when it stops."""
        return 0 if self._stopping.is_set() else self._most_per_read

    async def _wait_for_room(self) -> int:
        """Wait until the consumer can accept entries, and return how many; 0 when it stops."""
        return self.room_now()

    def _most_per_claim(self, deliveries: int) -> int:
        """Return how many entries one claim may take over if each has had this number of deliveries.

        An entry may kill the process that works on it, and then each entry of the same claim has had one more delivery.
        So a subclass may claim fewer at once after each delivery. In the end, the entry that kills is claimed alone.
        """
        return self._most_per_read

    def _kept_alive(self, ids: Sequence[str], lost: set[str]) -> None:
        """Receive the ids of the entries in progress. Those in `lost` no longer belong to this consumer.

        Here this does nothing: a subclass may stop the work on lost entries.
        """

    async def run(self) -> None:
        """Consume entries until stopped, and finish those in progress.

        Entries are kept alive until `_read_all` returns. If work is still going on when the wait of `stop` is over,
        `_abandon` ends it.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                keep_alive_task = tasks.create_task(self._keep_alive())
                await self._read_all()
                keep_alive_task.cancel()
        finally:
            self._ended.set()

    async def stop(self, wait_s: float) -> None:
        """Take no more entries, finish those in progress, and hand back those that are left after `wait_s` seconds."""
        self._stopping.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._ended.wait()
        if await self._abandon():
            await self._hand_back()

    async def _hand_back(self) -> None:
        # Other consumers claim entries that are idle for this long, so they claim these at once.
        await self._reader.hand_back(self._claim_idle_ms)

    async def _read_all(self) -> None:
        """Read and accept entries until stopped; after an error, pause and begin again."""
        delays = pauses(most=self._longest_pause_s)
        while not self._stopping.is_set():
            try:
                await self._reader.open()
                await self._recover()
                delays = pauses(most=self._longest_pause_s)
                await self._consume()
            except Exception as error:
                self._failed(error)
                await self._stopped_within(next(delays))

    async def _recover(self) -> None:
        """Take over the entries that are pending for this consumer. If it is `alone`, take over all at its start.

        At the start, the entries may have killed the process that had them before, so this delivery counts. After a
        later error, this process still runs: the entries have not killed it, so this delivery does not count.
        If it did, lost answers to reads could use up the deliveries of an entry that nobody has worked on.
        """
        await self._take_over(mine=self._recovered or not self._alone, idle_ms=0, count=not self._recovered)
        self._recovered = True

    async def _consume(self) -> None:
        """Read new entries, and take over those of other consumers, until this consumer stops."""
        # Entries of others are looked for four times in each `claim_idle_ms`. So a read blocks for a quarter at most.
        block_ms = min(BLOCK_MS, self._claim_idle_ms // 4)
        while not self._stopping.is_set():
            if not self._alone and time.monotonic() >= self._take_over_at:
                await self._take_over(mine=False, idle_ms=self._claim_idle_ms, count=True)
                # After a quarter of `claim_idle_ms`, in seconds.
                self._take_over_at = time.monotonic() + self._claim_idle_ms / 4000
            # While there is room, `room_now` gives the same number as `_wait_for_room`, without a coroutine.
            if room := self.room_now() or await self._wait_for_room():
                entries = await self._reader.read(room, block_ms)
                if entries:
                    await self._accept(entries)

    async def _take_over(self, *, mine: bool, idle_ms: int, count: bool) -> None:
        """Claim and accept pending entries, the oldest first. If `mine`, claim only those of this consumer.

        One claim sets one number of deliveries (XCLAIM with RETRYCOUNT). So it takes only entries that have had equally
        many deliveries. `count` is no number: it says whether the claim counts as one more delivery. Each page begins
        after the entries before it, so this ends when it has passed all pending entries.
        """
        range_start = "-"  # as in XPENDING: from the first entry on; "(" and an id: after this id
        while room := await self._wait_for_room():
            page = await self._reader.pending(room, range_start, mine=mine, idle_ms=idle_ms)
            if not page:
                return
            claimable = [entry for entry in page if entry.id not in self._works]
            # If all entries of the page are in progress here, none is claimed, and the next page comes after them.
            passed = next_to_claim(claimable, self._most_per_claim(claimable[0].deliveries)) if claimable else page
            range_start = f"({passed[-1].id}"
            if claimable:
                ids, deliveries = [entry.id for entry in passed], passed[0].deliveries + count
                if entries := await self._reader.claim(ids, idle_ms, deliveries):
                    await self._accept(entries)

    async def _stopped_within(self, seconds: float) -> bool:
        """Wait for this time, or until the consumer stops; return whether it stops."""
        # Not `wait_for`, which can lose a cancellation in Python 3.11.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        return self._stopping.is_set()

    async def _keep_alive(self) -> None:
        """Keep the entries in progress alive until cancelled, and tell `_kept_alive` which ones are lost."""
        while True:
            await asyncio.sleep(self._keep_alive_s)
            if ids := list(self._works):
                try:
                    lost = set(await self._reader.keep_alive(ids))
                except COMMAND_ERRORS as error:
                    # At worst another consumer takes the entries over, which does no harm.
                    log.info("entries are not kept alive", stream=self._reader.stream, error=str(error))
                else:
                    self._kept_alive(ids, lost)
