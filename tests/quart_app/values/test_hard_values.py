"""A hard value is computed once in a class: its lane, those that wait in it, and what ordered streams leave out."""

from __future__ import annotations

import asyncio

import pytest

from mesh import Class, Database, DeadlineExceeded
from quart_app.values.jobs import PUT
from tests.support.values import DONE, HARD, Values
from tests.support.waiting import eventually


async def test_the_others_wait_for_the_record_and_apply_their_own_ttl(values: Values) -> None:
    """Three ask at three replicas: one computation, three answers, one record with the last one's time."""
    replicas = await values.join(3)
    asked = []
    for waiting, replica in enumerate(replicas):
        asked.append(values.put(replica, ttl=100 * (waiting + 1)))

        async def in_its_place(waiting: int = waiting) -> bool:
            return await values.in_lane() == (1, waiting) and await values.begun()

        await eventually(in_its_place)
    values.pool.may_end.set()
    answers = await asyncio.gather(*asked)
    assert answers == [DONE] * 3
    assert values.pool.computed == [HARD]
    assert await values.in_lane() == (0, 0)
    records = await asyncio.gather(*(replica.store().hget("values:records", HARD) for replica in replicas))
    (record,) = filter(None, records)
    assert int(record.split()[1]) - replicas[0].now_ms() in range(290_000, 300_001)


async def test_those_that_wait_hold_no_worker(values: Values) -> None:
    """The only worker of a class computes, and the others wait in Redis: as many small values get through as before."""
    (replica,) = await values.join(1, concurrency=2)
    asked = [values.put(replica) for _ in range(10)]

    async def others_wait() -> bool:
        return await values.in_lane() == (1, 9)

    await eventually(others_wait)
    body = {"items": [{"value": "6", "ttl": 60}]}
    assert await replica.call(Class("A"), PUT, body, deadline_ms=3000) == {"6": "2 3"}
    values.pool.may_end.set()
    assert await asyncio.gather(*asked) == [DONE] * 10
    assert values.pool.computed == [HARD]


async def test_a_computation_is_kept_alive(values: Values) -> None:
    """As long as the computation runs, no other replica begins it."""
    replicas = await values.join(2, claim_idle_ms=300)
    asked = [values.put(replica) for replica in replicas]
    await eventually(values.begun)
    await asyncio.sleep(1)
    assert values.pool.computed == [HARD] and values.pool.killed == 0
    values.pool.may_end.set()
    await asyncio.gather(*asked)
    assert values.pool.computed == [HARD]


async def test_the_place_of_a_dead_replica_holds_nobody_up(values: Values) -> None:
    """Another replica takes the request over that the dead one computed, and those behind it have their turn."""
    replicas = await values.join(2, claim_idle_ms=300, lease_ttl_ms=1000)
    asked = [values.put(replica) for replica in replicas]

    async def one_waits() -> bool:
        return await values.in_lane() == (1, 1) and await values.begun()

    await eventually(one_waits)
    (worker,) = [n for n, replica in enumerate(replicas) if replica.statistics()["class_in_progress"]]
    await values.members.kill(worker)
    values.pool.may_end.set()
    assert await asked[1 - worker] == DONE
    asked[worker].cancel()


async def test_who_gives_up_gives_the_lane_up(values: Values) -> None:
    """When the client hangs up, its computation ends, and the next one computes."""
    replicas = await values.join(2)
    first = values.put(replicas[0])
    await eventually(values.begun)
    first.cancel()

    async def free() -> bool:
        return await values.in_lane() == (0, 0) and values.pool.killed == 1

    await eventually(free, 2)
    values.pool.may_end.set()
    assert await values.put(replicas[1]) == DONE


async def test_one_that_waits_may_give_up_or_be_late(values: Values) -> None:
    """Those behind it in the lane have their turn all the same."""
    (replica,) = await values.join(1)
    asked = [values.put(replica), values.put(replica, ms=700), values.put(replica), values.put(replica)]

    async def others_wait() -> bool:
        return await values.in_lane() == (1, 3)

    await eventually(others_wait)
    asked[2].cancel()
    with pytest.raises(DeadlineExceeded):
        await asked[1]
    values.pool.may_end.set()
    assert [await asked[n] for n in (0, 3)] == [DONE] * 2
    assert await values.in_lane() == (0, 0)


async def test_a_holder_whose_record_has_ended_leaves_a_hard_number_to_the_class(values: Values) -> None:
    """A computation on the database's own stream, which is worked in order, would hold up every GET."""
    (replica,) = await values.join(1)
    asked = values.put(replica, to=Database(replica.database))
    await eventually(values.begun)
    body = {"prime": "2", "limit": 10, "after": ""}
    assert await replica.call(Database(replica.database), "values.find", body, deadline_ms=2000) == {
        "until": "",
        "found": [],
    }
    values.pool.may_end.set()
    assert await asked == DONE


async def test_a_caller_that_knows_no_lanes_gets_all_its_values(values: Values) -> None:
    """Callers of earlier releases expect factors for every value, also for hard ones beside others."""
    (replica,) = await values.join(1, concurrency=3)
    values.pool.may_end.set()
    for given in ([HARD], [6, 2 * HARD, 3 * HARD]):
        body = {"items": [{"value": str(value), "ttl": 60} for value in given]}
        answer = await replica.call(Class("A"), PUT, body, deadline_ms=5000)
        assert sorted(map(int, answer)) == given and None not in answer.values()
    again = {"items": [{"value": str(5 * HARD), "ttl": 60}]}
    assert None not in (await replica.call(Database(replica.database), PUT, again, deadline_ms=5000)).values()
    assert values.pool.computed == [HARD, 2 * HARD, 3 * HARD, 5 * HARD]
