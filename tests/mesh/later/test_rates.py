"""Limits of rate: each request begins at its exact time, or hears when it may."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from msgspec import Struct

from mesh import Busy, Class, Limit, Limited, Operation, Operations, Transaction, keys
from mesh.raw import Ask
from mesh.testing import MeshKit
from tests.support.backend import Backend
from tests.support.lanes import books
from tests.support.other_lines import instead
from tests.support.server import Server
from tests.support.waiting import eventually

ONE_CLASS = {"classes": "A"}
SECOND = timedelta(seconds=1)


class Job(Struct):
    name: str
    number: int = 0


def work(limit: Limit) -> tuple[Operations, Operation[Job, int], list[tuple[str, int]]]:
    """One operation with a limit, and what ran."""
    table, ran = Operations("work"), list[tuple[str, int]]()

    @table.command(limit=limit)
    async def do(tx: Transaction, body: Job) -> int:
        ran.append((body.name, body.number))
        return body.number

    return table, do, ran


class TestDelay:
    """`when="delay"`: what comes too soon waits for its time."""

    async def test_each_begins_at_its_time(self) -> None:
        """Five at once, and then one every twelve seconds; another value has a rate of its own."""
        table, do, ran = work(Limit(by="name", rate=5, per=timedelta(minutes=1)))
        async with MeshKit(table, replicas=2, **ONE_CLASS) as kit:
            for number in range(8):
                await kit[0].send(do, Job("ann", number))
            await kit[0].send(do, Job("bob", 0))
            await kit.advance(seconds=1)
            assert len(ran) == 6
            await books(kit[0], waiting=3)
            for more in (1, 2, 3):
                await kit.advance(seconds=10)
                assert len(ran) == 5 + more
                await kit.advance(seconds=2)
                assert len(ran) == 6 + more
            assert ran.count(("bob", 0)) == 1
            assert [number for name, number in ran if name == "ann"][5:] == [5, 6, 7]

    async def test_one_from_a_client_begins_at_its_time(self, server: Server) -> None:
        """A client wakes nobody. The replica knows from the request before when another may begin."""
        table, do, ran = work(Limit(rate=2, per=SECOND, burst=1))
        async with (
            MeshKit(table, redis=server.url, lease_ttl_ms=60_000, **ONE_CLASS) as kit,
            kit.connect() as client,
        ):

            async def both() -> bool:
                return len(ran) == 2

            await client.call(do, Job("ann", 1), to=Class("A"))
            await client.send(do, Job("ann", 2), to=Class("A"))
            await books(kit[0], waiting=1)
            await eventually(both, 5)

    async def test_one_that_waits_is_accepted_after_all_before_it(self) -> None:
        """It keeps its place where the server's clock has stepped back, too."""
        table, do, _ = work(Limit(rate=1, per=timedelta(minutes=1), burst=1))
        async with MeshKit(table, **ONE_CLASS) as kit:
            await kit[0].send(do, Job("ann", 1))
            ahead = int(await kit.redis().get(keys.CLOCK)) + 5000
            await kit.redis().set(keys.CLOCK, ahead)
            await kit[0].send(do, Job("ann", 2))
            (waiting,) = await kit.redis().keys("mesh:later:*")
            assert await kit.redis().hget(waiting, "first") == f"{ahead}-0"
            await kit.advance(minutes=1)
            await books(kit[0], answered=2, waiting=0)

    async def test_calls_wait_and_are_answered(self, backend: Backend) -> None:
        table, do, _ = work(Limit(rate=10, per=SECOND, burst=1))
        mesh = await backend.mesh(table)
        begun = asyncio.get_running_loop().time()
        assert await asyncio.gather(*(mesh.call(do, Job("ann", n)) for n in range(5))) == [0, 1, 2, 3, 4]
        assert asyncio.get_running_loop().time() - begun >= 0.4
        await books(mesh, answered=5, waiting=0, in_flight=0)

    async def test_one_whose_time_is_beyond_its_deadline_hears_of_it_at_once(self, backend: Backend) -> None:
        """A request that is refused takes nothing from the rate."""
        table, do, _ = work(Limit(rate=1, per=timedelta(hours=1)))
        mesh = await backend.mesh(table)
        await mesh.call(do, Job("ann"))
        for _ in range(2):
            with pytest.raises(Limited) as caught:
                await mesh.call(do, Job("ann"))
            assert 3590 < (caught.value.retry_after or 0) <= 3600
        assert (await mesh.books())["accepted"] == 1

    async def test_one_that_waits_is_cancelled(self, backend: Backend) -> None:
        """A waiting request is cancelled by its ticket, and by a caller that hangs up."""
        table, do, ran = work(Limit(rate=1, per=timedelta(seconds=4)))
        mesh = await backend.mesh(table)
        await mesh.send(do, Job("ann", 0))
        ticket = await mesh.send(do, Job("ann", 1))
        assert await mesh.cancel(ticket)
        calling = asyncio.create_task(mesh.call(do, Job("ann", 2), deadline=timedelta(minutes=1)))
        await books(mesh, waiting=1)
        calling.cancel()
        await books(mesh, waiting=0, cancelled=2, answered=1)
        assert ran == [("ann", 0)]

    async def test_no_more_wait_than_may(self, backend: Backend) -> None:
        table, do, _ = work(Limit(rate=1, per=timedelta(hours=1)))
        mesh = await backend.start(table, later_bound=1)
        await mesh.send(do, Job("ann", 0))
        await mesh.send(do, Job("ann", 1))
        with pytest.raises(Busy, match="too many requests wait"):
            await mesh.send(do, Job("ann", 2))
        assert (await mesh.books())["accepted"] == 2

    async def test_the_rate_expires(self, backend: Backend) -> None:
        """Nothing is left of a value for which no request comes any more."""
        table, do, _ = work(Limit(by="name", rate=10, per=10 * SECOND))
        mesh = await backend.mesh(table)
        await mesh.call(do, Job("ann"))
        assert 0 < await backend.redis().pttl(f"{keys.RATE}work.do:ann") <= 1001

    async def test_deaths_and_lost_answers_change_no_time(self) -> None:
        table, do, ran = work(Limit(rate=1, per=SECOND))
        async with MeshKit(table, replicas=3, **ONE_CLASS) as kit:
            kit.lose_answers(5)
            for number in range(20):
                await kit[2].send(do, Job("ann", number))
            for number in (0, 1):
                await kit.advance(seconds=4)
                await kit.kill(number)
                assert len(ran) <= 4 * (number + 1) + 1
            await kit.advance(minutes=1)
            assert sorted(set(ran)) == [("ann", n) for n in range(20)]
            assert [each.op for each in kit.committed if each.op == do.name] == [do.name] * 20


