"""Removes expired records, even if no GET ever asks for them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import accumulate
from typing import NamedTuple

import structlog

from mesh import MeshError
from mesh.raw import Effects, Replica
from quart_app.values import store as records
from quart_app.values.pace import Pace
from quart_app.values.store import Record

log = structlog.get_logger(__name__)

#: The most records that a sweep looks at, and about the most bytes of the index that it removes. More would block the
#: server for long. With less, a busy replica would write records faster than it removes them, because each sweep takes
#: three round trips.
MOST, MOST_BYTES = 1000, 400_000
#: How many groups of values are read at once. Most groups have many values; a large value is a group of its own.
GROUPS = 250
#: A record is removed this long after its expiry. By then Redis has removed its place, so no put refreshes the record.
LATER_MS = 100


class Swept(NamedTuple):
    """How many records a sweep has looked at, and whether more records may be due."""

    looked_at: int
    is_full: bool


async def run(replica: Replica, interval_ms: int, pace: Pace) -> None:
    """Sweep until cancelled."""
    while True:
        is_full = False
        try:
            is_full = (await sweep(replica, pace)).is_full
        except MeshError as error:
            log.warning("sweep failed", error=str(error))
        if not is_full:
            await asyncio.sleep(interval_ms / 1000)


async def sweep(replica: Replica, pace: Pace) -> Swept:
    """Look at the records that are due, up to a bound, and remove those that have expired."""
    store = replica.store()
    moment_ms = replica.now_ms() - LATER_MS
    due = await records.due(store, moment_ms, GROUPS)
    groups = _groups_within_bounds(MOST, MOST_BYTES, due)
    values = [value for group in groups for value in group]
    records_read = await records.records(store, values)
    await pace()
    record_by_value = dict(zip(values, records_read, strict=True))
    transaction = replica.transaction()
    looked_at, bytes_freed = 0, 0
    for group in groups:
        if bytes_freed > MOST_BYTES:
            break
        bytes_freed += _sweep_group(group, record_by_value, moment_ms, transaction)
        looked_at += len(group)
    # A conflict means that one of the records was written again meanwhile. Then the next sweep does all of this again.
    await replica.commit(transaction)
    return Swept(looked_at, len(due) == GROUPS or looked_at < sum(map(len, due)))


def _groups_within_bounds(most: int, most_bytes: int, groups: list[list[str]]) -> list[list[str]]:
    """Return the first groups, until they have at least `most` values or `most_bytes` bytes together."""
    # How many values and bytes the groups before each group have. Each list has one element more, for all groups.
    values_before = accumulate(map(len, groups), initial=0)
    bytes_before = accumulate((sum(map(len, group)) for group in groups), initial=0)
    return [
        group
        for group, count, size in zip(groups, values_before, bytes_before, strict=False)
        if count < most and size < most_bytes
    ]


def _sweep_group(
    group: list[str], record_by_value: Mapping[str, Record | None], moment_ms: int, transaction: Effects
) -> int:
    """Remove the expired records of a group and schedule the others; return about how many bytes that frees."""
    records.unschedule(transaction, group)
    unexpired: dict[int, list[str]] = {}
    expired: dict[str, Record] = {}
    for value in group:
        record = record_by_value[value]
        if record is None:
            # A drop or an earlier sweep has removed the record. The commit fails if a put writes a new one meanwhile.
            transaction.expect(records.RECORDS, None, value)
        elif record.expiry <= moment_ms:
            expired[value] = record
        else:
            unexpired.setdefault(record.expiry, []).append(value)
    records.remove(transaction, expired)
    for expiry, values in unexpired.items():
        records.schedule(transaction, expiry, values)
    return sum(len(value) * (1 + record.factors.count(" ")) for value, record in expired.items())
