"""The handlers of /values: what a replica does with the requests that it gets.

    where the record of a value is        what a put does
    nowhere                               factorises the value and writes its record here; a hard value is put again
                                          in its lane (see `hard_values`)
    in this database                      refreshes the expiry of the record
    in another database of this class,    forwards the value to the holder, which refreshes the expiry
    which has a holder
    in a database without a holder, or    factorises the value, writes its record here, and sends a drop to the former
    of another class                      database; a database without a holder gets the drop with its next holder

The commit fails if a record was written or moved after the handler looked it up. So if two writers race, one of them
runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from mesh import Address, Busy, Class, Database, LeaseLost, MeshError
from mesh.raw import Body, Effects, Filter, Request, Store, Worker
from quart_app.values import hard_values
from quart_app.values import store as records  # not `store`: a parameter `store` reads keys (`mesh.raw.Store`)
from quart_app.values.errands import Errand, Errands
from quart_app.values.hard_values import HARD, KNOWS_LANES
from quart_app.values.jobs import ADMIT, DELETE, PUT, WRITE_FIELDS, Gone
from quart_app.values.notation import is_small
from quart_app.values.pace import Pace
from quart_app.values.primes import READ_PRIMES, READ_STATE
from quart_app.values.store import Place, Record


class Factoriser(Protocol):
    """Finds the factors of values, as text (see `notation`). The class `Computing` is one."""

    async def factorise_small(self, values: Sequence[str]) -> list[str]:
        """Return the factors of values below 2^64."""

    async def factorise_quickly(self, value: str) -> str | None:
        """Return the factors of a larger value if a quick attempt finds them, else None."""

    async def factorise_large(self, value: str, request: Request) -> str:
        """Return the factors of a larger value."""

    def is_hard(self, value: str) -> bool:
        """Return whether a larger value takes so long that it should have a request of its own."""


#: The operation that removes a record from a former database (see "drop" in the glossary).
DROP = "values.drop"
#: The operation that answers one search.
FIND = "values.find"
#: The operation that answers several searches in one request.
FIND_EACH = "values.find_each"
#: The value of "as" in the body of a FIND whose asker takes the found values as one text. Askers of earlier releases
#: send no "as", and get a list: the oldest release that can share a Redis with this one is such a release.
TEXT = "text"


class PutItem(NamedTuple):
    """One value of a put, and the place of its record when the handler looked it up; None if it had no record."""

    value: str
    ttl: int
    #: the place as text, as read from Redis; the commit fails if Redis has another text by then
    place_text: str | None
    place: Place | None


@dataclass(frozen=True, slots=True)
class Decision:
    """What a put does with each of its items."""

    #: items whose records this replica writes
    here: list[PutItem]
    #: by value: the records that this database already has of the items `here`
    existing: dict[str, Record]
    #: by value: the factors of the items `here`
    factors: dict[str, str]
    #: by the address of a holder of this class: the items whose expiry this holder refreshes
    elsewhere: list[tuple[Address, list[PutItem]]]
    #: items whose values are hard, or may be; each gets a request of its own
    apart: list[PutItem]


@dataclass(frozen=True, slots=True)
class _Handlers:
    """The handlers of /values, and the objects that they use."""

    factoriser: Factoriser
    errands: Errands
    pace: Pace
    #: these two functions are described at `values_worker`
    take_room: Callable[[int], None]
    current_filters: Callable[[], Sequence[Filter]]

    async def put(self, request: Request, store: Store, transaction: Effects) -> Body | None:
        """Store values here or at their holders. Reply with the factors of those stored here.

        The reply has null for the values that the caller has to put again. An errand has no caller, and gets no reply.
        """
        try:
            errand = await self.errands.of(request)
            if errand is not None:
                await self._do_errand(errand, request, store, transaction)
                return None
        except Gone:
            return None
        decision = await self._factor_and_take_room(request, store)
        # If the body has the field KNOWS_LANES, the caller itself puts the values again that are null in the reply.
        to_put_again, knows_lanes_field = [], {KNOWS_LANES: True} if KNOWS_LANES in request.body else {}
        for address, items in decision.elsewhere:
            if request.op == HARD:
                # A request in a lane has a limit, so it cannot be forwarded. Its caller puts these items again.
                to_put_again += items
            else:
                transaction.forward(address, {"items": _as_body_items(items), **knows_lanes_field})
        for item in decision.apart:
            if knows_lanes_field:
                to_put_again.append(item)
            else:
                # A caller of an earlier release does not know lanes, so the hard value gets a plain put of its own.
                transaction.forward(Class(store.cls), {"items": _as_body_items([item])})
        _write(decision, request, store, transaction, self.current_filters())
        reply: Body = {item.value: decision.factors[item.value] for item in decision.here}
        reply.update({item.value: None for item in to_put_again})
        return reply

    async def _factor_and_take_room(self, request: Request, store: Store) -> Decision:
        """Find the factors for a put, and count the bytes that it will store. Raises Busy if there is no room."""
        decision = await _locate_and_factor(request, store, self.factoriser, self.pace)
        # The methods that call this build their transactions without a pause, so other tasks get the event loop here.
        await self.pace()
        new_values = [item.value for item in decision.here if item.value not in decision.existing]
        if new_values:
            self.take_room(sum(records.record_bytes(value, decision.factors[value]) for value in new_values))
        return decision

    async def _do_errand(self, errand: Errand, request: Request, store: Store, transaction: Effects) -> None:
        """Do a put that belongs to a job, and store the outcome in the job. Raises Gone if the job was deleted."""
        is_on_database_stream = request.stream == Database(store.database).stream
        try:
            # On a database's stream, a request that waited for room would hold up all requests behind it. So the errand
            # does not wait there: without room, it goes to the class (see `except Busy`). Elsewhere each try looks up
            # the records again, and factors small values again. `Computing` keeps the factors that took longer.
            work = (
                self._factor_and_take_room(request, store)
                if is_on_database_stream
                else errand.until_there_is_room(lambda: self._factor_and_take_room(request, store))
            )
            decision = await errand.while_the_job_exists(work)
        except LeaseLost:
            # The job gets no failure: another replica takes the request over.
            raise
        except Busy:
            errand.send_to_class(transaction)
            return
        except MeshError as error:
            errand.store_failure(transaction, error)
            return
        deadline = hard_values.deadline_of(request)
        for address, items in decision.elsewhere:
            transaction.send(address, PUT, errand.part_body(_as_body_items(items)), deadline=deadline)
        # If the step consists of one hard value, the request in the value's lane ends this step, and sends the next
        # step. Any other step ends here, and does not wait for the requests that it sends.
        is_step_over = len(request.body["items"]) > 1 or not decision.apart
        for item in _as_body_items(decision.apart):
            hard_values.send(transaction, store.cls, item, errand.job_fields(with_step=not is_step_over), deadline)
        _write(decision, request, store, transaction, self.current_filters())
        errand.store_factors(transaction, decision.factors, is_over=is_step_over)

    async def drop(self, request: Request, store: Store, transaction: Effects) -> None:
        """Remove a value's record after another database got one, unless this database has a newer one by now."""
        await self.pace()
        value = str(request.body["value"])
        (record,) = await records.read_records(store, [value])
        if record is not None and record.request_id == request.body["id"]:
            records.remove(transaction, {value: record})
            # A member of EXPIRY names one value or several. This removes the member that names only this value, if
            # there is one. A member with several values stays, and the sweep then finds no record of this value.
            records.remove_from_expiry(transaction, [value])


