"""The server's memory: stores are refused while reads and settlement still have room."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mesh import Busy, Class, Database, Mesh
from mesh.memory import Memory
from mesh.raw import Effects, Replica, Request, Store, Worker
from quart_app.app import why_not_ready
from tests.support.backend import Backend
from tests.support.nodes import applications
from tests.support.server import Server
from tests.support.waiting import eventually

worker = Worker()
#: Set when a handler has begun, and when it may end.
begun, may_end = asyncio.Event(), asyncio.Event()
#: When `memory.store` ran.
ran: list[float] = []


@worker.handles("memory.read", effect=False)
async def read(request: Request, store: Store, transaction: Effects) -> dict[str, Any]:
    return {"last": await store.get("memory:last"), "long": "x" * request.body.get("long", 0)}


@worker.handles("memory.store")
async def keep(request: Request, store: Store, transaction: Effects) -> dict[str, Any]:
    ran.append(time.monotonic())
    transaction.set("memory:last", request.body["text"])
    begun.set()
    if request.body.get("wait"):
        await may_end.wait()
    return {"stored": True}


@worker.handles("memory.remove")
async def remove(request: Request, store: Store, transaction: Effects) -> dict[str, Any]:
    begun.set()
    await may_end.wait()
    for change in request.body["changes"]:
        transaction.write(*change)
    return {"removed": True}


class Said:
    """A link to a server that answers INFO with these figures."""

    def __init__(self, used: int, limit: int) -> None:
        self.text = f"# Memory\r\nused_memory:{used}\r\nused_memory_human:x\r\nmaxmemory:{limit}\r\nmaxmemory_human:x"

    async def shared(self, *command: str) -> str:
        assert command == ("INFO", "memory", "stats")
        return self.text


async def looked(used: int, limit: int) -> Memory:
    link: Any = Said(used, limit)
    memory = Memory(link, 0.1)
    await memory._look()
    return memory


async def test_the_reserve_begins_before_the_limit() -> None:
    """The last tenth is kept for reads and settlement."""
    assert (await looked(800, 1000)).room == 100
    assert not (await looked(899, 1000)).is_full
    assert (await looked(900, 1000)).is_full
    assert (await looked(5000, 0)).room is None


async def test_what_was_stored_since_the_last_look_counts() -> None:
    """The server is asked twice a second, a request may store megabytes, and its commit may be under way at a look."""
    memory = await looked(800, 1000)
    memory.store(60)
    with pytest.raises(Busy, match="nothing new is stored, reads go on; retry after 5 s"):
        memory.store(40)
    memory.store(39)
    with pytest.raises(Busy):
        memory.store(1)
    await memory._look()
    with pytest.raises(Busy):
        memory.store(1)
    await memory._look()
    memory.store(99)


async def test_a_policy_that_deletes_keys_is_noticed_while_it_lasts(server: Server, mesh_of: Backend) -> None:
    """The policy was changed at run time; from then on no data may be acknowledged."""
    (one,) = await mesh_of(1, worker)
    app = applications()
    app.context.membership, app.reason = Mesh(one), ""
    with server.redis() as admin:
        assert why_not_ready(app) == ""
        admin.config_set("maxmemory-policy", "allkeys-lru")

        async def is_not_ready() -> bool:
            return "maxmemory-policy is allkeys-lru" in why_not_ready(app)

        await eventually(is_not_ready, 5)
        admin.config_set("maxmemory-policy", "noeviction")

        async def is_ready() -> bool:
            return why_not_ready(app) == ""

        await eventually(is_ready, 5)


async def test_deleted_keys_are_noticed_where_the_policy_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hosted server may hide its policy; the number of keys that it deleted tells."""
    said: Any = Said(0, 0)
    said.text += "\r\n# Stats\r\nevicted_keys:5\r\n"
    memory = Memory(said, 0.1)
    await memory._look()
    assert memory.eviction_reason == "", "they were deleted before this membership"
    said.text = said.text.replace("evicted_keys:5", "evicted_keys:7")
    await memory._look()
    assert "deletes keys to make room; set maxmemory-policy noeviction" in memory.eviction_reason
    await memory._look()
    assert memory.eviction_reason, "it is not over at the next look"
    monkeypatch.setattr("mesh.memory.EVICTING_S", 0.0)
    await memory._look()
    assert memory.eviction_reason == ""


