"""A lease that this replica holds: it is renewed, trusted, released, or lost.

    held --renewed--> held --released--> the database is free; the roster row stays as "left" for the rest of its time
      |
      +--not renewed in time, refused by the server, or the replica hangs--> lost

A thread with its own event loop and connection renews and releases the lease, so that a handler that blocks the
replica's event loop does not cost the lease. The holder trusts its lease from the time at which it sent the renewal,
and for a little less than the ttl, so its trust ends before the lease does.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog
from redis.asyncio import Redis

from mesh import keys
from mesh.errors import LeaseLost, MeshError
from mesh.lease.applicant import POLL_S, Grant
from mesh.lease.loop_thread import LoopThread
from mesh.settings import MeshSettings
from mesh.wire import failures
from mesh.wire.clients import Connections
from mesh.wire.script import Script

log = structlog.get_logger(__name__)

RENEW = Script.beside(__file__, "renew.lua", "../later/next_due.lua")
RELEASE = Script.beside(__file__, "release.lua")

#: The holder stops trusting its lease when this share of the ttl is left.
SAFETY = 0.1
#: Pause between attempts to release while requests wait for the database.
RELEASE_POLL_S = 0.01
#: A replica whose event loop has not run for this many ttls gives its lease up. A larger number frees the database of a
#: process that hangs later; a smaller one ends the membership when a handler blocks for long.
HANGS = 10


@dataclass(frozen=True, slots=True)
class _Renewal:
    """The result of the last renewal that succeeded. It is replaced as a whole, because two threads read it."""

    #: when it was sent, on this process's monotonic clock
    sent_at: float
    #: the end of the lease, in ms of the server's clock
    known_until_ms: int
    #: the server's clock minus our monotonic clock
    clock_offset_ms: float


class Lease:
    """A lease that this replica holds. `run` keeps it; `trusted` says whether it still holds.

    The thread of the lease and the replica's loop share `_renewal`, `_lost`, `_seen_alive_at`, `_release_within_s`,
    `_released`, `_described`, `paused` and `state`. Each of them is written by one of the two, in one assignment.

    Two kinds of standstill end the lease. A process that does not run at all for most of the ttl (stopped, swapped out,
    or within one call into C that keeps Python's lock) looks dead to all others. If the event loop has not run once in
    `HANGS` ttls, the replica does no work, and another one could.
    """

    def __init__(self, grant: Grant, settings: MeshSettings, connections: Connections, row: Mapping[str, str]) -> None:
        self.grant = grant
        self.state = "starting"
        #: further fields of the roster row; the replica's loop calls it before each renewal
        self.describe: Callable[[], Mapping[str, str]] = dict
        #: the replica's loop calls it with the time (ms of Redis's clock) that something is due next
        self.on_due: Callable[[int], None] = lambda _: None
        self._described: Mapping[str, str] = {}
        self._settings = settings
        self._row = {
            **row,
            "class": grant.cls,
            "replica": grant.replica,
            "epoch": str(grant.epoch),
            "since": str(grant.now_ms),
        }
        self._connections = connections
        self._renewal = _Renewal(
            sent_at=grant.granted_at,
            known_until_ms=grant.now_ms + settings.lease_ttl_ms,
            # The network delay is unknown until the first renewal.
            clock_offset_ms=grant.now_ms - time.monotonic() * 1000,
        )
        self._lost: MeshError | None = None
        self._thread = LoopThread(self._hold, name=f"lease-{grant.replica}")
        self._nudge = asyncio.Event()
        self._seen_alive_at = time.monotonic()
        #: operations that an operator has paused, as the last renewal told
        self.paused: frozenset[str] = frozenset()
        #: called in the replica's event loop when an operator asks it to drain
        self.on_drain: Callable[[], None] = lambda: None
        #: how late the replica's event loop ran the call that the last renewal gave it
        self.loop_ms = 0.0
        self._release_within_s: float | None = None
        self._released = False
        self._over = asyncio.Event()

    @property
    def trusted(self) -> bool:
        """Whether this replica may still act as the holder."""
        held_ms = (time.monotonic() - self._renewal.sent_at) * 1000
        return self._lost is None and held_ms < self._settings.lease_ttl_ms * (1 - SAFETY)

    def now_ms(self) -> int:
        """Return Redis's clock in ms: its time at the last renewal, and the time since then on our own clock."""
        return int(time.monotonic() * 1000 + self._renewal.clock_offset_ms)

    def set_state(self, state: str) -> None:
        """Put a new state into the roster, by a renewal that is sent at once."""
        self._described = self.describe()
        self.state = state
        self.renew()

    def renew(self) -> None:
        """Renew at once, and not only when the next renewal is due."""
        self._thread.call(self._nudge.set)

    async def run(self) -> None:
        """Keep the lease until it is released or this task is cancelled. Raises LeaseLost."""
        self._seen_alive_at = time.monotonic()
        try:
            await self._thread.run()
        finally:
            self._over.set()

    async def release(self, wait_s: float) -> bool:
        """Release the lease, and return whether that was done; `run` ends then.

        While requests wait on the database's stream, the release waits, too, but no longer than `wait_s`.
        """
        self._release_within_s = wait_s
        self._thread.call(self._nudge.set)
        await self._over.wait()
        return self._released

    # Everything below runs in the thread of the lease, except `_alive`, which the replica's loop runs

    async def _hold(self) -> None:
        client = self._connections.client(f"lease-{self.grant.replica}")
        try:
            while self._release_within_s is None:
                pause_s = await self._keep(client)
                await self._pause(pause_s)
            self._released = await self._release(client, self._release_within_s)
        finally:
            with contextlib.suppress(*failures.ANY):
                await client.aclose()

    async def _keep(self, client: Redis) -> float:
        """Renew once; return the pause until the next time in seconds. Raises LeaseLost."""
        interval_s = self._settings.renew_interval_ms / 1000
        # A process that slept through its lease must not renew it.
        self._check_trust()
        self._check_loop()
        try:
            await self._renew(client)
        except failures.ANY as error:
            if failures.is_fenced(error):
                self._lose(LeaseLost("the Redis user of this lease was deleted"), error)
            log.warning("lease renewal failed", database=self.grant.database, error=failures.text_of(error))
            self._check_trust()
            return min(interval_s, POLL_S)
        self._check_trust()
        return interval_s

    async def _pause(self, pause_s: float) -> None:
        # Not wait_for: in Python 3.11 it loses a cancellation that comes together with the nudge.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._nudge.wait()
        self._nudge.clear()

    def _check_trust(self) -> None:
        if not self.trusted:
            self._lose(LeaseLost("the lease was not renewed in time"))

    def _check_loop(self) -> None:
        """Lose the lease when the replica's event loop hangs; stop when it is closed."""
        silent_s = time.monotonic() - self._seen_alive_at
        if silent_s > HANGS * self._settings.lease_ttl_ms / 1000:
            self._lose(LeaseLost(f"the event loop of this replica has been blocked for {silent_s:.0f} s"))
        try:
            self._thread.call_back(functools.partial(self._alive, time.monotonic()))
        except RuntimeError as error:
            self._lose(LeaseLost("the event loop of this replica is closed"), error)

    def _alive(self, called_at: float) -> None:
        self._seen_alive_at = time.monotonic()
        self.loop_ms = (self._seen_alive_at - called_at) * 1000
        self._described = self.describe()

    def _lose(self, error: LeaseLost, cause: BaseException | None = None) -> None:
        self._lost = error
        raise error from cause

    async def _renew(self, client: Redis) -> None:
        grant = self.grant
        sent_at = time.monotonic()
        fields = [word for pair in {**self._row, **self._described}.items() for word in pair]
        names = (
            keys.lease(grant.database),
            keys.row(grant.database),
            keys.replies(grant.replica),
            keys.expected(grant.database),
            keys.PAUSED,
            keys.drain(grant.replica),
            keys.LATER,
            keys.SCHEDULES,
        )
        words = (
            grant.holder, str(self._settings.lease_ttl_ms), self.state, "1" if grant.credentials else "0",
            str(self._connections.bus), str(grant.database), grant.cls, str(self._renewal.known_until_ms),
            str(self._settings.missing_ms),
        )  # fmt: skip
        # Give up a renewal that hangs early: trust counts from the time of sending, so a new renewal gains time.
        async with asyncio.timeout(self._settings.lease_ttl_ms / 3000):
            outcome, now_ms, *news = await RENEW.run(client, names, *words, *fields)
        if outcome == 0:
            self._lose(LeaseLost("the lease has ended, or another replica holds it"))
        if outcome == 2:
            log.error("lease restored on an emptied server", database=grant.database, epoch=grant.epoch)
        self._renewal = _Renewal(
            sent_at=sent_at,
            known_until_ms=int(now_ms) + self._settings.lease_ttl_ms,
            clock_offset_ms=int(now_ms) - (sent_at + time.monotonic()) * 500,
        )
        due_ms, drain, *paused = news or ["", 0]
        self.paused = frozenset(paused)
        if due_ms:
            self._thread.call_back(functools.partial(self.on_due, int(due_ms)))
        if drain:
            log.info("an operator asks this replica to drain", database=grant.database)
            self._thread.call_back(self.on_drain)

    async def _release(self, client: Redis, wait_s: float) -> bool:
        grant = self.grant
        names = (
            keys.lease(grant.database),
            keys.row(grant.database),
            keys.database_requests(grant.database),
            keys.replies(grant.replica),
            keys.submitted(grant.replica),
            keys.committed(grant.replica),
            keys.expected(grant.database),
        )
        where = (self._connections.bus, grant.database, keys.MOST_DATABASES)
        until = time.monotonic() + wait_s
        while self.trusted:
            force = time.monotonic() >= until
            try:
                released = await RELEASE.run(client, names, grant.holder, int(force), *where)
            except failures.ANY as error:
                log.warning("lease release failed", database=grant.database, error=failures.text_of(error))
                return False
            if released >= 0:
                return bool(released)
            await asyncio.sleep(RELEASE_POLL_S)
        return False
