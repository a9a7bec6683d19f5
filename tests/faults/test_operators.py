"""Rows 54 and 55: what operators do and look at while replicas and Redis die."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from typing import Any

import httpx

from mesh import keys
from mesh.dead.letters import REPLAY
from tests.support.faults.checkers import Broken, Data
from tests.support.faults.matrix import Faults, row
from tests.support.faults.scenario import C, D, L, Member, Mesh

LETTERS = 1000
PASSWORD = "correct horse"


def bury(mesh: Mesh, prefix: str) -> str:
    """Add dead letters of tallies with one reason; return the id of the newest."""
    with mesh.connect() as client, client.pipeline(transaction=True) as pipeline:
        for name in ("accepted", "dead"):
            pipeline.hincrby(keys.BOOKS, name, LETTERS)
        for number in range(LETTERS):
            tally = {"hold_ms": 0, "block_ms": 0, "keys": 0, "poison": False, "mistake": "", "always": False}
            body = {"id": f"{prefix}-{number}", **tally}
            pipeline.xadd(
                keys.DEAD,
                {
                    "kind": "request", "stream": keys.class_requests("A"), "id": "1-0", "reason": prefix,
                    "deliveries": "3", "op": "tally.add", "request": "r", "from": "nobody",
                    "reply_to": "mesh:replies:nobody", "deadline": "1", "body": json.dumps(body),
                },
            )  # fmt: skip
        return str(pipeline.execute()[-1])


async def replay(mesh: Mesh, member: Member, newest: str) -> dict[str, Any] | None:
    """Replay a group over a replica; return what it did, or None where there was no answer."""
    with contextlib.suppress(httpx.TransportError):
        answer = await mesh.client.post(
            f"{member.private}/mesh/acts/replay", json={"like": newest}, auth=("operator", PASSWORD), timeout=10
        )
        if answer.status_code == 200:
            found: dict[str, Any] = answer.json()
            return found
    return None


@row(54, "kill -9 the replica that replays dead letters: before, in the middle, after; its answer lost", selection=True)
async def test_row_54_a_replay_that_ends_half_way_happens_once(faults: Faults) -> None:
    """Each letter takes effect exactly once, however often and over whichever replica the replay is repeated."""
    mesh = await faults.mesh(3, classes="AAB", PAGE_PASSWORD=PASSWORD)
    other, _, acting = mesh.members
    for when in ("before", "middle", "after", "lost"):
        newest = bury(mesh, when)
        if when == "lost":
            acting.wire.lose(REPLAY.sha.encode())
        first = asyncio.create_task(replay(mesh, acting, newest))
        if when == "before":
            await asyncio.sleep(0)
        if when == "middle":
            while await mesh.admin.xlen(keys.DEAD) == LETTERS:
                await asyncio.sleep(0)
        if when in ("after", "lost"):
            await first
        if when != "lost":
            acting.kill()
        left = await mesh.admin.xlen(keys.DEAD)
        faults.note(f"{when}: {LETTERS - left} of {LETTERS} replayed at the end")
        if when == "lost" and (left == LETTERS or acting.wire.swallowed != 1):
            raise Broken(f"{left} letters were left, {acting.wire.swallowed} answers were lost")
        for _ in range(2):
            await replay(mesh, other, newest)
        await first
        faults.took(await mesh.within(D + C, mesh.settled, f"all letters are done ({when})"))
        await mesh.within(30, mesh.all_ready, "the killed replica is back")
        effects = Data(mesh.connect).effects
        wrong = {effects[f"{when}-{number}"] for number in range(LETTERS)} - {1}
        if wrong:
            raise Broken(f"a replayed letter took effect {max(wrong)} times ({when})")
        if await mesh.admin.xlen(keys.DEAD):
            raise Broken(f"letters were left ({when})")
    await faults.check(mesh)


@row(55, "live pages are open while replicas are killed and Redis restarts")
async def test_row_55_open_pages_cost_nobody_an_answer(faults: Faults) -> None:
    """The mesh recovers as without them, and each page has news again from a replica that lives."""
    mesh = await faults.mesh(classes="AABB")
    async with mesh.load(), httpx.AsyncClient(timeout=None) as client:
        pages = [asyncio.create_task(follow(client, member)) for member in mesh.members for _ in range(3)]
        await asyncio.sleep(2)
        mesh.members[0].kill()
        mesh.members[1].send(signal.SIGTERM)
        await asyncio.sleep(1)
        mesh.server.kill()
        mesh.server.start()
        faults.took(await mesh.recovered(3 * L))
        heard = [page for page in pages if not page.done()]
        before = [ticks[0] for ticks in TICKS.values()]
        await asyncio.sleep(3)
        if not any(ticks[0] > count for ticks, count in zip(TICKS.values(), before, strict=True)):
            raise Broken("no page has news after Redis is back")
        faults.note(f"{len(heard)} of {len(pages)} pages stayed connected")
        for page in pages:
            page.cancel()
        await asyncio.wait(pages)
    await faults.check(mesh)


#: Number of events that each page has got.
TICKS: dict[int, list[int]] = {}


async def follow(client: httpx.AsyncClient, member: Member) -> None:
    """Follow the overview of a replica until it ends, and count its events."""
    ticks = TICKS[len(TICKS)] = [0]
    with contextlib.suppress(httpx.TransportError):
        async with client.stream("GET", f"{member.private}/mesh/events/overview") as answer:
            async for line in answer.aiter_lines():
                ticks[0] += line.startswith("event: sections")
