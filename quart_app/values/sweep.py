"""Removes expired records, even if no GET ever asks for them.

This is the sweep of values; the mesh itself sweeps requests past their deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import accumulate
from typing import NamedTuple

import structlog

from mesh import MeshError
from mesh.raw import Effects, Replica
from quart_app.values import store as records  # not `store`: a parameter `store` reads keys (`mesh.raw.Store`)
from quart_app.values.pace import Pace
from quart_app.values.store import Record

log = structlog.get_logger(__name__)

#: A sweep takes no further group after so many values or bytes. MOST_BYTES bounds two sums, each by itself: the bytes
#: of the values that the sweep looks at, and those that it frees in the index. More would block the server for long.
#: With less, a busy replica would write records faster than it removes them, because each sweep takes three trips.
MOST_VALUES, MOST_BYTES = 1000, 400_000
#: How many groups are read at once, at most. A group has values that were written together, with the same expiry. Most
#: groups have many values; a large value is usually alone in its group. With more groups, a sweep would often read some
#: that it leaves to the next sweep. With fewer, large values would need more sweeps.
MOST_GROUPS = 250
#: A record is removed this long after its expiry. A put refreshes a record only if Redis has its place (`where`). Redis
#: removes the place at the expiry, so no put refreshes the record while the sweep removes it. The delay covers
#: the usual error of the replica's estimate of Redis's clock. If the error is greater, `records.remove` protects a
#: record that a put changes: it expects each record unchanged, so the commit fails.
REMOVAL_DELAY_MS = 100


class Swept(NamedTuple):
    """How many records a sweep has looked at, and whether more records may be due."""

    looked_at_count: int
    more_may_be_due: bool


async def run(replica: Replica, interval_ms: int, pace: Pace) -> None:
    """Sweep until cancelled: again at once while more records may be due, else after `interval_ms`."""
    while True:
        more_may_be_due = False
        try:
            more_may_be_due = (await sweep(replica, pace)).more_may_be_due
        except MeshError as error:
            log.warning("sweep failed", error=str(error))
        if not more_may_be_due:
            await asyncio.sleep(interval_ms / 1000)


async def sweep(replica: Replica, pace: Pace) -> Swept:
    """Look at the records that are due, up to a bound, and remove those that have expired."""
    store = replica.store()
    moment_ms = replica.now_ms() - REMOVAL_DELAY_MS
    due_groups = await records.read_due(store, moment_ms, MOST_GROUPS)
    groups = _groups_within_bounds(MOST_VALUES, MOST_BYTES, due_groups)
    values = [value for group in groups for value in group]
    record_or_none_each = await records.read_records(store, values)
    # The transaction is built without a pause, so other tasks get the event loop here (see `pace`).
    await pace()
    record_by_value = dict(zip(values, record_or_none_each, strict=True))
    transaction = replica.transaction()
    looked_at_count, bytes_freed = 0, 0
    for group in groups:
        if bytes_freed > MOST_BYTES:
            break  # the next sweep takes the other groups
        bytes_freed += _sweep_group(group, record_by_value, moment_ms, transaction)
        looked_at_count += len(group)
    # A conflict means that one of the records was written again meanwhile. Then the next sweep does all of this again.
    await replica.commit(transaction)
    return Swept(looked_at_count, len(due_groups) == MOST_GROUPS or looked_at_count < sum(map(len, due_groups)))


def _groups_within_bounds(most_values: int, most_bytes: int, groups: list[list[str]]) -> list[list[str]]:
    """Return the first groups; none is added after they have `most_values` values or `most_bytes` bytes together."""
    # For each group: how many values and bytes the groups before it have. The last sums, of all groups, are not used.
    value_counts_before = accumulate(map(len, groups), initial=0)
    byte_counts_before = accumulate((sum(map(len, group)) for group in groups), initial=0)
    return [
        group
        for group, value_count, byte_count in zip(groups, value_counts_before, byte_counts_before, strict=False)
        if value_count < most_values and byte_count < most_bytes
    ]


def _sweep_group(
    group: list[str], record_by_value: Mapping[str, Record | None], moment_ms: int, transaction: Effects
) -> int:
    """Remove the expired records of a group, and have the others looked at again when they expire.

    Return about how many bytes of the index that frees. The index has a value once for each different prime factor.
    """
    records.remove_from_expiry(transaction, group)
    unexpired: dict[int, list[str]] = {}  # by expiry (ms)
    expired: dict[str, Record] = {}
    for value in group:
        record = record_by_value[value]
        if record is None:
            # A drop or an earlier sweep has removed the record. The commit fails if a put writes a new one meanwhile.
            # The arguments are the key of all records, None for "absent", and the field.
            transaction.expect(records.RECORDS, None, value)
        elif record.expiry_ms <= moment_ms:
            expired[value] = record
        else:
            unexpired.setdefault(record.expiry_ms, []).append(value)
    records.remove(transaction, expired)
    for expiry_ms, values in unexpired.items():
        records.add_to_expiry(transaction, expiry_ms, values)
    return sum(len(value) * (1 + record.factors.count(" ")) for value, record in expired.items())
