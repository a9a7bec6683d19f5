"""The rules of /values, worker side, over both backends; factorisation is counted, not done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from mesh import Class, Database, GivenUp, Replies, keys
from mesh.raw import Ask, Replica, Request
from mesh.requests import protocol
from quart_app.values import store as records
from quart_app.values.handlers import DROP, FIND, PUT, TEXT, values_worker
from quart_app.values.pace import Pace
from quart_app.values.store import Part, Place, read_part
from tests.support.backend import Backend
from tests.support.waiting import eventually


class NoErrands:
    """No put belongs to a job."""

    async def of(self, request: Request) -> None:
        return None


class Valued:
    """A mesh with the operations of /values, and a list of the numbers that were factorised."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.factorised: list[int] = []
        errands: Any = NoErrands()
        self.worker = values_worker(self, errands, Pace(), lambda _: None)

    async def factorise_small(self, values: Sequence[str]) -> list[str]:
        return [await self.factorise_large(value) for value in values]

    async def factorise_quickly(self, value: str) -> str | None:
        return await self.factorise_large(value)

    def is_hard(self, value: str) -> bool:
        return False

    async def factorise_large(self, value: str, request: Request | None = None) -> str:
        number = int(value)
        self.factorised.append(number)
        await asyncio.sleep(0)
        return (
            f"2^{number.bit_length() - 1}" if number & (number - 1) == 0 and number > 1 else value if number > 1 else ""
        )

    async def join(self, cls: str) -> Replica:
        return await self._backend.join(self.worker, class_=cls)

    async def put(self, replica: Replica, cls: str, *values: int, ttl: int = 60) -> list[int]:
        """The values that the answer has. As in the route, the places of small ones are read with the submission."""
        body = {"items": [{"value": str(value), "ttl": ttl} for value in values]}
        read = [f"{records.WHERE}{value}" for value in values] if max(values) < 1 << 64 else ()
        (answer,) = await replica.ask([Ask(Class(cls), PUT, body, read=read)])
        assert answer.error is None
        return sorted(int(value) for part in answer.bodies for value in part)

    async def holders(self, replica: Replica, prime: int = 2) -> dict[int, list[int]]:
        """Values by database."""
        answers = await replica.gather(FIND, {"prime": str(prime), "limit": 100, "after": ""})
        return {n: [*map(int, answer["found"][::2])] for n, answer in answers.items() if answer["found"]}


@pytest.fixture
def valued(backend: Backend) -> Valued:
    return Valued(backend)


async def test_a_new_value_is_factorised_and_written_by_one_replica_of_its_class(valued: Valued) -> None:
    """The place that says where the record is, is written with it."""
    one, two = await valued.join("A"), await valued.join("B")
    assert await valued.put(one, "B", 8, 16) == [8, 16]
    assert valued.factorised == [8, 16]
    assert await valued.holders(one) == {two.database: [8, 16]}
    place = Place.parse(await one.store().shared.get("values:where:8") or "")
    assert (place.database, place.cls) == (two.database, "B")


async def test_the_same_class_again_refreshes_without_factorising(valued: Valued) -> None:
    """Whichever replica of the class gets it: who is not the holder forwards it there."""
    one, two = await valued.join("A"), await valued.join("A")
    await valued.put(one, "A", 8, ttl=60)
    (before,) = await valued.holders(one)
    holder = one if before == one.database else two
    for ttl in (100, 200, 300, 400, 500, 600):
        assert await valued.put(two, "A", 8, ttl=ttl) == [8]
    assert valued.factorised == [8]
    assert await valued.holders(one) == {before: [8]}
    (record,) = await records.read_records(holder.store(), ["8"])
    assert record is not None and abs(record.expiry_ms - (one.now_ms() + 600_000)) < 3000


async def test_another_class_is_a_full_overwrite(valued: Valued) -> None:
    """The new class factors the value, and the former holder drops it: at most one record is in the whole mesh."""
    one, two = await valued.join("A"), await valued.join("B")
    await valued.put(one, "A", 8, ttl=600)
    await valued.put(one, "B", 8, ttl=60)
    assert valued.factorised == [8, 8]
    assert await valued.holders(one) == {two.database: [8]}
    await valued.put(one, "A", 8)
    assert await valued.holders(one) == {one.database: [8]}


async def test_two_classes_at_once_leave_one_record(valued: Valued) -> None:
    """Every write expects the place it has read, so one of two racing writers is run again."""
    one, two = await valued.join("A"), await valued.join("B")
    for value in (2**n for n in range(1, 16)):
        await asyncio.gather(valued.put(one, "A", value), valued.put(two, "B", value))

    async def settled() -> bool:
        return (await one.books())["in_flight"] == 0

    await eventually(settled)
    held = await valued.holders(one)
    assert sorted(value for values in held.values() for value in values) == [2**n for n in range(1, 16)]