async def test_a_server_that_does_not_say_has_no_limit(backend: Backend) -> None:
    """Nothing is refused; the membership goes on."""
    one = await backend.join(worker)
    one.memory.store(1 << 40)
    assert await one.call(Class(one.cls), "memory.store", {"text": "x"}) == {"stored": True}


async def test_a_replica_sees_a_full_server_and_its_end(server: Server, mesh_of: Backend) -> None:
    """The Redis user of the epoch may look; requests are still taken and settled within the reserve."""
    (one,) = await mesh_of(1, worker)
    with server.redis() as admin:
        admin.set("ballast", "x" * (50 << 20))

        async def full() -> bool:
            # What the server uses falls for a moment once the ballast is on disk.
            admin.config_set("maxmemory", int(int(admin.info("memory")["used_memory"]) * 1.06))
            return one.memory.is_full

        await eventually(full, 5)
        with pytest.raises(Busy, match="Redis is full"):
            one.memory.store()
        assert await one.call(Class(one.cls), "memory.store", {"text": "x"}) == {"stored": True}
        admin.config_set("maxmemory", 0)

        async def has_room() -> bool:
            return not one.memory.is_full

        await eventually(has_room, 5)
        one.memory.store(1 << 40)


@pytest.fixture
async def one(server: Server, mesh_of: Backend) -> AsyncIterator[Replica]:
    """A replica that has stored something; the server has its memory back afterwards."""
    begun.clear()
    may_end.clear()
    (replica,) = await mesh_of(1, worker)
    await replica.call(Class(replica.cls), "memory.store", {"text": "before"})
    yield replica
    with server.redis() as admin:
        admin.config_set("maxmemory", 0)


@contextlib.contextmanager
def full(server: Server) -> Any:
    """A server whose memory is really full, beyond all reserve."""
    with server.redis() as admin:
        admin.config_set("maxmemory", 1)
        yield admin
        admin.config_set("maxmemory", 0)


async def test_reads_are_answered_when_memory_is_really_full(one: Replica, server: Server) -> None:
    """Calls and gathers of operations without an effect; an answer may be as long as a part of a search."""
    with full(server):
        answer = await one.call(Class(one.cls), "memory.read", {"long": 100_000})
        assert (answer["last"], len(answer["long"])) == ("before", 100_000)
        assert [answer["last"] for answer in (await one.gather("memory.read", {})).values()] == ["before"]
        with pytest.raises(Busy, match="Redis is full"):
            await one.call(Class(one.cls), "memory.read", {"long": 1_000_000})


async def test_stores_are_refused_when_memory_is_really_full(one: Replica, server: Server) -> None:
    """Stores are refused before they are submitted, do not hold up others of the same turn, and work again later."""
    accepted = (await one.books())["accepted"]
    with full(server):
        asked = [
            one.call(Class(one.cls), op, {"text": "new"}) for op in ("memory.store", "memory.read", "memory.store")
        ]
        first, second, third = await asyncio.gather(*asked, return_exceptions=True)
        assert second == {"last": "before", "long": ""}
        assert isinstance(first, Busy) and isinstance(third, Busy)
        transaction = one.transaction()
        transaction.set("memory:last", "mine")
        with pytest.raises(Busy, match="Redis is full"):
            await one.commit(transaction)
    assert (await one.books())["accepted"] == accepted + 1, "only the read"
    assert (await one.call(Class(one.cls), "memory.read", {}))["last"] == "before"
    assert await one.call(Class(one.cls), "memory.store", {"text": "new"}) == {"stored": True}


