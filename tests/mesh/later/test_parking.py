"""Requests of a paused operation that nobody waits for: they wait on no stream, and hold no worker."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from mesh import Class, Database, Limit, Mesh, Operation, Operations, Transaction, keys
from mesh.control.control import Control
from mesh.dead.letters import Actor
from mesh.later.parking import Parked, park
from mesh.raw import Ask, Body, Effects, Replica, Request, Store, Worker
from mesh.testing import MeshKit
from tests.support.backend import Backend
from tests.support.lanes import Job
from tests.support.waiting import eventually

ACTOR = Actor("operator", "192.0.2.1")


def counting(done: list[str]) -> Worker:
    worker = Worker()

    @worker.handles("count.put")
    async def put(request: Request, store: Store, transaction: Effects) -> Body:
        done.append(request.id)
        return {}

    return worker


def control(backend: Backend, one: Replica) -> Control:
    return Control(backend.redis(), one.settings)


async def told(one: Replica, *paused: str) -> None:
    """Wait until a replica knows which operations are paused."""

    async def knows() -> bool:
        return one._lease.paused_ops == frozenset(paused)

    await eventually(knows)


async def _two_paused(backend: Backend, worker: Worker, **settings: Any) -> list[Replica]:
    """Two replicas of one class that know that `count.put` is paused."""
    one = await backend.join(worker, **settings)
    two = await backend.join(worker, class_=one.cls, **settings)
    await control(backend, one).pause("count.put", ACTOR)
    await told(one, "count.put")
    await told(two, "count.put")
    return [one, two]


async def _books(one: Replica, **expected: int) -> None:
    """Wait until the books say this; they balance at each look."""
    async with asyncio.timeout(10):
        while True:
            books = await one.books()
            assert books["accepted"] == sum(books.values()) - books["accepted"]
            if expected.items() <= books.items():
                return
            await asyncio.sleep(0.02)


def _ask(cls: str) -> Ask:
    return Ask(Class(cls), "count.put", {})


async def test_they_run_once_when_the_operation_goes_on(backend: Backend) -> None:
    done: list[str] = []
    one, two = await _two_paused(backend, counting(done))
    for _ in range(5):
        await one._calls.send(_ask(one.cls))
    await _books(one, waiting=5, in_flight=0)
    assert done == []
    acts = control(backend, one)
    assert await acts.resume("count.put", ACTOR)
    await _books(one, answered=5, waiting=0, in_flight=0)
    assert len(done) == len(set(done)) == 5
    await told(two)
    assert [key async for key in backend.redis().scan_iter("mesh:*") if "later" in key or "parked" in key] == []


async def test_they_go_on_in_the_order_in_which_they_were_accepted(backend: Backend) -> None:
    """Their names would give another order: 10 before 9."""
    done: list[int] = []
    worker = Worker()

    @worker.handles("count.put")
    async def put(request: Request, store: Store, transaction: Effects) -> Body:
        done.append(request.body["number"])
        return {}

    one, _ = await _two_paused(backend, worker)
    for number in range(12):
        await one._calls.send(Ask(Class(one.cls), "count.put", {"number": number}), f"job-{number}")
        await asyncio.sleep(0.002)  # each in a ms of its own
    await _books(one, waiting=12)
    await control(backend, one).resume("count.put", ACTOR)
    await _books(one, answered=12)
    assert done == [*range(12)]


async def test_they_keep_the_time_at_which_they_were_sent(backend: Backend) -> None:
    done: list[Request] = []
    worker = Worker()

    @worker.handles("count.put")
    async def put(request: Request, store: Store, transaction: Effects) -> Body:
        done.append(request)
        return {}

    one, _ = await _two_paused(backend, worker)
    sent_ms = one.now_ms()
    await one._calls.send(_ask(one.cls))
    await _books(one, waiting=1)
    await asyncio.sleep(0.3)
    await control(backend, one).resume("count.put", ACTOR)
    await _books(one, answered=1)
    assert abs(done[0].at_ms - sent_ms) < 250


async def test_a_replica_that_has_not_heard_of_the_end_of_a_pause_runs_them(backend: Backend) -> None:
    """Such requests are run, because nothing would wake them if they were parked after the pause."""
    done: list[str] = []
    one = await backend.join(counting(done))
    one._lease.paused_ops = frozenset(["count.put"])
    await one._calls.send(_ask(one.cls))
    await _books(one, answered=1)
    assert len(done) == 1


async def test_requests_written_by_hand_wait_and_run_each(backend: Backend) -> None:
    """The keys of requests written by hand may be alike, and their field `first` may be no id."""
    done: list[str] = []
    one, _ = await _two_paused(backend, counting(done))
    for key in ("a b", "a_b", "a b", ""):
        fields = {"op": "count.put", "request": key, "body": "{}", "deadline": "0", "first": "long ago"}
        await backend.redis().xadd(keys.class_requests(one.cls), fields)

    async def parked() -> bool:
        return int(await backend.redis().zcard(keys.LATER)) == 4

    await eventually(parked)
    await control(backend, one).resume("count.put", ACTOR)

    async def all_done() -> bool:
        return len(done) == 4

    await eventually(all_done)
    # No script has accepted what was written by hand.
    await backend.redis().hincrby(keys.BOOKS, "accepted", 4)


async def test_a_parked_request_waits_until_its_deadline_at_most(backend: Backend) -> None:
    """One without a deadline, which may be missing in what was written by hand, waits until the operation goes on."""
    one, _ = await _two_paused(backend, counting([]))
    later_ms = one.now_ms() + 60_000
    redis, deadlines = backend.redis(), {"ends": {"deadline": later_ms}, "zero": {"deadline": 0}, "none": {}}
    for key, fields in deadlines.items():
        entry: dict[Any, Any] = {"op": "count.put", "request": key, "body": "{}", **fields}
        await redis.xadd(keys.class_requests(one.cls), entry)

    async def parked() -> bool:
        return int(await redis.zcard(keys.LATER)) == 3

    await eventually(parked)
    waiting = dict(await redis.zrange(keys.LATER, 0, -1, withscores=True))
    assert waiting == {"ends": later_ms, "zero": float("inf"), "none": float("inf")}
    await redis.delete(keys.LATER, keys.parked("count.put"), *map(keys.later, deadlines))


async def test_what_another_consumer_has_or_has_ended_is_not_parked(backend: Backend) -> None:
    """It stays where it is, and waits nowhere."""
    one, _ = await _two_paused(backend, counting([]))
    stream, redis = keys.class_requests("D"), backend.redis()
    await redis.xgroup_create(stream, keys.GROUP, mkstream=True)
    id = await redis.xadd(stream, {"op": "count.put", "request": "r", "body": "{}"})
    await redis.xreadgroup(keys.GROUP, "another", {stream: ">"})
    for gone in (id, "1-1"):
        assert await park(one._link, stream, gone, one.id, "count.put", 100) is Parked.NOT_MINE
    assert await redis.zcard(keys.LATER) == 0
    assert (await redis.xpending(stream, keys.GROUP))["pending"] == 1
    await redis.delete(stream)


async def test_no_more_wait_than_may(backend: Backend) -> None:
    """The rest stays on the stream, and is in nobody's way there."""
    done: list[str] = []
    one, _ = await _two_paused(backend, counting(done), later_bound=3)
    for _ in range(5):
        await one._calls.send(_ask(one.cls))
    await _books(one, waiting=3, in_flight=2)
    await control(backend, one).resume("count.put", ACTOR)
    await _books(one, answered=5, waiting=0)
    assert len(done) == len(set(done)) == 5


