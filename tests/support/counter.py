"""A member of the mesh without HTTP, whose handlers count each effect; `test_exactly_once` starts it as a process."""

from __future__ import annotations

import asyncio
import random

from mesh import Database
from mesh.raw import Body, Effects, Request, Store, Worker
from tests.support.member import work

worker = Worker()


def mark(request: Request, store: Store, transaction: Effects) -> Body:
    """Count one effect of this request in this database."""
    transaction.write("HINCRBY", "count:effects", request.body["id"], 1)
    return {"by": store.database}


@worker.handles("count.add")
async def add(request: Request, store: Store, transaction: Effects) -> Body:
    # Long enough for a test to kill this process in the middle.
    await asyncio.sleep(random.random() / 50)
    return mark(request, store, transaction)


@worker.handles("count.pass")
async def hand_on(request: Request, store: Store, transaction: Effects) -> Body:
    """Forward the request to the holder of a database, and send that database a note."""
    if store.database == request.body["to"]:
        return mark(request, store, transaction)
    transaction.send(Database(request.body["to"]), "count.note", {"id": request.body["id"]})
    transaction.forward(Database(request.body["to"]))
    return {"noted": True}


@worker.handles("count.note")
async def note(request: Request, store: Store, transaction: Effects) -> None:
    transaction.write("HINCRBY", "count:notes", request.body["id"], 1)


@worker.handles("count.read", effect=False)
async def read(request: Request, store: Store, transaction: Effects) -> Body:
    return {"n": len(await store.hgetall("count:effects"))}


if __name__ == "__main__":
    asyncio.run(work(worker))