async def test_a_drop_leaves_what_was_written_again(valued: Valued) -> None:
    """A drop names the write that it means, so one that comes late does no harm."""
    one = await valued.join("A")
    await valued.put(one, "A", 8)
    (old,) = await records.read_records(one.store(), ["8"])
    assert old is not None
    await valued.put(one, "A", 8)
    await one.call(Database(one.database), DROP, {"value": "8", "id": old.request_id})
    await one.call(Database(one.database), DROP, {"value": "9", "id": "1-0"})
    assert await valued.holders(one) == {one.database: [8]}
    (new,) = await records.read_records(one.store(), ["8"])
    assert new is not None
    await one.call(Database(one.database), DROP, {"value": "8", "id": new.request_id})
    assert await valued.holders(one) == {}


async def test_a_record_whose_holder_is_gone_is_written_anew_and_dropped_when_it_returns(
    valued: Valued, backend: Backend
) -> None:
    """The drop waits in the stream of the database that nobody holds."""
    one = await valued.join("A")
    other = await valued.join("A")
    bus = backend.redis()
    # As left by a replica that was killed: its place, and the record in a database without a holder.
    await bus.set("shared:values:where:8", "9 A 1-0", px=60_000)
    for _ in range(4):
        assert await valued.put(one, "A", 8) == [8]
    (database,) = await valued.holders(one)
    assert database in (one.database, other.database)
    ((_, entry),) = await bus.xrange("mesh:requests:db9")
    assert (entry["op"], entry["body"], entry["deadline"]) == (DROP, '{"value":"8","id":"1-0"}', "0")
    await bus.aclose()


async def test_one_has_no_prime_factors_and_is_kept_all_the_same(valued: Valued) -> None:
    """The value 1 has a place and a time, and is in no index."""
    one = await valued.join("A")
    assert await valued.put(one, "A", 1) == [1]
    (record,) = await records.read_records(one.store(), ["1"])
    assert record is not None and record.factors == ""
    assert await valued.holders(one) == {}


async def test_a_put_that_comes_after_its_own_ttl_leaves_nothing(valued: Valued, backend: Backend) -> None:
    """The ttl counts from the time of the POST, on whatever replica and delivery."""
    one = await valued.join("A")
    client = backend.redis()
    id = await client.xadd("mesh:requests:A", {"op": PUT, "body": '{"items":[{"value":8,"ttl":1}]}'}, id="1000-0")

    async def done() -> bool:
        return await client.xlen("mesh:requests:A") == 0

    await eventually(done)
    assert id == "1000-0" and valued.factorised == [8]
    assert await valued.holders(one) == {}
    assert await client.exists("shared:values:where:8") == 0
    # A script has accepted what was written by hand only if the replica opened its streams after that.
    books = await one.books()
    await client.hincrby(keys.BOOKS, "accepted", sum(books.values()) - 2 * books["accepted"])
    await client.aclose()


async def trips(valued: Valued, replica: Replica, *values: int) -> int:
    """How many round trips of the link a put takes. Others may share it, so several are tried."""
    taken: list[float] = []
    for value in values:
        before = replica.statistics()["round_trips"]
        assert await valued.put(replica, "A", value) == [value]
        taken.append(replica.statistics()["round_trips"] - before)
    return int(min(taken))


async def test_a_put_takes_no_round_trip_that_it_does_not_need(valued: Valued) -> None:
    """A new value takes submission and commit. One that is here also takes a read of its record, not of its place."""
    one = await valued.join("A")
    values = [2**n for n in range(1, 20)]
    assert await trips(valued, one, *values) == 2
    assert await trips(valued, one, *values) == 3
    assert valued.factorised == values


@pytest.mark.parametrize("found", ["", "9 A 1-0", "no place"])
async def test_a_place_that_is_old_or_wrong_is_looked_up_again(valued: Valued, backend: Backend, found: str) -> None:
    """The commit expects the place that the entry names, and the request then runs again without it."""
    one = await valued.join("A")
    await valued.put(one, "A", 8, ttl=60)
    client = backend.redis()
    body = '{"items":[{"value":"8","ttl":600}]}'
    # No script has accepted what was written by hand.
    await client.hincrby(keys.BOOKS, "accepted", 1)
    await client.xadd("mesh:requests:A", {"op": PUT, "body": body, "read": "shared:values:where:8", "found": found})

    async def done() -> bool:
        return await client.xlen("mesh:requests:A") == 0

    await eventually(done)
    assert await valued.holders(one) == {one.database: [8]}
    (record,) = await records.read_records(one.store(), ["8"])
    assert record is not None and record.expiry_ms > one.now_ms() + 500_000
    await client.aclose()


async def ask_to_find(replica: Replica, prime: int, limit: Any = 5000, after: str = "") -> Replies[Part]:
    """Ask for values as a GET does."""
    body = {"prime": str(prime), "limit": limit, "after": after, "as": TEXT}
    found: Replies[Part] = await replica.gather(FIND, body, decode=read_part)
    return found