async def test_a_parked_request_is_cancelled(backend: Backend) -> None:
    table = Operations("count")

    @table.command
    async def put(tx: Transaction) -> None: ...

    one = Mesh(await backend.join(table.worker))
    acts = control(backend, one.replica)
    await acts.pause("count.put", ACTOR)
    await told(one.replica, "count.put")
    ticket = await one.send(put)
    await _books(one.replica, waiting=1)
    assert await one.cancel(ticket)
    await _books(one.replica, waiting=0, cancelled=1)
    assert await backend.redis().exists(keys.parked("count.put")) == 0


async def test_replicas_that_die_lose_none(backend: Backend) -> None:
    """Parked requests wait in Redis for any replica that is there when the operation goes on."""
    done: list[str] = []
    one, _ = await _two_paused(backend, counting(done))
    for _ in range(5):
        await one._calls.send(_ask(one.cls))
    await _books(one, waiting=5)
    cls = one.cls
    await backend.kill(0)
    await backend.kill(1)
    await control(backend, one).resume("count.put", ACTOR)
    three = await backend.join(counting(done), class_=cls)
    await _books(three, answered=5, waiting=0)
    assert len(done) == 5


async def test_those_to_a_database_go_on(backend: Backend) -> None:
    """Requests to a database are a part of another request's effect, and the next ones wait for them."""
    done: list[str] = []
    one, _ = await _two_paused(backend, counting(done))
    await one._calls.send(Ask(Database(one.database), "count.put", {}))
    await _books(one, answered=1)
    assert len(done) == 1


@pytest.mark.parametrize("way", ["pause", "limit", "handler"])
async def test_those_for_which_there_is_no_room_hold_up_no_other(way: str) -> None:
    """Requests that cannot be parked stay on their stream, hold no worker and are no dead letters."""
    table, gate = Operations("count"), asyncio.Event()
    done = list[int]()

    @table.command(limit=Limit(concurrency=1))
    async def limited(tx: Transaction, body: Job) -> None:
        await gate.wait()
        done.append(body.number)

    @table.command
    async def plain(tx: Transaction, body: Job) -> None:
        done.append(body.number)

    @table.command
    async def send_later(tx: Transaction, body: Job) -> None:
        tx.send(plain, body, after=timedelta(seconds=20))

    @table.command
    async def other(tx: Transaction) -> int:
        return 1

    name = {"pause": plain, "limit": limited, "handler": send_later}[way].name
    # A caller that does not know the limit.
    contract = Operation(name, Job, None)
    async with MeshKit(table, replicas=2, classes="A", later_bound=3, concurrency=4) as kit:
        if way == "pause":
            await kit[0].pause(name)
            await kit.advance(seconds=2)
        for number in range(20):
            await kit[0].send(contract, Job("ann", number))
        await kit.advance(seconds=10)
        found = await kit.books()
        assert (found["waiting"], found["dead"]) == (3, 0)
        assert found["in_flight"] == 17
        assert [await kit[0].call(other) for _ in range(5)] == [1] * 5
        gate.set()
        if way == "pause":
            await kit[0].resume(name)
        for _ in range(180 if way == "handler" else 30):
            await kit.advance(seconds=1)
        assert sorted(done) == [*range(20)]