async def test_a_commit_that_stores_is_refused_when_memory_has_become_full(one: Replica, server: Server) -> None:
    """Nothing of it is applied, the caller learns why, and the books balance. Such a commit never exceeds maxmemory."""
    asked = asyncio.create_task(one.call(Class(one.cls), "memory.store", {"text": "late", "wait": True}))
    await begun.wait()
    with full(server):
        may_end.set()
        with pytest.raises(Busy, match="nothing new is stored"):
            await asked
        assert await one.store().get("memory:last") == "before"
    books = await one.books()
    assert books["in_flight"] == books["dead"] == 0
    assert books["accepted"] == books["answered"]


async def test_what_nobody_waits_for_is_done_when_there_is_room(one: Replica, server: Server) -> None:
    """A request without a caller is no dead letter, however long it waits for room."""
    transaction = one.transaction()
    transaction.send(Class(one.cls), "memory.store", {"text": "late", "wait": True})
    await one.commit(transaction)
    await begun.wait()
    with full(server):
        may_end.set()
        await asyncio.sleep(2.5)
        assert await one.store().get("memory:last") == "before"

    async def done() -> bool:
        return await one.store().get("memory:last") == "late"

    await eventually(done, 5)
    assert (await one.books())["dead"] == 0


async def test_what_a_databases_stream_has_no_room_for_is_tried_once_a_second(one: Replica, server: Server) -> None:
    """No other replica can take it, so it stays here; it costs next to nothing meanwhile."""
    transaction = one.transaction()
    transaction.send(Database(one.database), "memory.store", {"text": "late", "wait": True})
    await one.commit(transaction)
    await begun.wait()
    ran.clear()
    with full(server):
        may_end.set()

        async def again() -> bool:
            return len(ran) >= 2

        await eventually(again, 10)
        assert ran[1] - ran[0] > 0.9

    async def done() -> bool:
        return await one.store().get("memory:last") == "late"

    await eventually(done, 5)


async def test_what_stores_no_more_than_it_removes_goes_on(one: Replica, server: Server) -> None:
    """A sweep may store some members again, and a deletion goes on. A commit that only adds is refused."""
    prepared = one.transaction()
    prepared.zadd("memory:due", {"12 13 14": 1, "15": 2})
    prepared.hset("memory:kept", {"a": "1", "b": "2"})
    await one.commit(prepared)
    changes = [["ZREM", "memory:due", "12 13 14", "15"], ["ZADD", "memory:due", 99, "12 13 14"]]
    changes += [["HDEL", "memory:kept", "a"], ["DEL", "memory:last"], ["PEXPIREAT", "memory:kept", 2**52]]
    removing = asyncio.create_task(one.call(Class(one.cls), "memory.remove", {"changes": changes}))
    growing = asyncio.create_task(one.call(Class(one.cls), "memory.remove", {"changes": [changes[1]]}))
    await begun.wait()
    await asyncio.sleep(0.2)
    with full(server):
        may_end.set()
        assert await removing == {"removed": True}
        with pytest.raises(Busy):
            await growing
        assert await one.store().zrangebyscore("memory:due", "-inf", "+inf", 9) == ["12 13 14"]


async def test_a_batch_does_not_take_the_memory_beyond_the_limit(one: Replica, server: Server) -> None:
    """The server itself compares only before a script begins. Short words take more memory when they are stored."""
    with server.redis() as admin:
        facts = admin.info("memory")
        admin.config_set("maxmemory", int(facts["used_memory"]) - int(facts["mem_not_counted_for_evict"]) + (2 << 20))
        large = one.transaction()
        large.set_until([f"memory:{n}" for n in range(15_000)], "x", 2**52)
        with pytest.raises(Busy, match="Redis is full"):
            await one.commit(large)
        with server.redis(one.database) as own:
            assert own.keys("*memory:1*") == []

        async def has_room() -> bool:
            # The server keeps the buffer of a large command for a moment.
            small = one.transaction()
            small.set("memory:last", "small")
            try:
                return await one.commit(small)
            except Busy:
                return False

        await eventually(has_room, 5)
