"""Limits of concurrency: a place in a lane belongs to the request, and each end of the request frees it."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from mesh import (
    Database,
    DeadlineExceeded,
    GivenUp,
    Limit,
    Refused,
    Retry,
    keys,
)
from mesh.control.control import Control
from mesh.requests.streams import keep_minute, sweep
from mesh.testing import MeshKit
from tests.support.backend import Backend
from tests.support.lanes import ACTOR, LANE, ONE_CLASS, Job, OutOfOrder, books, effects, held, left, work
from tests.support.waiting import eventually


async def test_one_lane_keeps_the_order(backend: Backend) -> None:
    """Sends and calls on two replicas keep one order; other lanes go on beside it."""
    table, do, seen = work(Limit(by="name", concurrency=1))
    one = await backend.mesh(table)
    await backend.start(table, class_=one.cls)
    for number in range(20):
        for name in ("ann", "bob"):
            await one.send(do, Job(name, number))
    assert await asyncio.gather(*(one.call(do, Job("ann", 20 + n)) for n in range(5))) == [20, 21, 22, 23, 24]
    await books(one, answered=45, waiting=0, in_flight=0)
    assert seen.order == {"ann": [*range(25)], "bob": [*range(20)]}
    assert seen.most == {"ann": 1, "bob": 1}
    assert await left(backend) == set()
    assert set((await effects(backend)).values()) == {"1"}


async def test_as_many_run_at_once_as_may(backend: Backend) -> None:
    """No more run at once than the limit allows, although both replicas have room."""
    table, do, seen = work(Limit(concurrency=3))
    one = await backend.mesh(table)
    await backend.start(table, class_=one.cls)
    await asyncio.gather(*(one.call(do, Job(f"n{n % 2}", n)) for n in range(30)))
    assert sum(seen.most.values()) >= 3
    assert await effects(backend) == {f"n{n % 2} {n}": "1" for n in range(30)}
    assert await left(backend) == set()


class TestEndsThatMakeRoom:
    """A request that ends without having run leaves the lane; the next one takes its turn."""

    async def test_a_deadline_passes(self, backend: Backend) -> None:
        mesh, do, seen, go_on = await held(backend, Limit(by="name", concurrency=1))
        with pytest.raises(DeadlineExceeded):
            await mesh.call(do, Job("ann", 1), deadline=timedelta(seconds=0.3))
        await books(mesh, expired=1, waiting=0, in_flight=1)
        calling = asyncio.create_task(mesh.call(do, Job("ann", 2)))
        await books(mesh, waiting=1)
        go_on.set()
        assert await calling == 2
        assert seen.order == {"ann": [0, 2]}
        assert await left(backend) == set()

    async def test_a_caller_hangs_up(self, backend: Backend) -> None:
        """A caller may hang up while its request waits, and while it is worked on."""
        mesh, do, seen, go_on = await held(backend, Limit(by="name", concurrency=1))
        calling = [asyncio.create_task(mesh.call(do, Job("ann", n))) for n in (1, 2)]
        await books(mesh, waiting=2)
        calling[0].cancel()
        await books(mesh, waiting=1, cancelled=1)
        go_on.set()
        assert await calling[1] == 2
        assert seen.order == {"ann": [0, 2]}
        assert await left(backend) == set()

    async def test_the_caller_of_one_that_was_let_go_hangs_up(self, backend: Backend) -> None:
        """The call finds the request by its place in the lane, because its entry is newer than the call."""
        mesh, do, seen, go_on = await held(backend, Limit(by="name", concurrency=1))
        again = asyncio.Event()
        during = seen.during

        async def longer(job: Job) -> None:
            assert during is not None
            await (again.wait() if job.number == 1 else during(job))

        seen.during = longer
        calling = asyncio.create_task(mesh.call(do, Job("ann", 1)))
        await books(mesh, waiting=1)
        go_on.set()
        await books(mesh, answered=1, in_flight=1)
        calling.cancel()
        await books(mesh, cancelled=1, in_flight=0)
        assert await mesh.call(do, Job("ann", 2)) == 2
        again.set()
        assert "ann 1" not in await effects(backend)

    async def test_a_ticket_is_cancelled(self, backend: Backend) -> None:
        mesh, do, seen, go_on = await held(backend, Limit(by="name", concurrency=1))
        tickets = [await mesh.send(do, Job("ann", n)) for n in (1, 2, 3)]
        await books(mesh, waiting=3)
        assert await mesh.cancel(tickets[1])
        assert not await mesh.cancel(tickets[1])
        go_on.set()
        await books(mesh, answered=3, cancelled=1, waiting=0, in_flight=0)
        assert seen.order == {"ann": [0, 1, 3]}
        assert await left(backend) == set()

    async def test_an_operator_cancels_what_runs(self, backend: Backend) -> None:
        mesh, do, seen, go_on = await held(backend, Limit(by="name", concurrency=1))
        await mesh.send(do, Job("ann", 1))
        (entry,) = await backend.redis().xrange(keys.class_requests(mesh.cls))
        assert await Control(backend.redis(), mesh.settings).cancel(entry[0], ACTOR)
        await books(mesh, answered=1, cancelled=1, waiting=0)
        assert seen.order == {"ann": [0, 1]}
        go_on.set()
        assert await left(backend) == set()

    async def test_one_is_given_up(self, backend: Backend) -> None:
        table, do, seen = work(Limit(by="name", concurrency=1))

        async def fail(job: Job) -> None:
            if job.number == 0:
                raise OutOfOrder

        seen.during = fail
        mesh = await backend.start(table, claim_idle_ms=300)
        calls = [asyncio.create_task(mesh.call(do, Job("ann", n))) for n in range(3)]
        with pytest.raises(GivenUp):
            await calls[0]
        assert [await call for call in calls[1:]] == [1, 2]
        assert seen.order["ann"] == [0, 0, 0, 1, 2]
        assert await left(backend) == set()

    async def test_one_is_refused(self, backend: Backend) -> None:
        table, do, seen = work(Limit(by="name", concurrency=1))

        async def refuse(job: Job) -> None:
            if job.number == 0:
                raise Refused("no")

        seen.during = refuse
        mesh = await backend.mesh(table)
        calls = [asyncio.create_task(mesh.call(do, Job("ann", n))) for n in range(3)]
        with pytest.raises(Refused):
            await calls[0]
        assert [await call for call in calls[1:]] == [1, 2]
        assert await left(backend) == set()

    async def test_one_without_a_replica_is_swept(self) -> None:
        """The entry is on the stream of a database that nobody holds, and its caller is dead."""
        table, do, seen = work(Limit(by="name", concurrency=1))
        async with MeshKit(table, replicas=3, **ONE_CLASS) as kit:
            kit.freeze(1)
            to = Database(kit[1].database)
            calling = asyncio.create_task(kit[0].call(do, Job("ann", 0), to=to, deadline=timedelta(seconds=1)))
            await books(kit[2], in_flight=1)
            await kit.kill(0)
            await kit.kill(1)
            await asyncio.gather(calling, return_exceptions=True)
            await kit[2].send(do, Job("ann", 1))
            await books(kit[2], waiting=1, in_flight=1)
            await kit.advance(seconds=12)
            await books(kit[2], answered=1, expired=1, waiting=0)
            assert seen.order == {"ann": [1]}
            assert await left(kit) == set()


class TestFaults:
    """Nothing that dies takes a place with it."""

    async def test_a_replica_is_killed(self) -> None:
        """The one that takes its request over has its place, too."""
        table, do, seen = work(Limit(by="name", concurrency=1))

        async def during(job: Job) -> None:
            await asyncio.sleep(0.5)

        seen.during = during
        async with MeshKit(table, replicas=3, **ONE_CLASS) as kit:
            for number in range(12):
                await kit[2].send(do, Job("ann", number))
            for number in (0, 1):
                await kit.advance(seconds=1)
                await kit.kill(number)
            await books(kit[2], 60, answered=12)
            assert await effects(kit) == {f"ann {n}": "1" for n in range(12)}
            in_order = list(dict.fromkeys(seen.order["ann"]))
            assert in_order == [*range(12)]
            assert await left(kit) == set()

    async def test_answers_are_lost(self) -> None:
        table, do, seen = work(Limit(by="name", concurrency=2))
        async with MeshKit(table, replicas=2, **ONE_CLASS) as kit:
            kit.lose_answers(7)
            calls = [kit[n % 2].call(do, Job("ann", n)) for n in range(30)]
            assert await asyncio.gather(*calls) == [*range(30)]
            assert seen.most["ann"] <= 2
            assert await effects(kit) == {f"ann {n}": "1" for n in range(30)}
            assert await left(kit) == set()

    async def test_an_entry_is_deleted_by_hand(self, backend: Backend) -> None:
        """The sweep finds that its place is free, and lets the next request go."""
        mesh, do, seen, go_on = await held(backend, Limit(by="name", concurrency=1))
        await mesh.send(do, Job("ann", 1))
        stream = keys.class_requests(mesh.cls)
        (entry,) = await backend.redis().xrange(stream)
        await backend.redis().xack(stream, keys.GROUP, entry[0])
        await backend.redis().xdel(stream, entry[0])
        await keep_minute(mesh.replica._link, mesh.replica._streams)
        await sweep(mesh.replica._link, mesh.replica._streams)

        async def gone_on() -> bool:
            return seen.order == {"ann": [0, 1]}

        await eventually(gone_on)
        go_on.set()

    async def test_the_only_entry_of_a_lane_is_deleted_by_hand(self, backend: Backend) -> None:
        """Nothing is left of the lane after a sweep, although nobody waits for the place."""
        mesh, _, _, _ = await held(backend, Limit(by="name", concurrency=1))
        assert await backend.redis().delete(keys.class_requests(mesh.cls)) == 1
        await keep_minute(mesh.replica._link, mesh.replica._streams)
        await sweep(mesh.replica._link, mesh.replica._streams)
        assert await left(backend) == set()

    async def test_a_sweep_has_a_bound(self, backend: Backend) -> None:
        """A sweep looks at some places of a lane with thousands, so that it does not hold the server up."""
        mesh, _, _, _ = await held(backend, Limit(by="name", concurrency=9999))
        gone = {f"n{number}": f"{keys.class_requests(mesh.cls)} 1-{number}" for number in range(2500)}
        await backend.redis().hset(f"{keys.RUNNING}{LANE}", mapping=gone)
        sizes = [len(gone) + 1]
        while sizes[-1] > 1 and len(sizes) < 30:
            await sweep(mesh.replica._link, mesh.replica._streams)
            sizes.append(await backend.redis().hlen(f"{keys.RUNNING}{LANE}"))
        assert 1501 <= sizes[1] <= 1502 and sizes[-1] == 1, sizes

    async def test_keys_of_another_type_keep_no_request_from_its_end(self, backend: Backend) -> None:
        mesh, do, _, go_on = await held(backend, Limit(by="name", concurrency=1))
        await backend.redis().delete(f"{keys.RUNNING}{LANE}")
        await backend.redis().set(f"{keys.RUNNING}{LANE}", "x")
        go_on.set()
        await books(mesh, answered=1, in_flight=0)
        with pytest.raises(Exception, match="is a key of the wrong type"):
            await mesh.call(do, Job("ann", 1))
        await backend.redis().delete(f"{keys.RUNNING}{LANE}")
        assert await mesh.call(do, Job("ann", 2)) == 2


class TestRetry:
    """A try that failed keeps the place, so the order holds."""

    async def test_the_next_one_waits_for_all_tries(self) -> None:
        table, do, seen = work(Limit(by="name", concurrency=1), Retry(most=5, first=timedelta(seconds=10)))

        async def fail(job: Job) -> None:
            if seen.order["ann"].count(0) < 4:
                raise OutOfOrder

        seen.during = fail
        async with MeshKit(table, replicas=2, **ONE_CLASS) as kit:
            for number in range(3):
                await kit[0].send(do, Job("ann", number))
            await kit.advance(seconds=5)
            await books(kit[0], waiting=3, in_flight=0)
            await kit.advance(minutes=5)
            assert seen.order["ann"] == [0, 0, 0, 0, 1, 2]
            assert await left(kit) == set()

    async def test_a_cancelled_retry_frees_its_place(self) -> None:
        table, do, seen = work(Limit(by="name", concurrency=1), Retry(most=5, first=timedelta(hours=10)))

        async def fail(job: Job) -> None:
            if job.number == 0:
                raise OutOfOrder

        seen.during = fail
        async with MeshKit(table, **ONE_CLASS) as kit:
            ticket = await kit[0].send(do, Job("ann", 0))
            await kit[0].send(do, Job("ann", 1))
            await kit.advance(seconds=5)
            assert await kit[0].cancel(ticket)
            await kit.advance(seconds=5)
            assert seen.order["ann"] == [0, 1]
            assert await left(kit) == set()

    async def test_a_parked_one_keeps_its_place(self) -> None:
        table, do, seen = work(Limit(by="name", concurrency=1))
        async with MeshKit(table, **ONE_CLASS) as kit:
            await kit[0].pause(do)
            await kit.advance(seconds=2)
            for number in range(5):
                await kit[0].send(do, Job("ann", number))
            await kit.advance(seconds=2)
            await books(kit[0], waiting=5, in_flight=0)
            await kit[0].resume(do)
            await books(kit[0], answered=5)
            assert seen.order["ann"] == [*range(5)]
            assert await left(kit) == set()
