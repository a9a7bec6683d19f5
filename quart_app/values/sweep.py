"""Removes expired records, so that nothing is left of them without any GET."""

from __future__ import annotations

import asyncio

import structlog

from mesh import MeshError, Replica, Store, Transaction
from quart_app.values import store as records

log = structlog.get_logger(__name__)

#: Records looked at by one commit, or a group of them beyond; more would hold the server.
MOST = 100
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
    transaction = replica.transaction()
    looked_at = 0
    for group in await records.due(store, moment_ms, MOST):
        await _look(group, moment_ms, store, transaction)
        looked_at += len(group)
        if looked_at >= MOST:
            break
    # A conflict means that one of them was written again meanwhile; the next sweep sees it.
    await replica.commit(transaction)
    return looked_at


async def _look(group: list[int], moment_ms: int, store: Store, transaction: Transaction) -> None:
    records.unschedule(transaction, group)
    living: dict[int, list[int]] = {}
    for value, record in zip(group, await records.records(store, group), strict=True):
        if record is None:
            transaction.expect(records.RECORDS, None, value)
        elif record.expiry <= moment_ms:
            records.remove(transaction, value, record)
        else:
            living.setdefault(record.expiry, []).append(value)
    for expiry, values in living.items():
        records.schedule(transaction, expiry, values)
