"""Appends to the present log what a replica knows of a lost log.

Each field keeps the stamp of the entry that set it, so a newer change in the present log wins. The state that this
process had itself is always used. A snapshot on disk is used in two cases: the present log continues the snapshot's
log, or the snapshot is marked as orphaned. It is marked so if its log was not found when it was written.
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
from quart_app.grades.sources import SnapshotFile, first_good
from quart_app.grades.storage import changes_beyond

#: How many of the `storage.SHARD_COUNT` shards one step in a thread compares. More make a step long; fewer need more
#: steps.
SHARDS_COMPARED_PER_STEP = 64


class CarryOver:
    """Appends what this process and its disk know and the present log lacks."""

    def __init__(self, settings: GradesSettings, metrics: GradesMetrics, keeper: SnapshotKeeper) -> None:
        self._settings = settings
        self._metrics = metrics
        self._keeper = keeper
        #: the state that this process had when it lost its log, until it is carried over; None if there is none. After
        #: several losses it is the merged state
        self.lost_log_state: KnownState | None = None
        #: the positions of states whose changes the present log contains. The log began with one of these states; each
        #: of the others was a `lost_log_state` that was carried over. Carried snapshots are in `carried_files`
        self._contained_positions: set[Position] = set()
        #: snapshots whose content is in the present log; they are deleted when the next snapshot is on disk
        self.carried_files: set[Path] = set()

    async def put_aside(self, state: KnownState | None) -> None:
        """Keep the state of a lost log, to carry it over into the next log. Call it when the log is lost."""
        # Number 0: no entry was applied, so the state is empty.
        if state is None or state.position.number == 0:
            return
        self.lost_log_state = (
            state if self.lost_log_state is None else await asyncio.to_thread(merge, self.lost_log_state, state)
        )

    def note_base(self, base: KnownState | None) -> None:
        """Note that the present log begins with this state (None: empty). So the state need not be carried over."""
        self._contained_positions = {base.position} if base else set()
        self.lost_log_state = None

    async def carry(self, state: KnownState, grades_log: Log) -> int:
        """Append what earlier states have and `state`, the state of the present log, lacks.

        Return the number of the last entry that was appended. The state is complete when this entry is applied, too. If
        nothing was appended, return the number of `state`.
        """
        last_position = state.position
        if self.lost_log_state is not None:
            last_position = await self._append_difference(self.lost_log_state, state, grades_log, last_position)
            self._contained_positions.add(self.lost_log_state.position)
            carried_state, self.lost_log_state = self.lost_log_state, None
            await asyncio.to_thread(carried_state.storage.free)
        for snapshot in await self._stray_snapshots(grades_log):
            if snapshot.position not in self._contained_positions:
                stray_state = await self._read_stray(snapshot, state)
                if stray_state is None:
                    # The file is damaged, or of an unrelated log. It is kept.
                    continue
                last_position = await self._append_difference(stray_state, state, grades_log, last_position)
                await asyncio.to_thread(stray_state.storage.free)
            self.carried_files.add(snapshot.path)
        return last_position.number

    async def _append_difference(
        self, lost_state: KnownState, state: KnownState, grades_log: Log, last_position: Position
    ) -> Position:
        """Append what the lost state knows and the present one lacks. Return the position of the last entry."""
        lost_position, lost_records, present_records = (
            lost_state.position,
            lost_state.storage.snapshot(),
            state.storage.snapshot(),
        )
        changes_by_shard = changes_beyond(lost_records, present_records)
        while shard_changes := await asyncio.to_thread(
            lambda: list(itertools.islice(changes_by_shard, SHARDS_COMPARED_PER_STEP))
        ):
            for body in entries.bodies_of_carry(lost_position.log, itertools.chain.from_iterable(shard_changes)):
                # `reader_at` is how far this replica has read. Redis appends nothing if the log lacks these entries.
                # `floor` makes the stamp of the entry higher than the stamps of all fields that it carries; a reader
                # refuses any other entry (`entries.changes_of`). The name is random, because nobody waits for it.
                write_name = secrets.token_hex(8)
                last_position = await grades_log.append(
                    entries.CARRY, body, reader_at=state.position, write=write_name, floor=lost_position.stamp
                )
                self._metrics.carried.inc(len(body["records"]))
        return last_position

    async def _stray_snapshots(self, grades_log: Log) -> list[Snapshot]:
        """Return the snapshots from which no replica can follow the present log."""
        on_disk = await self._keeper.snapshots.on_disk()
        return [snapshot for snapshot in on_disk if not await grades_log.holds(snapshot.position)]

    async def _read_stray(self, snapshot: Snapshot, state: KnownState) -> KnownState | None:
        async def must_be_related(header: Header) -> None:
            if header.log not in state.lineage and not header.orphaned:
                raise BadBackup(f"the present log does not continue the log {header.log}; the file is left alone")

        return await first_good([SnapshotFile(snapshot.path)], self._settings, self._metrics, must_be_related)
