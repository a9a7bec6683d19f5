"""A lease that this replica holds: it is renewed, trusted, released, or lost.

    held --renewed--> held --released--> the database is free; the roster row says "left" until it expires
      |
      +--not renewed in time, refused by the server, or the replica hangs--> lost

A thread with its own event loop and connection renews and releases the lease. So the lease survives a handler that
blocks the replica's event loop. The server counts the ttl from the moment at which it gets a renewal. The holder counts
a little less than the ttl, from the moment at which it sent the renewal. So the holder stops before the lease ends.
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

#: Renew the lease of a replica, and release it when the replica leaves.
RENEW = Script.beside(__file__, "renew.lua", "../later/next_due.lua")
RELEASE = Script.beside(__file__, "release.lua")
#: What renew.lua answers if it did not just renew (1).
_LOST, _RESTORED = 0, 2
#: What release.lua answers while requests are on the database's stream.
_REQUESTS_WAIT = -1

#: The holder stops trusting its lease when this part of the ttl is left. So it stops before the server ends the lease.
#: With a larger share, fewer late renewals are survived. With a smaller one, a holder whose clock is slow may trust a
#: lease that has ended.
SAFETY_SHARE = 0.1
#: Pause between attempts to release while requests wait for the database. A longer pause delays the end of a drain; a
#: shorter one costs Redis more tries.
RELEASE_POLL_S = 0.01
#: A replica gives its lease up when its event loop has not run for this many ttls. With a larger number, a process that
#: hangs keeps its database for longer. With a smaller one, a handler that blocks the loop for long costs the lease.
HUNG_TTLS = 10


@dataclass(frozen=True, slots=True)
class _Renewal:
    """The result of the last renewal that succeeded. Two threads read it, so each renewal makes a new object."""

    #: when it was sent, by `time.monotonic()`
    sent_at: float
    #: the end of the lease as far as the holder knows, in ms of Redis's clock; renew.lua restores a missing lease only
    #: before this time
    known_until_ms: int
    #: Redis's clock minus `time.monotonic()`
    clock_offset_ms: float


class Lease:
    """A lease that this replica holds. `run` keeps it; `trusted` says whether the replica may still act as the holder.

    The lease's thread and the replica's event loop share `_renewal`, `_loss`, `_loop_ran_at`, `_release_wait_s`,
    `_released`, `_extra_row_fields`, `paused_ops` and `state`. Each attribute has one writer, which replaces the value
    in one assignment. So no lock is needed.

    Two kinds of standstill end the lease:

    - The whole process does not run for most of the ttl: it is stopped, swapped out, or in one call into C that keeps
      Python's interpreter lock. To other replicas, it looks like a dead process.
    - The event loop has not run once in `HUNG_TTLS` ttls. The replica does no work, and a successor could.
    """

    def __init__(self, grant: Grant, settings: MeshSettings, connections: Connections, row: Mapping[str, str]) -> None:
        self.grant = grant
        #: what the roster row says: "starting", then "ready", then "draining"; release.lua writes "left"
        self.state = "starting"
        # The replica sets `describe`, `on_due` and `on_drain`.
        #: returns further fields of the roster row. The replica's event loop calls it at each renewal, for the next one
        self.describe: Callable[[], Mapping[str, str]] = dict
        #: called in the replica's event loop after a renewal, with the time (ms of Redis's clock) at which the next
        #: waiting request or schedule is due
        self.on_due: Callable[[int], None] = lambda _: None
        #: what `describe` returned last
        self._extra_row_fields: Mapping[str, str] = {}
        self._settings = settings
        self._fixed_row_fields = {
            **row,
            "class": grant.cls,
            "replica": grant.replica,
            "epoch": str(grant.epoch),
            "since": str(grant.granted_ms),
        }
        self._connections = connections
        self._renewal = _Renewal(
            sent_at=grant.sent_at,
            known_until_ms=grant.granted_ms + settings.lease_ttl_ms,
            # This neglects the time that the grant was on the network. The first renewal corrects it.
            clock_offset_ms=grant.granted_ms - time.monotonic() * 1000,
        )
        #: why the lease is lost; None while it is held
        self._loss: MeshError | None = None
        self._thread = LoopThread(self._hold, name=f"lease-{grant.replica}")
        #: set to renew or release now, before the next renewal is due
        self._must_act_now = asyncio.Event()
        #: when the replica's event loop last ran a call from the lease's thread, by `time.monotonic()`
        self._loop_ran_at = time.monotonic()
        #: the operations that were paused at the last renewal
        self.paused_ops: frozenset[str] = frozenset()
        #: called in the replica's event loop when an operator asks it to drain
        self.on_drain: Callable[[], None] = lambda: None
        #: how late (ms) the replica's event loop ran the last call from the lease's thread; the roster row shows it
        self.loop_ms = 0.0
        #: how long the release may wait for requests on the stream; None: keep the lease
        self._release_wait_s: float | None = None
        #: whether the release has succeeded
        self._released = False
        self._run_ended = asyncio.Event()

    @property
    def trusted(self) -> bool:
        """Whether this replica may still act as the holder."""
        since_renewal_ms = (time.monotonic() - self._renewal.sent_at) * 1000
        return self._loss is None and since_renewal_ms < self._settings.lease_ttl_ms * (1 - SAFETY_SHARE)

    def now_ms(self) -> int:
        """Return the time in ms of Redis's clock. The last renewal told it; `time.monotonic()` counts since then."""
        return int(time.monotonic() * 1000 + self._renewal.clock_offset_ms)

    def set_state(self, state: str) -> None:
        """Put a new state into the roster row by a renewal that is sent at once."""
        self._extra_row_fields = self.describe()
        self.state = state
        self.renew()

    def renew(self) -> None:
        """Ask the lease's thread to renew now, before the next renewal is due."""
        self._thread.call(self._must_act_now.set)

    async def run(self) -> None:
        """Keep the lease until it is released or this task is cancelled. Raises LeaseLost."""
        self._loop_ran_at = time.monotonic()
        try:
            await self._thread.run()
        finally:
            self._run_ended.set()

    async def release(self, wait_s: float) -> bool:
        """Release the lease, and return whether it was released. In both cases, `run` ends.

        While requests are on the database's stream, the release waits for them, but no longer than `wait_s`.
        """
        self._release_wait_s = wait_s
        self._thread.call(self._must_act_now.set)
        await self._run_ended.wait()
        return self._released

    # Everything below runs in the lease's thread, except `_loop_ran`, which runs in the replica's event loop.

    async def _hold(self) -> None:
        """Renew the lease until `release` asks for its end; then release it."""
        client = self._connections.client(f"lease-{self.grant.replica}")
        try:
            while self._release_wait_s is None:
                pause_s = await self._renew_or_lose(client)
                await self._wait_until_due(pause_s)
            self._released = await self._try_to_release(client, self._release_wait_s)
        finally:
            with contextlib.suppress(*failures.ANY):  # the connection is broken already
                await client.aclose()

    async def _renew_or_lose(self, client: Redis) -> float:
        """Try to renew once, and return the pause (s) until the next attempt. Raises LeaseLost."""
        interval_s = self._settings.renew_interval_ms / 1000
        # A process that did not run until its lease had ended must not renew it.
        self._check_trust()
        self._check_loop()
        try:
            await self._send_renewal(client)
        except failures.ANY as error:
            if failures.is_fenced(error):
                self._raise_lost(LeaseLost("the Redis user of this lease was deleted"), error)
            log.warning("lease renewal failed", database=self.grant.database, error=failures.text_of(error))
            self._check_trust()  # the attempt may have taken the rest of the time
            return min(interval_s, POLL_S)  # sooner than after a success, but not later if the ttl is short
        # If this process was stopped after it sent the renewal, even this renewal can be too old.
        self._check_trust()
        return interval_s

    async def _wait_until_due(self, pause_s: float) -> None:
        """Wait until the next renewal is due, or until `renew`, `set_state` or `release` ends the wait."""
        # `asyncio.wait_for` would lose a cancellation that comes together with the event (Python 3.11).
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._must_act_now.wait()
        self._must_act_now.clear()

    def _check_trust(self) -> None:
        if not self.trusted:
            self._raise_lost(LeaseLost("the lease was not renewed in time"))

    def _check_loop(self) -> None:
        """Lose the lease if the replica's event loop hangs or is closed; if not, let the loop run `_loop_ran`."""
        blocked_s = time.monotonic() - self._loop_ran_at
        if blocked_s > HUNG_TTLS * self._settings.lease_ttl_ms / 1000:
            self._raise_lost(LeaseLost(f"the event loop of this replica has been blocked for {blocked_s:.0f} s"))
        try:
            self._thread.call_back(functools.partial(self._loop_ran, time.monotonic()))
        except RuntimeError as error:
            self._raise_lost(LeaseLost("the event loop of this replica is closed"), error)

    def _loop_ran(self, called_at: float) -> None:
        """Note that the replica's event loop runs, and how late it ran this call, which was made at `called_at` (s)."""
        self._loop_ran_at = time.monotonic()
        self.loop_ms = (self._loop_ran_at - called_at) * 1000
        self._extra_row_fields = self.describe()

    def _raise_lost(self, error: LeaseLost, cause: BaseException | None = None) -> None:
        """Note that the lease is lost, and raise the error."""
        # The event loop reads this in `trusted`, even before the error has ended `run`.
        self._loss = error
        raise error from cause

    async def _send_renewal(self, client: Redis) -> None:
        """Renew once, and do what the answer says. Raises LeaseLost, or an error of redis-py or of the network."""
        grant = self.grant
        sent_at = time.monotonic()
        row_fields = [word for pair in {**self._fixed_row_fields, **self._extra_row_fields}.items() for word in pair]
        key_names = (
            keys.lease(grant.database),
            keys.row(grant.database),
            keys.replies(grant.replica),
            keys.expected(grant.database),
            keys.PAUSED,
            keys.drain(grant.replica),
            keys.LATER,
            keys.SCHEDULES,
        )
        arguments = (
            grant.holder, str(self._settings.lease_ttl_ms), self.state, "1" if grant.credentials else "0",
            str(self._connections.bus), str(grant.database), grant.cls, str(self._renewal.known_until_ms),
            str(self._settings.missing_ms),
        )  # fmt: skip
        # A renewal without an answer is given up after a third of the ttl. Trust counts from the moment of sending, so
        # the answer to a new renewal gives more time than a late answer to this one.
        async with asyncio.timeout(self._settings.lease_ttl_ms / 3000):
            outcome, now_ms, *rest_of_answer = await RENEW.run(client, key_names, *arguments, *row_fields)
        if outcome == _LOST:
            self._raise_lost(LeaseLost("the lease has ended, or another replica holds it"))
        if outcome == _RESTORED:
            log.error("lease restored on an emptied server", database=grant.database, epoch=grant.epoch)
        self._renewal = _Renewal(
            sent_at=sent_at,
            known_until_ms=int(now_ms) + self._settings.lease_ttl_ms,
            # Redis read its clock about halfway between the sending and the answer.
            clock_offset_ms=int(now_ms) - (sent_at + time.monotonic()) / 2 * 1000,
        )
        # renew.lua also answers when work is due next (ms, or ""), whether to drain, and the paused operations.
        due_ms, must_drain, *paused_ops = rest_of_answer
        self.paused_ops = frozenset(paused_ops)
        if due_ms:
            self._thread.call_back(functools.partial(self.on_due, int(due_ms)))
        if must_drain:
            log.info("an operator asks this replica to drain", database=grant.database)
            self._thread.call_back(self.on_drain)

    async def _try_to_release(self, client: Redis, wait_s: float) -> bool:
        """Release the lease; return whether it was released. If Redis refuses, the lease ends with its ttl.

        Requests on the database's stream delay this by at most `wait_s`. Then they stay there for the next holder.
        """
        grant = self.grant
        key_names = (
            keys.lease(grant.database),
            keys.row(grant.database),
            keys.database_requests(grant.database),
            keys.replies(grant.replica),
            keys.submitted(grant.replica),
            keys.committed(grant.replica),
            keys.expected(grant.database),
        )
        other_arguments = (self._connections.bus, grant.database, keys.MOST_DATABASES)
        until = time.monotonic() + wait_s  # then `force` releases the lease even if requests wait
        while self.trusted:
            force = time.monotonic() >= until
            try:
                outcome = await RELEASE.run(client, key_names, grant.holder, int(force), *other_arguments)
            except failures.ANY as error:
                log.warning("lease release failed", database=grant.database, error=failures.text_of(error))
                return False
            if outcome != _REQUESTS_WAIT:
                return bool(outcome)
            await asyncio.sleep(RELEASE_POLL_S)
        return False
