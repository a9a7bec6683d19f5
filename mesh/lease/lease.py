"""The exclusive right to a database, until a time.

    free --grant--> held --renew--> held --release--> free (the roster row stays as "left" for the rest of its time)
                     |
                     +--- not renewed in time: the key expires, whoever comes next is granted a higher epoch,
                          and the former holder's Redis user is deleted in the same transaction

The holder trusts its lease from before the renewal was sent, and gives up by itself a little before the server does.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from redis import exceptions as redis_errors
from redis.asyncio import Redis

from mesh import keys
from mesh.errors import LeaseLost, MeshError, Unavailable
from mesh.lease import acl
from mesh.lease.loop_thread import LoopThread
from mesh.settings import Isolation, MeshSettings
from mesh.wire.clients import FENCED, PASSING, Connections, Credentials, check_server, is_fenced
from mesh.wire.script import Script

log = structlog.get_logger(__name__)

SURVEY = Script.beside(__file__, "survey.lua")
GRANT = Script.beside(__file__, "grant.lua")
RENEW = Script.beside(__file__, "renew.lua")
RELEASE = Script.beside(__file__, "release.lua")

#: The holder's trust ends this part of the ttl before the server's.
SAFETY = 0.1
POLL_S = 0.1
#: A replica whose event loop has not run for this many ttls gives its lease up. More frees the database of a hung
#: process later; less ends replicas over a handler that blocks for long.
HANGS = 10


@dataclass(frozen=True, slots=True)
class Row:
    """One database as a starting replica finds it."""

    database: int
    lease: str
    pttl: int
    cls: str
    size: int
    state: str

    @property
    def free(self) -> bool:
        return not self.lease

    def foreign(self, bus: int) -> bool:
        """Holds keys, and none of them is ours."""
        return not self.cls and self.size > 0 and self.database != bus


@dataclass(frozen=True, slots=True)
class Take:
    database: int


@dataclass(frozen=True, slots=True)
class Wait:
    reason: str


def choose(rows: Sequence[Row], alive: set[int], bus: int) -> Take | Wait:
    """Which database to take.

    One that has a class first: its data live again. An unused one (from 1 up, the bus last) only once every leased
    one is known to be alive, lest a replica that is restarted takes a new database and leaves its own without a
    holder. `alive` are the leases seen being renewed.
    """
    free = sorted(
        (row for row in rows if row.free and not row.foreign(bus)),
        key=lambda r: (r.database == bus, r.database),
    )
    for row in free:
        if row.cls:
            return Take(row.database)
    doubtful = [row.database for row in rows if not row.free and row.database not in alive]
    if free and doubtful:
        return Wait(f"database {doubtful[0]} may come free: its holder has not renewed since we look")
    if free:
        return Take(free[0].database)
    foreign = [row.database for row in rows if row.foreign(bus)]
    if foreign and len(foreign) == sum(row.free for row in rows):
        return Wait(f"the only free databases ({foreign}) hold somebody else's keys")
    return Wait(f"all {len(rows)} databases are leased")


class Observation:
    """Tells which leases are alive: those that were renewed, or granted, since we look.

    How much is left of a lease says nothing: a replica can be killed and started anew before a tenth of it is gone.
    """

    def __init__(self, ttl_ms: int) -> None:
        self._ttl_ms = ttl_ms
        self._seen: dict[int, Row] = {}
        self._alive: dict[int, str] = {}

    def update(self, rows: Sequence[Row]) -> set[int]:
        for row in rows:
            before = self._seen.get(row.database)
            granted = before is not None and before.lease != row.lease
            renewed = before is not None and before.lease == row.lease and row.pttl > before.pttl
            if row.lease and row.state != "draining" and (renewed or granted):
                self._alive[row.database] = row.lease
            elif self._alive.get(row.database) != row.lease or row.state == "draining" or self._overdue(row):
                self._alive.pop(row.database, None)
            self._seen[row.database] = row
        return set(self._alive)

    def _overdue(self, row: Row) -> bool:
        # Six renewals fit in a lease; whoever missed one may have died while we look.
        return row.pttl < self._ttl_ms * 3 // 4


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease as it was granted."""

    database: int
    cls: str
    epoch: int
    replica: str
    credentials: Credentials | None
    granted_at: float
    now_ms: int

    @property
    def holder(self) -> str:
        """What stands in the lease."""
        return f"{self.epoch} {self.replica}"


