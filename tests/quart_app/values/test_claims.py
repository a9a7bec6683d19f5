"""Done once in a class: claims, waiting for another's record, and what a database's stream does not compute."""

from __future__ import annotations

import asyncio

import pytest

from mesh import Class, Database, DeadlineExceeded
from mesh.raw import Body, Replica
from quart_app.values import claims as module
from quart_app.values.claims import claim_key
from quart_app.values.jobs import PUT
from tests.support.backend import Backend
from tests.support.values import HARD, P, Q, Values
from tests.support.waiting import eventually


@pytest.fixture
async def values(mesh_of: Backend) -> Values:
    return Values(mesh_of)


def found(answer: Body) -> dict[str, str]:
    return dict(answer)


#: The answer for the hard value.
DONE = {str(HARD): f"{P} {Q}"}


async def in_progress(replicas: list[Replica]) -> float:
    return sum(replica.statistics()["class_in_progress"] for replica in replicas)


async def test_the_others_wait_for_the_record_and_apply_their_own_ttl(values: Values) -> None:
    """Three ask at three replicas: one computation, three answers, one record with the last one's time."""
    replicas = await values.join(3)
    asked = [values.put(replica, ttl=100 * (i + 1)) for i, replica in enumerate(replicas)]

    async def all_taken() -> bool:
        return await in_progress(replicas) == 3 and bool(values.pool.computed)

    await eventually(all_taken)
    values.pool.may_end.set()
    answers = await asyncio.gather(*asked)
    assert [found(answer) for answer in answers] == [DONE] * 3
    assert values.pool.computed == [HARD]
    assert await values.claimed() is None
    records = await asyncio.gather(*(replica.store().hget("values:records", HARD) for replica in replicas))
    assert sum(record is not None for record in records) == 1


async def test_a_claim_is_kept_alive(values: Values, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as the computation runs, no other replica begins it."""
    monkeypatch.setattr(module, "CLAIM_MS", 300)
    replicas = await values.join(2)
    asked = [values.put(replica) for replica in replicas]

    async def both_taken() -> bool:
        return await in_progress(replicas) == 2 and bool(values.pool.computed)

    await eventually(both_taken)
    owner = await values.claimed()
    assert owner is not None
    for _ in range(10):
        await asyncio.sleep(0.1)
        assert await values.claimed() == owner
    assert values.pool.computed == [HARD]
    values.pool.may_end.set()
    await asyncio.gather(*asked)


async def test_a_claim_without_an_owner_ends(values: Values, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a dead replica had claimed is computed by another, as soon as the claim is over."""
    (replica,) = await values.join(1)
    await replica.shared.set("shared:" + claim_key("A", str(HARD)), "replica-dead 1-0", px=700)
    values.pool.may_end.set()
    asked = values.put(replica)
    await asyncio.sleep(0.3)
    assert values.pool.computed == []
    assert found(await asked) == DONE


async def test_who_gives_up_gives_the_claim_up(values: Values) -> None:
    """When the client hangs up, its claim ends at once, and the next one computes."""
    replicas = await values.join(2)
    first = values.put(replicas[0])
    await eventually(values.claimed)
    first.cancel()

    async def free() -> bool:
        return await values.claimed() is None

    await eventually(free, 2)
    assert values.pool.killed == 1
    values.pool.may_end.set()
    assert found(await values.put(replicas[1])) == DONE


async def test_a_hard_value_holds_up_no_other_of_its_chunk(values: Values) -> None:
    """The worker gives the hard value back to the class, alone, and answers for the others at once."""
    (replica,) = await values.join(1, concurrency=2)
    quick = str(2**70)
    values.pool.quick[2**70] = "2^70"
    body = {"items": [{"value": value, "ttl": 60} for value in (str(HARD), quick, "6")]}
    asked = asyncio.create_task(replica.call(Class("A"), PUT, body, deadline_ms=20_000))
    await eventually(values.claimed)

    async def stored() -> bool:
        return await replica.store().hget("values:records", quick) is not None

    await eventually(stored, 2)
    assert values.pool.computed == [HARD] and not asked.done()
    values.pool.may_end.set()
    assert found(await asked) == {"6": "2 3", quick: "2^70", **DONE}


async def test_a_late_one_says_what_is_known(values: Values) -> None:
    """The computation ends before the deadline, so that the error with its facts still reaches the client."""
    (replica,) = await values.join(1)
    with pytest.raises(DeadlineExceeded) as raised:
        await values.put(replica, ms=1000)
    assert raised.value.facts["unfactored"] == [HARD]
    assert raised.value.facts["value"] == HARD


async def test_a_repeat_computes_nothing(values: Values) -> None:
    """A repeated value is not computed while its record lives, on whatever replica."""
    replicas = await values.join(2)
    values.pool.may_end.set()
    for _ in range(2):
        for replica in replicas:
            assert found(await values.put(replica)) == DONE
    assert values.pool.computed == [HARD]


async def test_a_holder_whose_record_has_ended_gives_a_hard_number_back_to_the_class(values: Values) -> None:
    """A computation on the database's own stream, which is worked in order, would hold up every GET."""
    (replica,) = await values.join(1)
    asked = values.put(replica, to=Database(replica.database))
    await eventually(values.claimed)
    body = {"prime": "2", "limit": 10, "after": ""}
    assert await replica.call(Database(replica.database), "values.find", body, deadline_ms=2000) == {
        "until": "",
        "found": [],
    }
    values.pool.may_end.set()
    assert found(await asked) == DONE


async def test_a_conflict_after_a_computation_does_not_repeat_it(
    values: Values, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another class has written its record meanwhile: the commit is tried again, the sieve is not."""
    (replica,) = await values.join(1)
    asked = values.put(replica)
    await eventually(values.claimed)
    # What the handler has read of the value is no longer so.
    await replica.shared.set(f"shared:values:where:{HARD}", "15 B 1-0", px=60_000)
    values.pool.may_end.set()
    assert found(await asked) == DONE
    assert values.pool.computed == [HARD]
    assert replica.statistics()["class_conflicts"] >= 1
