"""Each event is stored once, and the stock is the sum of the events in any order."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, make_url, select
from sqlalchemy.event import listen
from sqlalchemy.exc import DBAPIError, IntegrityError

from mesh import Unavailable
from quart_app.movements.address import async_url
from quart_app.movements.database import MovementDatabase
from quart_app.movements.models import Direction, Event, EventData
from quart_app.movements.producer import MovementSimulator, sample
from quart_app.movements.settings import MOST_ROWS
from quart_app.movements.store import Deficit, MovementStore
from quart_app.movements.tables import movements, warehouses

NOON = datetime(2025, 2, 18, 12, tzinfo=UTC)
MOVEMENT, OTHER = UUID(int=1), UUID(int=2)
NORTH, SOUTH = UUID(int=11), UUID(int=12)
BOLTS, NUTS = UUID(int=21), UUID(int=22)


def event(id: str = "1", source: str = "WH-1", **data: Any) -> Event:
    """Return an arrival of ten bolts in the north, with these changes."""
    usual = {
        "movement_id": MOVEMENT,
        "warehouse_id": NORTH,
        "timestamp": NOON.isoformat(),
        "event": "arrival",
        "product_id": BOLTS,
        "quantity": 10,
    }
    return Event(id=id, source=source, time=0, data=EventData.model_validate({**usual, **data}))


async def rows(database: MovementDatabase) -> int:
    async with database.reading() as connection:
        return len((await connection.execute(select(movements.c.id))).all())


async def stock(database: MovementDatabase) -> dict[tuple[UUID, UUID], tuple[int, int, int, datetime]]:
    """Return balance, quantity, deficit and time for each warehouse and product."""
    columns = warehouses.c
    async with database.reading() as connection:
        found = await connection.execute(select(*columns))
        return {
            (row.warehouse_id, row.product_id): (row.balance, row.quantity, row.deficit, row.updated_at)
            for row in found
        }


def added_up(events: Sequence[Event]) -> dict[tuple[UUID, UUID], tuple[int, int, int, datetime]]:
    """Return the stock that follows from the events."""
    balance: Counter[tuple[UUID, UUID]] = Counter()
    latest: dict[tuple[UUID, UUID], datetime] = {}
    for data in (one.data for one in events):
        key = data.warehouse_id, data.product_id
        balance[key] += data.quantity if data.event is Direction.ARRIVAL else -data.quantity
        latest[key] = max(latest.get(key, data.timestamp), data.timestamp)
    return {key: (value, max(value, 0), max(-value, 0), latest[key]) for key, value in balance.items()}


async def test_both_sample_messages_count_though_they_share_their_id(
    store: MovementStore, database: MovementDatabase
) -> None:
    """The identity is source and id, so the two messages of one movement are two events."""
    departure, arrival = (Event.model_validate(message) for message in sample())
    assert departure.id == arrival.id
    stored = await store.add([departure, arrival])
    assert (len(stored.new_events), stored.duplicate_count) == (2, 0)
    assert len(await store.steps(departure.data.movement_id)) == 2
    assert await stock(database) == added_up([departure, arrival])


async def test_an_event_is_stored_once_however_often_it_comes(store: MovementStore, database: MovementDatabase) -> None:
    """An event may come twice in one batch or in several; the stock changes once."""
    assert (await store.add([event(), event()])).duplicate_count == 1
    stored = await store.add([event(), event("2")])
    assert ([one.id for one in stored.new_events], stored.duplicate_count, stored.refused_indexes) == (["2"], 1, set())
    assert await rows(database) == 2
    assert (await stock(database))[NORTH, BOLTS][:2] == (20, 20)


async def test_an_event_sent_again_later_is_the_same_event(store: MovementStore) -> None:
    """The time of sending is not part of the content."""
    await store.add([event()])
    again = event().model_copy(update={"time": 5})
    assert (await store.add([again])).duplicate_count == 1


@pytest.mark.parametrize("change", [{"quantity": 11}, {"product_id": NUTS}, {"event": "departure"}])
@pytest.mark.parametrize("in_one_batch", [True, False])
async def test_an_identity_cannot_stand_for_two_contents(
    store: MovementStore, database: MovementDatabase, change: dict[str, Any], in_one_batch: bool
) -> None:
    """The first one stays and the second one is reported, because dropping it silently would lose it."""
    first, second = event(), event(**change)
    if in_one_batch:
        stored = await store.add([first, second])
    else:
        await store.add([first])
        stored = await store.add([event("2"), second])
    assert stored.refused_indexes == {1}
    assert (await stock(database))[NORTH, BOLTS][0] in {10, 20}


async def test_nothing_to_add_is_no_error(store: MovementStore) -> None:
    """A batch may have no readable event."""
    assert (await store.add([])).new_events == []


async def test_departures_before_arrivals_leave_a_deficit(store: MovementStore, database: MovementDatabase) -> None:
    """The quantity is never negative; the deficit has the missing items until they arrive."""
    await store.add([event("1", event="departure", quantity=30)])
    found = await store.stock(NORTH, BOLTS)
    assert found is not None and found.quantity == 0
    assert await store.deficit() == Deficit(pair_count=1, quantity=30)
    await store.add([event("2", quantity=50)])
    found = await store.stock(NORTH, BOLTS)
    assert found is not None and found.quantity == 20
    assert await store.deficit() == Deficit(pair_count=0, quantity=0)


async def test_an_unknown_product_is_none(store: MovementStore) -> None:
    """None differs from a stock of 0."""
    await store.add([event()])
    assert await store.stock(NORTH, NUTS) is None
    assert await store.stock(SOUTH, BOLTS) is None
    assert await store.steps(OTHER) == []
    await store.add([event("2", event="departure")])
    found = await store.stock(NORTH, BOLTS)
    assert found is not None and found.quantity == 0


async def test_times_are_read_as_they_were_stored(store: MovementStore) -> None:
    """Times are in UTC, exact to the microsecond, whatever their offset was."""
    moment = datetime.fromisoformat("2025-02-18T17:34:56.123456+03:00")
    await store.add([event(timestamp=moment.isoformat())])
    (step,) = await store.steps(MOVEMENT)
    assert step.occurred_at == moment
    assert step.occurred_at.utcoffset() == timedelta(0)


async def test_a_batch_is_stored_whole_or_not_at_all(store: MovementStore, database: MovementDatabase) -> None:
    """When the tables refuse one row, no row of its batch and no stock is stored."""
    bad = event("2")
    bad = bad.model_copy(update={"data": bad.data.model_copy(update={"quantity": -1})})
    with pytest.raises((IntegrityError, DBAPIError)):
        await store.add([event("1"), bad])
    assert await rows(database) == 0
    assert await stock(database) == {}


EVENTS = st.lists(
    st.builds(
        event,
        id=st.integers(0, 30).map(str),
        source=st.sampled_from(["WH-1", "WH-2"]),
        warehouse_id=st.sampled_from([NORTH, SOUTH]),
        product_id=st.sampled_from([BOLTS, NUTS]),
        event=st.sampled_from(["arrival", "departure"]),
        quantity=st.integers(0, 2**31 - 1),
        timestamp=st.integers(0, 10**6).map(lambda s: (NOON + timedelta(seconds=s)).isoformat()),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda one: one.key,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=EVENTS, random=st.randoms(use_true_random=False), cut=st.integers(1, 5))
async def test_stock_does_not_depend_on_order(
    store: MovementStore, database: MovementDatabase, events: list[Event], random: random.Random, cut: int
) -> None:
    """Shuffled events, some twice, in batches of any size give the same stock, which is never negative."""
    async with database.writing() as connection:
        await connection.execute(delete(movements))
        await connection.execute(delete(warehouses))
    sent = events + random.sample(events, len(events) // 2)
    random.shuffle(sent)
    for start in range(0, len(sent), cut):
        await store.add(sent[start : start + cut])
        assert all(quantity >= 0 for _, quantity, _, _ in (await stock(database)).values())
    assert await stock(database) == added_up(events)


async def test_replicas_that_store_the_same_events_at_once_do_not_double_them(
    database: MovementDatabase, database_url: str
) -> None:
    """Overlapping batches in different orders at the same time store each row once and do not deadlock."""
    events = [
        Event.model_validate(one) for one in MovementSimulator(warehouses=3, products=3, seed=1).make_messages(300)
    ]
    replicas = [MovementDatabase(async_url(database_url), timeout_ms=20_000) for _ in range(4)]

    async def replay(replica: MovementDatabase, seed: int) -> int:
        mine = random.Random(seed).sample(events, len(events))
        stored = [await MovementStore(replica).add(mine[start : start + 50]) for start in range(0, len(mine), 50)]
        return sum(len(one.new_events) for one in stored)

    new = await asyncio.gather(*(replay(replica, seed) for seed, replica in enumerate(replicas)))
    assert sum(new) == await rows(database) == 600
    assert await stock(database) == added_up(events)
    for replica in replicas:
        await replica.close()


async def test_the_largest_batch_is_one_statement(store: MovementStore, database: MovementDatabase) -> None:
    """With two statements, the second would wait for rows while it holds the stocks of the first: a deadlock."""
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        statements.append(statement.split()[0])

    listen(database._engine.sync_engine, "before_cursor_execute", note)
    events = [event(str(n)) for n in range(MOST_ROWS)]
    assert len((await store.add(events)).new_events) == MOST_ROWS
    assert statements.count("INSERT") == 1
    assert (await store.add(events)).duplicate_count == MOST_ROWS


async def test_replicas_that_change_the_same_stocks_do_not_deadlock(
    database: MovementDatabase, database_url: str
) -> None:
    """Each replica stores other events of the same few products at the same time, without a deadlock."""
    trade = MovementSimulator(warehouses=3, products=4, seed=2)
    events = [Event.model_validate(one) for one in trade.make_messages(600, shuffle=True)]
    replicas = [MovementDatabase(async_url(database_url), timeout_ms=20_000) for _ in range(4)]

    async def add(replica: MovementDatabase, mine: list[Event]) -> None:
        for start in range(0, len(mine), 15):
            await MovementStore(replica).add(mine[start : start + 15])

    await asyncio.gather(*(add(replica, events[place::4]) for place, replica in enumerate(replicas)))
    assert await stock(database) == added_up(events)
    for replica in replicas:
        await replica.close()


async def test_a_database_that_is_away_is_unavailable_and_not_an_error_of_the_event() -> None:
    """Therefore events wait for it and none becomes a dead letter."""
    away = MovementDatabase(make_url("postgresql+asyncpg://mesh@127.0.0.1:9/none"), timeout_ms=500)
    with pytest.raises(Unavailable, match="the movements database cannot be used"):
        await MovementStore(away).add([event()])
    with pytest.raises(Unavailable):
        await MovementStore(away).stock(NORTH, BOLTS)
    await away.close()
