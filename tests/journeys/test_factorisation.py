"""Hard numbers over real HTTP, on real replicas: done once, bounded, cancelled, and never in the way of small ones."""

from __future__ import annotations

import asyncio
import signal
import statistics
import time
from typing import Any

import httpx
import pytest

from tests.support.hard_numbers import (
    ONE_CLASS,
    begin,
    below,
    computing,
    cpu_s,
    idle,
    item,
    look,
    post,
    prime,
    semiprime,
)
from tests.support.replicas import Process, Replicas
from tests.support.waiting import eventually


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
    expected = [{"value": value, "prime_factors": sorted([prime(28, 10), prime(28, 11)])}]
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
    """The work ends within a second, on whichever replica it runs."""
    made = await replicas(2, ONE_CLASS)
    async with httpx.AsyncClient(timeout=60) as client:
        asked = asyncio.create_task(post(client, made[0], semiprime(80)))
        await eventually(lambda: computing(made), 20)
        asked.cancel()
        await asyncio.wait([asked])
    begun = time.monotonic()
    await eventually(lambda: idle(made), 5)
    # A second, and what the look itself takes on a machine that does much else.
    assert time.monotonic() - begun < 1
    assert (await post(replicas.client, made[1], semiprime(30))).status_code == 200


@pytest.mark.slow
async def test_a_hopeless_number_is_answered_in_time_with_what_is_known(replicas: Replicas) -> None:
    """504 by the deadline, its small factors in the answer, and the core free."""
    (made,) = await replicas(1, ONE_CLASS)
    value = 2**3 * prime(7) * semiprime(130)
    begun = time.monotonic()
    answer = await post(replicas.client, made, value, wait_s=5)
    assert time.monotonic() - begun < 6
    assert answer.status_code == 504
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert problem["factors"] == [2, 2, 2, prime(7)]
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
async def test_the_number_of_a_dead_replica_holds_nobody_up(replicas: Replicas) -> None:
    """kill -9 of the one that computes: another of the class goes on, and the client has its answer."""
    made = await replicas(2, ONE_CLASS)
    value = semiprime(56, 30)
    asked = [asyncio.create_task(post(replicas.client, each, value)) for each in made]

    owner = await eventually(lambda: computing(made), 20)
    survivor = next(each for each in made if each is not owner)
    owner.kill()
    answer = await asked[made.index(survivor)]
    assert answer.status_code == 200, answer.text
    assert answer.json() == [{"value": value, "prime_factors": sorted([prime(28, 30), prime(28, 31)])}]
    await asyncio.wait(asked)


@pytest.mark.slow
async def test_a_replica_that_leaves_hands_its_hard_numbers_over(replicas: Replicas) -> None:
    """SIGTERM in the middle of a computation: another of the class goes on, and the client sees nothing of it."""
    made = await replicas(2, ONE_CLASS)
    value = semiprime(56, 40)
    # Asked at both, so that one of the clients waits at the replica that does not compute.
    asked = [asyncio.create_task(post(replicas.client, each, value)) for each in made]
    owner = await eventually(lambda: computing(made), 20)
    owner.send(signal.SIGTERM)
    for answer in await asyncio.gather(*asked):
        assert answer.status_code == 200, answer.text
        assert answer.json() == [{"value": value, "prime_factors": sorted([prime(28, 40), prime(28, 41)])}]
    assert await owner.ended(30) == 0


async def ended(client: httpx.AsyncClient, process: Process, location: str, wait_s: float = 40) -> dict[str, Any]:
    """The job once it is done or has failed."""

    async def over() -> Any:
        found = await look(client, process, location)
        return found if found["state"] in {"done", "failed"} else None

    return dict(await eventually(over, wait_s))


async def test_a_job_is_begun_here_and_seen_everywhere(replicas: Replicas) -> None:
    """202 at once; its result at any replica, in the order asked for; the records are there for GET."""
    made = await replicas(2, ONE_CLASS)
    client = replicas.client
    hard = semiprime(50)
    items = [*item(144), *item(hard), *item(2**127 - 1), *item(120), *item(hard + 2), *item(144)]
    answer = await begin(client, made[0], items)
    assert answer.status_code == 202
    assert answer.headers["Preference-Applied"] == "respond-async"
    location = answer.headers["Location"]
    assert location == f"/jobs/{answer.json()['id']}"
    found = await ended(client, made[1], location)
    assert found["state"] == "done"
    assert [one["value"] for one in found["result"]] == [one["value"] for one in items]
    assert found["result"][0]["prime_factors"] == [2, 2, 2, 2, 3, 3]
    assert found["result"][1]["prime_factors"] == sorted([prime(25), prime(25, 1)])
    listed = (await client.get(f"{made[1].public}/values/5")).json()
    assert 120 in [one["value"] for one in listed]
    # Nothing is computed again for who asks now.
    again = await post(client, made[1], hard, wait_s=1)
    assert again.json()[0]["prime_factors"] == sorted([prime(25), prime(25, 1)])


