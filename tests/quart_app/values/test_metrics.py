"""What operators see of factorisation: what runs, what waits, how it ended, what it cost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator, Callable

import gmpy2
import pytest
from prometheus_client import CollectorRegistry

from mesh import MeshSettings
from mesh.errors import Busy, DeadlineExceeded
from quart_app.values import pool as pools
from quart_app.values.factorise import WrongFactors
from quart_app.values.lanes import Lane
from quart_app.values.metrics import FactorMetrics
from quart_app.values.pool import FactorPool
from tests.support.nodes import node
from tests.support.server import Server


def semiprime(digits: int, number: int = 0) -> int:
    """Two fixed primes of half the digits."""
    chance = random.Random(f"{digits} {number}")
    half = 10 ** (digits // 2)
    return int(
        gmpy2.next_prime(chance.randrange(half // 3, half)) * gmpy2.next_prime(chance.randrange(half // 3, half))
    )


MEDIUM, HARD = semiprime(26), semiprime(90)


class Figures:
    """A pool's metrics, as they are now."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def __call__(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"mesh_values_factorisation{name}", labels) or 0.0

    def ended(self) -> dict[str, float]:
        outcomes = ("done", "failed", "late", "cancelled", "refused")
        return {outcome: count for outcome in outcomes if (count := self("s_total", outcome=outcome))}

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.01)


@pytest.fixture
def figures() -> Figures:
    return Figures()


@pytest.fixture
async def pool(figures: Figures) -> AsyncIterator[FactorPool]:
    async with FactorPool(processes=1, hard_limit=2, metrics=FactorMetrics(figures.registry)) as made:
        yield made


async def test_what_is_done_is_counted_with_its_seconds(pool: FactorPool, figures: Figures) -> None:
    """Numbers that are done at once are no computation; one that several wait for is one."""
    await pool.factorise(144, 1)
    assert figures.ended() == {}
    await asyncio.gather(*(pool.factorise(MEDIUM, 30) for _ in range(3)))
    assert figures.ended() == {"done": 1}
    assert figures("_seconds_total", lane="brisk") > 0
    assert figures("_in_flight", lane="brisk") == 0


async def test_what_runs_and_what_waits_is_seen_by_lane(
    pool: FactorPool, figures: Figures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A computation that is no longer wanted is counted as killed, once."""
    monkeypatch.setattr(FactorPool, "_next_call", lambda self, computation: (time.sleep, 60))
    asked = [asyncio.create_task(pool.factorise(HARD * 2**i, 60)) for i in range(2)]
    await figures.until(lambda: bool(figures("_in_flight", lane="hard") and figures("_waiting", lane="hard")))
    assert figures("_in_flight", lane="brisk") == figures("_in_flight", lane="patient") == 0
    with pytest.raises(Busy):
        await pool.factorise(HARD * 3, 60)
    for task in asked:
        task.cancel()
    await figures.until(lambda: not figures("_in_flight", lane="hard") and not figures("_waiting", lane="hard"))
    assert figures.ended() == {"cancelled": 2, "refused": 1}
    assert figures("_processes_lost_total", lane="hard", reason="killed") == 1
    assert figures("_processes_lost_total", lane="hard", reason="died") == 0


async def test_a_deadline_is_told_from_a_waiter_that_leaves(pool: FactorPool, figures: Figures) -> None:
    """Late says that numbers are too hard or processes too few; cancelled only that somebody changed their mind."""
    with pytest.raises(DeadlineExceeded):
        await pool.factorise(HARD, 0.2)
    assert figures.ended() == {"late": 1}


async def test_failures_and_dead_processes_are_counted(
    pool: FactorPool, figures: Figures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt loses a process; the number fails once."""
    monkeypatch.setattr(FactorPool, "_next_call", lambda self, computation: (os._exit, 3))
    with pytest.raises(Exception, match="died"):
        await pool.factorise(MEDIUM, 60)
    assert figures.ended() == {"failed": 1}
    assert figures("_processes_lost_total", lane="brisk", reason="died") == pools.ATTEMPTS

    async def wrong(*_: object) -> None:
        raise WrongFactors("no")

    monkeypatch.setattr(Lane, "run", wrong)
    with pytest.raises(WrongFactors):
        await pool.factorise(MEDIUM, 60)
    assert figures.ended() == {"failed": 2}


async def test_the_figures_are_on_the_private_port(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A POST of a number that takes a process is seen in /metrics of the replica that computed it."""
    monkeypatch.setenv("VALUES_PROCESSES", "1")
    async with contextlib.AsyncExitStack() as stack:
        one = await stack.enter_async_context(node(MeshSettings(redis=server.settings)))

        async def lines() -> list[str]:
            response = await one.private.get("/metrics")
            return (await response.get_data(as_text=True)).splitlines()

        assert 'mesh_values_factorisations_total{outcome="done"} 0.0' in await lines()
        answer = await one.public.post("/values", json=[{"value": MEDIUM, "ttl": 60, "cls": "A"}])
        assert answer.status_code == 200
        found = await lines()
        assert 'mesh_values_factorisations_total{outcome="done"} 1.0' in found
        assert 'mesh_values_factorisation_in_flight{lane="brisk"} 0.0' in found
        assert 'mesh_values_factorisation_waiting{lane="hard"} 0.0' in found