class TestRefuse:
    """`when="refuse"`: what comes too soon is told when to come again."""

    async def test_it_is_a_kind_of_busy(self, backend: Backend) -> None:
        table, do, _ = work(Limit(by="name", rate=2, per=timedelta(seconds=20), when="refuse"))
        mesh = await backend.mesh(table)
        await mesh.call(do, Job("ann", 0))
        await mesh.call(do, Job("ann", 1))
        with pytest.raises(Limited, match=r"too many requests of work\.do for 'ann'; retry after") as caught:
            await mesh.call(do, Job("ann", 2))
        assert isinstance(caught.value, Busy)
        assert 9 < (caught.value.retry_after or 0) <= 10
        await mesh.call(do, Job("bob", 3))
        with pytest.raises(Limited):
            await mesh.send(do, Job("ann", 4))
        assert (await mesh.books())["accepted"] == 3

    async def test_a_handler_whose_send_is_refused_has_no_effect(self, backend: Backend) -> None:
        table, do, ran = work(Limit(rate=1, per=timedelta(hours=1), when="refuse"))
        count = table.value("count", int, 0, shared=True)

        @table.command
        async def begin(tx: Transaction, body: Job) -> None:
            tx.add(count)
            tx.send(do, body)

        mesh = await backend.mesh(table)
        await mesh.call(begin, Job("ann", 0))
        with pytest.raises(Limited):
            await mesh.call(begin, Job("ann", 1))
        assert await backend.redis().get("shared:work:count") == "1"
        await books(mesh, in_flight=0)
        assert ran == [("ann", 0)]

    async def test_a_handler_that_sends_two_where_one_may_go_has_no_effect(self, backend: Backend) -> None:
        table, do, ran = work(Limit(rate=1, per=timedelta(hours=1), when="refuse"))

        @table.command
        async def begin(tx: Transaction, body: Job) -> None:
            tx.send(do, body)
            tx.send(do, body)

        mesh = await backend.mesh(table)
        with pytest.raises(Limited):
            await mesh.call(begin, Job("ann"))
        await books(mesh, in_flight=0, waiting=0)
        assert ran == []

    async def test_a_handler_may_send_one_at_once_and_one_for_later(self) -> None:
        """The two sends may come in either order."""
        table, do, ran = work(Limit(rate=4, per=timedelta(hours=1), when="refuse"))

        @table.command
        async def begin(tx: Transaction, body: Job) -> None:
            for number in (0, 1) if body.number else (1, 0):
                tx.send(do, Job(body.name, number), after=SECOND if number else None)

        async with MeshKit(table, **ONE_CLASS) as kit:
            for number in range(2):
                await kit[0].call(begin, Job("ann", number))
            await books(kit[0], waiting=2)
            await kit.advance(seconds=2)
            await books(kit[0], waiting=0, in_flight=0)
            assert sorted(ran) == [("ann", 0), ("ann", 0), ("ann", 1), ("ann", 1)]

    async def test_what_is_sent_for_later_is_delayed(self) -> None:
        """Nobody can be refused any more when it is due."""
        table, do, ran = work(Limit(rate=1, per=timedelta(minutes=1), when="refuse"))
        async with MeshKit(table, **ONE_CLASS) as kit:
            for number in range(3):
                await kit[0].send(do, Job("ann", number), after=SECOND)
            await kit.advance(seconds=5)
            assert len(ran) == 1
            await kit.advance(minutes=3)
            assert sorted(ran) == [("ann", 0), ("ann", 1), ("ann", 2)]

    async def test_callers_without_the_declaration_are_refused_too(self, backend: Backend) -> None:
        """The replica that reads the request refuses it, or delays it if nobody waits for it."""
        table, _, ran = work(Limit(rate=1, per=timedelta(hours=1), when="refuse"))
        mesh = await backend.mesh(table)
        contract: Operation[Job, int] = Operation("work.do", Job, int)
        await mesh.call(contract, Job("ann", 1))
        with pytest.raises(Limited):
            await mesh.call(contract, Job("ann", 1))
        await mesh.replica._calls.send(Ask(Class(mesh.cls), "work.do", {"name": "ann", "number": 1}))
        await books(mesh, waiting=1, in_flight=0)
        assert ran == [("ann", 1)]


