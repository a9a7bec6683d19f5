"""Writes snapshots of the grades to disk, and trims from the log the old entries that snapshots contain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog
from redis.exceptions import RedisError

from mesh import MeshError
from mesh.journal import KEPT, Log, Position, Snapshots
from quart_app.grades import backup
from quart_app.grades.known_state import KnownState, backup_chunks
from quart_app.grades.metrics import GradesMetrics
from quart_app.grades.settings import GradesSettings
from quart_app.grades.sources import SnapshotFile, Source

log = structlog.get_logger(__name__)

#: Longest time, in seconds, for the snapshot of a replica that leaves and does not find its log any more. A longer time
#: saves a larger state, but holds up the replica's end.
ORPHAN_TIMEOUT_S = 30


class SnapshotKeeper:
    """The snapshots in this replica's folder, which other replicas of the machine may share."""

    def __init__(self, settings: GradesSettings, metrics: GradesMetrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self.snapshots = Snapshots(settings.snapshot_dir, backup.SUFFIX)
        #: The next snapshot is due `snapshot_every` entries after the entry of this number. `Replication` sets it after
        #: a restore, and this class after a snapshot.
        self.counted_from = 0
        #: the task that writes a snapshot, or the last one that did
        self.task: asyncio.Task[None] | None = None

    async def check_disk(self) -> None:
        """Log an error if no snapshot can be written. Nothing is raised, because peers can still give a backup."""
        try:
            await self.snapshots.check()
        except OSError as error:
            self._metrics.snapshots.labels("failed").inc()
            log.error("no snapshot can be written", folder=str(self.snapshots.folder), reason=str(error))

    async def sources(self, log_identity: str | None = None) -> list[Source]:
        """Return sources for the snapshots of one log, or of all logs, the newest first."""
        return [SnapshotFile(snapshot.path) for snapshot in await self.snapshots.on_disk(log_identity)]

    async def newest_number(self, log_identity: str, otherwise: int) -> int:
        """Return the number of the last entry that a log's newest snapshot contains; `otherwise` if there is none."""
        return max(
            (snapshot.position.number for snapshot in await self.snapshots.on_disk(log_identity)), default=otherwise
        )

    def is_due(self, position: Position) -> bool:
        """Return whether `snapshot_every` entries were applied since the last snapshot, and none is being written."""
        if self.task is not None and not self.task.done():
            return False
        return position.number - self.counted_from >= self._settings.snapshot_every

    def start(
        self,
        tasks: asyncio.TaskGroup,
        require_state: Callable[[], KnownState],
        grades_log: Log,
        carried_files: set[Path],
    ) -> None:
        """Write a snapshot in a task of this group. If this fails, nothing is raised, and the log is not trimmed.

        `require_state` returns the state as it is when the task may write, and raises Unavailable while the replica
        restores. `carried_files` as in `save`.
        """
        self.task = tasks.create_task(
            self._write_unless_done(require_state, grades_log, carried_files), name="grades-snapshot"
        )

    def cancel(self) -> None:
        """Cancel the snapshot that is being written."""
        if self.task is not None:
            self.task.cancel()

    async def _write_unless_done(
        self, require_state: Callable[[], KnownState], grades_log: Log, carried_files: set[Path]
    ) -> None:
        """Write a snapshot, unless another replica wrote one into the same folder meanwhile."""
        try:
            async with self.snapshots.hold_lock():
                position = require_state().position
                # 0 if the log has no snapshot: then all its entries count.
                newest_number = await self.newest_number(position.log, 0)
                if position.number - newest_number < self._settings.snapshot_every:
                    self.counted_from = newest_number
                else:
                    # Called again, because the replica may have lost its log during the last await.
                    await self.save(require_state(), grades_log, carried_files)
        except (RedisError, MeshError, OSError) as error:
            log.warning("snapshot postponed", reason=str(error))

    async def save(self, state: KnownState, grades_log: Log, carried_files: set[Path]) -> None:
        """Write a snapshot, and trim the log so that it begins at the previous one. If the disk fails, do not trim.

        Without the folder's lock, another replica may write the same snapshot, too. That only costs time.
        `carried_files` are files whose content is in this state. Once the snapshot is durable, they are deleted, and
        the set is emptied.
        """
        header, records = state.header_and_records(grades_log.now_ms())
        self.counted_from = header.number
        try:
            await self.snapshots.save(header.position, backup_chunks(header, records))
            for path in carried_files:
                path.unlink(missing_ok=True)
            carried_files.clear()
            kept_snapshots = await self.snapshots.prune(header.log)
        except OSError as error:
            self._metrics.snapshots.labels("failed").inc()
            log.error("snapshot failed; the log is not trimmed", reason=str(error))
            return
        self._metrics.snapshots.labels("done").inc()
        # KEPT: how many snapshots of a log stay on disk. With fewer, nothing could replace a damaged one, so the log
        # keeps all entries.
        if len(kept_snapshots) == KEPT:
            await grades_log.trim(kept_snapshots[-1])

    async def save_orphan(self, state: KnownState, grades_log: Log) -> bool:
        """Write to disk a state whose log was not found, and return whether it was written.

        Perhaps no other replica has this state.
        """
        header, records = state.header_and_records(grades_log.now_ms(), orphaned=True)
        try:
            async with asyncio.timeout(ORPHAN_TIMEOUT_S):
                await self.snapshots.save(header.position, backup_chunks(header, records))
            log.warning("state of a former log written to disk", log=header.log, number=header.number)
        except (OSError, TimeoutError) as error:
            log.error("last snapshot failed", reason=str(error))
            return False
        return True
