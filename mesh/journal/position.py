"""Positions in a replicated log, and snapshots of the state at a position."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: The stream id before all entries.
START_ID = "0-0"
#: How many bits of a packed id hold the part of the stream id after the hyphen, which append.lua keeps below 65536. The
#: other 47 bits hold the ms, which is enough until the year 6429.
SEQUENCE_BITS = 16


def pack_id(stream_id: str) -> int:
    """Pack a stream id of a log into an integer below 2**63. Such integers sort as the ids do. Raises ValueError."""
    ms_text, _, sequence_text = stream_id.partition("-")
    ms, sequence = int(ms_text), int(sequence_text)
    if not (0 <= ms < 1 << 63 - SEQUENCE_BITS and 0 <= sequence < 1 << SEQUENCE_BITS):
        raise ValueError(f"{stream_id[:50]} is not the id of an entry of a log")
    return ms << SEQUENCE_BITS | sequence


def unpack_id(stamp: int) -> str:
    """Return the stream id that `pack_id` packed into this stamp."""
    return f"{stamp >> SEQUENCE_BITS}-{stamp & (1 << SEQUENCE_BITS) - 1}"


@dataclass(frozen=True, slots=True)
class Position:
    """How far a reader has come: it has read the entry with this number and id, and all entries before.

    `log` is the identity of the log. The first entry of a log has the number 1, or 2 if the log begins with a state.
    """

    log: str
    number: int
    id: str

    @property
    def stamp(self) -> int:
        """The id packed into one integer by `pack_id`."""
        return pack_id(self.id)

    @classmethod
    def start(cls, log: str) -> Position:
        """Return the position before the first entry of a log that begins empty."""
        return cls(log, 0, START_ID)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A durable file that holds the state at a position. Only `mesh.journal.snapshots` makes snapshots."""

    position: Position
    path: Path
