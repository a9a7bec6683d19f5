"""The loops of one consumer of a consumer group. Requests and events differ only in what they do with their entries.

    open the group
      -> recover: take over the entries that are already pending for us
      -> until stopped: take over what nobody keeps alive; read new entries; `_accept` both
      -> after any error: pause, and begin again
    meanwhile: keep alive the entries in progress
    stop: read no more, finish the entries in progress, hand back the rest

After a failed read, entries may be pending for this consumer without its knowledge, and no read of new entries returns
them. Therefore the consumer recovers before it reads on.
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

from mesh.groups.deliveries import next_group
from mesh.groups.reader import BLOCK_MS, Delivered, GroupReader
from mesh.wire.backoff import pauses

log = structlog.get_logger(__name__)

W = TypeVar("W")

#: Errors of a Redis that does not answer, or not as expected.
UNREACHABLE = (RedisError, OSError, TimeoutError)


class GroupConsumer(ABC, Generic[W]):
    """Reads a stream for its group, at most `most` entries at a time.

    A consumer that is `alone` on its stream begins with all pending entries, and takes over none later.
    """

    def __init__(
        self, reader: GroupReader, most: int, *, claim_idle_ms: int, keep_alive_ms: int, pause_s: float, alone: bool
    ) -> None:
        self._reader = reader
        self._most, self._alone = most, alone
        self._claim_idle_ms, self._keep_alive_s, self._longest_pause_s = claim_idle_ms, keep_alive_ms / 1000, pause_s
        #: entries in progress, by id; they are kept alive
        self._works: dict[str, W] = {}
        self._recovered = False
        self._take_over_at = 0.0
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()

    @abstractmethod
    async def _accept(self, entries: Sequence[Delivered]) -> None:
        """Work on entries, or begin to."""

    @abstractmethod
    async def _abandon(self) -> bool:
        """Stop working on the entries in progress; return whether entries may be left to hand back."""

    @abstractmethod
    def _failed(self, error: Exception) -> None:
        """Log an error of the loop, or raise it to end the consumer."""

    def _free(self) -> int:
        """Return how many entries can be accepted now; 0 when stopping."""
        return 0 if self._stopping.is_set() else self._most

    async def _room(self) -> int:
        """Wait until entries can be accepted, and return how many; 0 when stopping."""
        return self._free()

    def _together(self, deliveries: int) -> int:
        """Return how many entries with so many deliveries may be taken over at once."""
        return self._most

    def _kept_alive(self, ids: Sequence[str], lost: set[str]) -> None:
        """Receive the ids that were kept alive, and those of them that are no longer ours."""

    async def run(self) -> None:
        """Consume until stopped, and finish the entries in progress."""
        try:
            async with asyncio.TaskGroup() as tasks:
                alive = tasks.create_task(self._keep_alive())
                await self._read_all()
                alive.cancel()
        finally:
            self._ended.set()

    async def stop(self, wait_s: float) -> None:
        """Take no more entries, finish those in progress, and hand back what is left after `wait_s` seconds."""
        self._stopping.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._ended.wait()
        if await self._abandon():
            await self._hand_back()

    async def _hand_back(self) -> None:
        await self._reader.hand_back(self._claim_idle_ms)

    async def _read_all(self) -> None:
        """Read and accept entries until stopped, and wait for those in progress."""
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
        """Take over what is pending for us.

        The first time, these entries may have ended a former process of this name, so the delivery counts. Later they
        have not, and it does not count: otherwise an unstable network would have good entries given up.
        """
        await self._take_over(mine=self._recovered or not self._alone, idle_ms=0, count=not self._recovered)
        self._recovered = True

    async def _consume(self) -> None:
        block_ms = min(BLOCK_MS, self._claim_idle_ms // 4)
        while not self._stopping.is_set():
            if not self._alone and time.monotonic() >= self._take_over_at:
                await self._take_over(mine=False, idle_ms=self._claim_idle_ms, count=True)
                self._take_over_at = time.monotonic() + self._claim_idle_ms / 4000
            if room := self._free() or await self._room():
                entries = await self._reader.read(room, block_ms)
                if entries:
                    await self._accept(entries)

    async def _take_over(self, *, mine: bool, idle_ms: int, count: bool) -> None:
        """Claim and accept pending entries, the oldest first; those of one claim have equally many deliveries."""
        after = "-"
        while room := await self._room():
            page = await self._reader.pending(room, after, mine=mine, idle_ms=idle_ms)
            if not page:
                return
            others = [one for one in page if one.id not in self._works]
            group = next_group(others, self._together(others[0].deliveries)) if others else page
            after = f"({group[-1].id}"
            if others:
                ids, deliveries = [one.id for one in group], group[0].deliveries + count
                if entries := await self._reader.claim(ids, idle_ms, deliveries):
                    await self._accept(entries)

    async def _stopped_within(self, seconds: float) -> bool:
        """Wait; return whether the consumer is stopping."""
        # Not wait_for: in Python 3.11 it can lose a cancellation.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        return self._stopping.is_set()

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self._keep_alive_s)
            if ids := list(self._works):
                try:
                    lost = set(await self._reader.keep_alive(ids))
                except UNREACHABLE as error:
                    # At worst another consumer takes them over, which is harmless.
                    log.info("entries are not kept alive", stream=self._reader.stream, error=str(error))
                else:
                    self._kept_alive(ids, lost)
