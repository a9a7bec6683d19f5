"""How a client's values are put: hard ones after the others, in their lanes, some at a time."""

from __future__ import annotations

import asyncio

from quart_app.values import asking, hard_values
from quart_app.values.models import PlainItem
from quart_app.values.pace import Pace
from tests.support.values import DONE, HARD, Values
from tests.support.waiting import eventually


async def test_a_hard_value_holds_up_no_other_of_its_chunk(values: Values) -> None:
    """The worker leaves the hard value out, which is put alone, and stores the others at once."""
    (replica,) = await values.join(1, concurrency=2)
    quick = str(2**70)
    values.pool.quick[2**70] = "2^70"
    items = {value: PlainItem(value, 60, "A") for value in (str(HARD), quick, "6")}
    first = hard_values.ask_for_chunk("A", [{"value": value, "ttl": 60} for value in items])
    asked = asyncio.create_task(asking.put(replica, [first], items, 20_000, Pace()))
    await eventually(values.begun)

    async def stored() -> bool:
        return await replica.store().hget("values:records", quick) is not None

    await eventually(stored, 2)
    assert values.pool.computed == [HARD] and not asked.done()
    values.pool.may_end.set()
    assert (await asked)[0] == {"6": "2 3", quick: "2^70", **DONE}


async def test_a_record_with_another_replica_is_refreshed_there(values: Values) -> None:
    """Its lane leaves a value out whose record is elsewhere by now; it is put again without a lane, and forwarded."""
    replicas = await values.join(2)
    values.pool.may_end.set()
    await values.put(replicas[0])
    item = PlainItem(str(HARD), 500, "A")
    for _ in range(4):
        factors, _ = await asking.put(replicas[0], [hard_values.ask_in_lane(item)], {item.value: item}, 5000, Pace())
        assert factors == DONE
    assert values.pool.computed == [HARD]
    records = await asyncio.gather(*(replica.store().hget("values:records", HARD) for replica in replicas))
    (record,) = filter(None, records)
    assert int(record.split()[1]) - replicas[0].now_ms() in range(490_000, 500_001)


async def test_hard_values_are_computed_while_an_older_release_is_live(values: Values) -> None:
    """A release without lanes would not free their places, so values are computed without them."""
    (replica,) = await values.join(1)
    redis = values.members.redis()
    await redis.hset("mesh:replica:5", mapping={"class": "B", "replica": "old", "reads": "2"})
    values.pool.may_end.set()
    assert await values.put(replica) == DONE
    assert await redis.exists("mesh:lanes") == 0


async def test_many_hard_values_are_asked_for_some_at_a_time(values: Values) -> None:
    """One step submits all that are asked for at once, and holds the server for as long."""
    (replica,) = await values.join(1, concurrency=100)
    many = [PlainItem(str(n * HARD), 60, "A") for n in range(1, asking.MOST_HARD + 9)]
    first = hard_values.ask_for_chunk("A", [{"value": item.value, "ttl": 60} for item in many])
    asked = asyncio.create_task(asking.put(replica, [first], {item.value: item for item in many}, 20_000, Pace()))

    async def some_begun() -> bool:
        return len(values.pool.computed) == asking.MOST_HARD

    await eventually(some_begun)
    assert await replica.shared.scard("mesh:lanes") == asking.MOST_HARD
    values.pool.may_end.set()
    factors, _ = await asked
    assert set(factors) == {item.value for item in many}
    assert await replica.shared.scard("mesh:lanes") == 0


async def test_small_values_of_many_clients_share_a_request(values: Values) -> None:
    """Each client gets the factors of its value, wherever its record is; and each value has one record."""
    one, two = await values.join(2)
    small = asking.SmallPuts(Pace())
    items = [PlainItem(str(n), 60, "A") for n in range(2, 12)]
    before = (await one.books())["accepted"]
    for replica in (one, two):
        found = await asyncio.gather(*(small.put(replica, item, 5000) for item in items))
        assert [factors[item.value] for item, (factors, _) in zip(items, found, strict=True)] == [
            "2", "3", "2 2", "5", "2 3", "7", "2 2 2", "3 3", "2 5", "11",
        ]  # fmt: skip
        if replica is one:
            assert (await one.books())["accepted"] == before + 2, "the first one, and the others"
    names = [item.value for item in items]
    stored = [await replica.store().hmget("values:records", *names) for replica in (one, two)]
    assert [sum(map(bool, both)) for both in zip(*stored, strict=True)] == [1] * len(items)


async def test_of_small_values_that_come_together_the_last_one_counts(values: Values) -> None:
    """As if they came one after the other."""
    (one,) = await values.join(1)
    small = asking.SmallPuts(Pace())
    items = [PlainItem(value, ttl, "A") for value, ttl in (("7", 9), ("6", 50), ("6", 900))]
    await asyncio.gather(*(small.put(one, item, 5000) for item in items))
    (record,) = await one.store().hmget("values:records", "6")
    assert record is not None and int(record.split()[1]) - one.now_ms() > 800_000