async def test_after_a_step_back_of_the_clock_a_rate_goes_on() -> None:
    """A rate does not refuse everything until the clock is where it was."""
    table, do, _ = work(Limit(rate=1, per=SECOND, when="refuse"))
    async with MeshKit(table, **ONE_CLASS) as kit:
        ahead = int(kit.now.timestamp() * 1e6) + 3_600_000_000
        await kit.redis().set(f"{keys.RATE}work.do:", f"{ahead + 1_000_000} {ahead} {ahead + 1_000_000}")
        with pytest.raises(Limited) as caught:
            await kit[0].call(do, Job("ann"))
        assert (caught.value.retry_after or 0) <= 1
        await kit.redis().set(f"{keys.RATE}work.do:", f"{ahead} {ahead} {ahead}")
        await kit[0].call(do, Job("ann"))


async def test_an_entry_that_no_limit_can_read_ends_itself_and_not_the_replica() -> None:
    """Python reads the digits of this deadline, and Lua does not. It was written by hand."""
    table, do, ran = work(Limit(rate=1, per=timedelta(hours=1)))
    async with MeshKit(table, **ONE_CLASS) as kit:
        await kit[0].call(do, Job("ann"))
        entry = {"op": "work.do", "body": '{"name": "bob"}', "deadline": "9_999_999_999_999"}
        await kit.redis().xadd("mesh:requests:A", entry)
        for _ in range(10):
            await kit.advance(seconds=1)
        await books(kit[0], dead=1, in_flight=0)
        assert ran == [("ann", 0)]
        assert "ResponseError" in (await kit.redis().xrange("mesh:dead"))[0][1]["reason"]


async def _outage(burst: int) -> list[int]:
    """Send 40 requests with a rate of ten per second, then 20 more after a minute without a replica.

    Return when (ms) they began.
    """
    table, begun = Operations("work"), dict[int, int]()

    @table.command(limit=Limit(rate=10, per=SECOND, burst=burst))
    async def do(tx: Transaction, body: Job) -> None:
        begun.setdefault(body.number, int(tx.request.id.partition("-")[0]))

    async with MeshKit(table, classes="A") as kit, kit.connect() as client:
        for number in range(40):
            await client.send(do, Job("ann", number), to=Class("A"))
        await kit.kill(0)
        await kit.advance(seconds=60)
        await kit.start()
        for number in range(40, 60):
            await client.send(do, Job("ann", number), to=Class("A"))
        await kit.advance(seconds=8)
        assert len(begun) == 60
        return sorted(begun.values())


@pytest.mark.parametrize("burst", [1, 3])
async def test_after_an_outage_the_rate_holds(burst: int) -> None:
    """Many requests have a time that has passed. They begin one after the other, and so do those that come now."""
    times = await _outage(burst)
    assert min(last - first for first, last in zip(times, times[burst:], strict=False)) >= 100, times
    # They do not lose much time either.
    assert times[-1] - times[burst + 1] < 7_000


async def test_without_a_look_at_what_has_begun_all_begin_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    instead(monkeypatch, "WAKE", "about.rate and options.limits().begin(about.rate)", "false")
    times = await _outage(1)
    assert max(times.count(each) for each in times) > 30
