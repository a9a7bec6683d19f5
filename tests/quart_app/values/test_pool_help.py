"""The pool and the other replicas of its class: when it asks them, what it takes from them. Real processes."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import gmpy2
import pytest

from quart_app.values import pool as pools
from quart_app.values.estimate import curve_count_before_sieve
from quart_app.values.factorise import Composite, Factoring, Stage
from quart_app.values.help import JointWork
from quart_app.values.pool import FactorPool
from quart_app.values.side_by_side import with_curves


def prime(digits: int, number: int = 0) -> int:
    """A fixed prime of this many digits; another one for each number."""
    chance = random.Random(f"{digits} {number}")
    return int(gmpy2.next_prime(chance.randrange(4 * 10 ** (digits - 1), 9 * 10 ** (digits - 1))))


P, Q = prime(60), prime(61)
#: No method finds its factors within the tests.
HOPELESS = P * Q


class Others:
    """Replicas that answer when the test says so."""

    def __init__(self) -> None:
        self.asked_for: list[int] = []
        self.under_way: list[JointWork] = []
        self.at_s: list[float] = []

    @contextlib.asynccontextmanager
    async def ask_for_curves(self, factoring: Factoring, processes: int) -> AsyncIterator[JointWork]:
        self.asked_for.append(factoring.number)
        self.at_s.append(time.monotonic())
        help = JointWork(factoring)
        self.under_way.append(help)
        try:
            yield help
        finally:
            self.under_way.remove(help)

    async def until_asked(self, count: int = 1) -> JointWork:
        async with asyncio.timeout(30):
            while len(self.asked_for) < count:
                await asyncio.sleep(0.01)
        return self.under_way[-1]


@pytest.fixture
def others() -> Others:
    return Others()


@pytest.fixture
async def pool(others: Others) -> AsyncIterator[FactorPool]:
    async with FactorPool(processes=1, help_from_others=others) as made:  # type: ignore[arg-type]
        yield made


@contextlib.asynccontextmanager
async def asking(pool: FactorPool, number: int = HOPELESS, **options: Any) -> AsyncIterator[asyncio.Task[str]]:
    task = asyncio.create_task(pool.factorise(number, 60, **options))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_nobody_is_asked_for_a_number_that_is_done_soon(pool: FactorPool, others: Others) -> None:
    """Numbers of the brisk lane get no help, nor does a large number with a small factor."""
    await pool.factorise(prime(13) * prime(13, 1), 60)
    await pool.factorise(prime(9) * prime(111), 60)
    assert others.asked_for == []


async def test_help_is_asked_for_after_a_second_of_curves(pool: FactorPool, others: Others) -> None:
    """The pool asks once, for as long as somebody waits for the number."""
    begun = time.monotonic()
    async with asking(pool):
        await others.until_asked()
        assert others.at_s[0] - begun >= pools.HELP_AFTER_S
        await asyncio.sleep(1.5)
        assert others.asked_for == [HOPELESS]
    async with asyncio.timeout(5):
        while others.under_way:
            await asyncio.sleep(0.01)


async def test_a_divisor_from_elsewhere_ends_the_curves_here(pool: FactorPool, others: Others) -> None:
    """The answer does not wait for a slice that is under way."""
    async with asking(pool) as task:
        help = await others.until_asked()
        done = Factoring(HOPELESS, ((P, 1), (Q, 1)))
        help.add(help.factoring, (done, done.known_factors()))
        assert await asyncio.wait_for(task, 2) == f"{P} {Q}"
    assert others.under_way == []


async def test_what_is_left_after_a_divisor_is_split_on(pool: FactorPool, others: Others) -> None:
    """The pool splits what a divisor of another replica leaves."""
    factors = prime(27), prime(27, 1)
    left = math.prod(factors)
    async with asking(pool, HOPELESS * left) as task:
        help = await others.until_asked()
        split = Factoring(HOPELESS * left, ((P, 1), (Q, 1)), (Composite(left),))
        help.add(help.factoring, (split, None))
        assert await asyncio.wait_for(task, 30) == f"{min(factors)} {max(factors)} {P} {Q}"


async def test_curves_from_elsewhere_count(pool: FactorPool, others: Others) -> None:
    """The pool continues after the curves of all replicas, with higher bounds."""
    async with asking(pool):
        help = await others.until_asked()
        help.add(help.factoring, (with_curves(help.factoring, 1000), None))
        async with asyncio.timeout(20):
            while (known := pool.progress(HOPELESS)) is None or known.curves <= 1000:
                await asyncio.sleep(0.01)
        assert help.factoring.composites[0].curves >= known.curves


async def test_help_ends_when_the_sieve_is_due(pool: FactorPool, others: Others) -> None:
    """The curves of all replicas count before a sieve."""
    number = prime(35) * prime(35, 1)
    async with asking(pool, number):
        help = await others.until_asked()
        help.add(help.factoring, (with_curves(help.factoring, curve_count_before_sieve(number.bit_length())), None))
        async with asyncio.timeout(20):
            while (known := pool.progress(number)) is None or known.stage != Stage.SIEVE:
                await asyncio.sleep(0.01)
        assert others.under_way == []


async def test_one_number_of_each_lane_gets_help(pool: FactorPool, others: Others) -> None:
    """The next number of a lane gets help when the first is over."""
    job = 5 * HOPELESS
    async with (
        asking(pool) as one,
        asking(pool, 3 * HOPELESS) as another,
        asking(pool, job, patient=True),
    ):
        tasks = {HOPELESS: one, 3 * HOPELESS: another}
        await others.until_asked(2)
        await asyncio.sleep(2)
        (first,) = set(others.asked_for) - {job}
        assert len(others.asked_for) == 2
        tasks.pop(first).cancel()
        await others.until_asked(3)
        assert others.asked_for[2:] == [*tasks]


async def test_a_replica_helps_with_what_it_does_not_need() -> None:
    """The pool helps only while it is open, and not with processes that its own numbers use."""
    before = Factoring(HOPELESS, (), (Composite(HOPELESS),))
    pool = FactorPool(processes=2)
    assert await pool.help_for_others.run_curves(before, 2, 1) is None
    async with pool:
        found = await pool.help_for_others.run_curves(before, 2, 1)
        assert found is not None
        assert found[0].composites[0].curves > 0
        async with asking(pool):
            async with asyncio.timeout(20):
                while (known := pool.progress(HOPELESS)) is None or not known.curves:
                    await asyncio.sleep(0)
            async with asyncio.timeout(20):
                while pool.progress(HOPELESS).curves == known.curves:  # type: ignore[union-attr]
                    assert await pool.help_for_others.run_curves(before, 2, 1) is None
                    await asyncio.sleep(0)
    assert await pool.help_for_others.run_curves(before, 2, 1) is None


async def test_a_pool_that_ends_ends_its_share() -> None:
    """A replica that leaves does not go on to compute for others."""
    before = Factoring(HOPELESS, (), (Composite(HOPELESS),))
    async with FactorPool(processes=1) as pool:
        share = asyncio.create_task(pool.help_for_others.run_curves(before, 1, 60))
        await asyncio.sleep(1)
        assert not share.done()
        begun = time.monotonic()
    assert await share is None
    assert time.monotonic() - begun < 2
