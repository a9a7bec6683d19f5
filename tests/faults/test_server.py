"""Rows 16 to 21 and 36: a Redis that dies, loses its data, loads, is full, or refuses commands for a while."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator

import redis.asyncio
from redis import exceptions as redis_errors

from mesh import keys
from quart_app.local.ports import free_port
from tests.support.faults.checkers import Broken
from tests.support.faults.matrix import Faults, row
from tests.support.faults.scenario import L, Member, Mesh

#: Options that make loading slow: microseconds for each key, and how often it serves other events meanwhile.
SLOW = ("--key-load-delay", "150", "--loading-process-events-interval-bytes", "1024")


@row(16, "kill -9 Redis with appendfsync always, restart")
async def test_row_16_a_killed_server_comes_back_with_everything(faults: Faults) -> None:
    """All databases are granted again within L + 3 s, and no confirmed request is lost."""
    mesh = await faults.mesh(options=("--appendfsync", "always"))
    before = await mesh.epochs()
    async with mesh.load():
        await asyncio.sleep(1)
        mesh.server.kill()
        await asyncio.sleep(faults.chance.uniform(0, 1))
        await asyncio.to_thread(mesh.server.start)
        faults.took(await mesh.recovered(L + 3))
    _all_higher(before, await mesh.epochs())
    await faults.check(mesh)


def _all_higher(before: dict[int, int], after: dict[int, int]) -> None:
    if min(after.values()) <= max(before.values()):
        raise Broken(f"an epoch was used again: {before}, then {after}")


@row(17, "Redis restarts empty")
async def test_row_17_an_empty_server_is_noticed(faults: Faults) -> None:
    """Each replica logs that it lost its lease, and no epoch is used again."""
    mesh = await faults.mesh()
    before = await mesh.epochs()
    async with mesh.load():
        await asyncio.sleep(1)
        mesh.server.kill()
        shutil.rmtree(mesh.server.folder)
        mesh.server.folder.mkdir()
        await asyncio.to_thread(mesh.server.start)
        began = time.monotonic()
        faults.took(await mesh.recovered(L + 3, began))
    _all_higher(before, await mesh.epochs())
    if any("[error" not in member.log.read_text() for member in mesh.members):
        raise Broken("a replica lost its lease and did not log it")
    await faults.check(mesh, lost_until=began + L + 3)


@row(18, "Redis answers -LOADING for 5 s")
async def test_row_18_a_loading_server_means_503_only(faults: Faults) -> None:
    """Clients get 503 only; the mesh is back within 2 s. The server is killed and then loads slowly."""
    mesh = await faults.mesh(options=("--aof-use-rdb-preamble", "no", "--appendfsync", "always"))
    with mesh.connect() as client, client.pipeline(transaction=False) as pipeline:
        for _ in range(20_000):
            pipeline.incr("shared:ballast")
        pipeline.execute()
    async with mesh.load() as history:
        await asyncio.sleep(1)
        mesh.server.kill()
        mesh.server.options += SLOW
        loading_s = await asyncio.to_thread(_loaded, mesh)
        faults.note(f"loading for {loading_s:.1f} s")
        faults.took(await mesh.recovered(2))
    wrong = {sample.status for sample in history.samples} - {200, 503}
    if wrong:
        raise Broken(f"answers had the statuses {wrong} too: {history.says()}")
    await faults.check(mesh)


def _loaded(mesh: Mesh) -> float:
    """Start the server and return the seconds during which it said that it was loading."""
    began = time.monotonic()
    mesh.server.start()
    return time.monotonic() - began


@row(19, "FLUSHALL, DEL of a stream, XGROUP DESTROY under load", selection=True)
async def test_row_19_vanished_streams_are_made_anew(faults: Faults) -> None:
    """Consumers work again within 1 s."""
    mesh = await faults.mesh()
    databases = list(await mesh.epochs())
    async with mesh.load():
        for harm in faults.chance.sample(("flush", "delete", "destroy"), 3):
            await asyncio.sleep(0.5)
            streams = [keys.class_requests("A"), keys.database_requests(databases[0])]
            if harm == "flush":
                await mesh.admin.flushall()
            for stream in streams if harm == "delete" else ():
                await mesh.admin.delete(stream)
            for stream in streams if harm == "destroy" else ():
                with contextlib.suppress(redis_errors.ResponseError):
                    await mesh.admin.xgroup_destroy(stream, keys.GROUP)
            harmed = time.monotonic()
            faults.took(await mesh.recovered(1, harmed))
    ended = time.monotonic()
    async with mesh.load():
        await asyncio.sleep(1)
    await faults.check(mesh, lost_until=ended)


@row(20, "maxmemory reached")
async def test_row_20_a_full_server_stores_nothing_and_answers_all(faults: Faults) -> None:
    """New work gets 503, as does accepted work that would store something; reads go on, and no replica restarts."""
    mesh = await faults.mesh()
    before, pids = await mesh.epochs(), [member.pid for member in mesh.members]
    async with mesh.load():
        begun = [mesh.tally_anywhere(cls=cls, hold_ms=1500) for cls in "AB"]
        for task in begun:
            await mesh.begun(task)
        await mesh.admin.config_set("maxmemory", "1mb")
        full = time.monotonic()
        refused = [await mesh.post(member, "/tally", {"id": "new", "cls": "A"}) for member in mesh.members]
        await asyncio.wait(begun)
        reads = [(await mesh.client.get(f"{member.public}/values/3")).status_code for member in mesh.members]
        await asyncio.sleep(L)
        await mesh.admin.config_set("maxmemory", "0")
        faults.took(await mesh.recovered(1))
    faults.note(f"full for {time.monotonic() - full:.1f} s")
    if any(sample.status != 503 for sample in refused):
        raise Broken(f"new work got the statuses {[sample.status for sample in refused]}")
    if any(task.result().status != 503 for task in begun):
        raise Broken(f"work that would exceed maxmemory got {[task.result().status for task in begun]}")
    if set(reads) != {200}:
        raise Broken(f"reads got the statuses {reads}")
    if await mesh.epochs() != before or [member.pid for member in mesh.members] != pids:
        raise Broken("a replica restarted")
    await faults.check(mesh)


@row(20, "one commit that is larger than the rest of the memory")
async def test_row_20_no_commit_exceeds_maxmemory(faults: Faults) -> None:
    """The commit is refused, though the server compares its memory with the limit only before a script begins."""
    mesh = await faults.mesh(2, classes="AB")
    limit = await _used(mesh) + (2 << 20)
    await mesh.admin.config_set("maxmemory", limit)
    large = await mesh.tally(mesh.members[0], cls="A", keys=15_000)
    used = await _used(mesh)
    await mesh.admin.config_set("maxmemory", "0")
    faults.took(await mesh.recovered(2))
    if large.status != 503 or used > limit:
        raise Broken(f"a commit beyond maxmemory got {large.status}, and {used} of {limit} bytes are used")
    await faults.check(mesh)


async def _used(mesh: Mesh) -> int:
    """Return the memory that the server compares with its limit."""
    facts = await mesh.admin.info("memory")
    return int(facts["used_memory"]) - int(facts["mem_not_counted_for_evict"])


@row(21, "-READONLY for a while (REPLICAOF)")
async def test_row_21_a_server_without_writes(faults: Faults) -> None:
    """The mesh is back within 2 s, after a short time without writes and after more than a lease."""
    mesh = await faults.mesh()
    async with mesh.load():
        for away_s in (L / 2, 2 * L):
            await mesh.admin.replicaof("127.0.0.1", free_port())
            await asyncio.sleep(away_s)
            await mesh.admin.replicaof("NO", "ONE")
            faults.took(await mesh.recovered(2))
    await faults.check(mesh)


class Refusals:
    """Lets the server answer every write, or every command, with an error."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._admin = mesh.admin

    @contextlib.asynccontextmanager
    async def no_replicas(self) -> AsyncIterator[None]:
        """NOREPLICAS."""
        await self._admin.config_set("min-replicas-to-write", 1)
        yield
        await self._admin.config_set("min-replicas-to-write", 0)

    @contextlib.asynccontextmanager
    async def cannot_save(self) -> AsyncIterator[None]:
        """MISCONF: a snapshot cannot be written, because a folder has its name."""
        await self._admin.config_set("stop-writes-on-bgsave-error", "no")
        await self._admin.config_set("save", "3600 1")
        (self._mesh.server.folder / "dump.rdb").mkdir(exist_ok=True)
        with contextlib.suppress(redis_errors.ResponseError):
            await self._admin.execute_command("BGSAVE")
        while (await self._admin.info("persistence"))["rdb_last_bgsave_status"] != "err":
            await asyncio.sleep(0.02)
        await self._admin.config_set("stop-writes-on-bgsave-error", "yes")
        yield
        await self._admin.config_set("stop-writes-on-bgsave-error", "no")

    @contextlib.asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """BUSY: a script of somebody else does not end."""
        await self._admin.config_set("busy-reply-threshold", 10)
        other = redis.asyncio.Redis(port=self._mesh.server.port, socket_timeout=60)
        endless = asyncio.create_task(other.execute_command("EVAL", "while true do end", "0"))
        await asyncio.sleep(0.1)
        yield
        await self._admin.execute_command("SCRIPT", "KILL")
        with contextlib.suppress(redis_errors.ResponseError):
            await endless
        await other.aclose()