async def find(request: Request, store: Store, transaction: Effects) -> Body | None:
    """Answer with a Part (see the module `store`): values of this database that have a prime factor.

    All replicas compare expiries with the time of the request. The commit makes the search and writes its text into the
    reply. An asker of an earlier release gets a list instead: a value, its record, the next value, and so on.
    """
    body = request.body
    conditions = records.Conditions(body["prime"], request.at_ms, body["limit"], body["after"])
    if body.get("as") == TEXT:
        records.answer_search(transaction, conditions)
        return None
    until, text = await records.find(store, conditions)
    return {"until": until, "found": records.as_flat_list(text)}


async def find_each(request: Request, store: Store, transaction: Effects) -> None:
    """Answer several searches with one Part each; the commit makes all searches.

    The body lists, for each search, the prime, the value after which the search begins, and the most values.
    """
    searches = [records.Conditions(prime, request.at_ms, limit, after) for prime, after, limit in request.body["each"]]
    records.answer_searches(transaction, request.at_ms, searches)


def values_worker(
    factoriser: Factoriser,
    errands: Errands,
    pace: Pace,
    take_room: Callable[[int], None],
    current_filters: Callable[[], Sequence[Filter]] = tuple,
) -> Worker:
    """Return the handlers of the operations of /values, as a Worker.

    `take_room` counts the bytes that a put will store, and raises Busy if Redis has no room for them.
    `current_filters` returns the filters to which a put adds the primes of its values, by default none.
    """
    worker = Worker()
    # `jobs`, `errands` and `primes` run most of these scripts. The mesh loads all of them into the server beforehand.
    for script in (records.FIND_SCRIPT, READ_PRIMES, READ_STATE, ADMIT, DELETE, WRITE_FIELDS):
        worker.uses(script)
    worker.writes_with(records.VERBS)
    handlers = _Handlers(factoriser, errands, pace, take_room, current_filters)
    worker.handles(PUT)(handlers.put)
    worker.handles(HARD)(handlers.put)
    worker.handles(DROP)(handlers.drop)
    # Without an effect, a handler may use its transaction only for the answer: here the commit reads it from the index.
    worker.handles(FIND, effect=False)(find)
    worker.handles(FIND_EACH, effect=False)(find_each)
    return worker


