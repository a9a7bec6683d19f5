"""Processes are killed at random: what waits, is tried again, or runs by itself has its effect once."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import timedelta
from pathlib import Path

import pytest

from mesh import Class, Mesh, MeshSettings, Ticket, join, keys
from mesh.testing import MeshKit
from tests.support import later_worker
from tests.support.faults import later_worker as late_worker
from tests.support.faults.late import is_settled, judge
from tests.support.faults.later_worker import late
from tests.support.killed_processes import KilledProcesses, balanced
from tests.support.later_worker import Mark
from tests.support.member import starts
from tests.support.replicas import PROFILE
from tests.support.server import Server
from tests.support.waiting import eventually

WORKERS = 4


async def _send(mesh: Mesh, seconds: float, rate: float) -> tuple[set[str], set[str]]:
    """Send marks for some seconds; return the texts that must take effect, and those that were cancelled."""
    sent, cancelled = set[str](), set[str]()
    tickets: list[tuple[str, Ticket]] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        text = f"m{len(sent)}"
        sent.add(text)
        operation = random.choice([later_worker.mark, later_worker.begin])
        after = timedelta(milliseconds=random.randrange(3000))
        tickets.append((text, await mesh.send(operation, Mark(text), after=after)))
        if random.random() < 0.1:
            text, ticket = tickets.pop(random.randrange(len(tickets)))
            if await mesh.cancel(ticket):
                cancelled.add(text)
        await asyncio.sleep(1 / rate)
    return sent, cancelled


async def _once(server: Server, folder: Path, seconds: float, rate: float) -> None:
    settings_of_workers = {**PROFILE, "REDIS_URL": server.url, "MESH_CLASS": "A"}
    spawn = starts("tests.support.later_worker", folder / "workers.log", **settings_of_workers)
    # The sender works, too: without it a moment in which all others are dead would end the test's sends.
    settings = MeshSettings(redis=server.settings, lease_ttl_ms=3000, claim_idle_ms=2000, class_="A")
    async with join(later_worker.later, settings=settings) as mesh, balanced(server):
        with KilledProcesses(spawn, WORKERS) as processes:

            async def all_live() -> bool:
                processes.replace_ended()
                return len(await mesh.roster()) > WORKERS

            await eventually(all_live, 30, lambda: (folder / "workers.log").read_text()[-4000:])
            begun = time.time()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(processes.kill_at_random(time.monotonic() + seconds, 0.5))
                sending = tasks.create_task(_send(mesh, seconds, rate))
            sent, cancelled = sending.result()

            async def settled() -> bool:
                return await asyncio.to_thread(is_settled, server, later_worker.tick.name)

            await eventually(settled, 60)
            ended = time.time()
            assert processes.killed > seconds / 2
    _judge(server, sent, cancelled)
    _judge_ticks(server, begun, ended)


def _judge(server: Server, sent: set[str], cancelled: set[str]) -> None:
    with server.redis() as admin:
        marks = {text: int(times) for text, times in admin.hgetall("shared:later:marks").items()}
        assert {text: times for text, times in marks.items() if times != 1} == {}
        assert admin.xrange(keys.DEAD) == []
        # A mark that was sent by `begin` has another key, so that cancelling `begin` is certain, and late for the mark.
        assert sent - marks.keys() <= cancelled
        assert len(marks) >= len(sent) - len(cancelled)
        left = [key for key in admin.keys(f"{keys.LATER}*") if not key.startswith(keys.CANCELLED)]
        assert left == []


def _judge_ticks(server: Server, begun: float, ended: float) -> None:
    """Check that each second of the test has one tick, or is counted as missed by the tick that stood for it."""
    with server.redis() as admin:
        ticks = {int(second): int(times) for second, times in admin.hgetall("shared:later:ticks").items()}
        assert {second: times for second, times in ticks.items() if times != 1} == {}
        first, last = min(ticks), max(ticks)
        assert first <= begun + 2
        assert last >= ended - 15, "ticks came to an end"
        left_out = last - first + 1 - len(ticks) - int(admin.get("shared:later:missed") or 0)
        assert left_out >= 0, "more ticks than seconds"


async def _storm(server: Server, sends: int, seconds: float) -> None:
    """Kill a replica of this process every 0 to 300 ms while requests are sent for later, tried again and cancelled."""
    sent = set[str]()
    async with MeshKit(late, replicas=6, redis=server.url, classes="A", lease_ttl_ms=10_000, claim_idle_ms=1000) as kit:
        living, over, killed = list(range(6)), asyncio.Event(), 0

        async def start() -> None:
            number = len(kit)
            await kit.start()
            living.append(number)

        async def kill_at_random() -> None:
            nonlocal killed
            async with asyncio.TaskGroup() as starting:
                while not over.is_set():
                    await asyncio.sleep(random.uniform(0, 0.3))
                    if len(living) > 2:
                        await kit.kill(living.pop(random.randrange(len(living))))
                        killed += 1
                        starting.create_task(start())

        async with kit.connect() as client, balanced(server):
            killing = asyncio.create_task(kill_at_random())
            for number in range(sends):
                body = late_worker.Mark(f"m{number}", random.choice([0, 0, 1]))
                operation = random.choice([late_worker.mark, late_worker.begin])
                after = timedelta(milliseconds=random.randrange(1, 5000))
                ticket = await client.send(operation, body, to=Class("A"), after=after)
                if random.random() > 0.02 or not await client.cancel(ticket):
                    sent.add(body.text)
                await asyncio.sleep(seconds / sends)
            over.set()
            await killing

            async def settled() -> bool:
                return await asyncio.to_thread(is_settled, server)

            await eventually(settled, 60)
            judge(server, sent)
            assert killed > seconds


@pytest.mark.slow
async def test_what_waits_happens_once_in_a_storm_of_kills(server: Server) -> None:
    """Each of 400 requests and 10 ticks has its effect once, and the books balance at every sample."""
    await _storm(server, 400, 10)


@pytest.mark.faults
@pytest.mark.timeout(600)
async def test_what_waits_happens_once_in_a_long_storm_of_kills(server: Server) -> None:
    """Each of ten thousand requests and two hundred ticks has its effect once."""
    await _storm(server, 10_000, 200)


@pytest.mark.slow
async def test_what_waits_happens_once_while_workers_are_killed(server: Server, tmp_path: Path) -> None:
    """kill -9 at random under delayed sends, retries, cancellations and ticks."""
    await _once(server, tmp_path, 8, 40)


@pytest.mark.faults
@pytest.mark.timeout(600)
async def test_what_waits_happens_once_through_minutes_of_killing(server: Server, tmp_path: Path) -> None:
    """The same for ten thousand sends and two hundred ticks."""
    await _once(server, tmp_path, 200, 60)
