"""Grades in memory: one packed record per user, shared with the snapshots that were taken of them.

A record is four values and, for each, the stamp of the log entry that set it (`mesh.journal.position.pack_id`; 0: never
set). For each field the higher stamp wins, so records merge to the same whatever the order, and merging
twice changes nothing.

The records are spread over shards. A snapshot keeps the shards of its moment; a shard is copied before its
first change afterwards. So taking one costs the same however many records there are, and what it costs in
memory follows what changes while it is kept.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from quart_app.grades.models import FIELDS, UserGrade

N = len(FIELDS)
FIELD_AT = {name: at for at, name in enumerate(FIELDS)}
#: Values, then stamps.
RECORD = struct.Struct(f"<{N}q{N}Q")
NEW = RECORD.pack(*(0,) * (2 * N))

#: 244 records in a shard of a million: copied in about 5 us.
SHARDS = 4096
#: A shard is chosen by bits that its own dict does not look at first.
SHARD_SHIFT = 40

DIGEST_BYTES = 16
_DIGEST_MASK = 2 ** (8 * DIGEST_BYTES) - 1

Shard = dict[str, bytes]
#: Of one user: the position of a field -> (value, stamp).
Changes = Mapping[int, tuple[int, int]]


def present(user_id: str, record: bytes) -> UserGrade:
    """A record as it is shown."""
    values = RECORD.unpack(record)[:N]
    return UserGrade.model_construct(user_id=user_id, **dict(zip(FIELDS, values, strict=True)))


def merged(record: bytes, changes: Changes) -> bytes:
    """The record after changes: of each field the value with the higher stamp."""
    cells = list(RECORD.unpack(record))
    for at, (value, stamp) in changes.items():
        if stamp > cells[N + at]:
            cells[at], cells[N + at] = value, stamp
    return RECORD.pack(*cells)


def newer(record: bytes, than: bytes) -> Changes:
    """What one record has that would win against another."""
    ours, theirs = RECORD.unpack(record), RECORD.unpack(than)
    return {at: (ours[at], ours[N + at]) for at in range(N) if ours[N + at] > theirs[N + at]}


def _hashed(user_id: str, record: bytes) -> int:
    digest = hashlib.blake2b(user_id.encode() + b"\0" + record, digest_size=DIGEST_BYTES)
    return int.from_bytes(digest.digest())


@dataclass(frozen=True, slots=True)
class Frozen:
    """All records as they were at one moment."""

    shards: list[Shard]
    count: int
    digest: str

    def record(self, user_id: str) -> bytes | None:
        return self.shards[_shard_of(user_id)].get(user_id)

    def forget(self) -> None:
        """Let go of everything, in steps: see `Storage.forget`."""
        _forget(self.shards)


class Storage:
    """The records of all users."""

    def __init__(self) -> None:
        self._shards: list[Shard] = [{} for _ in range(SHARDS)]
        #: 1 where no snapshot shares the shard
        self._own = bytearray(b"\1") * SHARDS
        self._digest = 0
        self.count = 0

    @property
    def digest(self) -> str:
        """The same in two storages exactly if they hold the same records with the same stamps, in whatever
        order."""
        return f"{self._digest:0{2 * DIGEST_BYTES}x}"

    def record(self, user_id: str) -> bytes | None:
        """A user's packed record, or None."""
        return self._shards[_shard_of(user_id)].get(user_id)

    def get(self, user_id: str) -> UserGrade | None:
        """A user's grade, or None."""
        record = self.record(user_id)
        return None if record is None else present(user_id, record)

    def merge(self, user_id: str, changes: Changes) -> bytes:
        """Merge changes into a user's record, and the record as it is then. Without changes the user is
        noted."""
        before = self.record(user_id)
        after = merged(NEW if before is None else before, changes)
        if after != before:
            self._put(user_id, before, after)
        return after

    def add(self, user_id: str, record: bytes) -> None:
        """Merge a whole record."""
        before = self.record(user_id)
        after = record if before is None else merged(before, newer(record, before))
        if after != before:
            self._put(user_id, before, after)

    def _put(self, user_id: str, before: bytes | None, after: bytes) -> None:
        if before is None:
            self.count += 1
        else:
            self._digest -= _hashed(user_id, before)
        self._digest = (self._digest + _hashed(user_id, after)) & _DIGEST_MASK
        at = _shard_of(user_id)
        if not self._own[at]:
            self._shards[at] = self._shards[at].copy()
            self._own[at] = 1
        self._shards[at][user_id] = after

    def snapshot(self) -> Frozen:
        """The records of this moment; they stay as they are, whatever is merged later."""
        self._own = bytearray(SHARDS)
        return Frozen(list(self._shards), self.count, self.digest)

    def forget(self) -> None:
        """Let go of everything; for a thread, since freeing a million records in one step would hold the event
        loop for a tenth of a second. Of no use afterwards."""
        _forget(self._shards)


def difference(of: Frozen, against: Frozen) -> Iterator[list[tuple[str, Changes]]]:
    """What one state has that another lacks, shard by shard."""
    for ours, theirs in zip(of.shards, against.shards, strict=True):
        found = []
        for user_id, record in ours.items():
            other = theirs.get(user_id)
            if other != record:
                changes = newer(record, NEW if other is None else other)
                if changes or other is None:
                    found.append((user_id, changes))
        yield found


def _forget(shards: list[Shard]) -> None:
    while shards:
        shards.pop()


def _shard_of(user_id: str) -> int:
    return hash(user_id) >> SHARD_SHIFT & SHARDS - 1
