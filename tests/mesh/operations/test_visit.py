"""A client with typed operations: it calls, gathers, sends for later and takes back, without a lease."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from msgspec import Struct

from mesh import Busy, Class, Database, MeshClient, NoReplica, Operations, Query, Transaction, UsageError
from mesh.testing import MeshKit
from tests.support.waiting import eventually

typed = Operations("typed")
n = typed.value("n", int, 0)


class By(Struct):
    by: int


@typed.command
async def increase(tx: Transaction, body: By) -> int:
    tx.set(n, await tx.get(n) + body.by)
    return await tx.get(n)


@typed.query
async def value(view: Query) -> int:
    return await view.get(n)


async def test_it_has_the_typed_face() -> None:
    """A client calls operations by value, and names an address, because it has no class of its own."""
    async with MeshKit(typed, replicas=2) as kit:
        async with kit.connect() as client:
            assert await client.call(increase, By(2), to=Class("A")) == 2
            await client.send(increase, By(3), to=Database(1))
            await kit.advance(seconds=1)
            assert await client.gather(value) == {1: 5, 2: 0}
            assert len(await client.roster()) == 2
            assert (await client.books())["answered"] == 4
            with pytest.raises(UsageError, match="needs an address"):
                await client.call(increase, By(1))
            assert [(c.op, c.reply) for c in kit.committed] == [("typed.increase", 2), ("typed.increase", None)]


@pytest.fixture(params=["fake", "real"])
async def typed_kit(request: pytest.FixtureRequest) -> AsyncIterator[MeshKit]:
    """One replica with typed operations, over fakeredis and over a real server."""
    url = None if request.param == "fake" else request.getfixturevalue("server").url
    async with MeshKit(typed, redis=url, lease_ttl_ms=1000) as kit:
        yield kit


async def test_it_sends_for_later(typed_kit: MeshKit) -> None:
    """A send for a later time reaches a database that nobody holds yet, and a lost answer changes nothing."""
    kit = typed_kit
    async with kit.connect() as client:
        kit.lose_answers(2)
        await client.send(increase, By(1), to=Class("A"), after=timedelta(seconds=1))
        await client.send(increase, By(10), to=Class("A"), at=kit.now + timedelta(seconds=2))
        await client.send(increase, By(100), to=Database(2), after=timedelta(seconds=0.1))
        assert (await client.books())["waiting"] == 3
        assert await client.gather(value) == {1: 0}
        await kit.advance(seconds=4)
        assert (await client.gather(value), (await client.books())["waiting"]) == ({1: 11}, 0)
        await kit.start()
        await eventually(lambda: _shows(client, {1: 11, 2: 100}))
        assert kit.ran(increase) == 3


async def _shows(client: MeshClient, values: dict[int, int]) -> bool:
    return await client.gather(value) == values


async def test_it_takes_back_what_it_sent(typed_kit: MeshKit) -> None:
    """A client cancels what still waits; what is over stays done."""
    kit = typed_kit
    async with kit.connect() as client:
        waiting = await client.send(increase, By(1), to=Class("A"), after=timedelta(hours=1))
        done = await client.send(increase, By(2), to=Class("A"))
        await eventually(lambda: _shows(client, {1: 2}))
        assert [await client.cancel(ticket) for ticket in (waiting, waiting, done)] == [True, False, False]
        books = await client.books()
        assert (books["cancelled"], books["waiting"]) == (1, 0)
        with pytest.raises(UsageError, match="the Ticket that send"):
            await client.cancel("x")  # type: ignore[arg-type]


async def test_too_many_that_wait_are_refused() -> None:
    """A client gets the same error as a replica."""
    async with MeshKit(typed, later_bound=1) as kit:
        async with kit.connect() as client:
            later = timedelta(hours=1)
            await client.send(increase, By(1), to=Class("A"), after=later)
            with pytest.raises(Busy, match="too many requests wait"):
                await client.send(increase, By(1), to=Class("A"), after=later)
            with pytest.raises(NoReplica):
                await client.send(increase, By(1), to=Class("D"))
