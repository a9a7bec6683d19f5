"""The entries of the grades' log and what they change.

    founded   {"continues": ["<log>", …]}                     the log begins, with the changes of these older logs
    set       {"user_id": "alice", "spp": 5}                  sets these fields, with the stamp of this entry
    carry     {"of": "<log>", "records": [                    sets what a replica knew from the log `of`,
                {"user_id": "alice", "set": {"spp": [5, "1763700000000-0"]}}]}      each field with its own stamp

All replicas of one release read entries in the same way, so they all skip an entry that one of them cannot read. If one
replica applied an entry that another one skips, their grades would differ. So a release that accepts further entries
must not run beside this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, TypeAdapter

from mesh.journal import FOUNDED, Entry, pack_id, unpack_id
from quart_app.grades.models import FIELDS, Amount, GradeUpdate, UserId
from quart_app.grades.storage import INDEX_OF_FIELD, Changes

#: What an entry has as `op`: SET for the change of one grade, CARRY for changes carried over from a lost log.
SET = "set"
CARRY = "carry"
#: The most records in one entry; they take a few dozen kilobytes. Larger entries would hold Redis and the readers
#: longer; smaller ones need more appends.
MOST_CARRIED_RECORDS = 200


class UnreadableEntry(ValueError):
    """An entry that this release cannot read."""


class Founding(BaseModel):
    """The body of the entry with which a log begins."""

    #: the identities of older logs whose changes this log contains
    continues: tuple[str, ...] = ()


class CarriedRecord(BaseModel):
    """What a carry entry sets for one user."""

    user_id: UserId
    #: name of a field -> value, and the id of the entry that set it
    set: dict[str, tuple[Amount, str]]


class Carried(BaseModel):
    """The body of a carry entry."""

    #: the identity of the log from which the records come
    of: str
    records: list[CarriedRecord]


_UPDATE = TypeAdapter(GradeUpdate)


@dataclass(frozen=True, slots=True)
class EntryChanges:
    """The changes that an entry makes."""

    #: user ids, each with the changes of this user
    by_user: Sequence[tuple[str, Changes]] = ()
    #: The identities of older logs from which this log may contain changes. A carry entry names its log even if further
    #: carry entries must follow. If these never come, another replica may still carry the rest over.
    continues: tuple[str, ...] = ()


def body_of_set(update: GradeUpdate) -> dict[str, Any]:
    """Return the body of the entry for a change."""
    return {"user_id": update.user_id, **update.changes()}


def bodies_of_carry(lost_log: str, records: Iterable[tuple[str, Changes]]) -> Iterator[dict[str, Any]]:
    """Yield bodies of carry entries for the records of `lost_log`, at most MOST_CARRIED_RECORDS in each."""
    records_of_entry: list[dict[str, Any]] = []
    for user_id, changes in records:
        fields = {FIELDS[index]: [value, unpack_id(stamp)] for index, (value, stamp) in changes.items()}
        records_of_entry.append({"user_id": user_id, "set": fields})
        if len(records_of_entry) == MOST_CARRIED_RECORDS:
            yield {"of": lost_log, "records": records_of_entry}
            records_of_entry = []
    if records_of_entry:
        yield {"of": lost_log, "records": records_of_entry}


def changes_of(entry: Entry) -> EntryChanges:
    """Return what an entry changes. Raises UnreadableEntry."""
    try:
        match entry.op:  # with literals, because a bare name such as SET would match every operation
            case "set":
                return _changes_of_set(entry)
            case "carry":
                return _changes_of_carry(entry)
            case op if op == FOUNDED:
                return EntryChanges(continues=Founding.model_validate(entry.content()).continues)
    # KeyError: a field that this release does not know. RecursionError: JSON that is nested too deeply.
    except (ValueError, KeyError, RecursionError) as error:
        raise UnreadableEntry(f"entry {entry.position.number}: {error}") from error
    raise UnreadableEntry(f"entry {entry.position.number} has the unknown operation {entry.op!r}")


def _changes_of_set(entry: Entry) -> EntryChanges:
    update = _UPDATE.validate_python(entry.content(), strict=True)
    stamp = entry.position.stamp
    changes = {INDEX_OF_FIELD[name]: (value, stamp) for name, value in update.changes().items()}
    return EntryChanges([(update.user_id, changes)])


def _changes_of_carry(entry: Entry) -> EntryChanges:
    """Return the changes of an entry that carries fields over. Raises ValueError if a field is newer than it."""
    body = Carried.model_validate(entry.content())
    by_user = [
        (
            record.user_id,
            {INDEX_OF_FIELD[name]: (value, pack_id(entry_id)) for name, (value, entry_id) in record.set.items()},
        )
        for record in body.records
    ]
    newest_stamp = max((stamp for _, changes in by_user for _, stamp in changes.values()), default=0)
    if newest_stamp > entry.position.stamp:
        raise ValueError("a carried field is newer than the entry, and would win against later changes")
    return EntryChanges(by_user, (body.of,))
