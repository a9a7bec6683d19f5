"""Hard numbers over real HTTP, on real replicas: done once, bounded, cancelled, and never in the way of small ones."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterable
from typing import Any

import gmpy2
import httpx
import psutil
import pytest

from tests.conftest import Process, Replicas, eventually

ONE_CLASS = {"MESH_CLASS": "A"}


def prime(digits: int, number: int = 0) -> int:
    """A fixed prime of this many digits; another one for each number."""
    return int(gmpy2.next_prime(10 ** (digits - 1) * (2 + number)))


def semiprime(digits: int, number: int = 0) -> int:
    return prime(digits // 2, number) * prime(digits // 2, number + 1)


def item(value: int, ttl: int = 600, cls: str = "A") -> list[dict[str, Any]]:
    return [{"value": value, "ttl": ttl, "cls": cls}]


async def post(client: httpx.AsyncClient, process: Process, value: int, wait_s: int = 60, **fields: Any) -> Any:
    """POST one value."""
    headers = {"Prefer": f"wait={wait_s}"}
    return await client.post(f"{process.public}/values", json=item(value, **fields), headers=headers, timeout=90)


def below(processes: Iterable[Process]) -> list[psutil.Process]:
    """Every process that these replicas have started."""
    found = []
    for process in processes:
        try:
            found += psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            continue
    return found


def cpu_s(processes: Iterable[psutil.Process]) -> float:
    """CPU seconds of all of them."""
    total = 0.0
    for process in processes:
        try:
            total += process.cpu_times().user
        except psutil.NoSuchProcess:
            continue
    return total


async def burn(processes: Iterable[Process], seconds: float = 0.4) -> float:
    """The cores that the replicas' worker processes use, over a little while."""
    before = cpu_s(below(processes))
    await asyncio.sleep(seconds)
    return (cpu_s(below(processes)) - before) / seconds


async def computing(processes: Iterable[Process]) -> bool:
    return await burn(processes, 0.2) > 0.4


async def idle(processes: Iterable[Process]) -> bool:
    return await burn(processes, 0.2) < 0.05


@pytest.mark.slow
async def test_eight_clients_on_four_replicas_cost_one_computation(replicas: Replicas) -> None:
    """A 60-digit number posted eight times at once: one computation's CPU time in the whole mesh, eight answers."""
    made = await replicas(4, {**ONE_CLASS, "MESH_DEADLINE_MS": "60000"})
    # Warm: the processes are up, and one computation's price is known.
    await asyncio.gather(*(post(replicas.client, each, semiprime(24, i)) for i, each in enumerate(made)))
    begun = cpu_s(below(made))
    answer = await post(replicas.client, made[0], semiprime(56, 50))
    assert answer.status_code == 200, answer.text
    price = cpu_s(below(made)) - begun

    begun = cpu_s(below(made))
    value = semiprime(56, 10)
    answers = await asyncio.gather(*(post(replicas.client, made[i % 4], value, ttl=100 + i) for i in range(8)))
    assert [each.status_code for each in answers] == [200] * 8, [each.text for each in answers]
    expected = [{"value": value, "prime_factors": [prime(28, 10), prime(28, 11)]}]
    assert all(each.json() == expected for each in answers)
    assert cpu_s(below(made)) - begun < 2 * price + 0.3

    # A repeat while the record lives computes nothing.
    begun = cpu_s(below(made))
    assert (await post(replicas.client, made[2], value)).json() == expected
    assert cpu_s(below(made)) - begun < 0.1
    found = await replicas.client.get(f"{made[1].public}/values/{prime(28, 10)}")
    assert found.json() == expected


@pytest.mark.slow
async def test_a_client_that_hangs_up_frees_the_core(replicas: Replicas) -> None:
    """Within a second, on whichever replica the work runs."""
    made = await replicas(2, ONE_CLASS)
    async with httpx.AsyncClient(timeout=60) as client:
        asked = asyncio.create_task(post(client, made[0], semiprime(80)))
        await eventually(lambda: computing(made), 20)
        asked.cancel()
        await asyncio.wait([asked])
    begun = time.monotonic()
    await eventually(lambda: idle(made), 5)
    # The look itself takes a fifth of a second.
    assert time.monotonic() - begun < 1.3
    assert (await post(replicas.client, made[1], semiprime(30))).status_code == 200


