"""The grades as they are after one entry of the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace

from mesh.journal import Entry, Position
from quart_app.grades import backup, entries
from quart_app.grades.backup import Header
from quart_app.grades.storage import FrozenRecords, Storage

#: The most logs that a state names. The first line of each backup names all of them, so their number is bounded. With a
#: smaller number, `carry_over` takes more snapshots of old logs for those of unrelated ones, and leaves them.
LINEAGE_MAX = 32


@dataclass(slots=True)
class KnownState:
    """Records, the log entry up to which they are complete, and the logs that this log continues."""

    storage: Storage
    position: Position
    #: the identities of the logs that this log continues
    continues: tuple[str, ...] = ()

    @property
    def lineage(self) -> tuple[str, ...]:
        """All logs whose changes may be in the records."""
        return union(self.continues, (self.position.log,))

    def apply(self, entry: Entry) -> None:
        """Apply the changes of an entry to the records; the position stays. Raises UnreadableEntry."""
        changes = entries.changes_of(entry)
        for user_id, changed_fields in changes.by_user:
            self.storage.merge(user_id, changed_fields)
        if changes.continues:
            self.continues = union(self.continues, changes.continues)

    def header_and_records(self, now_ms: int | None, *, orphaned: bool = False) -> tuple[Header, FrozenRecords]:
        """Return the header of a backup and the records of this moment.

        `now_ms` is the time of Redis's clock. If it is None, because Redis has not answered yet, the header has the
        time of the last entry. `orphaned` says whether the log was not found.
        """
        records = self.storage.snapshot()
        # All bits of a stamp but the lowest 16 are the time in the entry's id.
        time_ms = self.position.stamp >> 16 if now_ms is None else now_ms
        return replace(backup.header_of(records, self.position, self.continues, time_ms), orphaned=orphaned), records


def union(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    """Return the identities of logs in both, each once. If there are more than LINEAGE_MAX, drop the first ones."""
    return tuple(dict.fromkeys((*first, *second)))[-LINEAGE_MAX:]


def merge(first: KnownState, second: KnownState) -> KnownState:
    """Return one state with the records of both, at the later position. Use neither of the two states afterwards."""
    older_state, newer_state = sorted((first, second), key=lambda state: state.position.stamp)
    for shard in older_state.storage.snapshot().shards:
        for user_id, record in shard.items():
            newer_state.storage.merge_record(user_id, record)
    older_state.storage.free()
    # The log of `newer_state` is in its position, and no log continues itself.
    return KnownState(newer_state.storage, newer_state.position, union(older_state.lineage, newer_state.continues))


async def backup_chunks(header: Header, records: FrozenRecords) -> AsyncGenerator[bytes, None]:
    """Yield a backup in chunks, each made in a thread. The records are freed afterwards."""
    chunks = backup.chunks_of(header, records)
    try:
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            if chunk:
                yield chunk
    finally:
        await asyncio.to_thread(records.free)
