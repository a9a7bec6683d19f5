"""A Redis in this process: fakeredis, and what the mesh needs of a real server and fakeredis lacks.

fakeredis knows no access rules, so only key names keep replicas apart: `isolation=prefix`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, cast

import fakeredis
import redis

from mesh.settings import Isolation, RedisSettings, without_environment
from mesh.wire.clients import Connections, heeding_cancellation
from mesh.wire.connection import RedisConnection, pack

#: The answer to INFO over a connection, such as that of `Memory`. `maxmemory:0`: the server has no limit. 7.0 is the
#: oldest version that the mesh supports.
INFO_ANSWER = "redis_version:7.0.0\r\nused_memory:0\r\nmaxmemory:0\r\n"


def without_flags(script: str) -> str:
    """Return a script without its first line `#!lua flags=...`, which fakeredis cannot read."""
    return script.partition("\n")[2] if script.startswith("#!lua") else script


def _for_fake_eval(command: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a command as fakeredis can read it: EVAL gets the script without its flags."""
    return ("EVAL", without_flags(command[1]), *command[2:]) if command[0] == "EVAL" else command


class FakeClient(fakeredis.FakeAsyncRedis):
    """fakeredis with INFO, and with scripts whose first line names flags (`#!lua flags=...`)."""

    async def info(self, section: str | None = None, *args: str, **options: Any) -> dict[str, str]:
        return {"redis_version": "7.0.0"}

    async def execute_command(self, *words: Any, **options: Any) -> Any:
        return await cast(Any, super()).execute_command(*_for_fake_eval(words), **options)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Any:
        pipeline = super().pipeline(transaction, shard_hint)
        execute = pipeline.execute_command
        # Only this pipeline gets another method, and mypy expects none to be replaced.
        pipeline.execute_command = lambda *words, **options: execute(*_for_fake_eval(words), **options)  # type: ignore[method-assign]
        return pipeline


class FakeConnection(RedisConnection):
    """A connection to fakeredis that returns replies as a real server sends them."""

    def __init__(self, client: FakeClient, server: fakeredis.FakeServer) -> None:
        super().__init__(client, timeout_s=5)  # has no effect: `send` below has no time-out
        self._fake_client = client
        self._server = server
        self._client_id = 0
        # With these callbacks redis-py would turn replies into other Python objects.
        client.response_callbacks.clear()

    async def send(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        # The bytes are not used: a word that cannot be sent to a real server raises the same error here.
        pack(commands)
        try:
            self._client_id = self._client_id or await self._fake_client.client_id()
            return [await self._send_one(command) for command in commands]
        except BaseException:
            # A server ends a read that blocks when its connection is closed. fakeredis would let it go on, and the read
            # would take entries that nobody gets. The next `send` asks for the id anew, because it may use another
            # connection.
            fakeredis.FakeRedis(server=self._server).client_unblock(self._client_id)
            self._client_id = 0
            raise

    async def _send_one(self, command: tuple[Any, ...]) -> Any:
        """Return the reply to one command; an error reply is returned, not raised."""
        if command[:2] == ("SCRIPT", "LOAD"):
            return self._load(command[2])
        if command[0] == "INFO":
            return INFO_ANSWER
        try:
            return await self._fake_client.execute_command(*_for_fake_xpending(command))
        except redis.exceptions.ResponseError as error:
            # For a missing stream fakeredis gives an error that a server gives only to XGROUP. A server says NOGROUP.
            if "requires the key to exist" in str(error):
                return redis.exceptions.ResponseError("NOGROUP No such key")
            return error

    def _load(self, script: str) -> str:
        """Do SCRIPT LOAD: give fakeredis the script without its flags, under the hash of the script with them."""
        sha = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        self._server.script_cache[sha.encode()] = without_flags(script).encode()
        return sha


def _for_fake_xpending(command: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a command for fakeredis, whose XPENDING reads IDLE as "longer than". A server reads "at least"."""
    # The words of such a command are XPENDING, stream, group, IDLE, time (ms), and others.
    if command[0] != "XPENDING" or command[3:4] != ("IDLE",):
        return command
    idle_ms = int(command[4])
    return (*command[:3], *(("IDLE", idle_ms - 1) if idle_ms else ()), *command[5:])


class FakeConnections(Connections):
    """Clients of a fakeredis server, which is an object in this process.

    fakeredis has no sockets and no pools, so `block_ms` and `shared` have no effect here.
    """

    def __init__(self, settings: RedisSettings, server: fakeredis.FakeServer | None = None) -> None:
        super().__init__(settings)
        self.server = server or fakeredis.FakeServer(version=(7,))

    def client(self, name: str, *, db: int | None = None, block_ms: int = 0, shared: bool = False) -> FakeClient:
        client = FakeClient(server=self.server, db=self.bus if db is None else db, decode_responses=True)
        heeding_cancellation(client)
        return client

    def connection(self, name: str, *, block_ms: int = 0) -> FakeConnection:
        client = FakeClient(server=self.server, db=self.bus, decode_responses=True, protocol=2)
        heeding_cancellation(client)
        return FakeConnection(client, self.server)


class FakeKitServer:
    """fakeredis as the server of a kit."""

    isolation = Isolation.PREFIX

    def __init__(self) -> None:
        self.connections = FakeConnections(without_environment(RedisSettings))
        self.sync_client = fakeredis.FakeRedis(server=self.connections.server, decode_responses=True)

    async def begin(self) -> None:
        """Do nothing: this server is new, and so empty."""

    async def end(self) -> None:
        """Do nothing: this server is an object of the kit, and ends with the kit."""
