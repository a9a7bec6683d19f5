"""Curves of one hard number on several real replicas: all of them compute, and all of them stop."""

from __future__ import annotations

import pytest

from quart_app.values.lanes import cores
from tests.support.hard_numbers import ONE_CLASS, begin, idle, item, look, post, prime, semiprime
from tests.support.replicas import Process, Replicas
from tests.support.waiting import eventually

#: A replica helps another one of its machine only with cores that this one leaves.
pytestmark = [pytest.mark.slow, pytest.mark.skipif(cores() < 2, reason="this machine has one core")]

ONE_PROCESS = {**ONE_CLASS, "VALUES_PROCESSES": "1", "MESH_DEADLINE_MS": "60000", "MESH_CLAIM_IDLE_MS": "1000"}


async def computes(replicas: Replicas, process: Process, lane: str) -> bool:
    """Return whether a process of this lane computes now."""
    metrics = (await replicas.client.get(f"{process.private}/metrics")).text
    return f'mesh_values_factorisation_in_flight{{lane="{lane}"}} 1.0' in metrics


async def job(replicas: Replicas) -> tuple[str, Process, Process]:
    """Begin a hopeless number on two replicas; return its location, the replica that has it, and the one that helps."""
    made = await replicas(2, ONE_PROCESS)
    location = str((await begin(replicas.client, made[0], item(semiprime(130)))).headers["Location"])

    async def helper() -> Process | None:
        for helps, asks in (made, made[::-1]):
            if await computes(replicas, helps, "help") and await computes(replicas, asks, "patient"):
                return helps
        return None

    helps = await eventually(helper, 20)
    return location, next(each for each in made if each is not helps), helps


async def test_both_replicas_are_free_a_second_after_the_job_is_deleted(replicas: Replicas) -> None:
    """A DELETE at the helper ends the work of both replicas within a second."""
    location, asks, helps = await job(replicas)
    assert (await replicas.client.delete(helps.public + location)).status_code == 204
    # A second more is for a machine that does much else.
    await eventually(lambda: idle([asks, helps]), 2)


async def test_a_helper_that_is_killed_costs_its_curves_only(replicas: Replicas) -> None:
    """The asker computes on when its helper dies, and a new replica of the class helps instead."""
    location, asks, helps = await job(replicas)
    helps.kill()
    assert await computes(replicas, asks, "patient")
    (again,) = await replicas(1, ONE_PROCESS)
    await eventually(lambda: computes(replicas, again, "help"), 30)
    found = await look(replicas.client, asks, location)
    assert found["state"] == "running"
    assert (await replicas.client.delete(asks.public + location)).status_code == 204


async def test_a_helper_goes_on_with_a_number_whose_replica_was_killed(replicas: Replicas) -> None:
    """The helper takes the job over, and its share ends."""
    location, asks, helps = await job(replicas)
    asks.kill()
    await eventually(lambda: computes(replicas, helps, "patient"), 30)

    async def share_is_over() -> bool:
        return not await computes(replicas, helps, "help")

    await eventually(share_is_over, 30)
    assert (await replicas.client.delete(helps.public + location)).status_code == 204


async def test_a_number_is_factored_by_curves_of_two_replicas(replicas: Replicas) -> None:
    """The client gets the factors, whichever replica finds them."""
    made = await replicas(2, ONE_PROCESS)
    for number in range(3):
        factors = prime(18, number), prime(100, number)
        answer = await post(replicas.client, made[0], factors[0] * factors[1])
        assert answer.status_code == 200, answer.text
        assert answer.json()[0]["prime_factors"] == [*factors]
