"""Keeps the grades in memory: one packed record per user.

A record has the values of four fields, and for each value its stamp. The stamp is the id of the log entry that set the
value, packed into an integer by `mesh.journal.position.pack_id`; 0: never set. For each field the value with the higher
stamp wins. So records merge to the same result in any order, and merging a record twice changes nothing.

The records are spread over shards. `snapshot` freezes the records of one moment: they share all shards with the
storage. The storage copies a shared shard before it changes a record of the shard. So freezing costs the same for any
number of records, and keeping frozen records costs only the memory of the shards that change meanwhile.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from quart_app.grades.models import FIELDS, UserGrade

#: How many fields a record has.
FIELD_COUNT = len(FIELDS)
#: Name of a field -> its index in FIELDS.
INDEX_OF_FIELD = {name: index for index, name in enumerate(FIELDS)}
#: The layout of a record: the values of all fields, then their stamps.
RECORD_LAYOUT = struct.Struct(f"<{FIELD_COUNT}q{FIELD_COUNT}Q")
#: A record whose fields were never set.
UNSET_RECORD = RECORD_LAYOUT.pack(*(0,) * (2 * FIELD_COUNT))

#: With a million records, each shard has 244 of them, and copying a shard takes about 5 µs. With fewer shards a copy
#: would take longer; with more, freezing would. `_shard_of` needs a power of two.
SHARD_COUNT = 4096
#: The shard of a user is chosen by those bits of the hash of the id that are left after a shift by this number. The
#: dict of a shard uses the low bits, so without the shift the users of one shard would collide in it. Another process
#: may have other hashes, and so other shards (see `changes_beyond`).
SHARD_SHIFT = 40

#: Bytes of the hash of a record, and of the digest of all records. With fewer bytes, two different storages might have
#: the same digest by chance.
DIGEST_BYTES = 16
_DIGEST_MASK = 2 ** (8 * DIGEST_BYTES) - 1

#: The records of one shard: user id -> record, as RECORD_LAYOUT packs it.
Shard = dict[str, bytes]
#: Changes of one user: index of a field -> (value, stamp).
Changes = Mapping[int, tuple[int, int]]


def grade_of(user_id: str, record: bytes) -> UserGrade:
    """Return the grade that a record holds."""
    values = RECORD_LAYOUT.unpack(record)[:FIELD_COUNT]
    return UserGrade.model_construct(user_id=user_id, **dict(zip(FIELDS, values, strict=True)))


def merged_record(record: bytes, changes: Changes) -> bytes:
    """Return the record after changes: each field has the value with the higher stamp."""
    cells = list(RECORD_LAYOUT.unpack(record))
    for index, (value, stamp) in changes.items():
        if stamp > cells[FIELD_COUNT + index]:
            cells[index], cells[FIELD_COUNT + index] = value, stamp
    return RECORD_LAYOUT.pack(*cells)


def newer_fields(record: bytes, other_record: bytes) -> Changes:
    """Return the fields of `record` that have a higher stamp than the same fields of `other_record`."""
    our_cells, their_cells = RECORD_LAYOUT.unpack(record), RECORD_LAYOUT.unpack(other_record)
    return {
        index: (our_cells[index], our_cells[FIELD_COUNT + index])
        for index in range(FIELD_COUNT)
        if our_cells[FIELD_COUNT + index] > their_cells[FIELD_COUNT + index]
    }


def _hash_of_record(user_id: str, record: bytes) -> int:
    hashed = hashlib.blake2b(user_id.encode() + b"\0" + record, digest_size=DIGEST_BYTES)
    return int.from_bytes(hashed.digest())


@dataclass(frozen=True, slots=True)
class FrozenRecords:
    """All records of one moment, in memory: what a backup or a snapshot file is made of."""

    shards: list[Shard]
    count: int
    digest: str

    def free(self) -> None:
        """Free all records in steps: see `Storage.free`."""
        _free_in_steps(self.shards)


class Storage:
    """The records of all users."""

    def __init__(self) -> None:
        self._shards: list[Shard] = [{} for _ in range(SHARD_COUNT)]
        #: for each shard 1 if nothing else shares it, else 0
        self._owns_shard = bytearray(b"\1") * SHARD_COUNT
        #: the sum of the hashes of all records, modulo 2 ** 128; a sum does not depend on the order of the records
        self._digest = 0
        self.count = 0

    @property
    def digest(self) -> str:
        """A hash of all records. Two storages have the same digest only if all values and stamps are the same."""
        return f"{self._digest:0{2 * DIGEST_BYTES}x}"

    def packed_record(self, user_id: str) -> bytes | None:
        """Return a user's packed record, or None."""
        return self._shards[_shard_of(user_id)].get(user_id)

    def get(self, user_id: str) -> UserGrade | None:
        """Return a user's grade, or None."""
        record = self.packed_record(user_id)
        return None if record is None else grade_of(user_id, record)

    def merge(self, user_id: str, changes: Changes) -> bytes:
        """Merge changes into a user's record and return the result. An unknown user is added, even without changes."""
        old_record = self.packed_record(user_id)
        new_record = merged_record(UNSET_RECORD if old_record is None else old_record, changes)
        if new_record != old_record:
            self._replace_record(user_id, old_record, new_record)
        return new_record

    def merge_record(self, user_id: str, record: bytes) -> None:
        """Merge a whole record into a user's record."""
        old_record = self.packed_record(user_id)
        new_record = record if old_record is None else merged_record(old_record, newer_fields(record, old_record))
        if new_record != old_record:
            self._replace_record(user_id, old_record, new_record)

    def _replace_record(self, user_id: str, old_record: bytes | None, new_record: bytes) -> None:
        if old_record is None:
            self.count += 1
        else:
            self._digest -= _hash_of_record(user_id, old_record)
        self._digest = (self._digest + _hash_of_record(user_id, new_record)) & _DIGEST_MASK
        shard_index = _shard_of(user_id)
        if not self._owns_shard[shard_index]:
            self._shards[shard_index] = self._shards[shard_index].copy()
            self._owns_shard[shard_index] = 1
        self._shards[shard_index][user_id] = new_record

    def snapshot(self) -> FrozenRecords:
        """Freeze and return the records of this moment, in memory. Later changes do not affect them."""
        self._owns_shard = bytearray(SHARD_COUNT)
        return FrozenRecords(list(self._shards), self.count, self.digest)

    def copy(self) -> Storage:
        """Return a storage with the same records. It shares each shard until one of both changes it."""
        storage, records = Storage(), self.snapshot()  # from now on each copies a shard before it changes it
        storage._shards, storage._owns_shard = records.shards, bytearray(SHARD_COUNT)
        storage._digest, storage.count = self._digest, self.count
        return storage

    def free(self) -> None:
        """Free all records in steps; the storage cannot be used afterwards.

        Call it in a thread: freeing a million records in one step would hold the event loop for a tenth of a second.
        """
        _free_in_steps(self._shards)


def changes_beyond(state: FrozenRecords, other_state: FrozenRecords) -> Iterator[list[tuple[str, Changes]]]:
    """Yield a list for each shard: the users and changes that `state` has and `other_state` lacks.

    Both states are of this process, so each user has the same shard in both.
    """
    for our_shard, their_shard in zip(state.shards, other_state.shards, strict=True):
        changed_users = []
        for user_id, record in our_shard.items():
            their_record = their_shard.get(user_id)
            if their_record != record:
                changes = newer_fields(record, UNSET_RECORD if their_record is None else their_record)
                # A user without any change is yielded, too, if the other state does not know the user.
                if changes or their_record is None:
                    changed_users.append((user_id, changes))
        yield changed_users


def _free_in_steps(shards: list[Shard]) -> None:
    # Each shard is a step: between two steps, another thread may take the interpreter's lock.
    while shards:
        shards.pop()


def _shard_of(user_id: str) -> int:
    return hash(user_id) >> SHARD_SHIFT & SHARD_COUNT - 1
