"""Removes expired records, so that nothing is left of them without any GET."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import accumulate

import structlog

from mesh import MeshError, Replica, Transaction
from quart_app.values import store as records
from quart_app.values.store import Record

log = structlog.get_logger(__name__)

#: Records looked at by one commit, or a group of them beyond; more would hold the server, and with less a busy replica
#: removes more slowly than it writes: a sweep is three trips, of many milliseconds then.
MOST = 1000
#: A record is removed this long after its time, when its place has ended by Redis's own clock: nobody refreshes it.
LATER_MS = 100


async def run(replica: Replica, interval_ms: int) -> None:
    """Sweep until cancelled."""
    while True:
        try:
            looked_at = await sweep(replica)
        except MeshError as error:
            log.warning("the sweep could not go on", error=str(error))
            looked_at = 0
        if looked_at < MOST:
            await asyncio.sleep(interval_ms / 1000)


async def sweep(replica: Replica) -> int:
    """Look at about MOST records that are due, and remove those that are over; returns how many were looked at."""
    store = replica.store()
    moment_ms = replica.now_ms() - LATER_MS
    groups = _about(MOST, await records.due(store, moment_ms, MOST))
    values = [value for group in groups for value in group]
    found = dict(zip(values, await records.records(store, values), strict=True))
    transaction = replica.transaction()
    for group in groups:
        _look(group, found, moment_ms, transaction)
    # A conflict means that one of them was written again meanwhile; the next sweep sees it.
    await replica.commit(transaction)
    return len(values)


def _about(most: int, groups: list[list[int]]) -> list[list[int]]:
    """As many groups as have so many values, and the one that goes beyond."""
    before = accumulate(map(len, groups), initial=0)
    return [group for group, values in zip(groups, before, strict=False) if values < most]


def _look(group: list[int], found: Mapping[int, Record | None], moment_ms: int, transaction: Transaction) -> None:
    records.unschedule(transaction, group)
    living: dict[int, list[int]] = {}
    over: dict[int, Record] = {}
    for value in group:
        record = found[value]
        if record is None:
            transaction.expect(records.RECORDS, None, value)
        elif record.expiry <= moment_ms:
            over[value] = record
        else:
            living.setdefault(record.expiry, []).append(value)
    records.remove(transaction, over)
    for expiry, values in living.items():
        records.schedule(transaction, expiry, values)
