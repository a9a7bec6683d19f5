"""Removes expired records, so that nothing is left of them without any GET."""

from __future__ import annotations

import asyncio

import structlog

from mesh import MeshError, Replica
from quart_app.values import store as records

log = structlog.get_logger(__name__)

#: Records removed by one commit; more of them would hold the server.
MOST = 100


async def run(replica: Replica, interval_ms: int) -> None:
    """Sweep until cancelled."""
    while True:
        try:
            removed = await sweep(replica)
        except MeshError as error:
            log.warning("the sweep could not go on", error=str(error))
            removed = 0
        if removed < MOST:
            await asyncio.sleep(interval_ms / 1000)


async def sweep(replica: Replica) -> int:
    """Remove up to MOST expired records; returns how many were found."""
    store = replica.store()
    now_ms = replica.now_ms()
    values = await records.expired(store, now_ms, MOST)
    transaction = replica.transaction()
    for value, record in zip(values, await records.records(store, values), strict=True):
        if record is None:
            transaction.expect(records.RECORDS, None, value)
            transaction.zrem(records.EXPIRY, value)
        elif record.expiry <= now_ms:
            records.remove(transaction, value, record)
    # A conflict means that one of them was written again meanwhile; the next sweep sees it.
    await replica.commit(transaction)
    return len(values)