async def test_the_commit_finds_what_a_search_finds(valued: Valued) -> None:
    """Of each database: with exponents, in order, from and up to a value; nothing where there is nothing."""
    one, two = await valued.join("A"), await valued.join("B")
    await valued.put(one, "A", 2**100, 8, 16)
    await valued.put(one, "B", 32)
    assert await ask_to_find(one, 2) == {
        one.database: Part("", f"a8=2^3;b16=2^4;z0031{2**100}=2^100"),
        two.database: Part("", "b32=2^5"),
    }
    assert (await ask_to_find(two, 2, limit=1))[one.database] == Part("8", "a8=2^3")
    assert (await ask_to_find(two, 2, after="8"))[one.database] == Part("", f"b16=2^4;z0031{2**100}=2^100")
    for replica in (one, two):
        conditions = records.Conditions("2", one.now_ms(), 5000, "")
        part = (await ask_to_find(one, 2))[replica.database]
        assert (part.until, part.found) == await records.find(replica.store(), conditions)
    assert await ask_to_find(one, 3) == {one.database: Part("", ""), two.database: Part("", "")}


async def test_a_search_takes_no_round_trip_that_it_does_not_need(valued: Valued) -> None:
    """Submission and commit, which reads. Others may share a trip, so several are tried."""
    one = await valued.join("A")
    await valued.put(one, "A", 8)
    taken: list[float] = []
    for _ in range(20):
        before = one.statistics()["round_trips"]
        assert (await ask_to_find(one, 2))[one.database] == Part("", "a8=2^3")
        taken.append(one.statistics()["round_trips"] - before)
    assert min(taken) == 2


async def test_what_the_commit_finds_has_not_expired(valued: Valued) -> None:
    """As of the moment of the request, although the sweep has not been there."""
    one = await valued.join("A")
    await write(one, {"8": one.now_ms() - 1, "16": one.now_ms() + 60_000})
    assert await ask_to_find(one, 2) == {one.database: Part("", "b16=2 2")}


async def write(replica: Replica, expiries: dict[str, int]) -> None:
    """Write the records of some values."""
    transaction = replica.transaction()
    place = Place(replica.database, replica.cls, "1-0")
    records.put(transaction, place, expiries, dict.fromkeys(expiries, "2 2"))
    assert await replica.commit(transaction)


async def test_records_are_taken_apart_by_no_process_that_they_pass(
    valued: Valued, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go from the database into the reply, and from the reply into the answer: as text, and past the holder."""
    asker, holder = await valued.join("A"), await valued.join("B")
    values = [str(10**9 + n) for n in range(1000)]
    await write(holder, dict.fromkeys(values, holder.now_ms() + 60_000))
    carried, send = 0, holder._link._connection.send

    async def count(commands: Sequence[Any]) -> list[Any]:
        nonlocal carried
        answers = await send(commands)
        carried += len(repr(commands)) + len(repr(answers))
        return answers

    def short(text: Any) -> None:
        assert len(text) < 1000, "a text with many records is read or written as JSON"

    monkeypatch.setattr(holder._link._connection, "send", count)
    for name in ("encode", "decode"):
        monkeypatch.setattr(protocol, name, watched(getattr(protocol, name), short))
    part = (await ask_to_find(asker, 2))[holder.database]
    assert part.found == ";".join(f"j{value}=2 2" for value in values)
    assert 0 < carried < len(part.found) / 2


def watched(function: Callable[[Any], Any], look: Callable[[Any], None]) -> Callable[[Any], Any]:
    """Return the function, which lets `look` see what it takes and returns, if that is text."""

    def seen(given: Any) -> Any:
        returned = function(given)
        for each in (given, returned):
            if isinstance(each, str):
                look(each)
        return returned

    return seen


@pytest.mark.parametrize("limit", ["many", None, {}])
async def test_a_limit_that_is_none_fails_its_own_request(valued: Valued, limit: Any) -> None:
    """Before the commit, in which other requests may be."""
    one = await valued.join("A")
    with pytest.raises(GivenUp):
        await ask_to_find(one, 2, limit=limit)
    await valued.put(one, "A", 8)
    for limit in (-1, 0, 1.5):
        assert (await ask_to_find(one, 2, limit=limit))[one.database] == Part("8", "a8=2^3")


async def test_a_key_of_another_type_fails_the_search_alone(valued: Valued, backend: Backend) -> None:
    """With a reason that names the key, and without harm to the other requests of the same commit."""
    one = await valued.join("A")
    client = backend.redis(one.database)
    await client.rpush(f"db{one.database}:{records.INDEX}", "a")
    found, forwarded = await asyncio.gather(
        ask_to_find(one, 2), one.call(Database(one.database), DROP, {"value": "9", "id": "1-0"}), return_exceptions=True
    )
    assert isinstance(found, GivenUp) and f"find-values db{one.database}:{records.INDEX}" in str(found)
    assert forwarded == {}
    await client.aclose()
