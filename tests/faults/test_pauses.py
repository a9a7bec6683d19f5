"""Rows 5 to 9, 15, 29 and 35: processes that stop, start together, have a wrong clock, or block the loop."""

from __future__ import annotations

import asyncio
import signal
import time

from tests.support.faults.checkers import Broken
from tests.support.faults.matrix import Faults, row
from tests.support.faults.scenario import C, L, Member, Mesh


@row(5, "SIGSTOP for L/2")
async def test_row_05_a_short_sleep_costs_nobody_a_lease(faults: Faults) -> None:
    """No lease changes hands."""
    mesh = await faults.mesh()
    before = await mesh.epochs()
    async with mesh.load():
        for member in faults.chance.sample(mesh.members, 2):
            with member.paused():
                await asyncio.sleep(L / 2)
            faults.took(await mesh.recovered(2))
    if await mesh.epochs() != before:
        raise Broken(f"leases changed hands: {before} became {await mesh.epochs()}")
    await faults.check(mesh)


@row(6, "SIGSTOP for 2 L, then SIGCONT", selection=True)
async def test_row_06_a_sleeper_is_shut_out(faults: Faults) -> None:
    """No write or read of the stopped process succeeds; its database is leased again within 2 s."""
    mesh = await faults.mesh(5, MESH_DATABASES="4")
    sleeper = faults.chance.choice(await mesh.ready_members())
    held, pid = await mesh.holder_of(sleeper), sleeper.pid
    other = _other(mesh, sleeper)
    async with mesh.load(to=other.public):
        asked = mesh.tally(other, database=held.database, hold_ms=60_000, wait_ms=4 * L * 1000)
        await mesh.begun(asked)
        with sleeper.paused():
            began = time.monotonic()
            faults.took(max(0, await mesh.within(L + 2, lambda: _taken(mesh, held), "re-leased") - L))
            await _no_connection_of(mesh, held.replica)
            await asyncio.sleep(max(0, began + 2 * L - time.monotonic()))
        await mesh.within(2, lambda: _waits(mesh, sleeper), "the sleeper waits for a lease")
        await mesh.recovered(2 * L)
    if sleeper.pid != pid or sleeper.exits:
        raise Broken(f"the sleeper's process ended: {sleeper.exits}")
    await faults.check(mesh)


@row(6, "a write on its way while the lease passes to another (without ACL)", selection=True)
async def test_row_06_a_write_that_arrives_late_is_refused(faults: Faults) -> None:
    """No write of the stopped process succeeds, although only the commit itself checks the lease here."""
    mesh = await faults.mesh(5, MESH_DATABASES="4", MESH_ISOLATION="prefix")
    sleeper = faults.chance.choice(await mesh.ready_members())
    held = await mesh.holder_of(sleeper)
    async with mesh.load(to=_other(mesh, sleeper).public):
        sleeper.wire.black_hole_at(b"written-late")
        asked = asyncio.create_task(mesh.post(sleeper, "/tally/own", {"id": "written-late"}))
        faults.took(max(0, await mesh.within(L + 2, lambda: _taken(mesh, held), "re-leased") - L))
        sleeper.wire.restore()
        await mesh.recovered(2 * L)
        await asked
    if mesh.effects("written-late"):
        raise Broken("a former holder has written")
    mesh.history.samples.remove(asked.result())
    await faults.check(mesh)


def _other(mesh: Mesh, sleeper: Member) -> Member:
    """Return another replica: a stopped one cannot answer."""
    return next(member for member in mesh.members if member is not sleeper and member.was_ready)


async def _waits(mesh: Mesh, member: Member) -> bool:
    """Return whether a replica says that it has no lease."""
    answer = await mesh.client.get(f"{member.private}/readyz")
    return answer.status_code == 503 and "no lease yet" in answer.json()["detail"]


async def _taken(mesh: Mesh, held: object) -> bool:
    return (await mesh.epochs()).get(held.database, 0) > held.epoch


async def _no_connection_of(mesh: Mesh, replica: str) -> None:
    """Check that the server has closed all connections of the former holder. Raises Broken."""
    clients = await mesh.admin.client_list()
    left = [
        client["name"] for client in clients if client["name"].endswith(replica) and "applicant" not in client["name"]
    ]
    if left:
        raise Broken(f"the former holder is still connected: {left}")


async def _true(value: bool) -> bool:
    return value


@row(7, "SIGSTOP between compute and commit, taken over, SIGCONT", selection=True)
async def test_row_07_work_taken_over_has_one_effect(faults: Faults) -> None:
    """The request has one effect. The lease is long here, so only the ownership of the entry prevents a second one."""
    mesh = await faults.mesh(MESH_LEASE_TTL_MS="10000")
    asked = mesh.tally(mesh.members[2], cls="A", hold_ms=1000)
    worker = await mesh.begun(asked)
    with worker.paused():
        faults.took(await mesh.within(C + 1, lambda: _true(mesh.effects(asked.get_name()) == 1), "taken over"))
    await mesh.recovered(2)
    async with mesh.load():
        await asyncio.sleep(1.5)
    await asked
    if not asked.result().ok:
        raise Broken(f"the client got {asked.result()}")
    await faults.check(mesh)


