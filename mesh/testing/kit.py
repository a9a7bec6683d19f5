"""A whole mesh in a test: replicas in this process, over fakeredis or over a real server.

    async with MeshKit(worker, replicas=3) as kit:
        await kit[0].call(...)

Over fakeredis the kit has a clock of its own. While every task waits, this clock jumps to the next timer. `advance`
moves it further.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Self, TypeVar, overload

from pydantic import ValidationError
from redis.asyncio import Redis

from mesh import keys
from mesh.errors import MeshError, UsageError
from mesh.later.waking import STAGGER_MS
from mesh.operations.block import AsyncOnly, Block
from mesh.operations.membership import Mesh, worker_of
from mesh.operations.operation import Operation
from mesh.operations.state import Field, Key, Readable
from mesh.operations.table import Operations
from mesh.operations.visit import MeshClient, connect
from mesh.requests import scripts, streams
from mesh.requests.worker import Worker
from mesh.settings import MeshSettings, RedisSettings, explain, without_environment
from mesh.testing.clock import Clock, virtual_time
from mesh.testing.kit_replica import KitReplica
from mesh.testing.record import Buried, Committed, Observed, Sent
from mesh.testing.servers import RealServer, new_fake_server
from mesh.testing.wire import Faults, Gate, KitConnections
from mesh.testing.workers import Runs

#: The type of a stored value.
R = TypeVar("R")

#: Longest wait for the lease of a new replica, in s of the kit's clock. Usually only a lack of free databases takes so
#: long.
START_TIMEOUT_S = 60
#: If something is due and no replica has woken it, `advance` moves the clock by OVERDUE_STEP_S, and looks again. After
#: MOST_OVERDUE_STEPS such steps it moves the clock to the end, and what comes due on the way is woken late, at the end.
#: With fewer steps, a replica that cannot reach Redis for some seconds would cause this jump. With more steps,
#: `advance` takes longer when no replica can wake what is due.
OVERDUE_STEP_S, MOST_OVERDUE_STEPS = 1.0, 30
#: An operation, or the name of one.
AnyOperation = Operation[Any, Any] | str

#: Longest time for which `advance` waits on a real server. A test that needs more should run over fakeredis.
LONGEST_REAL_WAIT_S = 60


class MeshKit(AsyncOnly):
    """A mesh of `replicas` replicas that serve `operations`; an asynchronous context manager.

    `redis` is the address of an empty server, or its settings. Without `redis`, the server is fakeredis, and the clock
    jumps. `settings` are fields of `MeshSettings`; environment variables are not read. At the end of the block all
    replicas leave, and the books must balance.
    """

    # An example, which the errors of `AsyncOnly` show.
    usage = "async with MeshKit(operations) as kit:"

    def __init__(
        self,
        *operations: Operations | Worker,
        replicas: int = 1,
        redis: str | RedisSettings | None = None,
        **settings: Any,
    ) -> None:
        if type(replicas) is not int or replicas < 0:  # `type`, because True would pass `isinstance`
            raise UsageError(f"replicas= is a number of replicas such as 3, not {replicas!r:.100}")
        # The result is not used: the call raises UsageError for a wrong table here, and not only in the block.
        worker_of(operations)
        self._operations = operations
        self._replica_count = replicas
        self._server = new_fake_server() if redis is None else RealServer(redis)
        # fakeredis has no access rules, so there only key names keep replicas apart (`prefix`). A real server has them.
        # The keyword arguments of the test override this isolation.
        self._settings = _settings_of(
            redis=self._server.connections.settings, **{"isolation": self._server.isolation, **settings}
        )
        self._clock: Clock | None = None
        self._has_virtual_clock = redis is None
        #: by number; a replica that has ended keeps its place here
        self._kit_replicas: list[KitReplica] = []
        self._was_entered = self._is_open = False
        #: by database: the clients that `redis` has returned
        self._clients: dict[int, Redis] = {}
        self._clock_stack = contextlib.ExitStack()
        self._faults = Faults()
        self._runs = Runs()
        self._observed = Observed(self._runs)

    async def __aenter__(self) -> Self:
        if self._was_entered:
            raise UsageError("a kit is for one block: make another MeshKit(...) for the next one")
        self._was_entered = True
        await self._server.begin()
        self._is_open = True
        if self._has_virtual_clock:
            self._clock = self._clock_stack.enter_context(virtual_time())
        try:
            for _ in range(self._replica_count):
                await self.start()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, error_type: object, error: BaseException | None, traceback: object) -> None:
        try:
            if error is None:
                await self._leave_in_order()
        finally:
            await self._close()

    async def _leave_in_order(self) -> None:
        """Let all replicas leave in order.

        Raises MeshError if a replica had ended by itself, and AssertionError if the books do not balance.
        """
        for kit_replica in self._kit_replicas:
            # A frozen replica cannot release its lease.
            if kit_replica.is_frozen:
                await kit_replica.kill(self._server)
        await asyncio.gather(*(kit_replica.stop() for kit_replica in self._kit_replicas))
        for kit_replica in self._kit_replicas:
            kit_replica.raise_own_error()
        books = await self.books()
        # `books` contains "accepted" too, so the sum counts it once too often.
        if books["accepted"] != sum(books.values()) - books["accepted"]:
            raise AssertionError(f"the books do not balance: {books}")

    async def _close(self) -> None:
        """End all replicas that still run, and give the clock and the server back."""
        self._is_open = False
        for kit_replica in self._kit_replicas:
            await kit_replica.kill(self._server)
        for client in self._clients.values():
            await client.aclose()
        self._clock_stack.close()
        await self._server.end()

    # Replicas

    def __getitem__(self, number: int) -> Mesh:
        """Return a replica by its number: 0 was started first. Raises UsageError if there is no such replica."""
        return self._kit_replica(number).mesh

    def _check_open(self) -> None:
        if not self._is_open:
            raise UsageError("a kit has replicas only inside its block: async with MeshKit(operations) as kit:")

    def _kit_replica(self, number: int) -> KitReplica:
        """Return a replica by its number. Raises UsageError outside of the block, or if there is no such replica."""
        self._check_open()
        try:
            return self._kit_replicas[number]
        except (IndexError, TypeError) as error:
            raise UsageError(f"the kit has the replicas 0 to {len(self) - 1}, and none of number {number!r}") from error

    def __len__(self) -> int:
        return len(self._kit_replicas)

    async def start(self, *operations: Operations | Worker, **settings: Any) -> Mesh:
        """Start one more replica, and wait for its lease. If given, its arguments replace those of the kit."""
        self._check_open()
        worker = self._runs.watched_worker(operations or self._operations)
        gate = Gate()
        connections = KitConnections(self._server.connections, gate, self._faults, self._observed)
        replica_settings = self._settings.model_copy(update=settings)
        kit_replica = KitReplica(worker, replica_settings, connections, gate)
        # A new replica must see a renewal of every other lease before it takes an unused database. So on a real server
        # the other replicas renew often meanwhile. With a virtual clock the wait takes no real time.
        other_kit_replicas = [] if self._has_virtual_clock else list(self._kit_replicas)
        self._kit_replicas.append(kit_replica)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                return await kit_replica.wait_for_lease(other_kit_replicas)
        except TimeoutError as error:
            # The killed replica keeps its number in `_kit_replicas`. `raise_own_error` does not report it, because the
            # kit killed it.
            await kit_replica.kill(self._server)
            raise MeshError(
                f"the replica got no lease within {START_TIMEOUT_S} s; {replica_settings.databases} databases exist"
            ) from error

    def connect(self) -> Block[MeshClient]:
        """Return a client of this mesh that takes no lease: `async with kit.connect() as client:`."""
        # The gate of a client stays open: a test freezes and kills replicas only.
        connections = KitConnections(self._server.connections, Gate(), self._faults, self._observed)
        return connect(settings=self._settings, connections=connections)

    async def stop(self, number: int) -> None:
        """Let a replica leave in order, as at a SIGTERM."""
        await self._kit_replica(number).stop()

    async def kill(self, number: int) -> None:
        """End a replica as `kill -9` does: it hands nothing back. Its lease ends at once, not after its ttl."""
        await self._kit_replica(number).kill(self._server)

    def freeze(self, number: int) -> None:
        """Stop a replica as a SIGSTOP does: none of its commands reaches Redis, and no answer reaches the replica."""
        self._kit_replica(number).freeze()

    def thaw(self, number: int) -> None:
        """Let a frozen replica go on, as a SIGCONT does."""
        self._kit_replica(number).thaw()

    # Faults

    def lose_requests(self, count: int) -> None:
        """Lose the next `count` trips to Redis that carry commits or submissions, before Redis has them.

        A request is here what the replica sends to Redis in one trip, not a request of the mesh.
        """
        self._faults.requests_to_lose += count

    def lose_answers(self, count: int) -> None:
        """Lose the answers to the next `count` trips that carry commits or submissions. The trips have their effect."""
        self._faults.answers_to_lose += count

    def fail(self, op: AnyOperation, times: int = 1, *, before: Literal["handler", "commit"] = "commit") -> None:
        """Let the next `times` runs of an operation fail, before the handler begins or before its commit.

        As after any exception in a handler, such a run has no effect, and the request is delivered again.
        """
        if before not in ("handler", "commit"):
            raise UsageError(f'before= is "handler" or "commit", not {before!r:.100}')
        left_to_fail = self._runs.runs_to_fail if before == "handler" else self._faults.commits_to_fail
        left_to_fail[self._name_of(op)] += times

    # Time

    @property
    def now(self) -> datetime:
        """The clock of the kit's Redis."""
        return datetime.now(UTC) if self._clock is None else datetime.fromtimestamp(self._clock.time(), UTC)

    async def advance(self, **time: float) -> None:
        """Let time pass, by the arguments of a `timedelta`: `await kit.advance(hours=24)`.

        The clock jumps to each moment at which a request or a schedule is due. Meanwhile all leases are held, as if
        they were renewed in time; only the lease of a frozen replica can end. Everything that is due by the end happens
        before `advance` returns. On a real server `advance` waits in real time, and raises MeshError for more than a
        minute.
        """
        self._check_open()
        try:
            seconds = timedelta(**time).total_seconds()
        except TypeError as error:
            raise UsageError(f"advance() takes what timedelta takes, such as advance(hours=24): {error}") from error
        if seconds < 0:
            raise UsageError(f"time moves forward only: advance({time}) would move it back")
        if self._clock is None:
            if seconds > LONGEST_REAL_WAIT_S:
                raise MeshError(
                    f"on a real server the kit cannot move the clock, and will not wait for {seconds:g} s: "
                    "let this test run over fakeredis only"
                )
            await asyncio.sleep(seconds)
            return
        await self._clock.wait_until_settled()
        # `overdue_steps` counts the steps since the time at which something is due next has last changed.
        end_s, next_due_s, overdue_steps = self._clock.time() + seconds, 0.0, 0
        while (left_s := end_s - self._clock.time()) > 0:
            previous_due_s, next_due_s = next_due_s, self._next_due_s()
            overdue_steps = overdue_steps + 1 if next_due_s == previous_due_s else 0
            if (ahead_s := next_due_s - self._clock.time()) > 0:
                await self._jump(self._clock, min(left_s, ahead_s))
            else:
                # Something is due, and no replica has woken it yet. A replica that cannot reach Redis now does so in a
                # later step. What no replica can wake stays due for ever, so the number of steps has a bound.
                await self._jump(
                    self._clock, min(left_s, OVERDUE_STEP_S) if overdue_steps < MOST_OVERDUE_STEPS else left_s
                )

    async def _jump(self, clock: Clock, seconds: float) -> None:
        """Move the clock, and extend all leases by the same time, except those of frozen replicas."""
        for kit_replica in self._kit_replicas:
            if kit_replica.is_alive and not kit_replica.is_frozen:
                kit_replica.hold_lease_over(seconds, self._server)
        clock.jump(seconds)
        await clock.wait_until_settled()

    def _next_due_s(self) -> float:
        """Return when a replica wakes the next request or schedule, in s since 1970; infinity if nothing waits.

        The higher the number of its database, the later a replica wakes what is due (see STAGGER_MS). The only live
        replica may have the highest database, so this is the time at which that replica wakes it.
        """
        # The synchronous client does not need the event loop, so no task runs while it asks. A score is a time in ms.
        sync_client: Any = self._server.sync_client
        earliest_entries = (sync_client.zrange(key, 0, 0, withscores=True) for key in (keys.LATER, keys.SCHEDULES))
        due_times_ms = [score for entries in earliest_entries for _, score in entries]
        return (min(due_times_ms) + STAGGER_MS * self._settings.databases) / 1000 if due_times_ms else math.inf

    # What happened

    @property
    def committed(self) -> list[Committed]:
        """The commands that had an effect, in the order of their commits. Queries and refused commands have none."""
        return self._observed.committed

    @property
    def sent(self) -> list[Sent]:
        """The requests that handlers sent or forwarded with their commits."""
        return self._observed.sent

    @property
    def dead(self) -> list[Buried]:
        """The requests that were given up."""
        letters: Any = self._server.sync_client.xrange(keys.DEAD)
        return [Buried.from_entry(fields, self._runs.body_of) for _, fields in letters]

    def ran(self, op: AnyOperation) -> int:
        """Return how often the handler of an operation was run; a request that runs again counts again."""
        return self._runs.run_counts[self._name_of(op)]

    async def books(self) -> dict[str, int]:
        """Return the number of the mesh's requests by outcome; `accepted` is the sum of all other numbers."""
        settings = self._settings
        names = keys.request_streams(settings.classes, settings.databases)
        return streams.to_books(await scripts.BOOKS.run(self.redis(), [keys.BOOKS, *names]))

    @overload
    async def read(self, key: Readable[R], *, database: int) -> R: ...
    @overload
    async def read(self, key: str, *, database: int) -> str | None: ...
    async def read(self, key: Any, *, database: int) -> Any:
        """Return a value of a database, even if no replica holds the database now.

        `key` is a value or a field of a service's state. Or it is a str: the name of a stored text, without its prefix
        `db{n}:`.
        """
        if isinstance(key, str):
            return await self.redis(database).get(keys.own(database) + key)
        if not isinstance(key, Key | Field):
            raise UsageError(f"read() takes a value or the field of a hash, not {key!r:.100}; see redis() for the rest")
        shared, name, field = key.location
        client, prefix = (self.redis(), keys.SHARED) if shared else (self.redis(database), keys.own(database))
        text: Any = await (client.get(prefix + name) if field is None else client.hget(prefix + name, field))
        return key.read(text)  # decodes the text, and reads nothing from Redis

    def _name_of(self, op: AnyOperation) -> str:
        """Return the name of an operation. Raises UsageError for one that no replica of this kit serves."""
        name = op.name if isinstance(op, Operation) else op
        if name not in self._runs.known_operations:
            raise UsageError(
                f"no replica of this kit serves {name!r:.100}; give the kit its operations: MeshKit(operations)"
            )
        return name

    def redis(self, db: int = 0) -> Redis:
        """Return a redis-py client with all rights, for what this class does not offer. The kit closes it itself."""
        if db not in self._clients:
            self._clients[db] = self._server.connections.client("kit", db=db)
        return self._clients[db]


def _settings_of(**chosen: Any) -> MeshSettings:
    """Return settings with the `chosen` fields. No environment variable is read."""
    try:
        return without_environment(MeshSettings, **chosen)
    except ValidationError as error:
        raise UsageError(
            f"MeshKit takes fields of MeshSettings beside replicas= and redis=: {explain(error)}"
        ) from error
