"""Rows 1 to 4, 10, 22 and 35: replicas that die or leave, and handlers that try to make them."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

from mesh import keys
from tests.support import mistakes
from tests.support.faults.checkers import Broken
from tests.support.faults.matrix import Faults, row
from tests.support.faults.scenario import C, D, L, Member, Mesh


async def done(task: asyncio.Task[Any]) -> bool:
    return task.done()


@row(1, "kill -9 a worker in the middle of a request", selection=True)
async def test_row_01_a_dead_workers_request_is_done_by_another(faults: Faults) -> None:
    """Another replica does the work within C + 1 s."""
    mesh = await faults.mesh(classes="AABB")
    async with mesh.load():
        asked = mesh.tally(mesh.members[2], cls="A", hold_ms=60_000, wait_ms=20_000)
        worker = await mesh.begun(asked)
        worker.kill()
        faults.took(await mesh.within(C + 1, lambda: done(asked), "another has done it"))
        await mesh.recovered(2 * L)
    if not asked.result().ok:
        raise Broken(f"the client got {asked.result()}")
    await faults.check(mesh)


@row(2, "kill -9 right after the grant of a lease")
async def test_row_02_a_database_whose_holder_died_at_once_is_granted_again(faults: Faults) -> None:
    """The database is granted again within L + 1 s."""
    mesh = await faults.mesh(3, MESH_DATABASES="4")
    known = await mesh.epochs()
    async with mesh.load():
        await mesh.add(2)

        async def granted() -> bool:
            return len(await mesh.holders()) == 4

        await mesh.within(20, granted, "the fourth database is granted")
        (new,) = [holder for holder in await mesh.holders() if holder.database not in known]
        victim = mesh.member(new.pid)
        victim.supervised = False
        victim.kill()
        killed = time.monotonic()

        async def granted_again() -> bool:
            return (await mesh.epochs()).get(new.database, 0) > new.epoch

        faults.took(await mesh.within(L + 1, granted_again, "the database is granted again", killed))
        mesh.members.remove(victim)
    await faults.check(mesh)


@row(3, "kill -9 the replica whose HTTP requests wait")
async def test_row_03_whoever_waits_at_a_dead_replica_is_answered_by_the_balancer(faults: Faults) -> None:
    """Every client gets an answer from Caddy, and the dead replica's reply stream is gone after its ttl."""
    mesh = await faults.mesh(classes="ABAB")
    victim = faults.chance.choice(mesh.members)
    replies = keys.replies((await mesh.holder_of(victim)).replica)
    async with mesh.load(clients=16):
        waiting = [mesh.tally_anywhere(cls=cls, hold_ms=800, always=True) for cls in "AB" * 10]
        await mesh.within(D, lambda: _waits_at(mesh, victim), "requests wait at it")
        victim.kill()
        killed = time.monotonic()
        await asyncio.wait(waiting)
        faults.took(await mesh.recovered(2 * L, killed))
    with mesh.connect() as client:
        if client.pttl(replies) > 10 * L * 1000 - (time.monotonic() - killed) * 1000 + 1000:
            raise Broken("the reply stream of the dead replica does not expire")
    await mesh.within(10 * L + 1, lambda: _gone(mesh, replies), "its reply stream is gone", killed)
    await faults.check(mesh)


async def _waits_at(mesh: Mesh, member: Member) -> bool:
    metrics = (await mesh.client.get(f"{member.private}/metrics")).text
    return any(line.startswith("mesh_calls_waiting ") and float(line.split()[1]) > 3 for line in metrics.splitlines())


async def _gone(mesh: Mesh, key: str) -> bool:
    return not await mesh.admin.exists(key)


