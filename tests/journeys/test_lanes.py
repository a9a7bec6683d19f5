"""Processes are killed at random: each request of a lane has its effect once, in order, and one at a time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import pytest

from mesh import Mesh, MeshSettings, join, keys
from tests.support import lane_worker
from tests.support.killed_processes import KilledProcesses, balanced
from tests.support.lane_worker import Step
from tests.support.member import starts
from tests.support.replicas import PROFILE
from tests.support.server import Server
from tests.support.waiting import eventually

WORKERS = 3


async def _send(mesh: Mesh, lanes: int, each: int) -> None:
    """Send the requests of all lanes, one number after the other."""
    for number in range(each):
        for lane in range(lanes):
            await mesh.send(lane_worker.step, Step(f"l{lane}", number))


async def _watch(server: Server, stop: asyncio.Event) -> int:
    """Look at the streams again and again: no lane ever has two requests there. Return how often we looked."""
    looks = 0
    with server.redis() as admin:
        while not stop.is_set():
            entries = await asyncio.to_thread(admin.xrange, keys.class_requests("A"))
            on_stream = Counter(fields["limit"].partition(":")[2] for _, fields in entries if "limit" in fields)
            assert not on_stream or max(on_stream.values()) == 1, on_stream.most_common(3)
            looks += 1
            await asyncio.sleep(0.02)
    return looks


async def _once(server: Server, folder: Path, lanes: int, each: int, pause_s: float, wait_s: float) -> None:
    settings_of_workers = {**PROFILE, "REDIS_URL": server.url, "MESH_CLASS": "A"}
    spawn = starts("tests.support.lane_worker", folder / "workers.log", **settings_of_workers)
    settings = MeshSettings(redis=server.settings, lease_ttl_ms=3000, claim_idle_ms=500, class_="A")
    stop = asyncio.Event()
    async with join(lane_worker.lanes, settings=settings) as mesh, balanced(server):
        with KilledProcesses(spawn, WORKERS) as processes:
            watching = asyncio.create_task(_watch(server, stop))
            killing = asyncio.create_task(processes.kill_at_random(time.monotonic() + wait_s, pause_s))
            await _send(mesh, lanes, each)

            async def settled() -> bool:
                books = await mesh.books()
                return books["answered"] == lanes * each

            await eventually(settled, wait_s, lambda: (folder / "workers.log").read_text()[-2000:])
            killing.cancel()
            await asyncio.wait([killing])
            stop.set()
            assert await watching > 10
            assert processes.killed > 2
    with server.redis() as admin:
        marks = admin.hgetall("shared:lanes:marks")
        assert marks == {f"l{lane} {number}": "1" for lane in range(lanes) for number in range(each)}
        assert admin.hgetall("shared:lanes:astray") == {}
        left = [key for name in ("lane", "running", "later", "parked") for key in admin.keys(f"mesh:{name}*")]
        assert left == []
        assert admin.xrange(keys.DEAD) == []


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_lanes_keep_their_order_while_workers_are_killed(server: Server, tmp_path: Path) -> None:
    """Workers are killed at random while ten lanes have requests. A tenth of all tries fails."""
    await _once(server, tmp_path, lanes=10, each=120, pause_s=0.2, wait_s=90)


@pytest.mark.faults
@pytest.mark.timeout(1200)
async def test_lanes_keep_their_order_through_minutes_of_killing(server: Server, tmp_path: Path) -> None:
    """Five thousand requests in fifty lanes, with a kill each 0 to 300 ms."""
    await _once(server, tmp_path, lanes=50, each=100, pause_s=0.2, wait_s=1000)
