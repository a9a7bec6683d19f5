"""Appends to the present log what a replica knows of a lost log.

Each field keeps the stamp of the entry that set it, so a newer change in the present log wins. The state that this
process had itself is always used. A snapshot is used only if the present log continues the snapshot's log, or if the
snapshot is marked as orphaned.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from pathlib import Path

from mesh.journal import Log, Position, Snapshot
from quart_app.grades import entries
from quart_app.grades.backup import BadBackup, Header
from quart_app.grades.known_state import KnownState, merge
from quart_app.grades.metrics import GradesMetrics
from quart_app.grades.settings import GradesSettings
from quart_app.grades.snapshot_keeper import SnapshotKeeper
from quart_app.grades.sources import File, first_good
from quart_app.grades.storage import difference

#: Shards that one step in a thread compares.
SHARDS_PER_STEP = 64


class CarryOver:
    """Appends what this process and its disk know and the present log lacks."""

    def __init__(self, settings: GradesSettings, metrics: GradesMetrics, keeper: SnapshotKeeper) -> None:
        self._settings = settings
        self._metrics = metrics
        self._keeper = keeper
        #: the state that this process had when it lost its log
        self.before: KnownState | None = None
        #: positions of states that the present log contains: the state that it began with, and those carried over
        self._contained: set[Position] = set()
        #: snapshots whose content is in the present log; they are deleted when the next snapshot is on disk
        self.carried_files: set[Path] = set()

    async def put_aside(self, known: KnownState | None) -> None:
        """Keep a state that the log does not continue, to carry it over later."""
        if known is None or known.position.number == 0:
            return
        self.before = known if self.before is None else await asyncio.to_thread(merge, self.before, known)

    def founded_on(self, base: KnownState | None) -> None:
        """Note that the present log begins with this state."""
        self._contained = {base.position} if base else set()
        self.before = None

    async def carry(self, known: KnownState, grades_log: Log) -> int:
        """Append what earlier states have and `known` lacks.

        Return the number of the last entry that was appended. If there is none, return the number of `known`.
        """
        last = known.position
        if self.before is not None:
            last = await self._append(self.before, known, grades_log, last)
            self._contained.add(self.before.position)
            before, self.before = self.before, None
            await asyncio.to_thread(before.storage.forget)
        for snapshot in await self._stray_snapshots(grades_log):
            if snapshot.position not in self._contained:
                stray = await self._read_stray(snapshot, known)
                if stray is None:
                    continue
                last = await self._append(stray, known, grades_log, last)
                await asyncio.to_thread(stray.storage.forget)
            self.carried_files.add(snapshot.path)
        return last.number

    async def _append(self, before: KnownState, known: KnownState, grades_log: Log, last: Position) -> Position:
        of, ours, theirs = before.position, before.storage.snapshot(), known.storage.snapshot()
        shards = difference(ours, theirs)
        while step := await asyncio.to_thread(lambda: list(itertools.islice(shards, SHARDS_PER_STEP))):
            for body in entries.carry_bodies(of.log, itertools.chain.from_iterable(step)):
                write = secrets.token_hex(8)
                last = await grades_log.append(
                    entries.CARRY, body, reader_at=known.position, write=write, floor=of.stamp
                )
                self._metrics.carried.inc(len(body["records"]))
        return last

    async def _stray_snapshots(self, grades_log: Log) -> list[Snapshot]:
        """Return the snapshots that the present log does not continue from."""
        found = await self._keeper.snapshots.durable()
        return [snapshot for snapshot in found if not await grades_log.holds(snapshot.position)]

    async def _read_stray(self, snapshot: Snapshot, known: KnownState) -> KnownState | None:
        async def must_be_related(header: Header) -> None:
            if header.log not in known.lineage and not header.orphaned:
                raise BadBackup(f"the present log does not continue the log {header.log}; the file is left alone")

        return await first_good([File(snapshot.path)], self._settings, self._metrics, must_be_related)
