"""Done once in a class: claims, waiting for another's record, and what a database's stream does not compute."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import gmpy2
import pytest

from mesh import Body, Class, Database, DeadlineExceeded, Replica, Worker
from quart_app.values import claims as module
from quart_app.values.claims import Computing, claim_key
from quart_app.values.factorise import factors
from quart_app.values.handlers import handlers
from quart_app.values.jobs import PUT, Errands
from quart_app.values.pace import Pace
from tests.support.members import Members
from tests.support.waiting import eventually

P, Q = (int(gmpy2.next_prime(10**n)) for n in (12, 14))
HARD = P * Q


class Pool:
    """A pool whose numbers are done when the test says so; it counts what it computes."""

    def __init__(self) -> None:
        self.computed: list[int] = []
        self.patient: list[bool] = []
        self.quick: dict[int, str] = {}
        self.may_end = asyncio.Event()
        self.killed = 0

    async def at_once(self, number: int) -> str | None:
        return self.quick.get(number)

    def expected_s(self, number: int) -> float:
        return 60.0

    def progress(self, number: int) -> None:
        return None

    async def factorise_words(self, numbers: Sequence[int]) -> list[str]:
        return [factors(number) for number in numbers]

    async def factorise(self, number: int, timeout_s: float, *, patient: bool = False) -> str:
        self.computed.append(number)
        self.patient.append(patient)
        try:
            async with asyncio.timeout(timeout_s):
                await self.may_end.wait()
        except TimeoutError:
            raise DeadlineExceeded("late", factors=[], unfactored=[number]) from None
        except asyncio.CancelledError:
            self.killed += 1
            raise
        return factors(number)


class Values:
    """Members of one class that factorise with a pool in common."""

    def __init__(self, members: Members) -> None:
        self.members = members
        self.pool = Pool()
        self.replicas: list[Replica] = []

    async def join(self, count: int, concurrency: int = 1) -> list[Replica]:
        for _ in range(count):
            place = len(self.replicas)

            def here(place: int = place) -> Replica:
                return self.replicas[place]

            computing = Computing(here, self.pool, Pace())  # type: ignore[arg-type]
            worker: Worker = handlers(computing, Errands(here, 50, computing.progress), Pace(), lambda _: None)
            self.replicas.append(await self.members.join(worker, class_="A", concurrency=concurrency))
        return self.replicas

    def put(self, asker: Replica, value: int = HARD, ttl: int = 60, to: Any = None, ms: int = 20_000) -> Any:
        body = {"items": [{"value": str(value), "ttl": ttl}]}
        return asyncio.create_task(asker.call(to or Class("A"), PUT, body, deadline_ms=ms))

    async def claimed(self, value: int = HARD) -> str | None:
        found: str | None = await self.replicas[0].shared.get("shared:" + claim_key("A", str(value)))
        return found


@pytest.fixture
async def values(mesh_of: Members) -> Values:
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
    """However long the computation: nobody else begins it."""
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
    """Its client hangs up: the claim ends at once, and the next one computes."""
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
    """Its worker gives it back to the class, alone, and answers for the others at once."""
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
    """The answer with the facts comes before the deadline takes it."""
    (replica,) = await values.join(1)
    with pytest.raises(DeadlineExceeded) as raised:
        await values.put(replica, ms=1000)
    assert raised.value.facts["unfactored"] == [HARD]
    assert raised.value.facts["value"] == HARD


async def test_a_repeat_computes_nothing(values: Values) -> None:
    """While the record lives, on whatever replica."""
    replicas = await values.join(2)
    values.pool.may_end.set()
    for _ in range(2):
        for replica in replicas:
            assert found(await values.put(replica)) == DONE
    assert values.pool.computed == [HARD]


async def test_a_holder_whose_record_has_ended_gives_a_hard_number_back_to_the_class(values: Values) -> None:
    """Its database's stream is worked in order: a computation there would hold up every GET."""
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
