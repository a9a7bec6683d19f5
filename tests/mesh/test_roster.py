"""Databases that hold data and have no holder: which there are, and what becomes of requests that need them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from mesh import Class, Database, Incomplete, Missing, NoReplica, Unavailable, keys
from mesh.raw import Body, Effects, Replica, Request, Store, Worker, join
from mesh.roster import Member
from tests.support.backend import Backend
from tests.support.waiting import eventually

LEASE_MS = 600
#: How long a roster row outlives its last renewal, with some time for the server to notice.
ROW_S = LEASE_MS * 4 / 3000 + 0.1

worker = Worker()


@worker.handles("put")
async def put(request: Request, store: Store, effects: Effects) -> Body:
    """Write, or remove, one key until some time from now."""
    key, ms = request.body["key"], request.body.get("ms", 0)
    if ms < 0:
        effects.delete(key)
    elif ms:
        effects.set(key, "x", "PXAT", request.at_ms + ms)
    else:
        effects.set(key, "x")
    return {}


@worker.handles("many")
async def many(request: Request, store: Store, effects: Effects) -> Body:
    """Write many keys until some time from now."""
    effects.set_until([f"k{n}" for n in range(request.body["keys"])], "x", request.at_ms + request.body["ms"])
    return {}


@worker.handles("read", effect=False)
async def read(request: Request, store: Store, effects: Effects) -> Body:
    return {"a": await store.get("a")}


@contextlib.asynccontextmanager
async def killed(backend: Backend, **settings: object) -> AsyncIterator[Replica]:
    """Yield a member that ends without releasing its lease."""
    chosen = backend.settings.model_copy(update={"lease_ttl_ms": LEASE_MS, **settings})
    with contextlib.suppress(ZeroDivisionError):
        async with join(worker, chosen, connections=backend.connections) as replica:
            yield replica
            raise ZeroDivisionError


async def member(backend: Backend, **settings: object) -> Replica:
    return await backend.join(worker, **{"lease_ttl_ms": LEASE_MS, **settings})


async def test_a_gather_is_refused_while_a_holder_of_data_is_expected_back(backend: Backend) -> None:
    """A dead replica's data are never left out silently: first an error names the database, then the answer."""
    one = await member(backend, missing_ms=2000)
    async with killed(backend, missing_ms=2000) as two:
        await one.call(Database(two.database), "put", {"key": "a"})
        replies = await one.gather("read", {})
        assert (replies, replies.left_out) == ({1: {"a": None}, 2: {"a": "x"}}, [])
    ended = backend.now
    # While the row is there, a gather waits for a successor; it ends with the row.
    with pytest.raises(Incomplete) as caught:
        await one.gather("read", {})
    assert caught.value.missing == [two.database]
    assert caught.value.retry_after == 1
    # Now it is refused at once.
    with pytest.raises(Incomplete) as caught:
        await one.gather("read", {}, deadline_ms=100)
    assert caught.value.missing == [two.database]
    assert await one.missing() == [Missing(two.database, two.cls, True)]

    async def is_left_out() -> bool:
        return await one.missing() == [Missing(two.database, "", True)]

    await eventually(is_left_out, 5)
    assert 1.8 < (backend.now - ended).total_seconds() < 2 + 2 * LEASE_MS / 1000
    replies = await one.gather("read", {})
    assert (replies, replies.left_out) == ({1: {"a": None}}, [2])


async def test_a_successor_ends_it(backend: Backend) -> None:
    """With a successor the gather has all data again."""
    one = await member(backend)
    async with killed(backend) as two:
        await one.call(Database(two.database), "put", {"key": "a"})
    await asyncio.sleep(ROW_S)
    three = await member(backend)
    assert three.database == two.database
    replies = await one.gather("read", {})
    assert (replies, replies.left_out) == ({1: {"a": None}, 2: {"a": "x"}}, [])
    assert await one.missing() == []


