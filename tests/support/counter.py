"""A process of the mesh alone, whose handlers leave one mark per effect; started by test_exactly_once."""

from __future__ import annotations

import asyncio
import random
import signal

from mesh import Body, Database, MeshSettings, Request, Store, Transaction, Worker, join

worker = Worker()


def mark(request: Request, store: Store, transaction: Transaction) -> Body:
    """One more effect of this request, here."""
    transaction.write("HINCRBY", "count:effects", request.body["id"], 1)
    return {"by": store.database}


@worker.handles("count.add")
async def add(request: Request, store: Store, transaction: Transaction) -> Body:
    # Long enough to be killed in the middle of it.
    await asyncio.sleep(random.random() / 50)
    return mark(request, store, transaction)


@worker.handles("count.pass")
async def hand_on(request: Request, store: Store, transaction: Transaction) -> Body:
    """Let the holder of a database have the effect and answer, and send it a note that nobody waits for."""
    if store.database == request.body["to"]:
        return mark(request, store, transaction)
    transaction.send(Database(request.body["to"]), "count.note", {"id": request.body["id"]})
    transaction.forward(Database(request.body["to"]))
    return {"noted": True}


@worker.handles("count.note")
async def note(request: Request, store: Store, transaction: Transaction) -> None:
    transaction.write("HINCRBY", "count:notes", request.body["id"], 1)


@worker.handles("count.read", effect=False)
async def read(request: Request, store: Store, transaction: Transaction) -> Body:
    return {"n": len(await store.hgetall("count:effects"))}


async def main() -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with join(worker, MeshSettings()):
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(main())
