"""The server's memory: stores are refused while reads and settlement still have room."""

from __future__ import annotations

from typing import Any

import pytest

from mesh import Busy, Class
from mesh.memory import Memory
from mesh.raw import Effects, Request, Store, Worker
from tests.support.backend import Backend
from tests.support.members import Members
from tests.support.server import Server
from tests.support.waiting import eventually

worker = Worker()


@worker.handles("memory.echo")
async def echo(request: Request, store: Store, transaction: Effects) -> dict[str, Any]:
    transaction.set("memory:last", "x")
    return {"echo": True}


class Said:
    """A link to a server that says this."""

    def __init__(self, used: int, limit: int) -> None:
        self.text = f"# Memory\r\nused_memory:{used}\r\nused_memory_human:x\r\nmaxmemory:{limit}\r\nmaxmemory_human:x"

    async def shared(self, *command: str) -> str:
        assert command == ("INFO", "memory")
        return self.text


async def looked(used: int, limit: int) -> Memory:
    link: Any = Said(used, limit)
    memory = Memory(link, 0.1)
    await memory._look()
    return memory


async def test_the_reserve_begins_before_the_limit() -> None:
    """A tenth of it is left to those who give it back."""
    assert (await looked(800, 1000)).room == 100
    assert not (await looked(899, 1000)).is_full
    assert (await looked(900, 1000)).is_full
    assert (await looked(5000, 0)).room is None


async def test_what_was_stored_since_the_last_look_counts() -> None:
    """The server is asked twice a second, and a request may store megabytes."""
    memory = await looked(800, 1000)
    memory.store(60)
    with pytest.raises(Busy, match="nothing new is stored, reads go on; retry after 5 s"):
        memory.store(40)
    memory.store(39)
    with pytest.raises(Busy):
        memory.store(1)
    await memory._look()
    memory.store(99)


async def test_a_server_that_does_not_say_has_no_limit(backend: Backend) -> None:
    """Nothing is refused; the membership goes on."""
    one = await backend.join(worker)
    one.memory.store(1 << 40)
    assert await one.call(Class(one.cls), "memory.echo", {}) == {"echo": True}


async def test_a_replica_sees_a_full_server_and_its_end(server: Server, mesh_of: Members) -> None:
    """As the Redis user of its epoch; requests are still taken and settled within the reserve."""
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
        assert await one.call(Class(one.cls), "memory.echo", {}) == {"echo": True}
        admin.config_set("maxmemory", 0)

        async def has_room() -> bool:
            return not one.memory.is_full

        await eventually(has_room, 5)
        one.memory.store(1 << 40)
