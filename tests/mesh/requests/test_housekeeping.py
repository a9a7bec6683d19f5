"""Error paths and housekeeping of requests: one test for each rule and each line that a mutation could drop."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from redis import exceptions as redis_errors
from redis.asyncio import Redis

from mesh import Busy, Class, GivenUp, LeaseLost, keys
from mesh.groups.reader import FORGET
from mesh.raw import Body, Effects, Replica, Request, Store, Worker, join
from mesh.requests import scripts, streams
from mesh.wire.script import Script
from tests.support.backend import Backend
from tests.support.waiting import eventually

STREAM = "mesh:requests:A"


@pytest.fixture
def gate() -> asyncio.Event:
    return asyncio.Event()


@pytest.fixture
def worker(gate: asyncio.Event) -> Worker:
    """Two operations: one that waits for the gate, and one that answers at once."""
    table = Worker()

    @table.handles("wait")
    async def wait(request: Request, store: Store, effects: Effects) -> Body:
        await gate.wait()
        return {}

    @table.handles("quick")
    async def quick(request: Request, store: Store, effects: Effects) -> Body:
        return {"answered": True}

    return table


async def test_a_replica_bounds_the_calls_that_wait_for_replies(
    backend: Backend, worker: Worker, gate: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more is refused with a time to wait, and nothing of it is sent; after a reply there is room again."""
    monkeypatch.setattr("mesh.requests.calls.MOST_AWAITED", 2)
    one = await backend.join(worker)
    work = [asyncio.create_task(one.call(Class("A"), "wait", {})) for _ in range(2)]
    async with backend.connections.client("test") as client:

        async def both_wait() -> bool:
            return bool(await client.xlen(STREAM) == 2)

        await eventually(both_wait, 5)
        with pytest.raises(Busy, match="2 requests of this replica already wait for replies") as caught:
            await one.call(Class("A"), "quick", {})
        assert caught.value.retry_after == 1
        assert await client.xlen(STREAM) == 2
    gate.set()
    await asyncio.gather(*work)
    assert await one.call(Class("A"), "quick", {}) == {"answered": True}


async def test_a_queue_is_no_older_than_a_tenth_of_the_deadline(
    backend: Backend, worker: Worker, gate: asyncio.Event
) -> None:
    """A request is refused that would be finished too late; one with more time is taken."""
    one = await backend.join(worker, concurrency=1)
    work = [asyncio.create_task(one.call(Class("A"), "wait", {}, deadline_ms=20_000)) for _ in range(6)]
    async with backend.connections.client("test") as client:

        async def all_wait() -> bool:
            return bool(await client.xlen(STREAM) == 6)

        await eventually(all_wait, 5)
        await asyncio.sleep(0.4)
        with pytest.raises(Busy, match="the queue of class A is full"):
            await one.call(Class("A"), "quick", {}, deadline_ms=2000)
        more = asyncio.create_task(one.call(Class("A"), "quick", {}, deadline_ms=20_000))
        await asyncio.sleep(0.1)
        gate.set()
        assert await more == {"answered": True}
        await asyncio.gather(*work)


async def test_a_queue_is_not_too_old_while_most_of_its_class_is_idle(
    backend: Backend, worker: Worker, gate: asyncio.Event
) -> None:
    """Replicas with room that do not take requests may not run, and no later request would help them.

    Every database counts, from the first number to the last.
    """
    one = await backend.join(worker, concurrency=1)
    work = [asyncio.create_task(one.call(Class("A"), "wait", {}, deadline_ms=20_000)) for _ in range(3)]
    async with backend.connections.client("test") as client:

        async def all_wait() -> bool:
            return bool(await client.xlen(STREAM) == 3)

        await eventually(all_wait, 5)
        await asyncio.sleep(0.4)
        with pytest.raises(Busy, match="the queue of class A is full"):
            await one.call(Class("A"), "quick", {}, deadline_ms=2000)
        for database in (0, keys.MOST_DATABASES - 1):
            await client.hset(keys.row(database), "class", "A")
        more = asyncio.create_task(one.call(Class("A"), "quick", {}, deadline_ms=2000))
        await asyncio.sleep(0.1)
        gate.set()
        assert await more == {"answered": True}
        await asyncio.gather(*work)
        await client.delete(keys.row(0), keys.row(keys.MOST_DATABASES - 1))


