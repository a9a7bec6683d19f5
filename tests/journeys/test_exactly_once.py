"""Processes are killed at random under load: every request has its effect once, and the books balance meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from mesh import Class, MeshError, MeshSettings
from mesh.raw import Replica, Worker, join
from tests.support.killed_processes import KilledProcesses, balanced
from tests.support.member import starts
from tests.support.replicas import PROFILE, Process, Replicas
from tests.support.server import Server
from tests.support.waiting import eventually

DEADLINE_S = 5.0


@dataclass
class Outcomes:
    """What came of every request, and the slowest answer."""

    acknowledged: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    noted: set[str] = field(default_factory=set)
    slowest_s: float = 0.0


async def _call(replica: Replica, id: str, outcomes: Outcomes) -> None:
    """One request of the mixed load."""
    began = time.monotonic()
    try:
        if random.random() < 0.7:
            await replica.call(Class("A"), "count.add", {"id": id})
        else:
            members = [member.database for member in await replica.roster() if member.database != replica.database]
            to = random.choice(members) if members else 1
            answer = await replica.call(Class("A"), "count.pass", {"id": id, "to": to})
            if "noted" in answer:
                outcomes.noted.add(id)
        outcomes.acknowledged.add(id)
    except MeshError:
        # Whether it was done or not is not known; that it was not done twice can be.
        outcomes.unknown.add(id)
    outcomes.slowest_s = max(outcomes.slowest_s, time.monotonic() - began)


async def _load(replica: Replica, name: str, until: float, outcomes: Outcomes) -> None:
    number = 0
    while time.monotonic() < until:
        number += 1
        await _call(replica, f"{name}-{number}", outcomes)
        if number % 20 == 0:
            with contextlib.suppress(MeshError):
                await replica.gather("count.read", {})


def _marks(server: Server, key: str) -> Counter[str]:
    """Effects by request, over every database."""
    found: Counter[str] = Counter()
    for number in range(16):
        with server.redis(db=number) as admin:
            for id, times in admin.hgetall(f"db{number}:{key}").items():
                found[id] += int(times)
    return found


async def _exactly_once(server: Server, folder: Path, seconds: float) -> None:
    settings_of_workers = {**PROFILE, "REDIS_URL": server.url, "MESH_CLASS": "A"}
    spawn = starts("tests.support.counter", folder / "workers.log", **settings_of_workers)
    outcomes = Outcomes()
    # The caller comes first and has a class of its own.
    async with join(Worker(), MeshSettings(redis=server.settings, class_="B")) as caller, balanced(server):
        with KilledProcesses(spawn, 3) as processes:

            async def all_live() -> bool:
                processes.replace_ended()
                return sum(member.cls == "A" for member in await caller.roster()) == 3

            await eventually(all_live, 30, lambda: (folder / "workers.log").read_text()[-4000:])
            until = time.monotonic() + seconds
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(processes.kill_at_random(until, 1.5))
                for client in range(24):
                    tasks.create_task(_load(caller, f"c{client}", until, outcomes))

            async def settled() -> bool:
                return (await caller.books())["in_flight"] == 0

            await eventually(settled, 20)
            books = await caller.books()
    _judge(outcomes, _marks(server, "count:effects"), _marks(server, "count:notes"))
    assert processes.killed >= seconds / 3
    assert len(outcomes.acknowledged) > 100 * seconds, "hardly any load"
    assert len(outcomes.noted) > 10 * seconds, "hardly any forwards"
    assert books["dead"] <= len(outcomes.unknown), books


def _judge(outcomes: Outcomes, effects: Counter[str], notes: Counter[str]) -> None:
    lost = [id for id in outcomes.acknowledged if effects[id] == 0]
    twice = [id for id, times in effects.items() if times > 1]
    assert not lost, f"acknowledged and without effect: {lost[:10]}"
    assert not twice, f"with more than one effect: {twice[:10]}"
    assert not [id for id, times in notes.items() if times > 1]
    assert not [id for id in outcomes.noted if notes[id] != 1], "what a transaction sends is worked off once"
    assert outcomes.slowest_s < DEADLINE_S + 1, f"answered after {outcomes.slowest_s:.1f} s"


@pytest.mark.slow
async def test_every_effect_happens_once_while_workers_are_killed(server: Server, tmp_path: Path) -> None:
    """kill -9 at random under calls, forwards, sends and gathers: nothing lost, nothing twice, all answered in time."""
    await _exactly_once(server, tmp_path, 10)


@pytest.mark.faults
@pytest.mark.timeout(400)
async def test_every_effect_happens_once_through_minutes_of_killing(server: Server, tmp_path: Path) -> None:
    """The same for as long as it takes rare moments to be met."""
    await _exactly_once(server, tmp_path, 180)


class Posts:
    """Values posted over HTTP, and which of them were acknowledged."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self.acknowledged: set[int] = set()
        self.statuses: Counter[int] = Counter()
        self.slowest_s = 0.0

    async def run(self, number: int, until: float) -> None:
        value = 3 * 10**6 * number
        while time.monotonic() < until:
            value += 3
            await self._post(value, random.choice(self._living()))

    def _living(self) -> list[Process]:
        return [process for process in self._replicas.processes if process.popen.poll() is None]

    async def _post(self, value: int, process: Process) -> None:
        began = time.monotonic()
        item: dict[str, Any] = {"value": value, "ttl": 600, "cls": random.choice("AB")}
        status = 0
        with contextlib.suppress(httpx.TransportError):
            status = (await self._replicas.client.post(f"{process.public}/values", json=[item])).status_code
        self.statuses[status] += 1
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        if status == 200:
            self.acknowledged.add(value)
        elif status == 0:
            await asyncio.sleep(0.05)


async def _complete(replicas: Replicas, process: Process) -> list[dict[str, Any]]:
    """Return the values that 3 divides, as soon as a GET does not say that a database is missing."""
    found: list[dict[str, Any]] = []

    async def is_complete() -> bool:
        answer = await replicas.client.get(f"{process.public}/values/3")
        assert answer.status_code in (200, 503), answer.text
        assert "Missing-Databases" not in answer.headers
        if answer.status_code == 200:
            found.extend(answer.json())
        return answer.status_code == 200

    await eventually(is_complete, 20)
    return found


@pytest.mark.slow
async def test_no_acknowledged_value_is_lost_while_replicas_are_killed(replicas: Replicas) -> None:
    """Over HTTP, with replicas that are killed and replaced: what had a 200 is there in the end, once."""
    processes = [*await replicas(2, {"MESH_CLASS": "A"}), *await replicas(2, {"MESH_CLASS": "B"})]
    posts = Posts(replicas)
    until = time.monotonic() + 10
    async with balanced(replicas.server):
        async with asyncio.TaskGroup() as tasks:
            for number in range(1, 9):
                tasks.create_task(posts.run(number, until))
            while time.monotonic() < until - 2:
                await asyncio.sleep(random.uniform(2, 3))
                victim = random.choice([p for p in replicas.processes if p.popen.poll() is None])
                victim.kill()
                replicas.spawn()
        living = [process for process in replicas.processes if process.popen.poll() is None]
        assert len(living) == len(processes)
        for process in living:
            await replicas.ready(process)
        for process in living:
            shown = [element["value"] for element in await _complete(replicas, process)]
            assert len(set(shown)) == len(shown)
            assert not posts.acknowledged - set(shown), "acknowledged values are missing"
    assert len(posts.acknowledged) > 100, posts.statuses
    assert set(posts.statuses) <= {0, 200, 404, 503, 504}, posts.statuses
    assert posts.slowest_s < DEADLINE_S + 1
