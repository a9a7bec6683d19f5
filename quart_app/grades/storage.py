"""Keeps the grades in memory: one packed record per user.

A record has four values, and for each value the stamp of the log entry that set it (`mesh.journal.position.pack_id`; 0:
never set). For each field the value with the higher stamp wins. So records merge to the same result in any order, and
merging a record twice changes nothing.

The records are spread over shards. A snapshot shares all shards with the storage. The storage copies a shared shard
before it changes a record of the shard. So taking a snapshot costs the same for any number of records, and keeping it
costs only the memory of the shards that change meanwhile.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from quart_app.grades.models import FIELDS, UserGrade

#: How many fields a record has.
N = len(FIELDS)
FIELD_AT = {name: index for index, name in enumerate(FIELDS)}
#: The layout of a record: the values of all fields, then their stamps.
RECORD = struct.Struct(f"<{N}q{N}Q")
#: A record whose fields were never set.
NEW = RECORD.pack(*(0,) * (2 * N))

#: With a million records, each shard has 244 of them, and copying a shard takes about 5 µs.
SHARDS = 4096
#: High bits of a user id's hash choose the shard, because the dict of the shard uses the low bits. Another process
#: has other hashes, and so other shards (see `difference`).
SHARD_SHIFT = 40

DIGEST_BYTES = 16
_DIGEST_MASK = 2 ** (8 * DIGEST_BYTES) - 1

Shard = dict[str, bytes]
#: Changes of one user: index of a field -> (value, stamp).
Changes = Mapping[int, tuple[int, int]]


def grade_of(user_id: str, record: bytes) -> UserGrade:
    """Return the grade that a record holds."""
    values = RECORD.unpack(record)[:N]
    return UserGrade.model_construct(user_id=user_id, **dict(zip(FIELDS, values, strict=True)))


def merged(record: bytes, changes: Changes) -> bytes:
    """Return the record after changes: for each field the value with the higher stamp."""
    cells = list(RECORD.unpack(record))
    for index, (value, stamp) in changes.items():
        if stamp > cells[N + index]:
            cells[index], cells[N + index] = value, stamp
    return RECORD.pack(*cells)


def newer(record: bytes, than: bytes) -> Changes:
    """Return the fields of `record` that have a higher stamp than the same fields of `than`."""
    ours, theirs = RECORD.unpack(record), RECORD.unpack(than)
    return {index: (ours[index], ours[N + index]) for index in range(N) if ours[N + index] > theirs[N + index]}


def _hash_of_record(user_id: str, record: bytes) -> int:
    digest = hashlib.blake2b(user_id.encode() + b"\0" + record, digest_size=DIGEST_BYTES)
    return int.from_bytes(digest.digest())


@dataclass(frozen=True, slots=True)
class Frozen:
    """A snapshot of the storage in memory: all records of one moment."""

    shards: list[Shard]
    count: int
    digest: str

    def record(self, user_id: str) -> bytes | None:
        return self.shards[_shard_of(user_id)].get(user_id)

    def forget(self) -> None:
        """Free all records in steps: see `Storage.forget`."""
        _empty(self.shards)


class Storage:
    """The records of all users."""

    def __init__(self) -> None:
        self._shards: list[Shard] = [{} for _ in range(SHARDS)]
        #: 1 for a shard that no snapshot shares
        self._unshared = bytearray(b"\1") * SHARDS
        #: the sum of the hashes of all records, so it does not depend on their order
        self._digest = 0
        self.count = 0

    @property
    def digest(self) -> str:
        """A hash of all records. Two storages have the same digest only if all values and stamps are the same."""
        return f"{self._digest:0{2 * DIGEST_BYTES}x}"

    def record(self, user_id: str) -> bytes | None:
        """Return a user's packed record, or None."""
        return self._shards[_shard_of(user_id)].get(user_id)

    def get(self, user_id: str) -> UserGrade | None:
        """Return a user's grade, or None."""
        record = self.record(user_id)
        return None if record is None else grade_of(user_id, record)

    def merge(self, user_id: str, changes: Changes) -> bytes:
        """Merge changes into a user's record and return the result. An unknown user is added, even without changes."""
        old_record = self.record(user_id)
        new_record = merged(NEW if old_record is None else old_record, changes)
        if new_record != old_record:
            self._replace_record(user_id, old_record, new_record)
        return new_record

    def add(self, user_id: str, record: bytes) -> None:
        """Merge a whole record into a user's record."""
        old_record = self.record(user_id)
        new_record = record if old_record is None else merged(old_record, newer(record, old_record))
        if new_record != old_record:
            self._replace_record(user_id, old_record, new_record)

    def _replace_record(self, user_id: str, old_record: bytes | None, new_record: bytes) -> None:
        if old_record is None:
            self.count += 1
        else:
            self._digest -= _hash_of_record(user_id, old_record)
        self._digest = (self._digest + _hash_of_record(user_id, new_record)) & _DIGEST_MASK
        shard_index = _shard_of(user_id)
        if not self._unshared[shard_index]:
            self._shards[shard_index] = self._shards[shard_index].copy()
            self._unshared[shard_index] = 1
        self._shards[shard_index][user_id] = new_record

    def snapshot(self) -> Frozen:
        """Return the records of this moment. Later changes do not affect them."""
        self._unshared = bytearray(SHARDS)
        return Frozen(list(self._shards), self.count, self.digest)

    def forget(self) -> None:
        """Free all records in steps; the storage cannot be used afterwards.

        Call it in a thread: freeing a million records in one step would hold the event loop for a tenth of a second.
        """
        _empty(self._shards)


def difference(of: Frozen, against: Frozen) -> Iterator[list[tuple[str, Changes]]]:
    """Yield, for each shard, the users and changes that the state `of` has and the state `against` lacks.

    Both states are of this process, so each user has the same shard in both.
    """
    for ours, theirs in zip(of.shards, against.shards, strict=True):
        changed_users = []
        for user_id, record in ours.items():
            their_record = theirs.get(user_id)
            if their_record != record:
                changes = newer(record, NEW if their_record is None else their_record)
                if changes or their_record is None:
                    changed_users.append((user_id, changes))
        yield changed_users


def _empty(shards: list[Shard]) -> None:
    while shards:
        shards.pop()


def _shard_of(user_id: str) -> int:
    return hash(user_id) >> SHARD_SHIFT & SHARDS - 1