def _as_body_items(items: list[PutItem]) -> list[dict[str, str | int]]:
    """Return items in the form that the body of a put has under "items"."""
    return [{"value": item.value, "ttl": item.ttl} for item in items]


async def _locate_and_factor(request: Request, store: Store, factoriser: Factoriser, pace: Pace) -> Decision:
    """Look up where the records are, and find the factors of the values whose records this replica writes."""
    items = await _read_items(request, store, pace)
    if all(item.place is None and is_small(item.value) for item in items):
        # The most frequent case needs no further lookup: all values are new and small.
        values = [item.value for item in items]
        return Decision(items, {}, dict(zip(values, await factoriser.factorise_small(values), strict=True)), [], [])
    here, elsewhere = await _split_by_holder(items, store)
    existing = await _read_existing(here, store, pace)
    here, apart, quick_factors = await _split_off_hard(here, existing, request, store, factoriser)
    factors = await _collect_factors(here, existing, quick_factors, request, factoriser)
    return Decision(here, existing, factors, [*elsewhere.items()], apart)


async def _read_items(request: Request, store: Store, pace: Pace) -> list[PutItem]:
    """Return the items of a put, each with the place of its record."""
    # Requests of releases before 0.2 have values as integers.
    pairs = [(str(item["value"]), item["ttl"]) for item in request.body["items"]]
    # `request.found` has the texts if the submission of the request has read the places (see `SmallPuts` in `asking`).
    texts_found = None if request.found is None else records.decode_places(request.found, len(pairs))
    place_texts = (
        await records.read_places(store, [value for value, _ in pairs]) if texts_found is None else texts_found
    )
    await pace()
    place_by_text = {text: Place.parse(text) for text in set(place_texts) if text is not None}
    return [
        PutItem(value, ttl, text, None if text is None else place_by_text[text])
        for (value, ttl), text in zip(pairs, place_texts, strict=True)
    ]


