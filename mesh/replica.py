"""One membership in the mesh: `join` waits for a lease, and makes a `Replica` that lasts until the membership ends.

    applying --grant--> member --drain--> leaving --release--> gone
                          |
                          +--lease lost: everything stops at once, and `join` raises LeaseLost

A member has five connections: the link, one that renews the lease, and three that block on a stream each (of the class,
of the database, and of replies). `REDIS_WAIT_REPLICAS` adds a sixth; `shared` and `connect` add those of services.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

import structlog
from redis.asyncio import Redis

from mesh import keys, roster
from mesh.discovery import LATER, Directory, Publication
from mesh.errors import LeaseLost
from mesh.groups.reader import BLOCK_MS
from mesh.later import waking
from mesh.later.waking import Waking
from mesh.lease.applicant import Applicant, Grant
from mesh.lease.holding import Lease
from mesh.memory import Memory
from mesh.requests import scripts, streams, tracing
from mesh.requests.answers import Answer, Ask, Replies, needed_ops_and_level
from mesh.requests.calls import Calls
from mesh.requests.consumer import Consumer, load_of
from mesh.requests.durations import Durations
from mesh.requests.effects import Effects
from mesh.requests.filters import Among, Filters
from mesh.requests.in_place import InPlace
from mesh.requests.protocol import Address, Body, Class, Database, Decode, decode_object
from mesh.requests.refusals import commit_error
from mesh.requests.settlement import CONFLICT, DONE
from mesh.requests.store import Store
from mesh.requests.streams import ReplyReader, RequestReader
from mesh.requests.work import Host
from mesh.requests.worker import Worker
from mesh.roster import Classes, Member, Missing
from mesh.settings import MeshSettings, given_or_environment
from mesh.wire.clients import Connections
from mesh.wire.connection import RedisConnection
from mesh.wire.durability import Durability
from mesh.wire.failures import PASSING
from mesh.wire.link import Link
from mesh.wire.script import Script

log = structlog.get_logger(__name__)

#: Pause between two sweeps. A shorter one removes overdue requests sooner, but Redis has more to do.
SWEEP_S = 5.0
#: A leaving replica releases its database after this time at the latest, even if requests are on the database's stream.
#: A longer time lets this replica answer more of them. The next holder answers the rest, but gets the database later.
RELEASE_WAIT_S = 0.5


class Replica:
    """One member of the mesh, whose typed form is `Mesh`. It cannot be used after its membership has ended."""

    def __init__(
        self,
        grant: Grant,
        worker: Worker,
        settings: MeshSettings,
        connections: Connections,
        row_fields: Mapping[str, str],
        publication: Publication,
    ) -> None:
        self.id = grant.replica
        self.database = grant.database
        self.cls = grant.cls
        self.epoch = grant.epoch
        self.settings = settings
        self._grant = grant  # without credentials if the server enforces no isolation: then the settings' stay in use
        self._connections = connections if grant.credentials is None else connections.as_user(grant.credentials)
        self._lease = Lease(grant, settings, self._connections, row_fields)
        self._opened: list[Redis | RedisConnection] = []  # what `_close` closes
        self._verbs = worker.verbs  # `worker.fragments` is the Lua of the verbs that services add
        self._link = self._make_link(scripts.commit_with(worker.fragments), [*scripts.OF_LINK, *worker.scripts])
        self._streams = keys.request_streams(settings.classes, settings.databases)  # the keys of all request streams
        self._directory = Directory(self._link, worker.operations)
        self._publication = publication
        know_delays = functools.partial(self._directory.all_understand, LATER)  # returns whether all replicas do
        self._waking = Waking(self._link, grant, settings.databases, self._lease.now_ms, worker.schedules, know_delays)
        self._lease.on_due = self._waking.note_due  # each renewal tells when a request or a schedule is due next
        self.durations = Durations()  # both consumers add to it, and the metrics read it
        host = Host(
            self.id, self.database, self.cls, self._link, settings, self._lease.now_ms,
            lambda: self._lease.paused_ops, self._waking.note_due, self._directory, self.durations,
        )  # fmt: skip
        self._class_consumer = self._make_consumer(host, Class(self.cls), worker, ordered=False)  # it promises no order
        self._database_consumer = self._make_consumer(host, Database(self.database), worker, ordered=True)
        self.filters = Filters(self._link, self.database, grant.holder)  # services make and name filters with it
        self.memory = Memory(self._link, settings.memory_reserve)  # services ask it before they store new data
        self._durability = self._make_durability()
        replies = ReplyReader(self._connection("replies", block_ms=BLOCK_MS), keys.replies(self.id))
        only_reads = worker.readers.__contains__  # `worker.readers`: the names of operations that only read
        # Where there are spans, a call and a delivery have one each.
        in_place = None if tracing.is_on() else InPlace(host, worker, self._class_consumer, replies)
        self._calls = Calls(self._link, replies, self.id, self._durability, only_reads, settings.later_bound, in_place)
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by name; `_close` cancels them
        self.shared: Redis = self._client("shared", shared=True)  # with a pool, for the keys that services share

    # For services

    async def call(self, to: Address, op: str, body: Mapping[str, Any], *, deadline_ms: int | None = None) -> Body:
        """Send one request and wait for its reply. Merge a reply in several parts key by key. Raises MeshError."""
        (answer,) = await self.ask([Ask(to, op, body)], deadline_ms=deadline_ms)
        return answer.merged()

    def ask(
        self, asks: Sequence[Ask], *, deadline_ms: int | None = None, decode: Decode = decode_object
    ) -> Coroutine[Any, Any, list[Answer]]:
        """Send several requests, all or none, and wait for every reply; `decode` reads the bodies of the replies."""
        deadline_ms = deadline_ms or self.settings.deadline_ms
        for ask in asks:
            if ask.level or not self._directory.knows(ask.op):
                return self._check_and_ask(asks, deadline_ms, decode)  # perhaps no live replica can answer `ask`
        return self._calls.ask(asks, deadline_ms, decode)  # a plain function returns it, so a call has one coroutine

    async def _check_and_ask(self, asks: Sequence[Ask], deadline_ms: int, decode: Decode) -> list[Answer]:
        await self._directory.check(*needed_ops_and_level(asks))
        return await self._calls.ask(asks, deadline_ms, decode)

    async def gather(
        self,
        op: str,
        body: Mapping[str, Any] | bytes,
        *,
        deadline_ms: int | None = None,
        decode: Decode = decode_object,
        among: Among | None = None,
    ) -> Replies[Any]:
        """Send one request to every live database at one moment; return the replies by database. Raises MeshError.

        With `among`, databases whose filter shows that they have nothing get no request. The result's `left_out` names
        the databases that hold data but have no holder, and none is expected back. Raises Incomplete if a holder is
        expected back for a database with data, or if a holder did not answer in time.
        """
        await self._directory.check([op])
        return await self._calls.gather(op, body, deadline_ms or self.settings.deadline_ms, decode, among)

    async def roster(self) -> list[Member]:
        """Return the rows of the roster at this moment."""
        return await roster.read(self._link)

    async def missing(self) -> list[Missing]:
        """Return the databases that are not live, and that hold data or whose holder is expected back."""
        return await roster.read_missing(self._link)

    async def classes(self) -> Classes:
        """Return the classes that have a live replica, and those whose holder is expected back."""
        live = frozenset(member.cls for member in await self.roster())
        return Classes(live, frozenset(each.cls for each in await self.missing() if each.cls) - live)

    async def books(self) -> dict[str, int]:
        """Return how many requests had each outcome in the mesh; `accepted` is the sum of all other counts."""
        return await streams.read_books(self._link, self._streams)

    def store(self) -> Store:
        """Return an object that reads the leased database, as handlers get one, for work outside of a request."""
        return Store(self._link, self.database, self.cls)

    def transaction(self) -> Effects:
        """Return an empty transaction that belongs to no request; see `commit`."""
        return Effects(self.database, self.id, verbs=self._verbs, later_bound=self.settings.later_bound)

    async def commit(self, transaction: Effects) -> bool:
        """Apply a transaction. Return False, and apply nothing, if a value that it expects has changed.

        Raises LeaseLost, Busy, OlderRelease, and Unserved if it requests an operation that nobody serves.
        """
        await self._directory.check(transaction.sent_ops, transaction.level)
        outcome_future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._link.commit(transaction.wire(), outcome_future)
        outcome = await outcome_future
        for due in transaction.dues:  # to wake its requests in time; after a conflict there is nothing to wake
            self._waking.note_due(due.moment_ms(self.now_ms()))
        if outcome == DONE or outcome.startswith(CONFLICT):
            return outcome == DONE
        raise commit_error(outcome)

    async def cancel(self, key: str) -> bool:
        """Remove the request that has this key (`Ticket.key`). Return False if it has ended already."""
        return await waking.cancel(self._link, self._streams, key)

    async def confirm(self) -> None:
        """Wait until the copies of Redis that the settings ask for have all present writes. Raises Unavailable."""
        if self._durability is not None:
            await self._durability.confirm()

    def connect(self, *, block_ms: int = BLOCK_MS) -> Redis:
        """Return a redis-py client with one connection, for commands that block. The membership's end closes it."""
        return self._client("reader", block_ms=block_ms)

    def now_ms(self) -> int:
        """Return Redis's clock in ms, as estimated since the last renewal."""
        return self._lease.now_ms()

    @property
    def trusted(self) -> bool:
        """Whether the lease still holds."""
        return self._lease.trusted

    @property
    def reachable(self) -> bool:
        """Whether the last round trip to Redis succeeded."""
        return not self._link.down

    def statistics(self) -> dict[str, float]:
        """Return the counters of this membership, for metrics. `waiting`: how many calls have no answer yet."""
        counters: dict[str, float] = {"waiting": self._calls.unanswered, "round_trips": self._link.trips}
        for name, consumer in (("class", self._class_consumer), ("database", self._database_consumer)):
            counters[f"{name}_in_progress"] = consumer.in_progress
            for counter_name in consumer.counters.__slots__:
                counters[f"{name}_{counter_name}"] = getattr(consumer.counters, counter_name)
        return counters

    def conflicts(self, most: int = 10) -> dict[str, int]:
        """Return how many conflicts requests met at each key, for the `most` keys with the highest numbers."""
        counts = self._class_consumer.conflicts_by_key + self._database_consumer.conflicts_by_key
        return dict(counts.most_common(most))

    # Life cycle

    def _client(self, name: str, *, block_ms: int = 0, shared: bool = False) -> Redis:
        client = self._connections.client(f"{name}-{self.id}", block_ms=block_ms, shared=shared)
        self._opened.append(client)
        return client

    def _connection(self, name: str, *, block_ms: int = 0) -> RedisConnection:
        connection = self._connections.connection(f"{name}-{self.id}", block_ms=block_ms)
        self._opened.append(connection)
        return connection

    def _make_link(self, commit_script: Script, other_scripts: list[Script]) -> Link:
        grant, settings = self._grant, self.settings
        remembered_ms = 10 * settings.lease_ttl_ms  # Redis keeps the last result so long; the link repeats for half
        common_arguments = (grant.holder, remembered_ms)  # in the order in which submit.lua and commit.lua read them
        submit_arguments = (
            3, keys.lease(self.database), keys.BOOKS, keys.submitted(self.id), *common_arguments,  # 3: number of keys
            keys.MOST_DATABASES, settings.stream_bound, self.id, keys.replies(self.id), settings.concurrency,
        )  # fmt: skip
        commit_arguments = (
            3, keys.lease(self.database), keys.BOOKS, keys.committed(self.id), *common_arguments,
            self.database, self._connections.bus, self.id,
        )  # fmt: skip
        return Link(
            self._connection("link"),
            bus=self._connections.bus,
            database=self.database,
            trusted=lambda: self._lease.trusted,
            remembered_ms=remembered_ms,
            submit_script=(scripts.variants(scripts.SUBMIT), submit_arguments),
            commit_script=(scripts.variants(commit_script), commit_arguments),
            scripts=other_scripts,
        )

    def _make_consumer(self, host: Host, address: Address, worker: Worker, *, ordered: bool) -> Consumer:
        connection = self._connection("requests", block_ms=BLOCK_MS)
        reader = RequestReader(connection, self._link, address.stream, self.id, self._streams)
        return Consumer(host, reader, worker, ordered=ordered)

    def _make_durability(self) -> Durability | None:
        redis = self.settings.redis
        if not redis.wait_replicas:
            return None
        return Durability(
            self._connection("durability", block_ms=redis.wait_timeout_ms),
            keys.replies(self.id),  # exists from the grant on
            keep_ms=10 * self.settings.lease_ttl_ms,  # renew.lua gives this key the same expiry
            copies=redis.wait_replicas,
            timeout_ms=redis.wait_timeout_ms,
        )

    def _start(self, tasks: asyncio.TaskGroup) -> None:
        run_functions: dict[str, Callable[[], Any]] = {
            "lease": self._lease.run,
            "link": self._link.run,
            "calls": self._calls.run,
            "database": self._database_consumer.run,
            "class": self._class_consumer.run,
            "sweep": self._run_upkeep,
            "memory": self.memory.run,
            "waking": self._waking.run,
        }
        if self._durability is not None:
            run_functions["durability"] = self._durability.run
        self._tasks |= {name: tasks.create_task(run(), name=f"mesh-{name}") for name, run in run_functions.items()}

    async def _run_upkeep(self) -> None:
        await self._publication.publish(self._link)  # the definitions of this replica's operations
        while True:
            await asyncio.sleep(SWEEP_S)
            await self._publication.restore(self._link)  # writes definitions again that are missing
            await streams.sweep(self._link, self._streams)
            await streams.keep_minute(self._link, self._streams)  # a copy of the books, once a minute

    def announce(
        self, not_ready: Callable[[], Iterable[str]] = tuple, facts: Callable[[], Mapping[str, str]] = dict
    ) -> None:
        """Write into the roster that this replica is ready, and with each renewal how busy it is.

        Each renewal asks `not_ready` for services that are not ready, and `facts` for further fields (default: none).
        """
        lease, consumers = self._lease, (self._class_consumer, self._database_consumer)
        lease.describe = lambda: {"not_ready": ",".join(not_ready()), **load_of(consumers, lease.loop_ms), **facts()}
        lease.set_state("ready")

    def on_drain(self, leave: Callable[[], None]) -> None:
        """Call `leave` when an operator asks this replica to drain."""
        self._lease.on_drain = leave

    def drain(self) -> None:
        """Write into the roster that this replica is about to leave. All work goes on until the membership ends."""
        self._lease.set_state("draining")

    async def _leave(self) -> None:
        """Stop taking requests, finish running work, hand the rest back, and release the lease."""
        self.drain()
        deadline_s = self.settings.deadline_ms / 1000
        # Only the class's stream has other readers, so the database's consumer works on until the lease is released.
        await self._class_consumer.stop(deadline_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):  # a second wait: services may still wait for replies
                while self._calls.unanswered:
                    await asyncio.sleep(0.01)  # seconds; no event tells when the last call ends
        released = await self._lease.release(RELEASE_WAIT_S)
        log.info("lease released" if released else "lease not released", database=self.database)
        await self._database_consumer.stop(0)  # without a wait: the lease is over

    async def _close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        for opened in self._opened:
            with contextlib.suppress(*PASSING):
                await opened.aclose()


