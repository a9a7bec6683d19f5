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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from mesh import Address, Body, Class, Database, LeaseLost, MeshError, Request, Store, Transaction, Worker
from quart_app.values import claims
from quart_app.values import store as records
from quart_app.values.jobs import PUT, SMALL, Errand, Errands, Gone
from quart_app.values.store import Place, Record


class Factorise(Protocol):
    """Where factors come from."""

    async def small(self, values: Sequence[int]) -> list[list[int]]:
        """Of values that cost microseconds."""

    async def large(self, value: int, request: Request, place: str | None) -> list[int] | None:
        """Of any other; None where the record, said to be at this place, has been written meanwhile."""


DROP = "values.drop"
FIND = "values.find"


class Item(NamedTuple):
    """One value of a put; `place` is where its record was said to be, as text to be expected at the commit, too."""

    value: int
    ttl: int
    place: str | None
    where: Place | None


@dataclass(frozen=True, slots=True)
class Decision:
    """What a put will do: write these here, with these factors, and let these holders do the rest.

    `before` are the records that are here now.
    """

    here: list[Item]
    before: dict[int, Record]
    factors: dict[int, list[int]]
    elsewhere: dict[Address, list[Item]]


def handlers(factorise: Factorise, errands: Errands) -> Worker:
    """The operations of /values."""
    worker = Worker()
    worker.uses(records.FIND)

    @worker.handles(PUT)
    async def put(request: Request, store: Store, transaction: Transaction) -> Body | None:
        try:
            errand = await errands.of(request)
            if errand is not None:
                await run(errand, request, store, transaction)
                return None
        except Gone:
            return None
        decision = await _decide(request, store, factorise)
        for address, items in decision.elsewhere.items():
            transaction.forward(address, {"items": _plain(items)})
        _write(decision, request, store, transaction)
        return {"factors": [[item.value, decision.factors[item.value]] for item in decision.here]}

    async def run(errand: Errand, request: Request, store: Store, transaction: Transaction) -> None:
        """A put that belongs to a job: nobody waits, so what comes of it is stored in the job. Raises Gone."""
        try:
            decision = await errand.attended(errand.patiently(lambda: _decide(request, store, factorise)))
        except LeaseLost:
            raise
        except MeshError as error:
            errand.failed(transaction, error)
            return
        for address, items in decision.elsewhere.items():
            transaction.send(address, PUT, errand.part(_plain(items)), deadline=request.deadline)
        _write(decision, request, store, transaction)
        errand.found(transaction, decision.factors)

    @worker.handles(DROP)
    async def drop(request: Request, store: Store, transaction: Transaction) -> None:
        value = request.body["value"]
        (record,) = await records.records(store, [value])
        # One that has been written again since is not the one to drop.
        if record is not None and record.id == request.body["id"]:
            records.remove(transaction, {value: record})
            records.unschedule(transaction, [value])

    @worker.handles(FIND, effect=False)
    async def find(request: Request, store: Store, transaction: Transaction) -> Body:
        body = request.body
        # The request's own moment, the same on every replica.
        found = await records.find(store, body["prime"], request.at_ms, body["limit"], body.get("after", 0))
        return {"found": [[value, record.id, record.factors] for value, record in found]}

    return worker


def _plain(items: list[Item]) -> list[dict[str, int]]:
    return [{"value": item.value, "ttl": item.ttl} for item in items]


async def _decide(request: Request, store: Store, factorise: Factorise) -> Decision:
    """Find out where the records are, and the factors of those that are ours to write.

    While a hard one is computed others may write its record: then look again.
    """
    while True:
        here, elsewhere = await _sort(await _items(request, store), store)
        here, elsewhere[Class(store.cls)] = await _hard_ones_apart(here, request, store)
        before = await _before(here, store)
        factors = await _factors(here, before, request, factorise)
        if factors is not None:
            return Decision(here, before, factors, {address: items for address, items in elsewhere.items() if items})


async def _items(request: Request, store: Store) -> list[Item]:
    """The items of a put, each with the place its record is said to be in now."""
    asked = [(item["value"], item["ttl"]) for item in request.body["items"]]
    places = await records.places(store, [value for value, _ in asked])
    return [
        Item(value, ttl, place, None if place is None else Place.parse(place))
        for (value, ttl), place in zip(asked, places, strict=True)
    ]


async def _hard_ones_apart(items: list[Item], request: Request, store: Store) -> tuple[list[Item], list[Item]]:
    """What to do here, and what to give back to the class: a database's stream is worked in order, so a hard number,
    forwarded to a holder whose record ended meanwhile, would hold up every GET behind it."""
    large = [item for item in items if item.value >= SMALL]
    if not large or request.stream != Database(store.database).stream:
        return items, []
    known = await records.records(store, [item.value for item in large])
    apart = {item.value for item, record in zip(large, known, strict=True) if record is None}
    return [item for item in items if item.value not in apart], [item for item in items if item.value in apart]


async def _sort(items: list[Item], store: Store) -> tuple[list[Item], dict[Address, list[Item]]]:
    """Which items are ours to write, and which belong to a live holder of our class."""
    here: list[Item] = []
    elsewhere: dict[Address, list[Item]] = {}
    held: dict[int, bool] = {}
    for item in items:
        where = item.where
        if where is None or where.database == store.database or where.cls != store.cls:
            here.append(item)
            continue
        if where.database not in held:
            held[where.database] = await store.is_held(where.database)
        if held[where.database]:
            elsewhere.setdefault(Database(where.database), []).append(item)
        else:
            here.append(item)
    return here, elsewhere


async def _before(items: list[Item], store: Store) -> dict[int, Record]:
    """Our own records of these values."""
    ours = [item.value for item in items if item.where is not None and item.where.database == store.database]
    found = await records.records(store, ours)
    return {value: record for value, record in zip(ours, found, strict=True) if record is not None}


async def _factors(
    items: list[Item], before: dict[int, Record], request: Request, factorise: Factorise
) -> dict[int, list[int]] | None:
    """The factors of each value: from our own record where there is one, else computed.

    None where another has written one of the records meanwhile: then look again at where they are.
    """
    known = {value: record.factors for value, record in before.items()}
    small = [item.value for item in items if item.value < SMALL and item.value not in known]
    known |= zip(small, await factorise.small(small), strict=True)
    for item in items:
        if item.value not in known:
            factors = await factorise.large(item.value, request, item.place)
            if factors is None:
                return None
            known[item.value] = factors
    return known


def _write(decision: Decision, request: Request, store: Store, transaction: Transaction) -> None:
    """Write what is to be here; whoever else had it drops it."""
    at_ms, here = request.at_ms, decision.here
    expiries = {item.value: at_ms + item.ttl * 1000 for item in here}
    place = Place(store.database, store.cls, request.id)
    records.put(transaction, place, expiries, decision.factors, decision.before)
    records.expect_places(transaction, {item.value: item.place for item in here})
    claims.release(transaction, store.cls, expiries)
    for item in here:
        where = item.where
        if where is not None and where.database != store.database:
            transaction.send(Database(where.database), DROP, {"value": item.value, "id": where.id})
