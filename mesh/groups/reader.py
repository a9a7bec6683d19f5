"""The commands that one consumer of a consumer group sends. They are the same for requests and events."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from operator import attrgetter
from typing import Any, Protocol

from redis.exceptions import ResponseError

from mesh.groups.deliveries import Pending
from mesh.wire.script import Script

#: KEEP_ALIVE resets the idle time of entries in progress. FORGET deletes the consumers of dead processes.
KEEP_ALIVE = Script.beside(__file__, "keep_alive.lua")
FORGET = Script.beside(__file__, "forget.lua")

#: Longest time for which a read blocks. A reader that is to stop needs this long at most. With a shorter time, idle
#: readers cost Redis more reads.
BLOCK_MS = 250
#: If a consumer has no pending entries and has sent no command for this long, it counts as dead. A running consumer
#: reads again after at most BLOCK_MS while it can reach Redis. A longer time keeps the names of dead consumers for
#: longer. If a shorter one deletes a running consumer, its next read creates it again.
SILENCE_MS = 60_000
#: The most entries that one consumer hands back. If it has more, others claim these once nobody has kept them alive for
#: their `claim_idle_ms`. A larger number would need a longer command, and the server does nothing else meanwhile.
MOST_HANDED_BACK = 10_000

#: The fields of an entry, by name.
Fields = dict[str, str]
#: An entry as this consumer gets it: its id, the number of its deliveries (this one included), and the names and values
#: of its fields in turn.
Delivered = tuple[str, int, Sequence[str]]


class CommandRunner(Protocol):
    """Runs commands and scripts that do not block."""

    # A command in the bus database.
    def shared(self, *command: Any) -> Awaitable[Any]: ...

    def script(self, script: Script, keys: Sequence[str], *args: Any) -> Awaitable[Any]: ...


class GroupReader:
    """The commands of one consumer on its stream and group.

    `execute_read` runs the read, which blocks a connection; `commands` runs all other commands. A consumer of requests
    reads over a connection of its own, so that a read delays no other command.
    """

    def __init__(
        self,
        execute_read: Callable[..., Awaitable[Any]],
        commands: CommandRunner,
        stream: str,
        group: str,
        consumer: str,
    ) -> None:
        self._execute_read, self._commands = execute_read, commands
        self.stream, self.group, self.consumer = stream, group, consumer

    async def open(self) -> None:
        """Create the stream and its group if they do not exist, and delete consumers whose processes have ended."""
        await self._create()
        await self._commands.script(FORGET, [self.stream], self.group, self.consumer, SILENCE_MS)

    async def _create(self) -> None:
        # With "0", the group gets all entries of the stream, also those that came before the group.
        try:
            await self._commands.shared("XGROUP", "CREATE", self.stream, self.group, "0", "MKSTREAM")
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def read(self, count: int, block_ms: int = BLOCK_MS) -> list[Delivered]:
        """Return new entries in order, or an empty list if none came within `block_ms`."""
        sent_at = time.monotonic()
        answer = await self._execute_read(
            "XREADGROUP", "GROUP", self.group, self.consumer, "COUNT", count, "BLOCK", block_ms,
            "STREAMS", self.stream, ">",
        )  # fmt: skip
        entries = entries_of(answer)
        if not entries:
            await pause_if_not_blocked(sent_at, block_ms)
        return [(id, 1, flat) for id, flat in entries]

    async def pending(self, count: int, start: str = "-", *, mine: bool = False, idle_ms: int = 0) -> list[Pending]:
        """Return at most `count` pending entries of this consumer (`mine`) or of all, not kept alive for `idle_ms`.

        `start` is the first id, as XPENDING reads it: "-" for the first entry, "(" and an id for the entry after it.
        """
        consumer_argument = [self.consumer] if mine else []
        rows = await self._commands.shared(
            "XPENDING", self.stream, self.group, "IDLE", idle_ms, start, "+", count, *consumer_argument
        )
        return [Pending(id, deliveries) for id, _, _, deliveries in rows]

    async def claim(self, ids: Sequence[str], idle_ms: int, deliveries: int) -> list[Delivered]:
        """Claim entries, and set the number of their deliveries, this one included.

        Leave out entries that were deleted, and entries that are not idle for `idle_ms`.
        """
        rows = await self._commands.shared(
            "XCLAIM", self.stream, self.group, self.consumer, idle_ms, *ids, "RETRYCOUNT", deliveries
        )
        return [(row[0], deliveries, row[1]) for row in rows if row]

    async def keep_alive(self, ids: Sequence[str]) -> list[str]:
        """Reset the idle time of entries in progress; return the ids of those that this consumer has no more."""
        lost: list[str] = await self._commands.script(KEEP_ALIVE, [self.stream], self.group, self.consumer, *ids)
        return lost

    async def hand_back(self, idle_ms: int) -> None:
        """Let other consumers claim the entries of this one at once. Their delivery to this consumer does not count.

        This consumer claims its own entries once more, because XCLAIM can set their idle time and their number of
        deliveries. One command sets one number, so each number of deliveries needs a command. `idle_ms` is the idle
        time from which other consumers claim an entry.
        """
        own_entries = sorted(await self.pending(MOST_HANDED_BACK, mine=True), key=attrgetter("deliveries"))
        for deliveries, same_deliveries in itertools.groupby(own_entries, key=attrgetter("deliveries")):
            await self._commands.shared(
                "XCLAIM", self.stream, self.group, self.consumer, 0, *(entry.id for entry in same_deliveries),
                "IDLE", idle_ms, "RETRYCOUNT", max(0, deliveries - 1), "JUSTID",
            )  # fmt: skip


def fields_of(flat: Sequence[str]) -> Fields:
    """Return an entry's fields as a dict. Redis sends their names and values in turn."""
    # `zip` reads the one iterator twice for each pair: a name, then its value.
    names_and_values = iter(flat)
    return dict(zip(names_and_values, names_and_values))  # noqa: B905 (Redis sends no name without its value)


def entries_of(answer: Any) -> list[Any]:
    """Return the entries in the answer to a read of one stream, each as its id and its fields.

    Redis 7.0 may name a stream that has no entry: one that was deleted and made again during the read.
    """
    return answer[0][1] if answer else []


async def pause_if_not_blocked(sent_at: float, block_ms: int = BLOCK_MS) -> None:
    """Pause if a read returned nothing and did not block either, so that its loop does not use the whole processor.

    `sent_at` is when the read was sent, by `time.monotonic()`. A read counts as one that did not block if it took less
    than a quarter of its BLOCK time.
    """
    if time.monotonic() - sent_at < block_ms / 4000:  # a quarter, in seconds
        await asyncio.sleep(0.01)  # seconds: at most 100 such reads in a second
