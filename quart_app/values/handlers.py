"""The handlers of /values: what a replica does with the requests that it gets.

    where the record is         what a put does
    nowhere                     factorise, write here; a hard value is left out, and put by a request in its lane
    here                        refresh its time
    same class, live holder     forward to the holder, who refreshes it
    another class, or a holder  factorise, write here, and tell the former holder to drop its record; the message waits
    that is gone                on the stream of that database while nobody holds it

A commit fails if the place of a record has changed since it was read. So if two writers race, one of them runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from mesh import Address, Busy, Class, Database, LeaseLost, MeshError
from mesh.raw import Body, Effects, Filter, Request, Store, Worker
from quart_app.values import hard
from quart_app.values import store as records
from quart_app.values.errands import Errand, Errands
from quart_app.values.hard import APART, HARD
from quart_app.values.jobs import ADMIT, END, PUT, TELL, Gone
from quart_app.values.notation import is_small
from quart_app.values.pace import Pace
from quart_app.values.primes import PRIMES, STATE
from quart_app.values.store import Place, Record


class Factorise(Protocol):
    """Finds factors, as text in the form of `notation`."""

    async def small(self, values: Sequence[str]) -> list[str]:
        """Return the factors of values below 2^64."""

    async def at_once(self, value: str) -> str | None:
        """Return the factors of a larger value if they can be found in a moment, else None."""

    async def large(self, value: str, request: Request) -> str:
        """Return the factors of a larger value."""

    def is_hard(self, value: str) -> bool:
        """Return whether a larger value should be computed by a request of its own."""


DROP = "values.drop"
FIND = "values.find"
#: Several of them in one request.
FIND_EACH = "values.find_each"
#: The form of an answer to FIND: one text, as the search in Redis makes it.
TEXT = "text"


class Item(NamedTuple):
    """One value of a put. `where` says where its record was when it was looked up, and `place` is the same as text.

    The commit expects that text unchanged. Both are None if the value had no record.
    """

    value: str
    ttl: int
    place: str | None
    where: Place | None


@dataclass(frozen=True, slots=True)
class Decision:
    """What a put will do: write the items `here` with `factors`, and let the addresses `elsewhere` do the rest.

    `before` are the records that are here now.
    """

    here: list[Item]
    before: dict[str, Record]
    factors: dict[str, str]
    elsewhere: list[tuple[Address, list[Item]]]
    #: hard values, each to be computed by a request of its own
    apart: list[Item]


@dataclass(frozen=True, slots=True)
class _Operations:
    """The handlers of /values, and the objects that they use."""

    factorise: Factorise
    errands: Errands
    pace: Pace
    store_room: Callable[[int], None]
    filters: Callable[[], Sequence[Filter]]

    async def put(self, request: Request, store: Store, transaction: Effects) -> Body | None:
        """Store the values of a request, or let their holders do it; reply with the factors of those stored here."""
        try:
            errand = await self.errands.of(request)
            if errand is not None:
                await self._do_errand(errand, request, store, transaction)
                return None
        except Gone:
            return None
        decision = await self._decide_in_turn(request, store)
        left_out, may_leave_out = [], {APART: True} if APART in request.body else {}
        for address, items in decision.elsewhere:
            if request.op == HARD:
                left_out += items
            else:
                transaction.forward(address, {"items": _plain(items), **may_leave_out})
        for item in decision.apart:
            if may_leave_out:
                left_out.append(item)
            else:
                transaction.forward(Class(store.cls), {"items": _plain([item])})
        _write(decision, request, store, transaction, self.filters())
        answer: Body = {item.value: decision.factors[item.value] for item in decision.here}
        answer.update({item.value: None for item in left_out})
        return answer

    async def _decide_in_turn(self, request: Request, store: Store) -> Decision:
        """Decide, then let other tasks run, because the words of the commit are written in one piece. Raises Busy."""
        decision = await _decide(request, store, self.factorise, self.pace)
        await self.pace()
        new = [item.value for item in decision.here if item.value not in decision.before]
        if new:
            self.store_room(sum(records.size(value, decision.factors[value]) for value in new))
        return decision

    async def _do_errand(self, errand: Errand, request: Request, store: Store, transaction: Effects) -> None:
        """Do a put that belongs to a job, and store its outcome in the job: no client waits for it. Raises Gone."""
        is_ordered = request.stream == Database(store.database).stream
        try:
            # A request on a database's stream must not wait for long: those behind it would wait, too.
            work = (
                self._decide_in_turn(request, store)
                if is_ordered
                else errand.patiently(lambda: self._decide_in_turn(request, store))
            )
            decision = await errand.attended(work)
        except LeaseLost:
            raise
        except Busy:
            errand.give_back(transaction)
            return
        except MeshError as error:
            errand.failed(transaction, error)
            return
        deadline = hard.deadline_of(request)
        for address, items in decision.elsewhere:
            transaction.send(address, PUT, errand.part(_plain(items)), deadline=deadline)
        # The step of one hard value is over when the request in its lane is.
        is_over = len(request.body["items"]) > 1 or not decision.apart
        for item in _plain(decision.apart):
            hard.send(transaction, store.cls, item, errand.labels(with_step=not is_over), deadline)
        _write(decision, request, store, transaction, self.filters())
        errand.found(transaction, decision.factors, is_over=is_over)

    async def drop(self, request: Request, store: Store, transaction: Effects) -> None:
        """Remove the record of a value that is now stored elsewhere, unless it has been written here again."""
        await self.pace()
        value = str(request.body["value"])
        (record,) = await records.records(store, [value])
        if record is not None and record.id == request.body["id"]:
            records.remove(transaction, {value: record})
            records.unschedule(transaction, [value])


async def find(request: Request, store: Store, transaction: Effects) -> Body | None:
    """Answer with a page of the values with a prime factor. All replicas compare expiries with the time of the request.

    The commit finds them, as text, and puts them into the reply. Earlier releases ask for values and records in turn.
    """
    body = request.body
    conditions = records.Conditions(body["prime"], request.at_ms, body["limit"], body["after"])
    if body.get("as") == TEXT:
        records.answer(transaction, conditions)
        return None
    until, text = await records.find(store, conditions)
    return {"until": until, "found": records.flat(text)}


async def find_each(request: Request, store: Store, transaction: Effects) -> None:
    """Answer several questions with a page each. The commit finds all of them."""
    each = [records.Conditions(prime, request.at_ms, limit, after) for prime, after, limit in request.body["each"]]
    records.answer_each(transaction, request.at_ms, each)


def handlers(
    factorise: Factorise,
    errands: Errands,
    pace: Pace,
    store_room: Callable[[int], None],
    filters: Callable[[], Sequence[Filter]] = tuple,
) -> Worker:
    """Return the operations of /values.

    `store_room` counts bytes that are about to be stored, and raises Busy. `filters` returns the filters that get
    the primes of what is stored.
    """
    worker = Worker()
    for script in (records.FIND, PRIMES, STATE, ADMIT, END, TELL):
        worker.uses(script)
    worker.writes_with(records.VERBS)
    operations = _Operations(factorise, errands, pace, store_room, filters)
    worker.handles(PUT)(operations.put)
    worker.handles(HARD)(operations.put)
    worker.handles(DROP)(operations.drop)
    worker.handles(FIND, effect=False)(find)
    worker.handles(FIND_EACH, effect=False)(find_each)
    return worker


def _plain(items: list[Item]) -> list[dict[str, str | int]]:
    return [{"value": item.value, "ttl": item.ttl} for item in items]


async def _decide(request: Request, store: Store, factorise: Factorise, pace: Pace) -> Decision:
    """Look up where the records are, and find the factors of the values that this replica is to write."""
    items = await _items(request, store, pace)
    if all(item.where is None and is_small(item.value) for item in items):
        # Mostly all values are new and small.
        values = [item.value for item in items]
        return Decision(items, {}, dict(zip(values, await factorise.small(values), strict=True)), [], [])
    here, elsewhere = await _sort(items, store)
    before = await _before(here, store, pace)
    here, apart, known = await _hard_ones_apart(here, before, request, store, factorise)
    factors = await _factors(here, before, known, request, factorise)
    return Decision(here, before, factors, [*elsewhere.items()], apart)


async def _items(request: Request, store: Store, pace: Pace) -> list[Item]:
    """Return the items of a put, each with the place where its record is now."""
    # Entries of releases before 0.2 have values as integers.
    asked = [(str(item["value"]), item["ttl"]) for item in request.body["items"]]
    found = None if request.found is None else records.places_found(request.found, len(asked))
    places = await records.places(store, [value for value, _ in asked]) if found is None else found
    await pace()
    parsed = {place: Place.parse(place) for place in set(places) if place is not None}
    return [
        Item(value, ttl, place, None if place is None else parsed[place])
        for (value, ttl), place in zip(asked, places, strict=True)
    ]


async def _hard_ones_apart(
    items: list[Item], before: dict[str, Record], request: Request, store: Store, factorise: Factorise
) -> tuple[list[Item], list[Item], dict[str, str]]:
    """Return the items to do here, those that get requests of their own, and the factors found meanwhile.

    A hard value would hold up the other values of its request. On a database's stream, where requests are done in
    order, it would hold up every GET. A hard value is on such a stream if its record has expired after the request was
    forwarded to the holder.
    """
    large = [item for item in items if not is_small(item.value)]
    is_ordered = request.stream == Database(store.database).stream
    is_alone = len(items) == 1 and not is_ordered
    # Callers that know no lanes, such as those of earlier releases, wait for a hard value that is alone.
    has_lanes = APART in request.body or "job" in request.body
    if not large or request.op == HARD or (is_alone and not has_lanes):
        return items, [], {}
    unknown = [item.value for item in large if item.value not in before]
    found = {} if is_ordered else {value: await factorise.at_once(value) for value in unknown}
    factors = {value: text for value, text in found.items() if text is not None}
    apart = {value for value in unknown if value not in factors and not (is_alone and not factorise.is_hard(value))}
    here = [item for item in items if item.value not in apart]
    return here, [item for item in items if item.value in apart], factors


async def _sort(items: list[Item], store: Store) -> tuple[list[Item], dict[Address, list[Item]]]:
    """Return the items that this replica is to write, and those that belong to a live holder of its class."""
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


async def _before(items: list[Item], store: Store, pace: Pace) -> dict[str, Record]:
    """Return the records of these values that are in this database."""
    ours = [item.value for item in items if item.where is not None and item.where.database == store.database]
    if not ours:
        return {}
    found = await records.records(store, ours)
    await pace()
    return {value: record for value, record in zip(ours, found, strict=True) if record is not None}


async def _factors(
    items: list[Item], before: dict[str, Record], found: dict[str, str], request: Request, factorise: Factorise
) -> dict[str, str]:
    """Return the factors of each value: from its record if that is here, or else computed."""
    known = found | {value: record.factors for value, record in before.items()}
    small = [item.value for item in items if item.value not in known and is_small(item.value)]
    known |= zip(small, await factorise.small(small), strict=True)
    for item in items:
        if item.value not in known:
            known[item.value] = await factorise.large(item.value, request)
    return known


def _write(decision: Decision, request: Request, store: Store, transaction: Effects, filters: Sequence[Filter]) -> None:
    """Write the records that belong here, and tell their former holders to drop theirs."""
    at_ms, here = request.at_ms, decision.here
    expiries = {item.value: at_ms + item.ttl * 1000 for item in here}
    place = Place(store.database, store.cls, request.id)
    records.put(transaction, place, expiries, decision.factors, decision.before, filters)
    records.expect_places(transaction, {item.value: item.place for item in here})
    for item in here:
        where = item.where
        if where is not None and where.database != store.database:
            transaction.send(Database(where.database), DROP, {"value": item.value, "id": where.id})