async def test_a_job_that_is_done_in_time_is_answered_at_once(replicas: Replicas) -> None:
    """`respond-async, wait=10`: 200 with the result, 202 only for what takes longer."""
    (made,) = await replicas(1, ONE_CLASS)
    quick = await begin(replicas.client, made, item(144), ", wait=10")
    assert quick.status_code == 200
    assert quick.json() == [{"value": 144, "prime_factors": [2, 2, 2, 2, 3, 3]}]
    long = await begin(replicas.client, made, [*item(144), *item(semiprime(90))], ", wait=2")
    assert long.status_code == 202
    assert long.json()["state"] == "running", "one of its two values is done"
    assert (await replicas.client.delete(made.public + long.headers["Location"])).status_code == 204


async def test_a_job_tells_stage_time_and_estimate(replicas: Replicas) -> None:
    """What it works on now, for how long, and how long it is expected to take."""
    made = await replicas(2, ONE_CLASS)
    location = (await begin(replicas.client, made[0], item(6 * semiprime(80)))).headers["Location"]

    async def working() -> Any:
        found = await look(replicas.client, made[1], location)
        return found if any(work["stage"] == "curves" for work in found.get("working_on", ())) else None

    found = await eventually(working, 20)
    assert found["state"] == "running"
    (work,) = found["working_on"]
    assert work["factors"] == [2, 3]
    assert work["estimate_s"] > 30
    assert 0 < work["elapsed_s"] <= found["elapsed_s"] + 1
    await replicas.client.delete(made[0].public + location)


@pytest.mark.slow
async def test_ending_a_job_frees_the_core(replicas: Replicas) -> None:
    """DELETE at any replica: 204, the work stops within a second, and the job is gone; the job behind it goes on."""
    made = await replicas(2, ONE_CLASS)
    client = replicas.client
    location = (await begin(client, made[0], item(semiprime(80)))).headers["Location"]
    await eventually(lambda: computing(made), 20)
    for process in made:  # one of them is not the one that computes
        answer = await client.delete(process.public + location)
        assert answer.status_code == (204 if process is made[0] else 404)
    begun = time.monotonic()
    await eventually(lambda: idle(made), 5)
    assert time.monotonic() - begun < 1
    assert (await client.get(made[0].public + location)).status_code == 404
    assert (await client.get(made[0].public + "/jobs/unknown")).status_code == 404
    location = (await begin(client, made[1], item(semiprime(40)))).headers["Location"]
    assert (await ended(client, made[0], location))["state"] == "done"


@pytest.mark.slow
async def test_a_job_survives_the_replica_that_computes_it(replicas: Replicas) -> None:
    """kill -9: another of the class goes on, and what was found before is not done again."""
    made = await replicas(2, ONE_CLASS)
    client = replicas.client
    items = [*item(semiprime(52, 5)), *item(semiprime(56, 70)), *item(144)]
    location = (await begin(client, made[0], items)).headers["Location"]

    async def second() -> bool:
        return bool((await look(client, made[0], location))["values_done"])

    await eventually(second, 40)

    owner = await eventually(lambda: computing(made), 20)
    survivor = next(each for each in made if each is not owner)
    owner.kill()
    found = await ended(client, survivor, location, 80)
    assert found["state"] == "done", found
    expected = [sorted([prime(26, 5), prime(26, 6)]), sorted([prime(28, 70), prime(28, 71)]), [2, 2, 2, 2, 3, 3]]
    assert [one["prime_factors"] for one in found["result"]] == expected


async def test_a_job_has_its_time(replicas: Replicas) -> None:
    """A hopeless value fails with what is known; the other values' results are there; and then the job is forgotten."""
    (made,) = await replicas(1, {**ONE_CLASS, "VALUES_JOB_S": "8", "VALUES_JOB_KEPT_S": "2"})
    hopeless = 2 * prime(6) * semiprime(130)
    location = (await begin(replicas.client, made, [*item(144), *item(hopeless)])).headers["Location"]
    found = await ended(replicas.client, made, location)
    assert found["state"] == "failed"
    assert found["result"] == [{"value": 144, "prime_factors": [2, 2, 2, 2, 3, 3]}]
    (error,) = found["errors"]
    assert error["value"] == hopeless
    assert error["factors"] == [2, prime(6)]
    assert error["unfactored"] == [semiprime(130)]

    async def forgotten() -> bool:
        return (await replicas.client.get(made.public + location)).status_code == 404

    await eventually(forgotten, 10)
    assert await idle([made])


async def test_what_cannot_be_begun_is_refused(replicas: Replicas) -> None:
    """A class nobody has: 404, and no job. More jobs than are kept: 503. A value that is none: 422."""
    (made,) = await replicas(1, {**ONE_CLASS, "VALUES_MAX_JOBS": "1"})
    assert (await begin(replicas.client, made, item(144, cls="B"))).status_code == 404
    assert (await begin(replicas.client, made, item(0))).status_code == 422
    first = await begin(replicas.client, made, item(semiprime(80)))
    refused = await begin(replicas.client, made, item(144))
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) >= 1
    await replicas.client.delete(made.public + first.headers["Location"])
    assert (await begin(replicas.client, made, item(144))).status_code == 202