class Applicant:
    """A replica that has no lease yet; speaks to Redis as the shared user."""

    def __init__(self, settings: MeshSettings, connections: Connections, replica: str, row: Mapping[str, str]) -> None:
        self._settings = settings
        self._connections = connections
        self._replica = replica
        self._row = row
        self._waits_for = ""
        #: told why there is no lease yet
        self.on_wait: Callable[[str], None] = lambda reason: None

    async def apply(self) -> Grant:
        """Wait for a lease, for as long as it takes. Raises SetupError where waiting cannot help."""
        client = self._connections.client(f"applicant-{self._replica}")
        try:
            while True:
                try:
                    return await self._apply(client)
                except (Unavailable, *PASSING) as error:
                    if isinstance(error, FENCED) or is_fenced(error):
                        raise
                    self._wait(f"Redis cannot be used: {error}")
                    await asyncio.sleep(2 * POLL_S)
        finally:
            await client.aclose()

    def _wait(self, reason: str) -> None:
        if reason != self._waits_for:
            log.info("waiting for a lease", reason=reason)
            self._waits_for = reason
            self.on_wait(reason)

    async def _apply(self, client: Redis) -> Grant:
        version = await check_server(client)
        dialect = None
        if self._settings.isolation is Isolation.ACL:
            dialect = await acl.probe(client, version)
        observation = Observation(self._settings.lease_ttl_ms)
        while True:
            rows = await self.survey(client)
            choice = choose(rows, observation.update(rows), self._connections.bus)
            if isinstance(choice, Wait):
                self._wait(choice.reason)
                await asyncio.sleep(POLL_S)
                continue
            grant = await self._take(client, choice.database, dialect)
            if grant is not None:
                return grant

    async def survey(self, client: Redis) -> list[Row]:
        """Every database at one moment."""
        bus = self._connections.bus
        rows = await client.eval(SURVEY.source, 0, str(bus), str(self._settings.databases))
        return [Row(*row) for row in rows]

    async def _take(self, client: Redis, database: int, dialect: acl.Dialect | None) -> Grant | None:
        """Grant ourselves the database; return None if another replica was faster.

        Without a dialect the server does not enforce isolation. The lease is watched: if it is granted meanwhile, the
        change of the Redis user must not happen either.
        """
        credentials = acl.new_credentials(database)
        granted_at = time.monotonic()
        async with client.pipeline(transaction=True) as pipeline:
            await pipeline.watch(keys.lease(database))
            if await pipeline.exists(keys.lease(database)):
                return None
            pipeline.multi()
            pipeline.eval(GRANT.source, 4, *self._grant_keys(database), *self._grant_arguments(database))
            if dialect is not None:
                rules = acl.rules(database, self._connections.bus, credentials.password or "", dialect)
                pipeline.execute_command("ACL", "DELUSER", credentials.username)
                pipeline.execute_command("ACL", "SETUSER", credentials.username, *rules)
            try:
                answers = await pipeline.execute()
            except redis_errors.WatchError:
                return None
        epoch, cls, now_ms = answers[0]
        return Grant(
            database=database,
            cls=cls,
            epoch=int(epoch),
            replica=self._replica,
            credentials=credentials if dialect is not None else None,
            granted_at=granted_at,
            now_ms=int(now_ms),
        )

    def _grant_keys(self, database: int) -> list[str]:
        return [keys.EPOCH, keys.lease(database), keys.row(database), keys.replies(self._replica)]

    def _grant_arguments(self, database: int) -> list[str]:
        settings = self._settings
        at_random = random.randrange(1, 1 << 30) if settings.class_policy == "random" else 0
        words: list[Any] = [
            self._connections.bus,
            database,
            self._replica,
            settings.lease_ttl_ms,
            settings.classes,
            settings.class_ or "",
            at_random,
            settings.databases,
        ]
        for name, value in self._row.items():
            words += [name, value]
        return [str(word) for word in words]


@dataclass(frozen=True, slots=True)
class _Renewal:
    """What the last renewal that succeeded has told. Replaced as a whole, because two threads read it."""

    #: when it was sent, by this process's monotonic clock
    sent_at: float
    #: the end of the lease, in ms of the server's clock
    known_until_ms: int
    #: the server's clock minus our monotonic clock
    clock_offset_ms: float