async def _split_off_hard(
    items: list[PutItem], existing: dict[str, Record], request: Request, store: Store, factoriser: Factoriser
) -> tuple[list[PutItem], list[PutItem], dict[str, str]]:
    """Return the items to do here, the items that get requests of their own, and the factors found meanwhile.

    A hard value would hold up the other values of its request. On a database's stream, whose requests run one after the
    other, it would hold up every GET. Another replica forwards a put to this stream if our database has the record of
    the value. If the record expires before the put runs, the put has to factor the value, which may be hard. A request
    on this stream makes no quick attempt, so each large value without a record gets a request of its own.
    """
    large_items = [item for item in items if not is_small(item.value)]
    is_on_database_stream = request.stream == Database(store.database).stream
    is_alone_on_class_stream = len(items) == 1 and not is_on_database_stream
    # A caller of an earlier release does not know lanes. It waits here for a hard value that is alone in its request.
    knows_lanes = KNOWS_LANES in request.body or "job" in request.body
    if not large_items or request.op == HARD or (is_alone_on_class_stream and not knows_lanes):
        return items, [], {}
    without_record = [item.value for item in large_items if item.value not in existing]
    factors_or_none = (
        {} if is_on_database_stream else {value: await factoriser.factorise_quickly(value) for value in without_record}
    )
    quick_factors = {value: text for value, text in factors_or_none.items() if text is not None}
    # A value that is alone in its request holds up no other value. So this request computes it, unless it takes long.
    apart_values = {
        value
        for value in without_record
        if value not in quick_factors and not (is_alone_on_class_stream and not factoriser.is_hard(value))
    }
    here = [item for item in items if item.value not in apart_values]
    return here, [item for item in items if item.value in apart_values], quick_factors


async def _split_by_holder(items: list[PutItem], store: Store) -> tuple[list[PutItem], dict[Address, list[PutItem]]]:
    """Return the items whose records this replica writes, and by address those that another holder refreshes."""
    here: list[PutItem] = []
    elsewhere: dict[Address, list[PutItem]] = {}
    has_holder: dict[int, bool] = {}
    for item in items:
        place = item.place
        if place is None or place.database == store.database or place.cls != store.cls:
            here.append(item)
            continue
        if place.database not in has_holder:
            has_holder[place.database] = await store.is_held(place.database)
        if has_holder[place.database]:
            elsewhere.setdefault(Database(place.database), []).append(item)
        else:
            here.append(item)
    return here, elsewhere


async def _read_existing(items: list[PutItem], store: Store, pace: Pace) -> dict[str, Record]:
    """Return by value the records of these items that this database has."""
    values_here = [item.value for item in items if item.place is not None and item.place.database == store.database]
    if not values_here:
        return {}
    record_or_none_each = await records.read_records(store, values_here)
    await pace()
    return {value: record for value, record in zip(values_here, record_or_none_each, strict=True) if record is not None}


async def _collect_factors(
    items: list[PutItem],
    existing: dict[str, Record],
    quick_factors: dict[str, str],
    request: Request,
    factoriser: Factoriser,
) -> dict[str, str]:
    """Return the factors by value: those of existing records, those already found, and computed ones for the others."""
    factors = quick_factors | {value: record.factors for value, record in existing.items()}
    small_values = [item.value for item in items if item.value not in factors and is_small(item.value)]
    factors |= zip(small_values, await factoriser.factorise_small(small_values), strict=True)
    for item in items:
        if item.value not in factors:
            factors[item.value] = await factoriser.factorise_large(item.value, request)
    return factors


def _write(decision: Decision, request: Request, store: Store, transaction: Effects, filters: Sequence[Filter]) -> None:
    """Write the records that belong here, and send a drop to each former database."""
    at_ms, here = request.at_ms, decision.here
    expiry_by_value = {item.value: at_ms + item.ttl * 1000 for item in here}
    place = Place(store.database, store.cls, request.id)
    records.put(transaction, place, expiry_by_value, decision.factors, decision.existing, filters)
    records.expect_places(transaction, {item.value: item.place_text for item in here})
    for item in here:
        former_place = item.place
        if former_place is not None and former_place.database != store.database:
            transaction.send(
                Database(former_place.database), DROP, {"value": item.value, "id": former_place.request_id}
            )
