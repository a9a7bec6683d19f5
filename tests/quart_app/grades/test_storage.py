"""Records in memory: merging by stamp, digests, and snapshots that do not change."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from quart_app.grades.models import FIELDS
from quart_app.grades.storage import (
    RECORD_LAYOUT,
    UNSET_RECORD,
    Changes,
    FrozenRecords,
    Storage,
    changes_beyond,
    merged_record,
    newer_fields,
)

USERS = st.sampled_from(["a", "b", "c", "d"])
#: A stamp names one log entry, and an entry sets a field to one value: so the value follows from the stamp.
STAMPS = st.integers(1, 40)


def value_of(stamp: int, at: int) -> int:
    return (stamp * 7919 + at) * (-1) ** stamp


CHANGES = st.dictionaries(st.integers(0, 3), STAMPS, max_size=4).map(
    lambda stamps: {at: (value_of(stamp, at), stamp) for at, stamp in stamps.items()}
)
HISTORIES = st.lists(st.tuples(USERS, CHANGES), max_size=30)


def filled(history: list[tuple[str, Changes]]) -> Storage:
    storage = Storage()
    for user_id, changes in history:
        storage.merge(user_id, changes)
    return storage


def content(state: FrozenRecords) -> dict[str, bytes]:
    return {user_id: record for shard in state.shards for user_id, record in shard.items()}


@given(HISTORIES, st.randoms())
def test_the_order_and_number_of_merges_do_not_matter(history: list[tuple[str, Changes]], random) -> None:
    """Replicas that applied the same changes, in any order and any number of times, have the same state."""
    shuffled = [*history, *history]
    random.shuffle(shuffled)
    one, two = filled(history), filled(shuffled)
    assert content(one.snapshot()) == content(two.snapshot())
    assert (one.digest, one.count) == (two.digest, two.count)


@given(HISTORIES)
def test_for_each_field_the_highest_stamp_wins(history: list[tuple[str, Changes]]) -> None:
    """The result equals that of a model that keeps all stamps."""
    storage = filled(history)
    for user_id in {user_id for user_id, _ in history}:
        grade = storage.get(user_id)
        assert grade is not None
        for at, name in enumerate(FIELDS):
            stamps = [changes[at] for user, changes in history if user == user_id and at in changes]
            expected = max(stamps, key=lambda change: change[1])[0] if stamps else 0
            assert getattr(grade, name) == expected


@given(HISTORIES, HISTORIES)
def test_digests_are_equal_exactly_when_contents_are(
    first: list[tuple[str, Changes]], second: list[tuple[str, Changes]]
) -> None:
    """The digest, which each merge updates, agrees with a comparison of all records."""
    one, two = filled(first), filled(second)
    assert (content(one.snapshot()) == content(two.snapshot())) == (one.digest == two.digest)


@given(HISTORIES, HISTORIES)
def test_carrying_the_difference_over_makes_a_state_complete(
    first: list[tuple[str, Changes]], second: list[tuple[str, Changes]]
) -> None:
    """Afterwards it has the fields of both, and there is no difference left."""
    one, two, both = filled(first), filled(second), filled([*first, *second])
    for found in changes_beyond(one.snapshot(), two.snapshot()):
        for user_id, changes in found:
            two.merge(user_id, changes)
    assert two.digest == both.digest
    assert not any(changes_beyond(one.snapshot(), two.snapshot()))


@given(HISTORIES, HISTORIES)
def test_a_snapshot_stays_as_it_is(before: list[tuple[str, Changes]], after: list[tuple[str, Changes]]) -> None:
    """A backup has the state of one moment while changes go on."""
    storage = filled(before)
    snapshot = storage.snapshot()
    was = content(snapshot)
    for user_id, changes in after:
        storage.merge(user_id, changes)
    assert content(snapshot) == was
    assert content(storage.snapshot()) == content(filled([*before, *after]).snapshot())


def test_only_shards_that_change_are_copied() -> None:
    """A snapshot shares all shards that do not change afterwards."""
    storage = Storage()
    for number in range(1000):
        storage.merge(f"user-{number}", {0: (number, 1)})
    snapshot = storage.snapshot()
    storage.merge("user-7", {0: (0, 2)})
    storage.merge("user-7", {0: (1, 3)})
    later = storage.snapshot()
    changed = [a is not b for a, b in zip(snapshot.shards, later.shards, strict=True)]
    assert sum(changed) == 1


def test_a_change_without_fields_adds_the_user() -> None:
    """All fields of the user are 0."""
    storage = Storage()
    storage.merge("a", {})
    grade = storage.get("a")
    assert grade is not None and not any(getattr(grade, name) for name in FIELDS)
    assert storage.count == 1 and storage.digest != Storage().digest


def test_zero_is_a_value_and_can_be_overwritten_only_by_a_later_one() -> None:
    """A field that is set to 0 does not lose against an older value."""
    record = merged_record(UNSET_RECORD, {1: (5, 10)})
    record = merged_record(record, {1: (0, 11)})
    assert newer_fields(record, UNSET_RECORD) == {1: (0, 11)}
    assert merged_record(record, {1: (5, 10)}) == record


def test_extreme_values_fit() -> None:
    """The limits of a 64-bit integer are stored exactly."""
    storage = Storage()
    top = 2**63 - 1
    storage.merge("a", {0: (top, top), 1: (-(2**63), 1)})
    grade = storage.get("a")
    assert grade is not None and (grade.postpaid_limit, grade.spp) == (top, -(2**63))


def test_a_record_takes_little_memory() -> None:
    """A user with a short id takes about 210 bytes, so a million users take about 210 MB."""
    count = 500_000
    storage = Storage()
    for number in range(count):
        storage.merge_record(
            f"user-{number:07d}", RECORD_LAYOUT.pack(*[number] * 4, *[1763700000000 << 16 | number] * 4)
        )
    shards = storage.snapshot().shards
    used = sum(sys.getsizeof(shard) for shard in shards) + sum(
        sys.getsizeof(user_id) + sys.getsizeof(record) for shard in shards for user_id, record in shard.items()
    )
    assert used / count < 220