class Lease:
    """A lease in our hands. `run` keeps it; `trusted` says whether it still holds.

        held --renewed--> held --release--> released
                |
                +--not renewed in time, refused by the server, or the replica hangs--> lost

    A thread with an event loop and a connection of its own renews and releases it, so that a handler that blocks the
    replica's event loop does not cost the lease. All that this thread shares with the replica's loop is `_renewal`,
    `_lost`, `_seen_alive_at`, `_release_within_s` and `state`: each is written by one of the two, in one assignment.

    Two kinds of standstill still end the lease, as they must. A process that does not run at all (stopped, swapped out,
    or within one call into C that keeps Python's lock) for most of the ttl is the same to everybody else as one that is
    dead. An event loop that has not run once in `HANGS` ttls serves nobody; another replica can.
    """

    def __init__(self, grant: Grant, settings: MeshSettings, connections: Connections, row: Mapping[str, str]) -> None:
        self.grant = grant
        self.state = "ready"
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
        self._release_within_s: float | None = None
        self._released = False
        self._over = asyncio.Event()

    @property
    def trusted(self) -> bool:
        """Whether we may still act as the holder."""
        held_ms = (time.monotonic() - self._renewal.sent_at) * 1000
        return self._lost is None and held_ms < self._settings.lease_ttl_ms * (1 - SAFETY)

    def now_ms(self) -> int:
        """Redis's clock, as of the last renewal and our own pace since."""
        return int(time.monotonic() * 1000 + self._renewal.clock_offset_ms)

    def set_state(self, state: str) -> None:
        """Tell the roster, with the next renewal, which comes at once."""
        self.state = state
        self._thread.call(self._nudge.set)

    async def run(self) -> None:
        """Keep the lease until it is released or we are cancelled. Raises LeaseLost."""
        self._seen_alive_at = time.monotonic()
        try:
            await self._thread.run()
        finally:
            self._over.set()

    async def release(self, wait_s: float) -> bool:
        """Give the database back once no request waits for it, or after `wait_s` anyway. Return whether we did.

        `run` ends then.
        """
        self._release_within_s = wait_s
        self._thread.call(self._nudge.set)
        await self._over.wait()
        return self._released

    # From here on: in the thread of the lease

    async def _hold(self) -> None:
        client = self._connections.client(f"lease-{self.grant.replica}")
        try:
            while self._release_within_s is None:
                pause_s = await self._keep(client)
                await self._pause(pause_s)
            self._released = await self._release(client, self._release_within_s)
        finally:
            with contextlib.suppress(*PASSING):
                await client.aclose()

    async def _keep(self, client: Redis) -> float:
        """Renew once; return the pause until the next time in seconds. Raises LeaseLost."""
        interval_s = self._settings.renew_interval_ms / 1000
        # A process that slept through its lease must not renew it.
        self._check_trust()
        self._check_loop()
        try:
            await self._renew(client)
        except (redis_errors.RedisError, *PASSING) as error:
            if is_fenced(error):
                self._lose(LeaseLost("the Redis user of this lease is gone"), error)
            if not isinstance(error, PASSING):
                log.warning("lease renewal failed", error=str(error))
            self._check_trust()
            return min(interval_s, POLL_S)
        self._check_trust()
        return interval_s

    async def _pause(self, pause_s: float) -> None:
        # Not wait_for: Python 3.11's forgets a cancellation that comes together with the nudge.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._nudge.wait()
        self._nudge.clear()

    def _check_trust(self) -> None:
        if not self.trusted:
            self._lose(LeaseLost("the lease could not be renewed in time"))

    def _check_loop(self) -> None:
        """Lose the lease when the replica's event loop hangs; stop when it is closed."""
        silent_s = time.monotonic() - self._seen_alive_at
        if silent_s > HANGS * self._settings.lease_ttl_ms / 1000:
            self._lose(LeaseLost(f"the event loop of this replica has been blocked for {silent_s:.0f} s"))
        try:
            self._thread.call_back(self._alive)
        except RuntimeError as error:
            self._lose(LeaseLost("the event loop of this replica is closed"), error)

    def _alive(self) -> None:
        self._seen_alive_at = time.monotonic()

    def _lose(self, error: LeaseLost, cause: BaseException | None = None) -> None:
        self._lost = error
        raise error from cause

    async def _renew(self, client: Redis) -> None:
        grant = self.grant
        sent_at = time.monotonic()
        fields = [word for pair in self._row.items() for word in pair]
        names = (
            keys.lease(grant.database),
            keys.row(grant.database),
            keys.replies(grant.replica),
        )
        words = (
            grant.holder, str(self._settings.lease_ttl_ms), self.state, "1" if grant.credentials else "0",
            str(self._connections.bus), str(grant.database), grant.cls, str(self._renewal.known_until_ms),
        )  # fmt: skip
        # A renewal that hangs is worth less than the next one.
        async with asyncio.timeout(self._settings.lease_ttl_ms / 3000):
            outcome, now_ms = await client.eval(RENEW.source, len(names), *names, *words, *fields)
        if outcome == 0:
            self._lose(LeaseLost("the lease is over or in other hands"))
        if outcome == 2:
            log.error("lease was gone and is restored: the server was emptied, or restarted without its data")
        self._renewal = _Renewal(
            sent_at=sent_at,
            known_until_ms=int(now_ms) + self._settings.lease_ttl_ms,
            clock_offset_ms=int(now_ms) - (sent_at + time.monotonic()) * 500,
        )

    async def _release(self, client: Redis, wait_s: float) -> bool:
        grant = self.grant
        names = (
            keys.lease(grant.database),
            keys.row(grant.database),
            keys.database_requests(grant.database),
            keys.replies(grant.replica),
            keys.submitted(grant.replica),
            keys.committed(grant.replica),
        )
        until = time.monotonic() + wait_s
        while self.trusted:
            force = time.monotonic() >= until
            try:
                released = await client.eval(RELEASE.source, len(names), *names, grant.holder, "1" if force else "0")
            except (redis_errors.RedisError, *PASSING) as error:
                log.warning("lease release failed", database=grant.database, error=str(error))
                return False
            if released >= 0:
                return bool(released)
            await asyncio.sleep(0.01)
        return False
