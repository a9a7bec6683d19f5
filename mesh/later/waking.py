"""One replica's part in waking requests that wait for their time, and in sending the ticks of schedules.

    mesh:later --due--> its stream          wake.lua
    mesh:schedules --tick--> streams        tick.lua

There is no process that does only this: every replica does it. Each script does its work in one atomic step, and
running it again does no harm. So several replicas may run it at the same time, and one may die while it runs. Each
renewal of a lease tells the replica when something is due next, and the replica sleeps until then.
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
from redis.exceptions import RedisError

from mesh import keys
from mesh.later.options import OPTIONS
from mesh.later.schedule import Schedule, Tick
from mesh.lease.applicant import Grant
from mesh.wire.codec import encode
from mesh.wire.failures import OVERWRITTEN_TEXT, Meaning, classify, text_of
from mesh.wire.link import Link
from mesh.wire.script import Script

log = structlog.get_logger(__name__)

#: WAKE moves due requests to their streams. CANCEL removes a request that its sender has a ticket for. SCHEDULE records
#: when an operation runs by itself, and TICK sends the requests of one such time.
WAKE = Script.beside(__file__, "wake.lua", "next_due.lua", *OPTIONS)
CANCEL = Script.beside(__file__, "cancel.lua", "left.lua", *OPTIONS)
SCHEDULE = Script.beside(__file__, "schedule.lua")
TICK = Script.beside(__file__, "tick.lua", "../requests/append.lua")
SCRIPTS = (WAKE, CANCEL, SCHEDULE, TICK)

#: The most requests that one run of wake.lua moves. The server does nothing else during a run: to move this number
#: takes some milliseconds. A smaller number needs more runs.
MOST_WOKEN = 256
#: The replica on database n waits n times this long before it wakes what is due. So usually a single replica does it:
#: the one on the lowest database. A longer time delays the wake when that replica is away; with a shorter one, several
#: replicas do the same work.
STAGGER_MS = 2
#: Longest sleep. A renewal of the lease ends the sleep if something is due earlier. A longer one would delay the next
#: writing of the schedules (REWRITE_S); a shorter one would end more often for nothing.
LONGEST_SLEEP_S = 1.0
#: How often a replica writes its schedules into Redis again, in case somebody has deleted them. Until then a deleted
#: schedule sends no ticks; a shorter time costs Redis more scripts.
REWRITE_S = 30.0
#: Pause after an error that says that somebody has overwritten a key. publish.lua, which writes some keys anew, runs as
#: often.
OVERWRITTEN_PAUSE_S = 5.0
#: The most entries of each stream among which a cancellation looks for its request. More would hold up the server
#: longer. A request behind this number of other entries is not found. A cancellation is rare, so it may read more
#: entries than tick.lua does.
MOST_SEARCHED = 10_000
#: For how long Redis remembers that a cancellation succeeded, so that the link's repetition gets the same answer. After
#: a shorter time, a late repetition would be told that the request has ended already.
CANCELLATION_REMEMBERED_MS = 60_000


class Waking:
    """Wakes due requests and sends due ticks, for as long as a membership lasts."""

    def __init__(
        self,
        link: Link,
        grant: Grant,
        database_count: int,
        now_ms: Callable[[], int],
        schedules: Mapping[str, Schedule],
        all_know_schedules: Callable[[], Awaitable[bool]],
    ) -> None:
        self._link = link
        self._grant = grant
        self._database_count = database_count
        self._now_ms = now_ms
        self._schedules = schedules
        #: returns whether every live replica is of a release that knows schedules
        self._all_know_schedules = all_know_schedules
        #: when something is due next, in ms of Redis's clock; None if no time is known
        self._next_ms: int | None = None
        #: set when `note_due` gets an earlier time
        self._earlier_due = asyncio.Event()

    def note_due(self, next_ms: int | None) -> None:
        """Note the next time at which something is due, in ms of Redis's clock. An earlier one ends the sleep."""
        if next_ms is not None and (self._next_ms is None or next_ms < self._next_ms):
            self._next_ms = next_ms
            self._earlier_due.set()

    async def run(self) -> None:
        """Wake due requests and send due ticks until cancelled."""
        while True:
            try:
                await self._wake_and_sleep()
            except RedisError as error:
                # Most calls need no key of waiting requests or schedules. So the membership goes on.
                if classify(error) is not Meaning.OVERWRITTEN:
                    raise
                log.error("waiting requests and schedules rest", reason=f"{OVERWRITTEN_TEXT}: {text_of(error)}")
                await asyncio.sleep(OVERWRITTEN_PAUSE_S)

    async def _wake_and_sleep(self) -> None:
        """Wake what is due, and sleep until something is due. Write the schedules into Redis again every REWRITE_S."""
        written_at = -math.inf
        while True:
            if time.monotonic() - written_at >= REWRITE_S:
                for name, schedule in self._schedules.items():
                    await self._write_schedule(name, schedule)
                written_at = time.monotonic()
            await self._sleep()
            if self._next_ms is not None and self._next_ms <= self._now_ms():
                await self._wake_due()

    async def _write_schedule(self, name: str, schedule: Schedule) -> None:
        words = (self._grant.epoch, schedule.definition, schedule.first_after(self._now_ms()), keys.MOST_DATABASES)
        self.note_due(int(await self._link.script(SCHEDULE, [keys.SCHEDULES, keys.schedule(name)], name, *words)))

    async def _sleep(self) -> None:
        """Sleep until something is due and this replica's stagger is over, or until `note_due` gets an earlier time."""
        self._earlier_due.clear()
        pause_s = LONGEST_SLEEP_S
        if self._next_ms is not None:
            wait_ms = self._next_ms - self._now_ms() + STAGGER_MS * self._grant.database
            pause_s = min(max(wait_ms, 0) / 1000, LONGEST_SLEEP_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._earlier_due.wait()

    async def _wake_due(self) -> None:
        """Move due requests to their streams, and send the ticks of due schedules that this replica serves."""
        answer = await self._link.script(WAKE, [keys.LATER, keys.SCHEDULES, keys.BOOKS], MOST_WOKEN)
        # The first value, the number of due requests, is not needed. `next_due_ms` is when something is due
        # next, or "". `unmovable` is the name of a request that could not be put on its stream, or "". `due_schedules`
        # are names.
        _, next_due_ms, unmovable, reason, *due_schedules = answer
        if unmovable:
            log.warning("request cannot be put on its stream and waits on", request=unmovable, reason=reason)
        # Only a replica that serves an operation sends its ticks.
        served_schedules = [name for name in due_schedules if name in self._schedules]
        if served_schedules and not await self._all_know_schedules():
            served_schedules = []
        ticks_are_settled = [await self._send_tick(name, self._schedules[name]) for name in served_schedules]
        # A replica may not send a tick if another release has defined the schedule, or if a live replica of an earlier
        # release does not know schedules. Then the schedule stays due, and the replica would look again at once, for
        # ever. So it waits until the next renewal says when to look. One settled tick is progress, so it looks again.
        self._next_ms = int(next_due_ms) if next_due_ms and (any(ticks_are_settled) or not due_schedules) else None

    async def _send_tick(self, name: str, schedule: Schedule) -> bool:
        """Send the tick of a schedule if it is due. Return whether it is settled, by this replica or another.

        If Redis had another definition of the schedule, only the definition is written, and the tick is not settled.
        """
        tick_ms, definition = await self._link.shared("HMGET", keys.schedule(name), "next", "definition")
        now_ms = self._now_ms()
        if definition != schedule.definition:
            await self._write_schedule(name, schedule)
            return False
        # Another replica has dealt with this tick meanwhile.
        if tick_ms is None or int(tick_ms) > now_ms:
            return True
        plan = schedule.plan(int(tick_ms), now_ms)
        # "*" and the number of databases stand for every live database.
        target_words: Sequence[str | int] = ("*", self._database_count) if schedule.each else (self._grant.cls,)
        # tick.lua names these words. A schedule has the name of its operation. The 0: the request has no deadline.
        sent = await self._link.script(  # a number of requests
            TICK, [keys.SCHEDULES, keys.schedule(name), keys.BOOKS],
            name, tick_ms, plan.following_ms, int(plan.sends), name, self._grant.replica, 0,
            encode(asdict(Tick(int(tick_ms), plan.missed_count))), int(not schedule.overlap), definition, *target_words,
        )  # fmt: skip
        if sent == 0:
            log.info("scheduled run left out", op=name, tick=tick_ms, missed=plan.missed_count)
        return True


async def cancel(link: Link, streams: Sequence[str], request_name: str) -> bool:
    """Remove the request with this name if it waits, is on a stream, or is worked on. Return False if none is found."""
    # The random digits name this attempt: if the link sends the script again, it gets the same key.
    key_names = [keys.LATER, keys.BOOKS, keys.CANCELLED + secrets.token_hex(8), *streams]
    return bool(await link.script(CANCEL, key_names, request_name, MOST_SEARCHED, CANCELLATION_REMEMBERED_MS))