@row(7, "a commit on its way while its request is taken over", selection=True)
async def test_row_07_a_commit_that_arrives_late_is_refused(faults: Faults) -> None:
    """The request has one effect, although its worker learns too late that another replica has claimed it."""
    mesh = await faults.mesh(3, classes="AAB", MESH_LEASE_TTL_MS="10000")
    asked = mesh.tally(mesh.members[2], cls="A", hold_ms=1000)
    worker = await mesh.begun(asked)
    worker.wire.black_hole_at(b"HINCRBY")
    faults.took(await mesh.within(C + 2, lambda: _true(asked.done()), "taken over"))
    worker.wire.restore()
    await mesh.recovered(L)
    if not asked.result().ok:
        raise Broken(f"the client got {asked.result()}")
    await faults.check(mesh)


@row(8, "SIGSTOP all for 2 L, then SIGCONT")
async def test_row_08_all_sleep_and_all_come_back(faults: Faults) -> None:
    """All replicas hold distinct databases within L + 2 s."""
    mesh = await faults.mesh()
    async with mesh.load():
        await asyncio.sleep(1)
    before, pids = await mesh.epochs(), [member.pid for member in mesh.members]
    for member in mesh.members:
        member.send(signal.SIGSTOP)
    await asyncio.sleep(2 * L)
    for member in mesh.members:
        member.send(signal.SIGCONT)

    async def all_anew() -> bool:
        after = await mesh.epochs()
        return min(after.values(), default=0) > max(before.values()) and await mesh.all_ready()

    faults.took(await mesh.within(L + 2, all_anew, "all hold databases"))
    if [member.pid for member in mesh.members] != pids:
        raise Broken("a process ended over a lost lease")
    async with mesh.load():
        await asyncio.sleep(1)
    await faults.check(mesh)


@row(9, "16 replicas start at once")
async def test_row_09_sixteen_start_together(faults: Faults) -> None:
    """Sixteen replicas hold distinct databases within 5 s after the last process is up."""
    mesh = await faults.mesh(16, classes="")
    faults.took(mesh.leased_s)
    if len(await mesh.epochs()) != 16:
        raise Broken(f"leased are {await mesh.epochs()}")
    await mesh.within(5, mesh.all_ready, "all hold databases", time.monotonic() - mesh.leased_s)
    async with mesh.load():
        await asyncio.sleep(2)
    await faults.check(mesh)


@row(15, "SIGSTOP Redis for 5 s")
async def test_row_15_a_sleeping_server(faults: Faults) -> None:
    """All replicas work within 2 s after SIGCONT."""
    mesh = await faults.mesh()
    async with mesh.load():
        await asyncio.sleep(1)
        mesh.server.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(5)
        mesh.server.process.send_signal(signal.SIGCONT)
        faults.took(await mesh.recovered(2))
    await faults.check(mesh)


@row(29, "a replica's clock is off by 60 s")
async def test_row_29_a_wrong_clock_changes_nothing(faults: Faults) -> None:
    """No lease changes hands, and all records expire on time."""
    mesh = await faults.mesh(2)
    await mesh.add(1, FAULTS_CLOCK_S="60", MESH_CLASS="A")
    await mesh.add(1, FAULTS_CLOCK_S="-60", MESH_CLASS="B")
    faults.took(await mesh.within(20, mesh.all_ready, "the two with wrong clocks are ready"))
    before = await mesh.epochs()
    for member in mesh.members[2:]:
        async with mesh.load(to=member.public):
            await asyncio.sleep(2.5)
    if await mesh.epochs() != before:
        raise Broken("leases changed hands")
    await faults.check(mesh)


@row(35, "a handler blocks the event loop for 2 L", selection=True)
async def test_row_35_a_blocked_loop_costs_no_lease(faults: Faults) -> None:
    """No process ends, no lease changes hands; the request has its effect once."""
    mesh = await faults.mesh()
    before, pids = await mesh.epochs(), {member.pid for member in mesh.members}
    asked = mesh.tally(mesh.members[2], cls="A", block_ms=2 * L * 1000, wait_ms=4 * L * 1000)
    blocked = await mesh.begun(asked)
    async with mesh.load(to=_other(mesh, blocked).public):
        await mesh.within(2 * L + 2, lambda: _true(asked.done()), "the request is answered")
        faults.took(await mesh.within(2 * L + 2, blocked.ready, "the blocked one is ready"))
    if await mesh.epochs() != before or {member.pid for member in mesh.members} != pids:
        raise Broken(f"leases changed hands: {before} became {await mesh.epochs()}")
    if not asked.result().ok:
        raise Broken(f"the client got {asked.result()}")
    await faults.check(mesh)