@row(4, "rolling SIGTERM of all replicas under load")
async def test_row_04_a_rolling_restart_fails_nobody(faults: Faults) -> None:
    """No client gets a 5xx, and each lease is free within 1 s after the time for the balancer."""
    mesh = await faults.mesh(classes="ABCD", DRAIN_MS="2000")
    async with mesh.load(clients=10) as history:
        for member in list(mesh.members):
            held = await mesh.holder_of(member)
            pid = member.pid
            member.send(signal.SIGTERM)
            began = time.monotonic() + 2

            async def free(held: Any = held) -> bool:
                return (await mesh.epochs()).get(held.database) != held.epoch

            faults.took(await mesh.within(1, free, "its lease is free", began))
            await mesh.within(5, lambda pid=pid, member=member: member.ended(pid), "its process has ended")
            await mesh.within(20, mesh.all_ready, "its successor is ready")
    failed = [sample for sample in history.samples if sample.status >= 500 or not sample.status]
    if failed:
        raise Broken(f"{len(failed)} answers failed: {failed[:3]}")
    if any(member.exits != [0] for member in mesh.members):
        raise Broken(f"exit statuses {[member.exits for member in mesh.members]}")
    await faults.check(mesh)


@row(10, "a 17th replica")
async def test_row_10_the_seventeenth_replica_waits_for_a_seat(faults: Faults) -> None:
    """The 17th is not ready and gets no requests; it takes over within L + 1 s after another dies."""
    mesh = await faults.mesh(17)
    ready = await mesh.ready_members()
    (spare,) = [member for member in mesh.members if member not in ready]
    async with mesh.load():
        await asyncio.sleep(1)
        if await _served(mesh, spare):
            raise Broken("the replica without a lease got requests")
        victim = faults.chance.choice(ready)
        victim.supervised = False
        victim.kill()
        faults.took(await mesh.within(L + 1, spare.ready, "the seventeenth has taken over"))
        mesh.members.remove(victim)
    await faults.check(mesh)


async def _served(mesh: Mesh, member: Member) -> bool:
    """Return whether a replica got any request except health checks."""
    metrics = (await mesh.client.get(f"{member.private}/metrics")).text
    counts = [line for line in metrics.splitlines() if line.startswith("mesh_http_requests_total{")]
    # The counts of failures begin at 0, before there is any request.
    return any(float(line.split()[-1]) for line in counts if "/values" in line or "/tally" in line)


@row(22, "a poison request that kills its worker")
async def test_row_22_a_poison_request_becomes_a_dead_letter(faults: Faults) -> None:
    """After 3 deliveries at most there is a dead letter, and the caller gets an answer."""
    mesh = await faults.mesh(classes="AAAB")
    asker = mesh.members[3]
    began = time.monotonic()
    asked = mesh.tally(asker, cls="A", poison=True, wait_ms=25_000)
    await mesh.within(25, lambda: done(asked), "the poison is answered")
    begins, answer = mesh.begins(asked.get_name()), asked.result()
    faults.took(time.monotonic() - began)
    faults.note(f"{len(begins)} deliveries")
    if len(begins) > 3:
        raise Broken(f"{len(begins)} deliveries")
    if answer.status != 503 or "given up" not in answer.answer["detail"]:
        raise Broken(f"the client got {answer}")
    if not await mesh.admin.xlen(keys.DEAD):
        raise Broken("there is no dead letter")
    await mesh.recovered(2 * L)
    async with mesh.load():
        await asyncio.sleep(1)
    mesh.patience_s = 26
    await faults.check(mesh)


@row(35, "a handler returns, raises or writes what it must not")
async def test_row_35_a_handlers_mistake_fails_its_own_request(faults: Faults) -> None:
    """Only the handler's own request fails, with a reason and without an effect; no process ends."""
    mesh = await faults.mesh(2, classes="AB")
    pids = [member.pid for member in mesh.members]
    async with mesh.load(clients=2, pause_s=0.1):
        for mistake in mistakes.NAMES:
            sample = await mesh.tally(mesh.members[1], cls="A", mistake=mistake, wait_ms=4000)
            status, says = (500, "sent") if mistake in mistakes.UNSENDABLE else (503, "given up")
            if sample.status != status or says not in sample.answer["detail"]:
                raise Broken(f"{mistake}: the client got {sample}")
            if mesh.effects(sample.asked["id"]):
                raise Broken(f"{mistake}: a request that failed has an effect")
    if [member.pid for member in mesh.members] != pids:
        raise Broken("a process has ended")
    faults.note(f"{len(mistakes.NAMES)} mistakes")
    await faults.check(mesh)
