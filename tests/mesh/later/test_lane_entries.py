"""Every way into a lane: the limit holds for callers that know it, and for those that do not."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from mesh import (
    Busy,
    Class,
    Database,
    DeadlineExceeded,
    Limit,
    Mesh,
    Operation,
    Operations,
    Tick,
    Transaction,
    UsageError,
    keys,
)
from mesh.dead.letters import DeadLetters
from mesh.raw import Ask
from mesh.requests.streams import keep_minute
from mesh.testing import MeshKit
from tests.support.backend import Backend
from tests.support.lanes import ACTOR, LANE, ONE_CLASS, Job, OutOfOrder, books, held, left, work
from tests.support.waiting import eventually


class TestEveryWayIn:
    """The limit holds for what comes without the declaration, too: the worker sees to it."""

    async def test_requests_by_name_and_by_hand(self, backend: Backend) -> None:
        table, _, seen = work(Limit(by="name", concurrency=1))
        one = await backend.mesh(table)
        contract = Operation("work.do", Job, int)
        stream, body = keys.class_requests(one.cls), '{"name":"ann","number":9}'
        for number in range(5):
            await one.send(contract, Job("ann", number))
            await one.replica._calls.send(Ask(Class(one.cls), "work.do", {"name": "ann", "number": 20 + number}))
            await backend.redis().xadd(stream, {"op": "work.do", "body": body})
        calls = [one.call(contract, Job("ann", 30)) for _ in range(5)]
        calls += [one.call(contract, Job("ann", 40), to=Database(one.database))]
        assert await asyncio.gather(*calls) == [30, 30, 30, 30, 30, 40]
        await eventually(lambda: _quiet(one))
        await keep_minute(one.replica._link, one.replica._streams)
        assert seen.most == {"ann": 1}
        assert len(seen.order["ann"]) == 21
        assert await left(backend) == set()

    async def test_a_client_without_a_lease(self) -> None:
        table, do, seen = work(Limit(by="name", concurrency=1))
        async with MeshKit(table, replicas=2, **ONE_CLASS) as kit, kit.connect() as client:
            for number in range(5):
                await client.send(do, Job("ann", number), to=Class("A"))
            calls = [client.call(do, Job("ann", 5 + n), to=Class("A")) for n in range(5)]
            assert await asyncio.gather(*calls) == [5, 6, 7, 8, 9]
            assert seen.order == {"ann": [*range(10)]}
            assert await left(kit) == set()

    async def test_one_that_is_due_later_brings_its_limit(self) -> None:
        """It takes its place when it is due, and needs no replica that looks the limit up."""
        table, do, seen = work(Limit(by="name", concurrency=1))
        async with MeshKit(table, replicas=2, **ONE_CLASS) as kit, kit.connect() as client:
            await client.send(do, Job("ann", 1), to=Class("A"), after=timedelta(minutes=1))
            (waiting,) = await kit.redis().keys("mesh:later:*")
            assert await kit.redis().hget(waiting, "wants") == f"lane 1 {LANE}"
            await kit.advance(minutes=1)
            await books(kit[0], answered=1, waiting=0)
            assert seen.order == {"ann": [1]}

    async def test_sends_of_a_handler(self) -> None:
        """What a handler sends takes its places with the commit, in the order of the sends."""
        table, do, seen = work(Limit(by="name", concurrency=1))

        @table.command
        async def begin(tx: Transaction) -> None:
            for number in range(5):
                tx.send(do, Job("ann", number))

        async with MeshKit(table, replicas=2, **ONE_CLASS) as kit:
            await kit[0].call(begin)
            await books(kit[0], answered=6)
            assert seen.order == {"ann": [*range(5)]}
            assert [sent.op for sent in kit.sent] == ["work.do"] * 5

    async def test_requests_for_later(self) -> None:
        """Requests for later take their places when they are due."""
        table, do, seen = work(Limit(by="name", concurrency=1))

        async def during(job: Job) -> None:
            await asyncio.sleep(30)

        seen.during = during
        async with MeshKit(table, replicas=2, deadline_ms=600_000, **ONE_CLASS) as kit:
            for number in range(4):
                await kit[0].send(do, Job("ann", number), after=timedelta(minutes=4 - number))
            await kit[0].send(do, Job("ann", 9), after=timedelta(minutes=1))
            await kit.advance(seconds=70)
            await books(kit[0], waiting=4, in_flight=1)
            await kit.advance(minutes=6)
            assert sorted(seen.order["ann"][:2]) == [3, 9]
            assert seen.order["ann"][2:] == [2, 1, 0]
            assert seen.most == {"ann": 1}

    async def test_what_runs_by_itself(self) -> None:
        """A tick runs in every live database, in one after the other."""
        table, running, most = Operations("clean"), [0], [0]

        @table.every("0 * * * *", each=True, limit=Limit(concurrency=1))
        async def clean(tx: Transaction, tick: Tick) -> None:
            running[0] += 1
            most[0] = max(most[0], running[0])
            await asyncio.sleep(1)
            running[0] -= 1

        async with MeshKit(table, replicas=3, **ONE_CLASS) as kit:
            for done in (3, 6):
                await kit.advance(hours=1, minutes=1)
                await books(kit[0], answered=done)
            assert len([each for each in kit.committed if each.op == clean.name]) == 6
            assert most == [1]
            assert await left(kit) == set()

    async def test_a_replayed_dead_letter_takes_a_place_anew(self, backend: Backend) -> None:
        table, do, seen = work(Limit(by="name", concurrency=1))
        failing = [True]

        async def fail(job: Job) -> None:
            if failing[0] and job.number == 0:
                raise OutOfOrder

        seen.during = fail
        mesh = await backend.start(table, claim_idle_ms=200)
        await mesh.send(do, Job("ann", 0))
        await mesh.send(do, Job("ann", 1))
        await books(mesh, dead=1, answered=1)
        failing[0] = False
        letters = DeadLetters(backend.redis(), mesh.settings.stream_bound)
        (letter,) = await letters.look(10)
        await letters.replay([letter.id], ACTOR)
        await books(mesh, dead=1, answered=2, waiting=0)
        assert seen.order["ann"][-2:] == [1, 0]
        assert await left(backend) == set()

    async def test_other_shapes_are_refused(self) -> None:
        """A gather asks all at one moment, and a forwarded part has no place of its own."""
        table, do, _ = work(Limit(by="name", concurrency=1))

        @table.command(limit=Limit(concurrency=1))
        async def again(tx: Transaction) -> None:
            tx.forward(again, None, to=Database(1))

        async with MeshKit(table, **ONE_CLASS) as kit:
            with pytest.raises(UsageError, match=r"work\.do has a limit, and cannot be gathered"):
                await kit[0].gather(do, Job("ann"))
            with pytest.raises(UsageError, match="has a limit, and cannot be forwarded"):
                await kit[0].call(again)


async def _quiet(mesh: Mesh) -> bool:
    found = await mesh.books()
    return found["in_flight"] == found["waiting"] == 0


class TestBound:
    """No more wait than may."""

    async def test_calls_and_sends_beyond_it_are_refused(self, backend: Backend) -> None:
        table, do, seen = work(Limit(by="name", concurrency=1))
        go_on = asyncio.Event()

        async def during(job: Job) -> None:
            await go_on.wait()

        seen.during = during
        mesh = await backend.start(table, later_bound=2)
        for number in range(3):
            await mesh.send(do, Job("ann", number))
        for asking in (mesh.send(do, Job("ann", 3)), mesh.call(do, Job("ann", 4))):
            with pytest.raises(Busy, match="too many requests wait"):
                await asking
        await mesh.send(do, Job("bob", 5))
        go_on.set()
        await books(mesh, answered=4, accepted=4)
        assert seen.order == {"ann": [0, 1, 2], "bob": [5]}

    async def test_one_on_a_databases_stream_looks_again_at_its_ease(self) -> None:
        """Its sender did not know the limit, and no other replica can take it. It looks for room after each pause."""
        table, do, seen = work(Limit(by="name", concurrency=1))
        go_on = asyncio.Event()

        async def during(job: Job) -> None:
            await go_on.wait()

        seen.during = during
        async with MeshKit(table, later_bound=1, **ONE_CLASS) as kit:
            mesh = kit[0]
            for number in range(2):
                await mesh.send(do, Job("ann", number))
            unknowing = Ask(Database(mesh.database), "work.do", {"name": "ann", "number": 2})
            await mesh.replica._calls.send(unknowing)
            await kit.advance(seconds=1)
            before = mesh.statistics()["round_trips"]
            await kit.advance(seconds=2)
            assert mesh.statistics()["round_trips"] - before < 50
            go_on.set()
            await books(mesh, answered=3, accepted=3)
            assert seen.order == {"ann": [0, 1, 2]}


async def test_a_raised_limit_holds_for_those_that_come_then() -> None:
    """Each request brings the limit of the release that sent it."""
    table, do, seen = work(Limit(by="name", concurrency=1))

    async def during(job: Job) -> None:
        await asyncio.sleep(10)

    seen.during = during
    more: Operation[Job, int] = Operation("work.do", Job, int, limit=Limit(by="name", concurrency=3))
    async with MeshKit(table, deadline_ms=600_000, **ONE_CLASS) as kit:
        await kit[0].send(do, Job("ann", 0))
        for number in range(1, 5):
            await kit[0].send(more, Job("ann", number))
        await kit.advance(seconds=1)
        assert seen.now["ann"] == 3
        await kit.advance(minutes=2)
        assert seen.most == {"ann": 3}
        assert len(seen.order["ann"]) == 5


async def test_it_is_readable(backend: Backend) -> None:
    """Redis shows who runs, who waits, and since when."""
    mesh, do, _, go_on = await held(backend, Limit(by="name", concurrency=1))
    ticket = await mesh.send(do, Job("ann", 1))
    redis = backend.redis()
    (entry,) = await redis.xrange(keys.class_requests(mesh.cls))
    assert await redis.hgetall(f"{keys.RUNNING}{LANE}") == {
        entry[1]["request"]: f"{keys.class_requests(mesh.cls)} {entry[0]}"
    }
    assert await redis.lrange(f"{keys.LANE}{LANE}", 0, -1) == [ticket.key]
    assert await redis.smembers(keys.LANES) == {LANE}
    waiting = await redis.hgetall(keys.later(ticket.key))
    assert (waiting["op"], waiting["to"], waiting["limit"]) == ("work.do", mesh.cls, f"lane 1 {ticket.key} {LANE}")
    assert await redis.zscore(keys.LATER, ticket.key) == float("inf")
    go_on.set()
    await books(mesh, answered=2)


class TestKeys:
    """Calls with one idempotency key have one place in the lane."""

    async def test_callers_come_and_go_while_it_waits(self, backend: Backend) -> None:
        mesh, do, seen, go_on = await held(backend, Limit(by="name", concurrency=1))
        calls = [asyncio.create_task(mesh.call(do, Job("ann", 1), key="k")) for _ in range(3)]
        await books(mesh, waiting=1)
        for _ in range(2):
            await mesh.send(do, Job("ann", 2), key="s")
        calls[0].cancel()
        go_on.set()
        assert await asyncio.gather(*calls[1:]) == [1, 1]
        await books(mesh, answered=3, waiting=0, in_flight=0)
        assert seen.order == {"ann": [0, 1, 2]}
        assert await left(backend) == set()

    async def test_it_waits_as_long_as_one_of_its_callers(self, backend: Backend) -> None:
        """It holds its key until the deadline of that caller, and as long as the answer is kept."""
        mesh, do, seen, go_on = await held(backend, Limit(by="name", concurrency=1))
        options: Any = {"key": "k", "keep": timedelta(seconds=60)}
        short = asyncio.create_task(mesh.call(do, Job("ann", 1), deadline=timedelta(seconds=0.3), **options))
        long = asyncio.create_task(mesh.call(do, Job("ann", 1), deadline=timedelta(seconds=9), **options))
        assert isinstance((await asyncio.gather(short, return_exceptions=True))[0], DeadlineExceeded)
        await asyncio.sleep(0.5)
        await books(mesh, waiting=1, expired=0)
        assert 61_000 < await backend.redis().pttl("mesh:once:work.do:k") <= 69_000
        go_on.set()
        assert await long == 1
        assert seen.order == {"ann": [0, 1]}
        assert await left(backend) == set()

    async def test_it_waits_for_ever_if_one_of_them_only_sent_it(self, backend: Backend) -> None:
        """Its effect is wanted however late, so it holds its key for longer than it can wait."""
        mesh, do, seen, go_on = await held(backend, Limit(by="name", concurrency=1))
        short = asyncio.create_task(mesh.call(do, Job("ann", 1), key="k", deadline=timedelta(seconds=1.5)))
        await books(mesh, waiting=1)
        await mesh.send(do, Job("ann", 1), key="k")
        assert isinstance((await asyncio.gather(short, return_exceptions=True))[0], DeadlineExceeded)
        await asyncio.sleep(0.5)
        await books(mesh, waiting=1, expired=0)
        assert await backend.redis().pttl("mesh:once:work.do:k") > 366 * 86_400_000
        go_on.set()
        await books(mesh, answered=2, waiting=0)
        assert seen.order == {"ann": [0, 1]}
