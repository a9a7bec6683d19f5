"""A log that all replicas read in the same order, and snapshots: the state after one entry of the log, as a file."""

from mesh.journal.journal import FOUNDED, Entry, Gap, Late, Log, LogError, NoLog, Replaced, UnreadableLog, View
from mesh.journal.position import Position, Snapshot, pack_id, unpack_id
from mesh.journal.snapshots import KEPT, Snapshots

__all__ = [
    "FOUNDED",
    "KEPT",
    "Entry",
    "Gap",
    "Late",
    "Log",
    "LogError",
    "NoLog",
    "Position",
    "Replaced",
    "Snapshot",
    "Snapshots",
    "UnreadableLog",
    "View",
    "pack_id",
    "unpack_id",
]