@row(36, "NOREPLICAS, MISCONF and BUSY for 0.3 s, 2 s and 2 L")
async def test_row_36_a_refusal_that_passes_costs_no_process(faults: Faults) -> None:
    """Clients get nothing but 503, the mesh works again within 2 s, and no process restarts."""
    mesh = await faults.mesh()
    refusals = Refusals(mesh)
    async with mesh.load() as history:
        for refusing in (refusals.no_replicas, refusals.cannot_save, refusals.busy):
            for seconds in (0.3, 2, 2 * L):
                async with refusing():
                    await asyncio.sleep(seconds)
                faults.took(await mesh.recovered(2))
    wrong = {sample.status for sample in history.samples} - {200, 503}
    if wrong:
        raise Broken(f"answers had the statuses {wrong} too: {history.says()}")
    if any(member.exits for member in mesh.members):
        raise Broken(f"processes ended: {[member.exits for member in mesh.members]}")
    await faults.check(mesh)


@row(36, "NOREPLICAS while a replica starts", selection=True)
async def test_row_36_a_refusal_at_the_start_is_waited_out(faults: Faults) -> None:
    """Ready within 2 s after the server takes writes again; no process restarts."""
    mesh = await faults.mesh(2)
    async with Refusals(mesh).no_replicas():
        (member,) = await mesh.add(1)
        await mesh.within(20, lambda: _waits_for(mesh, member, "NOREPLICAS"), "the new replica says why it waits")
    faults.took(await mesh.recovered(2))
    if any(member.exits for member in mesh.members):
        raise Broken(f"processes ended: {[member.exits for member in mesh.members]}")
    await faults.check(mesh)


async def _waits_for(mesh: Mesh, member: Member, reason: str) -> bool:
    if await mesh.status(f"{member.private}/readyz") != 503:
        return False
    return reason in (await mesh.client.get(f"{member.private}/readyz")).text
