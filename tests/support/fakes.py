"""fakeredis, with the parts of a real server that it lacks and the mesh needs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import fakeredis
import redis

from mesh import Connections, RedisSettings
from mesh.wire.clients import heeding_cancellation
from mesh.wire.connection import RedisConnection, pack


def without_flags(script: str) -> str:
    """Return a script without its first line `#!lua flags=...`, which fakeredis cannot read."""
    return script.partition("\n")[2] if script.startswith("#!lua") else script


class FakeClient(fakeredis.FakeAsyncRedis):
    """fakeredis with INFO, and with scripts whose first line names flags (`#!lua flags=...`)."""

    async def info(self, section: str | None = None) -> dict[str, str]:
        return {"redis_version": "7.0.0"}

    async def execute_command(self, *words: Any, **options: Any) -> Any:
        if words[0] == "EVAL":
            words = ("EVAL", without_flags(words[1]), *words[2:])
        return await super().execute_command(*words, **options)

    def pipeline(self, transaction: bool = True, **options: Any) -> Any:
        pipeline = super().pipeline(transaction, **options)
        evaluate = pipeline.eval
        pipeline.eval = lambda script, *words: evaluate(without_flags(script), *words)  # type: ignore[method-assign]
        return pipeline

    async def script_load(self, script: str) -> str:
        # The hash is that of the whole text, flags included, as on a real server.
        sha = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        self.get_connection_kwargs()["server"].script_cache[sha.encode()] = without_flags(script).encode()
        return sha


class FakeConnection(RedisConnection):
    """A connection to fakeredis that returns replies as a real server sends them."""

    def __init__(self, client: FakeClient) -> None:
        super().__init__(client, timeout_s=5)
        self._fake = client
        client.response_callbacks.clear()

    async def send(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        pack(commands)
        return [await self._say(command) for command in commands]

    async def _say(self, command: tuple[Any, ...]) -> Any:
        if command[:2] == ("SCRIPT", "LOAD"):
            return await self._fake.script_load(command[2])
        try:
            return await self._fake.execute_command(*command)
        except redis.exceptions.ResponseError as error:
            return error


class FakeConnections(Connections):
    """Clients of a fakeredis server, which is an object in this process."""

    def __init__(self, settings: RedisSettings, server: fakeredis.FakeServer | None = None) -> None:
        super().__init__(settings)
        self.server = server or fakeredis.FakeServer(version=(7,))

    def client(self, name: str, *, db: int | None = None, block_ms: int = 0, shared: bool = False) -> FakeClient:
        client = FakeClient(server=self.server, db=self.bus if db is None else db, decode_responses=True)
        heeding_cancellation(client)
        return client

    def connection(self, name: str, *, block_ms: int = 0) -> FakeConnection:
        client = FakeClient(server=self.server, db=self.bus, decode_responses=True, protocol=2)
        return FakeConnection(heeding_cancellation(client))
