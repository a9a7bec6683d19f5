"""Sixteen replicas, sixteen databases; the seventeenth waits; after the end of all everything is as it was."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.support.replicas import Process, Replicas
from tests.support.waiting import eventually

TTL_S = 3.0


async def all_up(replicas: Replicas, processes: list[Process]) -> float:
    """Wait until each process answers /health, ready or not; return the time."""

    async def up() -> bool:
        statuses = await asyncio.gather(*(replicas.status(process, "/health") for process in processes))
        return all(status == 200 for status in statuses)

    await eventually(up, 60)
    return time.monotonic()


async def held(replicas: Replicas) -> dict[int, str]:
    """Class by leased database."""
    return {member.database: member.cls for member in await replicas.roster()}


async def start(replicas: Replicas, count: int) -> list[Process]:
    """Start this many at once; fails unless they hold as many databases 5 s after the last one was up."""
    processes = [replicas.spawn() for _ in range(count)]
    since = await all_up(replicas, processes)

    async def all_hold() -> bool:
        return len({member.pid for member in await replicas.roster()} & {p.pid for p in processes}) == count

    await eventually(all_hold, 5)
    assert time.monotonic() - since < 5
    return processes


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_sixteen_hold_sixteen_the_next_waits_and_all_come_back_as_they_were(replicas: Replicas) -> None:
    """The whole life of a full mesh, with kill -9 for an end."""
    processes = await start(replicas, 16)
    members = await replicas.roster()
    assert sorted(member.database for member in members) == list(range(16))
    assert sorted(member.cls for member in members) == sorted("ABCD" * 4), "the rarest class first"

    await _the_seventeenth_waits_and_takes_over(replicas, processes)

    classes = await held(replicas)
    items = [{"value": 6 * n, "ttl": 600, "cls": "ABCD"[n % 4]} for n in range(1, 201)]
    living = [process for process in replicas.processes if process.popen.poll() is None]
    assert (await replicas.client.post(f"{living[0].public}/values", json=items)).status_code == 200
    before = (await replicas.client.get(f"{living[3].public}/values/3")).json()
    assert len(before) == 200

    for process in replicas.processes:
        process.kill()
    again = await start(replicas, 16)
    assert await held(replicas) == classes
    for process in (again[0], again[-1]):
        await replicas.ready(process)
        assert (await replicas.client.get(f"{process.public}/values/3")).json() == before


async def _the_seventeenth_waits_and_takes_over(replicas: Replicas, processes: list[Process]) -> None:
    waiting = replicas.spawn()
    await all_up(replicas, [waiting])

    async def says_why() -> bool:
        answer = await replicas.client.get(f"{waiting.private}/readyz")
        return answer.status_code == 503 and "all 16 databases are leased" in answer.json()["detail"]

    await eventually(says_why)
    assert (await replicas.client.get(f"{waiting.private}/readyz")).headers["Retry-After"]
    assert (await replicas.client.get(f"{waiting.private}/health")).status_code == 200
    assert len(await held(replicas)) == 16

    (victim,) = [member for member in await replicas.roster() if member.pid == processes[5].pid]
    processes[5].kill()
    killed = time.monotonic()
    await replicas.ready(waiting, TTL_S + 2)
    assert time.monotonic() - killed < TTL_S + 1
    (successor,) = [member for member in await replicas.roster() if member.pid == waiting.pid]
    assert (successor.database, successor.cls) == (victim.database, victim.cls)
    assert successor.epoch > victim.epoch


async def test_a_replica_that_ends_in_order_frees_its_database_at_once(replicas: Replicas) -> None:
    """SIGTERM: the lease is given back, not left to run out."""
    (one,) = await replicas(1)
    one.popen.terminate()
    assert await one.ended() == 0
    assert await replicas.roster() == []
    with replicas.server.redis() as admin:
        assert admin.keys("mesh:lease:*") == []


async def test_a_replica_without_redis_lives_says_why_it_waits_and_becomes_ready(replicas: Replicas) -> None:
    """Redis and the replica may be started in any order."""
    replicas.server.kill()
    early = replicas.spawn()
    await all_up(replicas, [early])

    async def says_why() -> bool:
        answer = await replicas.client.get(f"{early.private}/readyz")
        return answer.status_code == 503 and "Redis cannot be reached" in answer.json()["detail"]

    await eventually(says_why)
    assert (await replicas.client.get(f"{early.public}/classes")).status_code == 503
    replicas.server.start()
    await replicas.ready(early, 10)


async def test_a_replica_with_a_wrong_password_ends_at_once_and_does_not_say_it(replicas: Replicas) -> None:
    """The exit status 78 tells a supervisor that another try does not help."""
    url = f"redis://default:wrong-password@127.0.0.1:{replicas.server.port}/0"
    with replicas.server.redis() as admin:
        admin.config_set("requirepass", "right-password")
    process = replicas.spawn({"REDIS_URL": url})
    assert await process.ended(30) == 78
    assert "refuses the user or the password" in process.log.read_text()
    assert "wrong-password" not in process.log.read_text()
