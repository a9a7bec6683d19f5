"""The rules of /values, worker side.

    where the record is         what a put does
    nowhere                     factorise, write here
    here                        refresh its time
    same class, live holder     forward to the holder, who refreshes it
    another class, or a holder  factorise, write here, and tell the former holder to drop its record; the holder's
    that is gone                stream keeps the drop until somebody holds that database

Every write expects the place it has read, so of two racing writers one is run again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mesh import Body, Database, Request, Store, Transaction, Worker
from quart_app.values import computing
from quart_app.values import store as records
from quart_app.values.store import Place, Record

#: (value, request, place of its record) -> factors; None where its record has been written meanwhile
Factorise = Callable[[int, Request, str | None], Awaitable[list[int] | None]]

PUT = "values.put"
DROP = "values.drop"
FIND = "values.find"


@dataclass(frozen=True, slots=True)
class Item:
    """One value of a put; `place` is where its record was said to be."""

    value: int
    ttl: int
    place: str | None

    @property
    def where(self) -> Place | None:
        return None if self.place is None else Place.parse(self.place)


def handlers(factorise: Factorise) -> Worker:
    """The operations of /values."""
    worker = Worker()
    worker.uses(records.FIND)

    @worker.handles(PUT)
    async def put(request: Request, store: Store, transaction: Transaction) -> Body:
        factors = None
        while factors is None:
            here, elsewhere = await _sort(await _items(request, store), store)
            factors = await _factors(here, request, store, factorise)
        for database, group in elsewhere.items():
            body = {"items": [{"value": item.value, "ttl": item.ttl} for item in group]}
            transaction.forward(Database(database), body)
        for item in here:
            _write(item, factors[item.value], request, store, transaction)
        return {"factors": [[item.value, factors[item.value]] for item in here]}

    @worker.handles(DROP)
    async def drop(request: Request, store: Store, transaction: Transaction) -> None:
        value = request.body["value"]
        (record,) = await records.records(store, [value])
        # One that has been written again since is not the one to drop.
        if record is not None and record.id == request.body["id"]:
            records.remove(transaction, value, record)

    @worker.handles(FIND, effect=False)
    async def find(request: Request, store: Store, transaction: Transaction) -> Body:
        body = request.body
        # The request's own moment, the same on every replica.
        found = await records.find(store, body["prime"], request.at_ms, body["limit"], body.get("after", 0))
        return {"found": [[value, record.id, record.factors] for value, record in found]}

    return worker


async def _items(request: Request, store: Store) -> list[Item]:
    """The items of a put, each with the place its record is said to be in now."""
    asked = [(item["value"], item["ttl"]) for item in request.body["items"]]
    places = await records.places(store, [value for value, _ in asked])
    return [Item(value, ttl, place) for (value, ttl), place in zip(asked, places, strict=True)]


async def _sort(items: list[Item], store: Store) -> tuple[list[Item], dict[int, list[Item]]]:
    """Which items are ours to write, and which belong to a live holder of our class."""
    here: list[Item] = []
    elsewhere: dict[int, list[Item]] = {}
    held: dict[int, bool] = {}
    for item in items:
        where = item.where
        if where is None or where.database == store.database or where.cls != store.cls:
            here.append(item)
            continue
        if where.database not in held:
            held[where.database] = await store.is_held(where.database)
        if held[where.database]:
            elsewhere.setdefault(where.database, []).append(item)
        else:
            here.append(item)
    return here, elsewhere


async def _factors(
    items: list[Item], request: Request, store: Store, factorise: Factorise
) -> dict[int, list[int]] | None:
    """The factors of each value: from our own record where there is one, else computed.

    None where another has written one of the records meanwhile: then look again at where they are.
    """
    ours = [item.value for item in items if (where := item.where) is not None and where.database == store.database]
    known = {
        value: record.factors
        for value, record in zip(ours, await records.records(store, ours), strict=True)
        if record is not None
    }
    for item in items:
        if item.value not in known:
            factors = await factorise(item.value, request, item.place)
            if factors is None:
                return None
            known[item.value] = factors
    return known


def _write(item: Item, factors: list[int], request: Request, store: Store, transaction: Transaction) -> None:
    records.expect_place(transaction, item.value, item.place)
    record = Record(request.id, request.at_ms + item.ttl * 1000, factors)
    records.put(transaction, item.value, record, Place(store.database, store.cls, request.id))
    computing.release(transaction, store.cls, item.value)
    where = item.where
    if where is not None and where.database != store.database:
        transaction.send(Database(where.database), DROP, {"value": item.value, "id": where.id})
