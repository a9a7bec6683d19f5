"""Watches the roster of a mesh under test for databases without a row."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable

import redis

from mesh.roster import Member
from tests.support.faults.history import History

LOOK_S = 0.02


class RosterWatch:
    """Notes in the history when a database had no row, so that a gather could not ask its holder.

    It looks every 20 ms. A new epoch tells that a row was gone between two looks.
    """

    def __init__(self, rows: Callable[[], Awaitable[list[Member]]], history: History, databases: Iterable[int]) -> None:
        self._read_rows = rows
        self._history = history
        self._databases = set(databases)
        self._fine_at = time.monotonic()
        self._rows: dict[int, Member] = {}
        self._missed = False

    async def run(self) -> None:
        while True:
            with contextlib.suppress(redis.RedisError, OSError):
                self._look(await self._read_rows())
            await asyncio.sleep(LOOK_S)

    def _look(self, found: list[Member]) -> None:
        now = time.monotonic()
        rows = {row.database: row for row in found}
        if not self._databases <= rows.keys():
            self._missed = True
            return
        lapsed = any(
            before.epoch != rows[number].epoch and before.state != "left" for number, before in self._rows.items()
        )
        if lapsed or self._missed:
            self._history.holderless.append((self._fine_at, now))
        self._missed = False
        self._fine_at, self._rows = now, {number: rows[number] for number in self._databases}
