"""Joining a mesh with typed operations: `Mesh` is what `join` yields."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Any, TypeVar, overload

from redis.asyncio import Redis

from mesh import replica as replica_module
from mesh.control.control import Control
from mesh.dead.letters import Actor
from mesh.errors import UsageError
from mesh.later.due import Due, Ticket
from mesh.lease.applicant import Applicant
from mesh.memory import Memory
from mesh.operations.block import Block
from mesh.operations.calling import Caller
from mesh.operations.operation import Operation
from mesh.operations.sending import add_send, request_name_of
from mesh.operations.table import Operations
from mesh.replica import Replica
from mesh.requests.durations import Durations
from mesh.requests.once import KEEP, Once
from mesh.requests.protocol import Address, Class
from mesh.requests.worker import Worker
from mesh.roster import Classes, Member, Missing
from mesh.settings import MeshSettings, given_or_environment
from mesh.wire.clients import Connections

B = TypeVar("B")


class Mesh(Caller):
    """One membership in a mesh. `replica` is the same membership for programs that use `mesh.raw`."""

    def __init__(self, replica: Replica) -> None:
        super().__init__(replica, Class(replica.cls))
        self.replica = replica
        self.id = replica.id
        self.database = replica.database
        self.cls = replica.cls
        self.epoch = replica.epoch
        self.settings: MeshSettings = replica.settings
        #: a redis-py client for the keys that services share: `shared:*` and `events:*` in the bus database
        self.shared: Redis = replica.shared
        #: says whether the server's memory has room for new data
        self.memory: Memory = replica.memory
        self._control = Control(replica.shared, replica.settings)
        #: the actor that `mesh:audit` names when this program pauses or resumes an operation; it has no address
        self._actor = Actor(replica.id, "")

    @overload
    async def send(
        self,
        op: Operation[None, Any],
        *,
        to: Address | None = ...,
        after: timedelta | None = ...,
        at: datetime | None = ...,
        key: str | None = ...,
        keep: timedelta = ...,
    ) -> Ticket: ...
    @overload
    async def send(
        self,
        op: Operation[B, Any],
        body: B,
        *,
        to: Address | None = ...,
        after: timedelta | None = ...,
        at: datetime | None = ...,
        key: str | None = ...,
        keep: timedelta = ...,
    ) -> Ticket: ...
    async def send(
        self,
        op: Operation[Any, Any],
        body: Any = None,
        *,
        to: Address | None = None,
        after: timedelta | None = None,
        at: datetime | None = None,
        key: str | None = None,
        keep: timedelta = KEEP,
    ) -> Ticket:
        """Send a request whose reply nobody waits for; return when Redis has the request.

        The request begins at once, `after` some time, or `at` a moment of Redis's clock. If the idempotency `key` was
        used before for the same operation and body, nothing is sent; KeyReused says that the body was another one.
        Raises UsageError, InvalidBody, Busy, KeyReused, or another MeshError.
        """
        # A transaction that belongs to no request. It has only this send, and no expectation: no conflict is possible.
        effects, address = self.replica.transaction(), Class(self.cls) if to is None else to
        ticket = add_send(effects, op, body, address, Due.of(after, at), Once.of(key, keep))
        await self.replica.commit(effects)
        return ticket

    async def cancel(self, ticket: Ticket) -> bool:
        """Cancel a request that was sent; return False if the request has ended already.

        If a replica works on the request now, its work has no effect.
        """
        return await self.replica.cancel(request_name_of(ticket))

    async def pause(self, op: Operation[Any, Any] | str) -> bool:
        """Pause an operation on all replicas; return False if the operation was paused already.

        Within a second all replicas know of the pause. Then calls of the operation raise Paused. A request without a
        caller that was sent to a class waits for the end of the pause.
        """
        return await self._control.pause(_op_name(op), self._actor)

    async def resume(self, op: Operation[Any, Any] | str) -> bool:
        """End the pause of an operation, and let its parked requests begin; return False if it was not paused."""
        return await self._control.resume(_op_name(op), self._actor)

    async def roster(self) -> list[Member]:
        """Return the rows of the roster at this moment."""
        return await self.replica.roster()

    async def missing(self) -> list[Missing]:
        """Return the databases that are not live, although they hold data or their replica is expected back."""
        return await self.replica.missing()

    async def classes(self) -> Classes:
        """Return the classes that have a live replica, and those whose replica is expected back."""
        return await self.replica.classes()

    async def books(self) -> dict[str, int]:
        """Return the number of the mesh's requests by outcome; `accepted` is the sum of all other numbers."""
        return await self.replica.books()

    async def confirm(self) -> None:
        """Wait until `REDIS_WAIT_REPLICAS` copies of Redis have all that was written so far; with 0, do not wait."""
        await self.replica.confirm()

    def connect(self, **options: Any) -> Redis:
        """Return a redis-py client with its own connection. Option `block_ms`: how long a command may block."""
        return self.replica.connect(**options)

    def now_ms(self) -> int:
        """Return Redis's clock in ms: its time at the last renewal, and the time since then on our own clock."""
        return self.replica.now_ms()

    @property
    def trusted(self) -> bool:
        """Whether the lease still holds."""
        return self.replica.trusted

    @property
    def reachable(self) -> bool:
        """Whether the last round trip to Redis succeeded."""
        return self.replica.reachable

    def statistics(self) -> dict[str, float]:
        """Return the counters of this membership, for metrics."""
        return self.replica.statistics()

    def conflicts(self, most: int = 10) -> dict[str, int]:
        """Return the number of conflicts by key, for the `most` keys with the highest numbers."""
        return self.replica.conflicts(most)

    def durations(self) -> Durations:
        """Return, by operation, how long the requests took that this membership has handled."""
        return self.replica.durations

    def announce(
        self, not_ready: Callable[[], Iterable[str]] = tuple, facts: Callable[[], Mapping[str, str]] = dict
    ) -> None:
        """Write into the roster that this replica is ready.

        Each renewal calls both functions. `not_ready` returns the names of the services that are not ready now. `facts`
        returns further fields of the roster row, which readers of the roster find in `Member.load`. The defaults,
        `tuple` and `dict`, return nothing.
        """
        self.replica.announce(not_ready, facts)

    def drain(self) -> None:
        """Write into the roster that this replica is about to leave. Work goes on until the membership ends."""
        self.replica.drain()


