"""Members of a mesh in the test's own process."""

from __future__ import annotations

import contextlib
from typing import Any

from mesh import Connections, MeshSettings, RedisSettings
from mesh.raw import Replica, Worker, join


def mesh_settings(redis_settings: RedisSettings, **settings: Any) -> MeshSettings:
    """Return settings with the short times of the fault matrix; `settings` overrides them."""
    chosen = {"lease_ttl_ms": 3000, "deadline_ms": 5000, "claim_idle_ms": 2000, **settings}
    return MeshSettings(redis=redis_settings, **chosen)


class Members:
    """Members of a mesh in this process; `close` ends them in reverse order."""

    def __init__(self, settings: MeshSettings, connections: Connections | None = None) -> None:
        self.settings = settings
        self._connections = connections
        self._stack = contextlib.AsyncExitStack()

    async def join(self, worker: Worker | None = None, **settings: Any) -> Replica:
        """Let one more member join; `settings` overrides the common settings for it."""
        chosen = self.settings.model_copy(update=settings)
        membership = join(worker or Worker(), chosen, connections=self._connections)
        return await self._stack.enter_async_context(membership)

    async def __call__(self, count: int, worker: Worker | None = None, **settings: Any) -> list[Replica]:
        return [await self.join(worker, **settings) for _ in range(count)]

    async def close(self) -> None:
        await self._stack.aclose()
