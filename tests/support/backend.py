"""One suite over two servers: a real one and fakeredis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import redis.asyncio

from mesh import Connections, Mesh, Operations
from mesh.operations.membership import worker_of
from mesh.raw import Replica, Worker
from tests.support.members import Members


@dataclass
class Backend:
    """A Redis, real or fake, with members of a mesh on it."""

    members: Members
    connections: Connections

    async def join(self, worker: Worker | None = None, **settings: Any) -> Replica:
        """Let one more member join."""
        return await self.members.join(worker, **settings)

    async def mesh(self, *operations: Operations | Worker) -> Mesh:
        """Let one more member join, with typed operations."""
        return Mesh(await self.members.join(worker_of(operations)))

    def redis(self, db: int = 0) -> redis.asyncio.Redis:
        """Return a client with administrator rights."""
        return self.connections.client("test", db=db)