def _op_name(op: Operation[Any, Any] | str) -> str:
    return op.name if isinstance(op, Operation) else op


def worker_of(tables: Iterable[Operations | Worker]) -> Worker:
    """Return the handlers of all tables in one Worker. Raises UsageError if two operations have the same name."""
    merged = Worker()
    for table in tables:
        if not isinstance(table, Operations | Worker):
            raise UsageError(f'join() and MeshKit() take what Operations("...") returned, not {table!r:.100}')
        try:
            merged.include(table if isinstance(table, Worker) else table.worker)
        except ValueError as error:
            raise UsageError(str(error)) from error
    return merged


def join(
    *operations: Operations | Worker,
    settings: MeshSettings | None = None,
    connections: Connections | None = None,
    public: str = "",
    private: str = "",
    version: str = "",
    applicant: Callable[[Applicant], None] | None = None,
    ready: bool = True,
) -> Block[Mesh]:
    """Become a member: wait for a lease, process requests, leave in order.

    Without `settings`, the environment gives the settings. The roster shows `public` and `private` (host:port).
    `applicant` is called with the object that waits for the lease; this object knows why it still waits. With `ready`
    false the roster says `starting` until `announce` is called. Raises SetupError if the mesh cannot work with this
    server or these credentials. Raises LeaseLost if the lease was lost: join again then.
    """
    replica_block = replica_module.join(
        worker_of(operations),
        given_or_environment(settings),
        connections=connections,
        public=public,
        private=private,
        version=version,
        applicant=applicant,
        ready=ready,
    )
    return Block("async with join(operations) as mesh:", _yield_mesh(replica_block))


@contextlib.asynccontextmanager
async def _yield_mesh(replica_block: AbstractAsyncContextManager[Replica]) -> AsyncIterator[Mesh]:
    async with replica_block as replica:
        yield Mesh(replica)