async def test_a_class_whose_holder_is_expected_back_is_not_unknown(backend: Backend) -> None:
    """Requests to the class or the database of a dead replica are refused for now, and later as unknown."""
    one = await member(backend, missing_ms=1500)
    async with killed(backend, missing_ms=1500) as two:
        assert two.cls == "B"
    await asyncio.sleep(ROW_S)
    for address in (Class("B"), Database(two.database)):
        with pytest.raises(Unavailable) as caught:
            await one.call(address, "read", {})
        assert caught.value.retry_after == 1
    classes = await one.classes()
    assert (classes.live, classes.expected) == ({"A"}, {"B"})
    assert (await one.gather("read", {})).left_out == [], "it holds no data"
    await asyncio.sleep(1.5)
    for address in (Class("B"), Database(two.database)):
        with pytest.raises(NoReplica):
            await one.call(address, "read", {})
    assert (await one.classes()).expected == set()


async def test_a_call_that_waits_for_a_dead_replica_ends_with_the_row(backend: Backend) -> None:
    """It was submitted while the class seemed to be live; the error says that the replica is expected back."""
    one = await member(backend)
    async with killed(backend) as two:
        pass
    with pytest.raises(Unavailable):
        await one.call(Class(two.cls), "read", {})


async def test_a_database_that_was_left_in_order_is_left_out_and_never_an_error(backend: Backend) -> None:
    """Scaling down loses no request: gathers wait for a successor while the row is there, then name what they lack."""
    one = await member(backend)
    chosen = backend.settings.model_copy(update={"lease_ttl_ms": LEASE_MS})
    async with join(worker, chosen, connections=backend.connections) as two:
        await one.call(Database(two.database), "put", {"key": "a"})
    replies = await one.gather("read", {})
    assert (replies, replies.left_out) == ({1: {"a": None}}, [two.database])
    with pytest.raises(NoReplica):
        await one.call(Class(two.cls), "read", {})


@pytest.mark.parametrize("in_order", [True, False])
async def test_a_mesh_that_comes_back_expects_all_that_did_not_leave_it_before(
    backend: Backend, in_order: bool
) -> None:
    """After all leases have ended, the time for a holder to come back begins with the first grant."""
    client = backend.redis()
    chosen = backend.settings.model_copy(update={"lease_ttl_ms": LEASE_MS})
    async with killed(backend) as one, killed(backend) as two:
        async with join(worker, chosen, connections=backend.connections) as three:
            for each in (two, three):
                await one.call(Database(each.database), "put", {"key": "a"})
        if in_order:
            one.drain()
            two.drain()
            await asyncio.sleep(0.1)
            await two._leave()
    await asyncio.sleep(ROW_S)
    # As if they had been away for longer than they are expected back.
    await client.delete(*[keys.expected(n) for n in range(16)])
    back = await member(backend)
    assert back.database == one.database
    found = {each.database: each for each in await back.missing()}
    assert found == {
        two.database: Missing(two.database, two.cls, True),
        three.database: Missing(three.database, "", True),
    }
    await client.aclose()


async def test_a_replica_with_fewer_databases_reaches_and_names_those_of_others(backend: Backend) -> None:
    """MESH_DATABASES limits what a replica may lease, not whom its gathers ask."""
    one = await member(backend, databases=3)
    await member(backend)
    async with killed(backend) as three:
        assert three.database >= one.settings.databases
        await one.call(Database(three.database), "put", {"key": "a"})
        assert (await one.gather("read", {}))[three.database] == {"a": "x"}
    await asyncio.sleep(ROW_S)
    with pytest.raises(Incomplete) as caught:
        await one.gather("read", {})
    assert caught.value.missing == [three.database]


async def written(backend: Backend) -> dict[str, float]:
    client = backend.redis()
    try:
        return dict(await client.zrange(keys.WRITTEN, 0, -1, withscores=True))
    finally:
        await client.aclose()


