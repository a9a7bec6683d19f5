"""Acts on a running mesh."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mesh import Cancelled, Class, Database, Paused, Refused, keys
from mesh.control.control import Control
from mesh.dead.letters import Actor
from mesh.raw import Body, Effects, Replica, Request, Store, Worker
from tests.support.backend import Backend

ACTOR = Actor("operator", "192.0.2.1")


def counting(done: list[str], gate: asyncio.Event | None = None) -> Worker:
    worker = Worker()

    @worker.handles("count.put")
    async def put(request: Request, store: Store, transaction: Effects) -> Body:
        done.append(request.id)
        if gate is not None:
            await gate.wait()
        transaction.incrby("count", 1)
        return {}

    return worker


def control(backend: Backend, one: Replica) -> Control:
    return Control(backend.redis(), one.settings)


async def told(one: Replica, *paused: str) -> None:
    """Wait until a replica knows which operations are paused."""
    async with asyncio.timeout(10):
        while one._lease.paused_ops != frozenset(paused):
            await asyncio.sleep(0.01)


async def audited(backend: Backend) -> list[str]:
    redis: Any = backend.redis()
    return [entry["event"] for _, entry in await redis.xrange(keys.AUDIT)]


async def test_a_paused_operation_refuses_calls(backend: Backend) -> None:
    """Calls to a class and to a database are refused. Other operations go on, and so does this one afterwards."""
    done: list[str] = []
    one = await backend.join(counting(done))
    acts = control(backend, one)
    assert await acts.pause("count.put", ACTOR)
    assert await audited(backend) == ["operation paused"], "what changes nothing is not told"
    assert not await acts.pause("count.put", ACTOR)
    (paused,) = await acts.paused()
    assert (paused.op, paused.actor) == ("count.put", "operator") and paused.since_ms > 0
    await told(one, "count.put")
    for to in (Class(one.cls), Database(one.database)):
        with pytest.raises(Paused, match="is paused by an operator") as caught:
            await one.call(to, "count.put", {})
        assert caught.value.retry_after == 5
    assert done == []
    assert await acts.resume("count.put", ACTOR)
    assert await audited(backend) == ["operation paused", "operation resumed"]
    assert not await acts.resume("count.put", ACTOR)
    await told(one)
    await one.call(Class(one.cls), "count.put", {})
    assert len(done) == 1
    assert await audited(backend) == ["operation paused", "operation resumed"]


async def test_a_request_in_hand_is_cancelled_without_an_effect(backend: Backend) -> None:
    """Its caller is told, the books balance, and the handler that goes on commits nothing."""
    done: list[str] = []
    gate = asyncio.Event()
    one = await backend.join(counting(done, gate))
    acts = control(backend, one)
    asked = asyncio.create_task(one.call(Class(one.cls), "count.put", {}))
    async with asyncio.timeout(5):
        while not done:
            await asyncio.sleep(0.01)
    assert await acts.cancel(done[0], ACTOR) == (keys.class_requests(one.cls), "count.put")
    with pytest.raises(Cancelled, match="an operator cancelled"):
        await asked
    gate.set()
    await asyncio.sleep(0.5)
    assert await acts.cancel(done[0], ACTOR) is None
    books = await one.books()
    assert (books["accepted"], books["cancelled"], books["in_flight"]) == (1, 1, 0)
    assert await backend.redis(one.database).get(f"{keys.own(one.database)}count") is None
    assert await audited(backend) == ["request cancelled"]


async def test_a_replica_acts_with_the_rights_of_its_own_user(mesh_of: Backend) -> None:
    """A replica can act on others: the page's acts run over the client of the replica that serves it."""
    one, two = await mesh_of(2, counting([]))
    acts = Control(one.shared, one.settings)
    heard: list[str] = []
    two.on_drain(lambda: heard.append("drain"))
    async with asyncio.timeout(5):
        while {member.state for member in await one.roster()} != {"ready"}:
            await asyncio.sleep(0.01)
    assert await acts.pause("count.put", ACTOR) and await acts.resume("count.put", ACTOR)
    assert await acts.cancel("1-0", ACTOR) is None
    assert await acts.drain(two.id, ACTOR)
    async with asyncio.timeout(5):
        while not heard:
            await asyncio.sleep(0.01)


async def test_a_replica_is_asked_to_drain(backend: Backend) -> None:
    """The replica learns of it once, with its next renewal. For a name that no replica has, `drain` returns False."""
    one = await backend.join()
    acts = control(backend, one)
    heard: list[str] = []
    one.on_drain(lambda: heard.append("drain"))
    async with asyncio.timeout(5):
        while (await one.roster())[0].state != "ready":
            await asyncio.sleep(0.01)
    assert not await acts.drain("replica-nobody", ACTOR)
    assert await acts.drain(one.id, ACTOR)
    async with asyncio.timeout(5):
        while not heard:
            await asyncio.sleep(0.01)
    await asyncio.sleep(1.2)
    assert heard == ["drain"]
    one.drain()
    async with asyncio.timeout(5):
        while (await one.roster())[0].state != "draining":
            await asyncio.sleep(0.01)
    assert not await acts.drain(one.id, ACTOR)
    assert await audited(backend) == ["replica asked to drain"]


@pytest.mark.parametrize("op", ["", "x" * 201, "a\nb"])
async def test_what_is_no_operation_is_not_paused(backend: Backend, op: str) -> None:
    """A name that is no operation is refused, and nothing is written."""
    one = await backend.join()
    with pytest.raises(Refused, match="not the name of an operation"):
        await control(backend, one).pause(op, ACTOR)
    with pytest.raises(Refused, match="not the id of a request"):
        await control(backend, one).cancel(op, ACTOR)
    assert await audited(backend) == []
