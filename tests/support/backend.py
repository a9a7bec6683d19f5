"""The test kit on the level of `mesh.raw`: one suite over two servers, a real one and fakeredis."""

from __future__ import annotations

from typing import Any

from mesh import Connections, Mesh, MeshSettings, Operations
from mesh.raw import Replica, Worker
from mesh.testing import MeshKit


class Backend(MeshKit):
    """Members of a mesh in this process: none at first."""

    def __init__(self, redis: Any = None, **settings: Any) -> None:
        super().__init__(replicas=0, redis=redis, **settings)

    async def join(self, worker: Worker | None = None, **settings: Any) -> Replica:
        """Let one more member join; `settings` override the common ones for it."""
        return (await self.start(worker or Worker(), **settings)).replica

    async def mesh(self, *operations: Operations | Worker) -> Mesh:
        """Let one more member join, with typed operations."""
        return await self.start(*operations)

    async def __call__(self, count: int, worker: Worker | None = None, **settings: Any) -> list[Replica]:
        return [await self.join(worker, **settings) for _ in range(count)]

    @property
    def settings(self) -> MeshSettings:
        """The settings of all members."""
        return self._settings

    @property
    def connections(self) -> Connections:
        """Connections with administrator rights."""
        return self._server.connections