async def test_the_bus_knows_until_when_a_database_holds_data(backend: Backend) -> None:
    """The commit that writes or removes says so, and nothing is left behind after the last expiry."""
    one = await member(backend)
    client = backend.redis()
    number, to = str(one.database), Database(one.database)
    await one.call(to, "put", {"key": "a", "ms": 60_000})
    assert abs((await written(backend))[number] - one.now_ms() - 60_000) < 1000
    assert 58_000 < await client.pttl(keys.WRITTEN) <= 60_000
    await one.call(to, "put", {"key": "b", "ms": 2000})
    assert (await written(backend))[number] > one.now_ms() + 50_000, "the last key counts"
    await one.call(to, "put", {"key": "a", "ms": -1})
    assert (await written(backend))[number] <= one.now_ms() + 2000
    await one.call(to, "put", {"key": "c"})
    assert (await written(backend))[number] == float("inf")
    assert await client.pttl(keys.WRITTEN) == -1
    await one.call(to, "put", {"key": "c", "ms": -1})
    await one.call(to, "put", {"key": "b", "ms": -1})
    assert await written(backend) == {}
    await one.call(to, "put", {"key": "a", "ms": 300})
    await one.call(to, "many", {"keys": 400, "ms": 500})
    await asyncio.sleep(0.7)
    assert await client.exists(keys.WRITTEN) == 0
    own = backend.redis(db=one.database)
    assert sorted(await own.keys()) == [f"db{number}:class", f"db{number}:format"]
    await own.aclose()
    await client.aclose()


async def test_more_keys_than_are_named_count_together(backend: Backend) -> None:
    """The count of keys is bounded; the moment of the last one stays right."""
    one = await member(backend)
    own = backend.redis(db=one.database)
    for n in range(270):
        await one.call(Database(one.database), "put", {"key": f"k{n}", "ms": 60_000 + n})
    last = (await written(backend))[str(one.database)]
    assert abs(last - one.now_ms() - 60_270) < 3000
    assert await own.zcard(f"db{one.database}:written") == 257
    await own.aclose()


async def test_many_keys_without_an_end_are_counted_once(backend: Backend) -> None:
    """From then on a commit changes nothing that is known, and only looks that up."""
    one = await member(backend)
    for n in range(258):
        await one.call(Database(one.database), "put", {"key": f"k{n}"})
    own = backend.redis(db=one.database)
    before = await own.zrange(f"db{one.database}:written", 0, -1, withscores=True)
    assert ("*", float("inf")) in before
    await one.call(Database(one.database), "put", {"key": "k0", "ms": -1})
    assert await own.zrange(f"db{one.database}:written", 0, -1, withscores=True) == before
    await own.aclose()


async def test_a_grant_counts_what_an_older_release_has_written(backend: Backend) -> None:
    """Data that nobody counted are known from the next grant on."""
    async with killed(backend) as one:
        own = backend.redis(db=one.database)
        await own.set(f"db{one.database}:old", "x", px=60_000)
    await asyncio.sleep(ROW_S)
    assert await written(backend) == {}
    two = await member(backend)
    assert two.database == one.database
    assert abs((await written(backend))[str(one.database)] - two.now_ms() - 60_000) < 3000
    await own.aclose()


async def test_whoever_leaves_in_order_leaves_a_mark_in_its_database(backend: Backend) -> None:
    """Where others go on, its data are not missing; where the last one leaves, they are expected back."""
    one, two = await member(backend), await member(backend)
    for number, (leaving, mark) in enumerate(((one, "1"), (two, None))):
        own = backend.redis(db=leaving.database)
        await backend.stop(number)
        assert await own.get(f"db{leaving.database}:left") == mark
        await own.aclose()


@pytest.mark.parametrize("last", [60_000, None])
async def test_a_database_holds_data_until_the_last_of_very_many_keys_ends(backend: Backend, last: int | None) -> None:
    """Only so many keys are noted by name; the others count, too, each with its end."""
    one = await member(backend)
    now, transaction = one.now_ms(), one.transaction()
    for number in range(300):
        transaction.set(f"k{number}", "x", "PXAT", now + 30_000 + 100 * number)
    if last is None:
        transaction.set("k7", "x")
    assert await one.commit(transaction)
    ends = await backend.redis().zscore(keys.WRITTEN, one.database)
    assert ends == (float("inf") if last is None else now + 30_000 + 100 * 299)


def test_a_row_without_fields_is_read_all_the_same() -> None:
    """A field that an older release does not write, or that somebody has deleted, is empty or 0."""
    nothing = {"replica": "", "public": "", "private": "", "state": "", "version": ""}
    assert Member.from_row([3, 1]) == Member(database=3, cls="", epoch=0, pid=0, since=0, leased=True, **nothing)
