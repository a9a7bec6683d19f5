"""Requests that wait for their time, and schedules: no process of their own, any replica wakes them.

    mesh:later --due--> its stream          wake.lua
    mesh:schedules --tick--> streams        tick.lua

Both scripts do all of their work in one step, so any replica may run them at any time, twice, or while it dies. Each
replica learns with every renewal of its lease when something is due next, and sleeps until then.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict

import structlog

from mesh import keys
from mesh.later.options import OPTIONS
from mesh.later.schedule import Schedule, Tick
from mesh.lease.applicant import Grant
from mesh.wire.codec import encode
from mesh.wire.link import Link
from mesh.wire.script import Script

log = structlog.get_logger(__name__)

WAKE = Script.beside(__file__, "wake.lua", "next_due.lua", *OPTIONS)
CANCEL = Script.beside(__file__, "cancel.lua", "left.lua", *OPTIONS)
SCHEDULE = Script.beside(__file__, "schedule.lua")
TICK = Script.beside(__file__, "tick.lua", "../requests/append.lua")
SCRIPTS = (WAKE, CANCEL, SCHEDULE, TICK)

#: Requests that are moved in one step: some milliseconds of the server's time.
MOST_AT_ONCE = 256
#: A replica wakes requests this much later than the one with the next lower database, so that mostly one does it.
STAGGER_MS = 2
#: Longest sleep. What is due sooner than that, a replica learns from its renewals.
LONGEST_S = 1.0
#: Pause between two writes of our schedules, which somebody may have deleted.
RECORD_S = 30.0
#: Entries of one stream that a cancellation looks at.
MOST_SEARCHED = 10_000
CANCELLATION_REMEMBERED_MS = 60_000


class Waking:
    """One replica's part in waking: `run` does it for as long as the membership lasts."""

    def __init__(
        self,
        link: Link,
        grant: Grant,
        databases: int,
        now_ms: Callable[[], int],
        schedules: Mapping[str, Schedule],
        is_understood: Callable[[], Awaitable[bool]],
    ) -> None:
        self._link = link
        self._grant = grant
        self._databases = databases
        self._now_ms = now_ms
        self._schedules = schedules
        #: whether every live replica knows what `every` is
        self._is_understood = is_understood
        self._next_ms: int | None = None
        self._news = asyncio.Event()

    def learn(self, next_ms: int | None) -> None:
        """Take note of the time, in ms of Redis's clock, at which something is due next."""
        if next_ms is not None and (self._next_ms is None or next_ms < self._next_ms):
            self._next_ms = next_ms
            self._news.set()

    async def run(self) -> None:
        """Wake what is due, and send ticks."""
        recorded_at = -math.inf
        while True:
            if time.monotonic() - recorded_at >= RECORD_S:
                for name, schedule in self._schedules.items():
                    await self._record(name, schedule)
                recorded_at = time.monotonic()
            await self._sleep()
            if self._next_ms is not None and self._next_ms <= self._now_ms():
                await self._wake()

    async def _record(self, name: str, schedule: Schedule) -> None:
        words = (self._grant.epoch, schedule.definition, schedule.after(self._now_ms()), keys.MOST_DATABASES)
        self.learn(int(await self._link.script(SCHEDULE, [keys.SCHEDULES, keys.schedule(name)], name, *words)))

    async def _sleep(self) -> None:
        """Sleep until something is due, in the order of the databases, or until there is news."""
        self._news.clear()
        pause_s = LONGEST_S
        if self._next_ms is not None:
            wait_ms = self._next_ms - self._now_ms() + STAGGER_MS * self._grant.database
            pause_s = min(max(wait_ms, 0) / 1000, LONGEST_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._news.wait()

    async def _wake(self) -> None:
        words = await self._link.script(WAKE, [keys.LATER, keys.SCHEDULES, keys.BOOKS], MOST_AT_ONCE)
        _, following, failed, reason, *ticks = words
        if failed:
            log.warning("request cannot be put on its stream and waits on", request=failed, reason=reason)
        ours = [name for name in ticks if name in self._schedules]
        if ours and not await self._is_understood():
            ours = []
        done = [await self._tick(name, self._schedules[name]) for name in ours]
        # A schedule stays due if another release runs it, or if an older live release could not run it. The next
        # renewal says when to look again.
        self._next_ms = int(following) if following and (any(done) or not ticks) else None

    async def _tick(self, name: str, schedule: Schedule) -> bool:
        """Send a tick that is due. Return False where the definition of another release counts."""
        found, definition = await self._link.shared("HMGET", keys.schedule(name), "next", "definition")
        now_ms = self._now_ms()
        if definition != schedule.definition:
            await self._record(name, schedule)
            return False
        if found is None or int(found) > now_ms:
            return True
        plan = schedule.plan(int(found), now_ms)
        to: Sequence[str | int] = ("*", self._databases) if schedule.each else (self._grant.cls,)
        sent = await self._link.script(
            TICK, [keys.SCHEDULES, keys.schedule(name), keys.BOOKS],
            name, found, plan.following_ms, int(plan.sends), name, self._grant.replica, 0,
            encode(asdict(Tick(int(found), plan.missed))), int(not schedule.overlap), definition, *to,
        )  # fmt: skip
        if sent == 0:
            log.info("scheduled run left out", op=name, tick=found, missed=plan.missed)
        return True


async def cancel(link: Link, streams: Sequence[str], key: str) -> bool:
    """Remove a request that waits or is being worked on. Return False when it is over already."""
    names = [keys.LATER, keys.BOOKS, keys.CANCELLED + secrets.token_hex(8), *streams]
    return bool(await link.script(CANCEL, names, key, MOST_SEARCHED, CANCELLATION_REMEMBERED_MS))
