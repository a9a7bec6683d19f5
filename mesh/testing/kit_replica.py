"""One replica of a kit, which runs in a task of its own."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from functools import cached_property

from mesh import keys
from mesh.errors import MeshError
from mesh.operations.membership import Mesh
from mesh.replica import Replica, join
from mesh.requests.worker import Worker
from mesh.settings import MeshSettings
from mesh.testing.servers import KitServer
from mesh.testing.wire import Gate, KitConnections

#: Pause between two renewals of the other replicas while a new replica waits for its lease. The new replica must see a
#: renewal of each, so a longer pause makes it wait longer. A shorter pause costs more trips.
RENEW_PAUSE_S = 0.02


class KitReplica:
    """A replica in this process, which can be stopped, killed and frozen."""

    def __init__(self, worker: Worker, settings: MeshSettings, connections: KitConnections, gate: Gate) -> None:
        self._worker = worker
        self._settings = settings
        self._connections = connections
        self._gate = gate
        self._should_leave = asyncio.Event()
        #: done when this replica has its lease, or could not join
        self._replica_future: asyncio.Future[Replica] = asyncio.get_running_loop().create_future()
        #: whether the test has killed or frozen this replica. Then an error may end its membership, and
        #: `raise_own_error` does not raise.
        self._may_end_by_error = False
        self._task = asyncio.create_task(self._run_membership(), name="kit-replica")

    async def _run_membership(self) -> None:
        """Join the mesh, and leave it when the test wants that."""
        try:
            async with join(self._worker, self._settings, connections=self._connections) as replica:
                self._replica_future.set_result(replica)
                await self._should_leave.wait()
        except Exception as error:
            if self._replica_future.done():
                raise  # `raise_own_error` raises it at the end of the test
            self._replica_future.set_exception(error)  # `wait_for_lease` raises it

    async def wait_for_lease(self, others: Sequence[KitReplica] = ()) -> Mesh:
        """Wait for the lease. Raises what `join` raises.

        A new replica takes an unused database only after it has seen a renewal of every other lease. So the `others`
        renew theirs often meanwhile, which shortens this wait.
        """
        while others and not self._replica_future.done():
            await asyncio.wait([self._replica_future], timeout=RENEW_PAUSE_S)
            for other in others:
                other.renew()
        await self._replica_future
        return self.mesh

    def renew(self) -> None:
        """Renew the lease at once, if this replica holds one and is not frozen."""
        if self._replica_future.done() and self.is_alive and not self.is_frozen:
            self.replica._lease.renew()

    @property
    def replica(self) -> Replica:
        """The membership, as `mesh.raw.join` yields it."""
        return self._replica_future.result()

    @cached_property
    def mesh(self) -> Mesh:
        """The membership, as `mesh.join` yields it."""
        return Mesh(self.replica)

    @property
    def is_alive(self) -> bool:
        """Whether this replica is a member: not stopped, not killed, and its lease not lost."""
        return not self._task.done()

    async def stop(self) -> None:
        """Leave in order, as at a SIGTERM."""
        self._should_leave.set()
        await asyncio.wait([self._task])

    async def kill(self, server: KitServer) -> None:
        """End as at a SIGKILL: nothing is handed back. The lease ends at once, so that no test waits for its ttl."""
        self._may_end_by_error = self._gate.is_dead = True
        self._task.cancel()
        await asyncio.wait([self._task])
        # Only a replica that has joined has a lease to end.
        if (
            self._replica_future.done()
            and not self._replica_future.cancelled()
            and self._replica_future.exception() is None
        ):
            # If the lease was lost, another replica may hold it now.
            grant = self.replica._grant
            if server.sync_client.get(keys.lease(grant.database)) == grant.holder:
                server.sync_client.delete(keys.lease(grant.database))

    def freeze(self) -> None:
        """Send nothing to Redis and take no answer, so that this replica looks like one that a SIGSTOP has stopped."""
        self._may_end_by_error = self._gate.is_frozen = True

    def thaw(self) -> None:
        """Let a frozen replica go on, as at a SIGCONT."""
        self._gate.is_frozen = False

    @property
    def is_frozen(self) -> bool:
        """Whether the test has frozen this replica and not thawed it."""
        return self._gate.is_frozen

    def hold_lease_over(self, seconds: float, server: KitServer) -> None:
        """Extend the lease by the `seconds` that the clock will jump, as if the lease were renewed meanwhile.

        The keys that each renewal extends get the longer ttl, and the `Lease` of the replica gets the new times.
        """
        replica, lease = self.replica, self.replica._lease
        for key in (keys.lease(replica.database), keys.row(replica.database), keys.replies(replica.id)):
            left_ms = server.sync_client.pttl(key)
            if left_ms > 0:
                server.sync_client.pexpire(key, left_ms + round(seconds * 1000))
        lease._renewal = dataclasses.replace(
            lease._renewal,
            sent_at=lease._renewal.sent_at + seconds,
            known_until_ms=lease._renewal.known_until_ms + round(seconds * 1000),
        )
        # Otherwise the lease would believe that the event loop was blocked while the clock jumped.
        lease._loop_ran_at += seconds

    def raise_own_error(self) -> None:
        """Raise MeshError if an error has ended the membership, unless the test killed or froze this replica."""
        error = None if self._task.cancelled() else self._task.exception()
        if error is not None and not self._may_end_by_error:
            raise MeshError(f"a replica ended by itself: {error}") from error
