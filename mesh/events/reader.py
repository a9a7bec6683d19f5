"""The commands that one consumer of events sends, all over one connection."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from mesh.groups.reader import BLOCK_MS, GroupReader
from mesh.keys import DEAD, DEAD_KEPT
from mesh.wire.connection import RedisConnection
from mesh.wire.script import Script

#: BURY makes an event a dead letter, and FINISH acknowledges and deletes events. Requests have another script BURY.
BURY = Script.beside(__file__, "bury.lua")
FINISH = Script.beside(__file__, "finish.lua")

#: A read that takes longer than its BLOCK time by this much has failed, and its connection is closed. With less time, a
#: busy server would seem to be dead.
READ_GRACE_S = 2.0


@dataclass(frozen=True, slots=True)
class DeliveredEvent:
    """An event as a handler gets it. `deliveries` counts this delivery, too.

    In its fields, bytes that are not UTF-8 are lone surrogates (`surrogateescape`), so that no byte is lost.
    """

    id: str
    fields: Mapping[str, str]
    deliveries: int = 1


class SerialConnection:
    """Runs the commands of several tasks over one connection, one after the other.

    While a read blocks, for at most BLOCK_MS, all other commands wait. This does no harm: the most urgent ones are the
    keep-alives. Another consumer claims an event only if no keep-alive came for `claim_idle_ms`; by default, this is
    twenty times as long.
    """

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection
        self._lock = asyncio.Lock()
        self.aclose = connection.aclose

    @classmethod
    def of(cls, client: Redis) -> SerialConnection:
        """Take a connection out of a redis-py client, and return an object that runs commands over it."""
        return cls(RedisConnection(client, BLOCK_MS / 1000 + READ_GRACE_S, errors="surrogateescape"))

    # With these three methods it is an `Executor` for scripts, and a `CommandRunner` for the GroupReader.

    async def execute_command(self, *command: Any) -> Any:
        async with self._lock:
            return await self._connection.execute(*command)

    shared = execute_command  # the connection is to the bus database, where the events are

    async def script(self, script: Script, keys: Sequence[str], *args: Any) -> Any:
        return await script.run(self, keys, *args)


class EventReader(GroupReader):
    """The commands of one consumer on its stream of events and its group."""

    def __init__(self, commands: SerialConnection, stream: str, group: str, consumer: str) -> None:
        # The read, which blocks, and all other commands share one connection.
        super().__init__(commands.shared, commands, stream, group, consumer)

    async def finish(self, ids: Sequence[str]) -> None:
        """Acknowledge and delete events."""
        if ids:
            await self._commands.script(FINISH, [self.stream], self.group, *ids)

    async def bury(self, event: DeliveredEvent, reason: str) -> bool:
        """Make an event a dead letter. Return False if the event is no longer on the stream."""
        arguments = (self.group, event.id, reason, event.deliveries, DEAD_KEPT)
        return bool(await self._commands.script(BURY, [self.stream, DEAD], *arguments))
