"""Requests in lanes, with rates and with idempotency keys for the workers of `late`, and what must be true of them."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from datetime import timedelta

from mesh import keys
from tests.support.faults import later_worker
from tests.support.faults.checkers import Broken, TooLate
from tests.support.faults.late import LateMesh
from tests.support.faults.later_worker import PACE_MS, Mark, Step
from tests.support.server import Server

LANES = 6
#: Steps that are sent to each lane at once, so that most of them wait.
TOGETHER = 5


async def load(mesh: LateMesh, pause_s: float = 0.3) -> None:
    """Send requests, those of one lane in the order of their numbers, until cancelled."""
    numbers = itertools.count()
    while True:
        for number in itertools.islice(numbers, TOGETHER):
            for lane in range(LANES):
                await mesh.deliver(later_worker.step, Step(f"l{lane}", number))
                await mesh.deliver(later_worker.pace, Step(f"p{lane}", number))
            await _keyed(mesh, Mark(f"k{number}"))
        await asyncio.sleep(pause_s)


async def _keyed(mesh: LateMesh, body: Mark) -> None:
    """Let two handlers and the client send one mark with one key."""
    for _ in range(2):
        await mesh.deliver(later_worker.begin_keyed, body)
    await mesh.deliver(later_worker.mark, body, timedelta(milliseconds=300), key=body.text)


async def waiting(mesh: LateMesh, least: int = 2 * LANES) -> None:
    """Wait until so many requests wait for a place or their time. Raises TooLate."""
    with mesh.server.redis() as admin:
        for _ in range(1000):
            if await asyncio.to_thread(admin.zcard, keys.LATER) >= least:
                return
            await asyncio.sleep(0.01)
    raise TooLate(f"{least} requests wait: not within 10 s")


def judge(server: Server) -> str:
    """Check that lanes kept their order and rates their pace, and that nothing is left of them. Raises Broken."""
    with server.redis() as admin:
        astray = admin.hgetall("shared:late:astray")
        begun = {text: int(ms) for text, ms in admin.hgetall("shared:late:begun").items()}
        left = [key for name in ("mesh:lane*", "mesh:running:*") for key in admin.keys(name)]
        left += [key for key in admin.keys("mesh:once:*") if admin.hget(key, "state") == "open"]
    if astray:
        raise Broken(f"{len(astray)} steps are out of order: {dict(itertools.islice(astray.items(), 5))}")
    times = defaultdict(list)
    for text, ms in begun.items():
        times[text.partition(" ")[0]].append(ms)
    gaps = [last - first for lane in times.values() for first, last in itertools.pairwise(sorted(lane))]
    if gaps and min(gaps) < PACE_MS:
        fast = sum(gap < PACE_MS for gap in gaps)
        raise Broken(f"{fast} requests of a rate began less than {PACE_MS} ms after another one: {min(gaps)} ms")
    if left:
        raise Broken(f"{left} were left")
    return f"{len(begun)} paced requests"
