"""One connection, spoken to directly.

What redis-py's client puts around every command (a pool, retries, a timer and a task for each, metrics, reshaping)
costs a replica more than the command itself. A line uses its connections, which connect, log in, pack and parse, and
leaves the rest out: several commands go out as one, answers come back as the server sent them, one timer covers all.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

from redis import exceptions as redis_errors
from redis.asyncio import Redis

Command = tuple[Any, ...]


class Line:
    """The one connection of a client. The client's own sockets need no time-out: `timeout_s` is for the whole trip."""

    def __init__(self, client: Redis, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._connection: Any = None

    async def say(self, commands: Sequence[Command]) -> list[Any]:
        """One round trip; an error that the server answers is an answer.

        Whatever else goes wrong, a cancellation too, disconnects, since nobody knows which answers are still to come;
        the next words connect anew. Raises redis.exceptions.*, OSError.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = await self._connected()
                await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
                return [await _answer(connection) for _ in commands]
        except TimeoutError as error:
            await self._disconnect()
            raise redis_errors.TimeoutError("Redis did not answer in time") from error
        except BaseException:
            await self._disconnect()
            raise

    async def ask(self, *command: Any) -> Any:
        """Say one command. Raises the error that the server answers, too."""
        (answer,) = await self.say([command])
        if isinstance(answer, redis_errors.ResponseError):
            raise answer
        return answer

    async def _connected(self) -> Any:
        if self._connection is None:
            self._connection = await self._client.connection_pool.get_connection()
        elif not self._connection.is_connected:
            await self._connection.connect()
        return self._connection

    async def _disconnect(self) -> None:
        if self._connection is not None:
            await self._connection.disconnect(nowait=True)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._client.aclose()


async def _answer(connection: Any) -> Any:
    try:
        return await connection.read_response(timeout=math.inf)
    except redis_errors.ResponseError as error:
        return error
