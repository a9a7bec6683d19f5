"""A log that all replicas read in one order, and snapshots of the state that it leads to."""

from mesh.journal.journal import FOUNDED, Entry, Log, LogError, View
from mesh.journal.position import Position, Snapshot, pack_id, unpack_id
from mesh.journal.snapshots import KEPT, Snapshots

__all__ = [
    "FOUNDED",
    "KEPT",
    "Entry",
    "Log",
    "LogError",
    "Position",
    "Snapshot",
    "Snapshots",
    "View",
    "pack_id",
    "unpack_id",
]
