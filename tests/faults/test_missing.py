"""Rows 50 to 53: data without a replica. An answer is complete, or says that it is not."""

from __future__ import annotations

import asyncio
import signal
import time

from tests.support.faults.checkers import Broken
from tests.support.faults.completeness import Watch
from tests.support.faults.matrix import Faults, row
from tests.support.faults.scenario import L, Member, Mesh

#: What the rows set for `MESH_MISSING_MS`, in seconds.
MISSING_S = 6.0


async def _watched(mesh: Mesh) -> Watch:
    """Return a watch whose values are in a database of each class."""
    watch = Watch(mesh)
    await watch.store("".join(sorted({holder.cls for holder in await mesh.holders()})))
    return watch


async def _expect(watch: Watch, *kinds: str) -> None:
    for kind in kinds:
        if not watch.seen[kind]:
            raise Broken(f"no answer was of the kind {kind!r}: {watch.says()}")


def _stop(member: Member, number: int = signal.SIGKILL) -> None:
    """End a process without a successor."""
    member.supervised = False
    member.send(number)


@row(50, "Redis away for 8 s, replicas untouched")
async def test_row_50_after_redis_was_away_no_answer_lacks_data_silently(faults: Faults) -> None:
    """All leases have ended; from the first grant on, GETs are refused until each replica is back."""
    mesh = await faults.mesh(options=("--appendfsync", "always"))
    watch = await _watched(mesh)
    async with mesh.load(), watch.running():
        await asyncio.sleep(0.5)
        mesh.server.kill()
        await asyncio.sleep(8)
        await asyncio.to_thread(mesh.server.start)
        faults.took(await mesh.within(L + 3, watch.everything, "all values are shown"))
    faults.note(watch.says())
    await faults.check(mesh)


@row(51, "cold start with one replica late")
async def test_row_51_a_mesh_that_starts_waits_for_its_data(faults: Faults) -> None:
    """Everything was killed. While one replica is not up yet GETs are 503, then answers say what they lack."""
    mesh = await faults.mesh(
        classes="ABCD", options=("--appendfsync", "always"), MESH_MISSING_MS=str(int(MISSING_S * 1000))
    )
    watch = await _watched(mesh)
    late = mesh.members[-1]
    for member in mesh.members:
        _stop(member)
    mesh.server.kill()
    await asyncio.sleep(MISSING_S + 2 * L)
    await asyncio.to_thread(mesh.server.start)
    async with watch.running():
        for member in mesh.members[:-1]:
            member.supervised = True
        await mesh.within(20, lambda: _says(mesh, watch, late), "answers name what they lack")
        late.supervised = True
        faults.took(await mesh.within(20, watch.everything, "all values are shown"))
    await _expect(watch, "refused", "says so", "complete")
    faults.note(watch.says())
    await faults.check(mesh)


async def _says(mesh: Mesh, watch: Watch, without: Member) -> bool:
    """Return whether all other replicas give answers that name a database."""
    samples = [sample for sample in await watch.look() if not sample.path.startswith(without.public)]
    return all(sample.ok and sample.left_out for sample in samples)


@row(52, "kill -9 of the only replica of a class, slow restart", selection=True)
async def test_row_52_a_class_that_is_away_for_a_while_is_missing_and_not_unknown(faults: Faults) -> None:
    """GET and POST are 503 with Retry-After, then GET says what it lacks and POST is 404; then all is back."""
    mesh = await faults.mesh(3, classes="AAB", MESH_MISSING_MS=str(int(MISSING_S * 1000)))
    watch = await _watched(mesh)
    victim, one = mesh.members[2], mesh.members[0]
    item = {"value": 6, "ttl": 600, "cls": "B"}
    statuses: list[int] = []
    async with watch.running():
        _stop(victim)
        killed = time.monotonic()
        while not statuses or statuses[-1] != 404:
            if time.monotonic() - killed > L + MISSING_S + 5:
                raise Broken(f"no 404: {statuses}")
            classes = (await mesh.client.get(f"{one.public}/classes")).json()
            statuses.append((await mesh.post(one, "/values", [item])).status)
            if "B" not in classes and statuses[-1] != 404:
                raise Broken(f"GET /classes says {classes}, and then POST {statuses[-1]}")
        faults.note(f"404 after {time.monotonic() - killed:.1f} s")
        if not MISSING_S <= time.monotonic() - killed <= MISSING_S + L + 1:
            raise Broken(f"404 after {time.monotonic() - killed:.1f} s")
        await mesh.within(L, lambda: _says(mesh, watch, victim), "answers name what they lack")
        victim.supervised = True
        faults.took(await mesh.within(20, watch.everything, "all values are shown"))
        if not (await mesh.post(one, "/values", [item])).ok:
            raise Broken("the class is back, and POST does not work")
    if set(statuses) != {503, 404} or sorted(statuses, reverse=True) != statuses:
        raise Broken(f"POST had the statuses {statuses}")
    await _expect(watch, "refused", "says so", "complete")
    faults.note(watch.says())
    await faults.check(mesh)


@row(53, "scale down by one")
async def test_row_53_scaling_down_loses_no_request_and_the_answers_say_what_they_lack(faults: Faults) -> None:
    """No request fails; when no successor has come, GETs name the database."""
    mesh = await faults.mesh(classes="ABCD")
    watch = await _watched(mesh)
    leaver = mesh.members[1]
    async with mesh.load() as history:
        async with watch.running():
            await asyncio.sleep(0.5)
            watch.seen.clear()
            _stop(leaver, signal.SIGTERM)
            faults.took(await mesh.within(L + 8, lambda: _says(mesh, watch, leaver), "answers name what they lack"))
            if watch.seen["refused"]:
                # The leaver itself says 503 when it is asked directly while it drains; Caddy no longer asks it.
                faults.note(f"refused: {watch.seen['refused']}")
        wrong = {sample.status for sample in history.samples if sample.path.startswith("/values/")} - {200}
    if wrong:
        raise Broken(f"GETs had the statuses {wrong} too")
    leaver.supervised = True
    await mesh.within(20, watch.everything, "all values are shown")
    faults.note(watch.says())
    await faults.check(mesh)