@contextlib.asynccontextmanager
async def join(
    worker: Worker,
    settings: MeshSettings | None = None,
    *,
    connections: Connections | None = None,
    public: str = "",
    private: str = "",
    version: str = "",
    applicant: Callable[[Applicant], None] | None = None,
    ready: bool = True,
) -> AsyncIterator[Replica]:
    """Wait for a lease and become a member, which serves requests inside the block; leave in order at its end.

    `worker` is the table of operations that this replica serves. If the block raises, the lease is not released, but
    expires. The roster shows `public` and `private` (host:port). `applicant` is called with the object that waits for
    the lease and can tell why. With `ready` false the roster says `starting` until `announce` is called. Raises
    SetupError if the mesh cannot use this server or these credentials, and LeaseLost if the lease was lost: join again.
    """
    settings = given_or_environment(settings)
    connections = connections or Connections(settings.redis)
    tracing.activate()
    replica_id = f"replica-{secrets.token_hex(4)}"  # 32 random bits: two equal ids are unlikely
    publication = Publication(worker.definitions(version), " ".join(sorted(worker.readers)))
    row_fields = {"pid": str(os.getpid()), "public": public, "private": private, "version": version, **publication.row}
    waiting_applicant = Applicant(settings, connections, replica_id, row_fields)
    if applicant is not None:
        applicant(waiting_applicant)
    grant = await waiting_applicant.apply()
    log.info("lease granted", replica=replica_id, database=grant.database, cls=grant.cls, epoch=grant.epoch)
    replica = Replica(grant, worker, settings, connections, row_fields, publication)
    try:
        async with asyncio.TaskGroup() as tasks:
            replica._start(tasks)
            if ready:
                replica.announce()
            try:
                yield replica
                await replica._leave()
            finally:
                await replica._close()
    except BaseExceptionGroup as errors:
        raise _most_telling_error(errors) from errors


def _most_telling_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error of a group that explains most: LeaseLost if there is one, else the first error."""
    lease_lost, other_errors = group.split(LeaseLost)
    error: BaseException | None = lease_lost or other_errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error or group  # a group has an error, but the type checker cannot know it
