"""Snapshots on disk: files that hold the state of a replicated log at a position.

A file under its final name is complete and durable: it was written under another name, flushed to the disk (fsync) and
renamed; then the folder was flushed. If a writer is killed, the file that it leaves has no final name. Several replicas
may share one folder; only one of them writes at a time. The final name is:

    {log}-{number}-{stream id}.{suffix}

These are the parts of the position: the identity of the log (16 hex digits), and the number and id of the last entry
that the state contains. The number has at least 12 digits, so the names of one log sort in the order of its entries.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path
from typing import BinaryIO

from mesh.journal.position import Position, Snapshot

#: How many snapshots of one log are kept. The log keeps all entries after the oldest of them, so a replica can still
#: restore when the newest snapshot is damaged. More snapshots would need more room on the disk and in the log.
KEPT = 2
#: If nobody has written to an unfinished file for this long, its writer has died, and the file is deleted. A longer
#: time keeps such a file for longer; a shorter one may delete the file of a writer that waits for its disk.
STALE_PART_S = 3600
#: Pause between two attempts to lock the folder. A longer pause delays the process that waits; a shorter one costs more
#: attempts.
LOCK_RETRY_S = 0.1

_NAME_PATTERN = re.compile(r"(?P<log>[0-9a-f]{16})-(?P<number>\d{12,})-(?P<id>\d+-\d+)\.")


class Snapshots:
    """The snapshots in one folder. Each method but `hold_lock` raises OSError if the disk refuses an operation.

    `log` is always the identity of a log. A *part* is an unfinished file, which has no final name yet.
    """

    def __init__(self, folder: Path, suffix: str) -> None:
        self.folder = folder
        self.suffix = suffix

    async def on_disk(self, log: str | None = None) -> list[Snapshot]:
        """Return the durable snapshots of one log, or of all logs, the newest first."""
        snapshots = await asyncio.to_thread(self._list)
        return [snapshot for snapshot in snapshots if log is None or snapshot.position.log == log]

    async def check(self) -> None:
        """Raise OSError if no snapshot could be written now."""
        await asyncio.to_thread(self._check_writable)

    @contextlib.asynccontextmanager
    async def hold_lock(self) -> AsyncIterator[None]:
        """Hold the lock of the folder, so that only one process at a time writes a snapshot there.

        If the process ends, its lock ends too. On a disk without locks, nothing is locked, and the block runs anyway:
        each writer has a file of its own, so writing twice only costs work.
        """
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # the disk has no locks, or refuses the file; then `save` raises, too
                while (lock_file := await asyncio.to_thread(self._try_to_lock)) is None:
                    await asyncio.sleep(LOCK_RETRY_S)
                stack.enter_context(lock_file)
            yield

    async def save(self, position: Position, content: AsyncIterable[bytes]) -> Snapshot:
        """Write a snapshot; it is durable when this returns. If it fails or is cancelled, no unfinished file stays."""
        await asyncio.to_thread(self._prepare)
        part = self._new_part_path()
        try:
            with await asyncio.to_thread(open, part, "xb") as file:
                async for chunk in content:
                    await asyncio.to_thread(file.write, chunk)
                await asyncio.to_thread(_flush_to_disk, file)
            return await asyncio.to_thread(self._publish, part, position)
        finally:
            part.unlink(missing_ok=True)

    async def prune(self, log: str, keep: int = KEPT) -> list[Snapshot]:
        """Delete all snapshots of a log but the newest `keep`; return those that stay, the newest first."""
        snapshots = await self.on_disk(log)
        for snapshot in snapshots[keep:]:
            snapshot.path.unlink(missing_ok=True)
        return snapshots[:keep]

    def _list(self) -> list[Snapshot]:
        """Return all snapshots in the folder, the newest first. Files with other names are no snapshots.

        The newest snapshot has the highest stream id: an id begins with the time of its entry.
        """
        if not self.folder.is_dir():
            return []
        snapshots = [self._as_snapshot(path) for path in self.folder.iterdir() if path.name.endswith(f".{self.suffix}")]
        return sorted(filter(None, snapshots), key=lambda snapshot: snapshot.position.stamp, reverse=True)

    @staticmethod
    def _as_snapshot(path: Path) -> Snapshot | None:
        """Return the snapshot in this file, or None if the name of the file is no final name."""
        name_match = _NAME_PATTERN.match(path.name)
        if name_match is None:
            return None
        return Snapshot(Position(name_match["log"], int(name_match["number"]), name_match["id"]), path)

    def _new_part_path(self) -> Path:
        # 64 random bits, so that no two writers use the same file.
        return self.folder / f".{secrets.token_hex(8)}.part"

    def _check_writable(self) -> None:
        """Make an empty file and delete it. Raises OSError."""
        self._prepare()
        part = self._new_part_path()
        part.touch(exist_ok=False)
        part.unlink()

    def _prepare(self) -> None:
        """Make the folder, and delete the unfinished files of writers that have died."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for part in self.folder.glob(".*.part"):
            with contextlib.suppress(FileNotFoundError):  # its writer has renamed it, or another replica deleted it
                if time.time() - part.stat().st_mtime > STALE_PART_S:
                    part.unlink()

    def _try_to_lock(self) -> BinaryIO | None:
        """Lock the folder; return the lock file, or None if another process has the lock. Closing the file unlocks."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # All replicas must lock the same file, so another name (".lock") would let two releases write at once.
        lock_file = (self.folder / ".turn").open("ab")
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock_file.close()
            if isinstance(error, BlockingIOError):
                return None
            raise
        return lock_file

    def _publish(self, part: Path, position: Position) -> Snapshot:
        """Give a complete file its final name, durably, and return the snapshot."""
        name = f"{position.log}-{position.number:012d}-{position.id}.{self.suffix}"
        path = self.folder / name
        os.replace(part, path)
        folder_fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder_fd)
        finally:
            os.close(folder_fd)
        return Snapshot(position, path)


def _flush_to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