@pytest.mark.slow
async def test_a_hopeless_number_is_answered_in_time_with_what_is_known(replicas: Replicas) -> None:
    """504 by the deadline, its small factors in the answer, and the core free."""
    (made,) = await replicas(1, ONE_CLASS)
    value = 2**3 * prime(9) * semiprime(130)
    begun = time.monotonic()
    answer = await post(replicas.client, made, value, wait_s=5)
    assert time.monotonic() - begun < 6
    assert answer.status_code == 504
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert problem["factors"] == [2, 2, 2, prime(9)]
    assert problem["unfactored"] == [semiprime(130)]
    assert problem["missing"] == [value]
    await eventually(lambda: idle([made]), 2)


@pytest.mark.slow
async def test_beyond_the_bound_hard_numbers_are_told_to_come_back(replicas: Replicas) -> None:
    """503 and Retry-After at once, while small ones are served."""
    (made,) = await replicas(1, {**ONE_CLASS, "VALUES_HARD_LIMIT": "2"})
    asked = [asyncio.create_task(post(replicas.client, made, semiprime(80, i))) for i in (0, 10)]
    await eventually(lambda: computing([made]), 20)
    begun = time.monotonic()
    answer = await post(replicas.client, made, semiprime(80, 20))
    assert time.monotonic() - begun < 1
    assert answer.status_code == 503
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert (await post(replicas.client, made, 144)).json()[0]["prime_factors"] == [2, 2, 2, 2, 3, 3]
    for task in asked:
        task.cancel()
    await asyncio.wait(asked)


@pytest.mark.slow
async def test_small_numbers_are_served_while_hard_ones_are_under_way(replicas: Replicas) -> None:
    """Their 99th percentile at most doubles (and stays below what anybody notices); no lease is lost."""
    made = await replicas(2, {**ONE_CLASS, "VALUES_PROCESSES": "1"})
    before = {(member.database, member.epoch) for member in await replicas.roster()}

    async def percentile(offset: int) -> float:
        times = []
        for i in range(300):
            begun = time.monotonic()
            answer = await post(replicas.client, made[i % 2], 10**9 + offset + i)
            times.append(time.monotonic() - begun)
            assert answer.status_code == 200
        return statistics.quantiles(times, n=100)[98]

    await percentile(0)
    alone = await percentile(1000)
    asked = [asyncio.create_task(post(replicas.client, made[i % 2], semiprime(80, 10 * i))) for i in range(4)]
    await eventually(lambda: computing(made), 20)
    beside = await percentile(2000)
    for task in asked:
        task.cancel()
    await asyncio.wait(asked)
    assert beside < max(2 * alone, 0.05)
    assert {(member.database, member.epoch) for member in await replicas.roster()} == before


@pytest.mark.slow
async def test_the_claim_of_a_dead_replica_holds_nobody_up(replicas: Replicas) -> None:
    """kill -9 of the one that computes: another of the class goes on, and the client has its answer."""
    made = await replicas(2, ONE_CLASS)
    value = semiprime(58, 30)
    asked = [asyncio.create_task(post(replicas.client, each, value)) for each in made]

    async def who() -> Process | None:
        shares = {each.pid: await burn([each], 0.2) for each in made}
        return next((each for each in made if shares[each.pid] > 0.4), None)

    owner = await eventually(who, 20)
    survivor = next(each for each in made if each is not owner)
    owner.kill()
    answer = await asked[made.index(survivor)]
    assert answer.status_code == 200, answer.text
    assert answer.json() == [{"value": value, "prime_factors": [prime(29, 30), prime(29, 31)]}]
    await asyncio.wait(asked)