async def test_a_read_of_replies_that_fails_is_repeated(
    backend: Backend, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replies are still on their stream; the calls that wait for them go on."""
    one = await backend.join(worker)
    reader, failures = one._calls._reader, [redis_errors.ConnectionError("gone"), redis_errors.ResponseError("no")]
    read = reader.read

    async def failing(*words: Any) -> Any:
        if failures:
            raise failures.pop()
        return await read(*words)

    monkeypatch.setattr(reader, "read", failing)
    for _ in range(3):
        assert await one.call(Class("A"), "quick", {}) == {"answered": True}
    assert failures == []


async def test_a_read_of_replies_that_goes_on_failing_is_repeated_at_a_pace(
    backend: Backend, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is away for long must not cost the replica its event loop."""
    one = await backend.join(worker)
    reads = 0

    async def failing(*words: Any) -> Any:
        nonlocal reads
        reads += 1
        raise redis_errors.ConnectionError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(one._calls._reader, "read", failing)
        call = asyncio.create_task(one.call(Class("A"), "quick", {}, deadline_ms=20_000))
        await asyncio.sleep(1)
    assert 3 <= reads <= 12
    assert await call == {"answered": True}


async def test_work_goes_on_although_it_cannot_be_kept_alive(
    backend: Backend, worker: Worker, gate: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At worst another replica takes the request over, and the commit refuses one of the two effects."""
    one = await backend.join(worker, claim_idle_ms=200)
    tries: list[object] = []

    async def failing(ids: object) -> list[str]:
        tries.append(ids)
        raise redis_errors.ConnectionError("gone")

    monkeypatch.setattr(one._class_consumer._reader, "keep_alive", failing)
    call = asyncio.create_task(one.call(Class("A"), "wait", {}, deadline_ms=20_000))

    async def tried() -> bool:
        return len(tries) >= 2

    await eventually(tried, 5)
    gate.set()
    assert await call == {}


async def test_a_user_that_was_deleted_ends_the_membership(
    backend: Backend, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No reply can be read any more, so no call may wait for one."""
    with pytest.raises(LeaseLost):
        async with join(worker, backend.settings, connections=backend.connections) as one:

            async def fenced(*words: Any) -> Any:
                raise redis_errors.NoPermissionError("NOPERM this user has no permissions")

            monkeypatch.setattr(one._calls._reader, "read", fenced)
            with pytest.raises(LeaseLost):
                await one.call(Class("A"), "wait", {}, deadline_ms=20_000)
            await asyncio.sleep(10)


async def test_a_call_that_is_cancelled_before_its_submission_is_confirmed_is_removed(
    backend: Backend, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller gets its cancellation at once; the request is taken off its stream when Redis has it."""
    one, on_their_way = await backend.join(worker), []
    with monkeypatch.context() as patch:
        patch.setattr(type(one._link), "submit", lambda link, *words: on_their_way.append(words))
        call = asyncio.create_task(one.call(Class("A"), "wait", {}, deadline_ms=20_000))
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    ((group, waiter),) = on_their_way
    one._link.submit(group, waiter)

    async def is_removed() -> bool:
        books = await one.books()
        return books["accepted"] == books["cancelled"] == 1 and books["in_flight"] == 0

    await eventually(is_removed, 5)


@pytest.mark.parametrize("error", [redis_errors.ResponseError("ERR failed"), redis_errors.DataError("too large")])
async def test_a_commit_that_the_server_cannot_run_is_tried_in_another_delivery(
    backend: Backend, worker: Worker, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """An error of one batch ends neither the replica nor its requests."""
    one, failed = await backend.join(worker), list[object]()
    commit = one._link.commit

    def failing(words: Any, waiter: Any, **options: Any) -> None:
        if failed:
            commit(words, waiter, **options)
        else:
            failed.append(words)
            asyncio.get_running_loop().call_soon(waiter.set_exception, error)

    monkeypatch.setattr(one._link, "commit", failing)
    assert await one.call(Class("A"), "quick", {}) == {"answered": True}
    counted = one.statistics()
    assert (len(failed), counted["class_crashed"], counted["class_done"]) == (1, 1, 1)
    failed.clear()
    two = await backend.join(worker, class_="B", max_deliveries=1)
    monkeypatch.setattr(two._link, "commit", failing)
    with pytest.raises(GivenUp, match=str(error)):
        await one.call(Class("B"), "quick", {})

    async def over() -> bool:
        return two.statistics()["class_in_progress"] == 0

    await eventually(over, 2)


async def test_a_row_outlives_its_lease(backend: Backend, worker: Worker) -> None:
    """The row lives a third longer, so a gather waits for the successor instead of leaving the database out."""
    one = await backend.join(worker)
    ttl = one.settings.lease_ttl_ms
    await asyncio.sleep(2.5 * one.settings.renew_interval_ms / 1000)
    async with backend.connections.client("test") as client:
        row, lease = await client.pttl(keys.row(one.database)), await client.pttl(keys.lease(one.database))
    assert abs(row - lease - ttl / 3) < 50


async def run(redis: Redis, script: Script, names: list[str], *words: Any) -> Any:
    """Run a script on a real server or on fakeredis, which knows no flags."""
    source = script.source.split("\n", 1)[1] if script.source.startswith("#!") else script.source
    return await redis.eval(source, len(names), *names, *words)  # type: ignore[misc]


async def deliver(redis: Redis, consumer: str, **fields: Any) -> str:
    """Add an entry and deliver it to a consumer; return its id."""
    id = str(await redis.xadd(STREAM, fields or {"op": "x"}))
    await redis.xreadgroup(keys.GROUP, consumer, {STREAM: ">"}, count=1)
    return id


@pytest.fixture
async def stream(shared: Redis) -> Redis:
    """A server with an empty request stream and its group."""
    await shared.xgroup_create(STREAM, keys.GROUP, id="0", mkstream=True)
    return shared


async def test_a_silent_consumer_is_deleted_only_without_pending_entries(stream: Redis) -> None:
    """Its pending entries must be taken over first, because they would be deleted with it."""
    await deliver(stream, "died-at-work")
    for name in ("died-idle", "this"):
        await stream.xgroup_createconsumer(STREAM, keys.GROUP, name)
    assert await run(stream, FORGET, [STREAM], keys.GROUP, "this", 60_000) == 0, "not silent for long enough"
    assert await run(stream, FORGET, [STREAM], keys.GROUP, "this", 0) == 1
    left = {consumer["name"] for consumer in await stream.xinfo_consumers(STREAM, keys.GROUP)}
    assert left == {"died-at-work", "this"}
    assert (await stream.xpending(STREAM, keys.GROUP))["pending"] == 1


@pytest.mark.parametrize("where", ["somebody waits", "nobody waits"])
async def test_a_request_that_is_given_up_is_kept_and_answered_in_full(stream: Redis, where: str) -> None:
    """The dead letter has all that a replay needs; the reply says which request it answers, as every reply does."""
    replies = keys.replies("replica-1")
    await stream.xadd(replies, {"op": "open"}, id="1-1")
    fields = {"op": "x.do", "request": "r-7", "from": "replica-1", "reply_to": replies, "deadline": "0", "body": "{}"}
    id = await deliver(stream, "replica-2", **fields)
    names = [keys.BOOKS, keys.DEAD, STREAM, *([replies] if where == "somebody waits" else [])]
    words = (id, "replica-2", "it crashed", 3, "given-up", '{"detail":"it crashed"}', 100)
    assert await run(stream, scripts.BURY, names, *words) == 1
    assert await run(stream, scripts.BURY, names, *words) == 0, "it is gone"
    ((_, letter),) = await stream.xrange(keys.DEAD)
    about = {"kind": "request", "stream": STREAM, "id": id, "reason": "it crashed", "deliveries": "3"}
    assert letter == about | fields
    reply = {
        "request": "r-7", "op": "x.do", "from": "replica-2", "status": "given-up", "forwards": "0",
        "body": '{"detail":"it crashed"}', "asked": id,
    }  # fmt: skip
    told = [fields for _, fields in await stream.xrange(replies, min="1-2")]
    assert told == ([reply] if where == "somebody waits" else [])
    assert await stream.hgetall(keys.BOOKS) == {"dead": "1"}  # type: ignore[misc]
    assert await stream.xlen(STREAM) == (await stream.xpending(STREAM, keys.GROUP))["pending"] == 0


@pytest.mark.parametrize("option", [{"once": "k"}, {"limit": "lane 1 r x.do:"}], ids=["once", "limit"])
async def test_options_of_what_is_no_request_keep_nothing_on_its_stream(stream: Redis, option: dict[str, str]) -> None:
    """An entry that was written by hand may lack the operation that its options are about."""
    id = await deliver(stream, "one", body="{}", **option)
    assert await run(stream, scripts.BURY, [keys.BOOKS, keys.DEAD, STREAM], id, "one", "no op", 1, "given-up", "{}", 9)
    assert await stream.xlen(STREAM) == 0


@pytest.mark.parametrize("how", ["sweep", "end"])
async def test_a_removed_request_is_acknowledged_too(stream: Redis, how: str) -> None:
    """An entry that is deleted but pending would be claimed by one replica after the other."""
    id = await deliver(stream, "one", deadline=1)
    if how == "sweep":
        assert await run(stream, scripts.SWEEP, [keys.BOOKS, STREAM], 0, 100) == 1
    else:
        assert await run(stream, scripts.END, [keys.BOOKS], json.dumps([[STREAM, id, "expired"]])) == 1
    assert await stream.xlen(STREAM) == 0
    assert (await stream.xpending(STREAM, keys.GROUP))["pending"] == 0
    assert await stream.hget(keys.BOOKS, "expired") == "1"  # type: ignore[misc]


async def test_a_sweep_leaves_requests_that_have_time(stream: Redis) -> None:
    """Without a deadline they stay for ever, or else until a grace after it. The plain sweep says what is to do."""
    seconds, _ = await stream.time()
    for deadline in (0, 1000 * seconds + 60_000, 1000 * seconds - 5000):
        await deliver(stream, "one", deadline=deadline)
    for script, removed in ((scripts.PLAIN_SWEEP, -1), (scripts.SWEEP, 1)):
        assert await run(stream, script, [keys.BOOKS, STREAM], 10_000, 100) == 0
        assert await run(stream, script, [keys.BOOKS, STREAM], 1000, 100) == removed
    await stream.hset(keys.LANES, "lane", "1")  # type: ignore[misc]
    assert await run(stream, scripts.PLAIN_SWEEP, [keys.BOOKS, STREAM], 10_000, 100) == -1


async def test_the_sweep_has_a_pace(backend: Backend, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep looks at every stream, so it rests between two rounds."""
    rounds: list[Replica | None] = []

    async def sweep(*words: Any) -> None:
        rounds.append(None)

    monkeypatch.setattr("mesh.replica.SWEEP_S", 0.2)
    monkeypatch.setattr(streams, "sweep", sweep)
    await backend.join(worker)
    await asyncio.sleep(1.1)
    assert 2 <= len(rounds) <= 6


async def test_long_words_go_beside_the_json_of_their_batch(backend: Backend) -> None:
    """Bodies, values and what is expected of them arrive as they were sent, whatever else is in the batch."""
    worker = Worker()

    @worker.handles("long.put")
    async def put(request: Request, store: Store, transaction: Effects) -> Body:
        before = await store.get(request.body["key"])
        transaction.expect(request.body["key"], before)
        transaction.set(request.body["key"], request.body["text"])
        return {"before": before or "", "text": request.body["text"]}

    one = await backend.join(worker)
    texts = {f"k{n}": f"{n}" + 'é"\\\n' * length for n, length in enumerate((0, 1, 5000, 0, 90_000, 2, 1500))}
    for before in ({}, texts):
        calls = [one.call(Class("A"), "long.put", {"key": key, "text": text}) for key, text in texts.items()]
        for (key, text), answer in zip(texts.items(), await asyncio.gather(*calls), strict=True):
            assert answer == {"before": before.get(key, ""), "text": text}
    assert [await one.store().get(key) for key in texts] == [*texts.values()]


async def test_a_request_that_no_longer_waits_is_not_ended(stream: Redis) -> None:
    """It has begun meanwhile, or another replica has removed it: it is counted once, wherever that was."""
    assert await run(stream, scripts.END, [keys.BOOKS], json.dumps([["mesh:later", "gone", "cancelled"]])) == 0
    assert await stream.hget(keys.BOOKS, "cancelled") is None  # type: ignore[misc]


async def test_a_reply_stream_that_vanished_is_there_again_with_the_next_renewal(
    backend: Backend, worker: Worker
) -> None:
    """Replies are written to streams that exist, and to no others: the caller would wait in vain for ever."""
    one = await backend.join(worker, lease_ttl_ms=600)
    async with backend.connections.client("test") as client:
        await client.delete(keys.replies(one.id))

        async def is_there() -> bool:
            return bool(await client.exists(keys.replies(one.id)))

        await eventually(is_there, 5)
        assert await client.xlen(keys.replies(one.id)) == 0
    assert await one.call(Class("A"), "quick", {}) == {"answered": True}
