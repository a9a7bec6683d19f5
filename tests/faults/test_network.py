"""Rows 11 to 14: faults of the network between replicas and Redis."""

from __future__ import annotations

import asyncio
import time

from tests.support.faults.checkers import Broken, TooLate
from tests.support.faults.matrix import Faults, row
from tests.support.faults.scenario import D, L, Member, Mesh


@row(11, "connections to Redis reset for 1 s; for 2 L")
async def test_row_11_connections_are_reset(faults: Faults) -> None:
    """All replicas work within 2 s after a short cut, and within L + 2 s after a long one."""
    mesh = await faults.mesh()
    before = await mesh.epochs()
    async with mesh.load():
        for away_s, bound_s in ((1, 2), (2 * L, L + 2)):
            for member in mesh.members:
                member.wire.cut()
            await asyncio.sleep(away_s)
            for member in mesh.members:
                member.wire.restore()
            faults.took(await mesh.recovered(bound_s))
            if away_s == 1 and await mesh.epochs() != before:
                raise Broken("a replica lost its lease in a second without Redis")
    await faults.check(mesh)


@row(12, "Redis unreachable without a reset (black hole) for 2 L")
async def test_row_12_a_replica_in_a_black_hole_stops_by_itself(faults: Faults) -> None:
    """The replica stops its work by itself before L."""
    mesh = await faults.mesh()
    victim, *others = faults.chance.sample(mesh.members, 4)
    pid = victim.pid
    async with mesh.load(to=others[0].public):
        began = time.monotonic()
        victim.wire.black_hole()
        faults.took(await mesh.within(L, lambda: _stopped(mesh, victim), "it has stopped by itself", began))
        await asyncio.sleep(max(0, began + 2 * L - time.monotonic()))
        victim.wire.restore()
        faults.took(await mesh.recovered(2))
    if victim.pid != pid:
        raise Broken("a process ended over a lost lease")
    await faults.check(mesh)


async def _stopped(mesh: Mesh, member: Member) -> bool:
    """Return whether a replica has ended its membership."""
    return "membership lost" in member.log.read_text()


@row(13, "replies of Redis swallowed after the command took effect", selection=True)
async def test_row_13_lost_replies_double_nothing(faults: Faults) -> None:
    """Each request has one effect."""
    mesh = await faults.mesh()
    async with mesh.load(clients=12):
        for member in mesh.members:
            member.wire.swallow(0.08)
        await asyncio.sleep(5)
        for member in mesh.members:
            member.wire.restore()
        faults.took(await mesh.recovered(L + 2))
    faults.note(f"{sum(member.wire.swallowed for member in mesh.members)} replies lost")
    await faults.check(mesh)


@row(13, "the reply that delivers a request swallowed", selection=True)
async def test_row_13_a_delivery_that_was_lost_is_looked_for(faults: Faults) -> None:
    """The holder handles the request: no other replica reads this stream, and `>` does not deliver it again."""
    mesh = await faults.mesh(2, classes="AB")
    worker, asker = mesh.members
    held = await mesh.holder_of(worker)
    id = f"undelivered-{faults.chance.randrange(1 << 48):012x}"
    worker.wire.lose(id.encode())
    asked = await mesh.post(asker, "/tally", {"id": id, "database": held.database})
    faults.took(asked.took_s)
    if worker.wire.swallowed != 1:
        raise Broken(f"{worker.wire.swallowed} replies were lost")
    if not asked.ok:
        raise Broken(f"the delivered request was never looked for: {asked.status} {asked.answer}")
    if asked.took_s > 1:
        raise TooLate(f"the delivered request was looked for after {asked.took_s:.2f} s")
    await faults.check(mesh)


@row(13, "the reply to a submission swallowed", selection=True)
async def test_row_13_a_submission_that_was_answered_in_vain_is_one(faults: Faults) -> None:
    """The batch is sent again, because the sender cannot know that it arrived; the second one changes nothing."""
    mesh = await faults.mesh(2, classes="AB")
    asker = faults.chance.choice(mesh.members)
    id = f"submitted-{faults.chance.randrange(1 << 48):012x}"
    asker.wire.lose(id.encode())
    asked = await mesh.post(asker, "/tally", {"id": id, "cls": faults.chance.choice("AB")})
    faults.took(asked.took_s)
    if asker.wire.swallowed != 1:
        raise Broken(f"{asker.wire.swallowed} replies were lost")
    if not asked.ok:
        raise Broken(f"the client got {asked.status} {asked.answer}")
    await faults.check(mesh)


@row(14, "200 ms jitter, bytes one at a time")
async def test_row_14_a_slow_and_crumbling_wire(faults: Faults) -> None:
    """No answer is wrong, and no replica loses its lease."""
    mesh = await faults.mesh(classes="ABCD")
    before = await mesh.epochs()
    async with mesh.load(clients=16):
        for member in mesh.members:
            member.wire.trickle(0.2)
        await asyncio.sleep(8)
        for member in mesh.members:
            member.wire.restore()
        faults.took(await mesh.recovered(D + L))
    if await mesh.epochs() != before:
        raise Broken("a replica lost its lease on a slow network")
    await faults.check(mesh)
