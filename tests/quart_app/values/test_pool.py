"""The pool: shared, bounded, killable, and back by itself. Real processes throughout."""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import gmpy2
import psutil
import pytest

from mesh.errors import Busy, DeadlineExceeded, Unavailable
from quart_app.values import notation
from quart_app.values import pool as pools
from quart_app.values.computation import Computation, Progress
from quart_app.values.factorise import Stage, WrongFactors
from quart_app.values.lanes import Lane
from quart_app.values.pool import FactorPool
from tests.support.waiting import Turns


def prime(digits: int, number: int = 0) -> int:
    """A fixed prime of this many digits; another one for each number. Of no special form, which a sieve might like."""
    chance = random.Random(f"{digits} {number}")
    return int(gmpy2.next_prime(chance.randrange(4 * 10 ** (digits - 1), 9 * 10 ** (digits - 1))))


#: a third of a minute or more for the sieve; hopeless within the tests
EIGHTY_DIGITS = prime(40) * prime(40, 1)
#: a second of curves, then some seconds of one call into the sieve
SIXTY_DIGITS = prime(32) * prime(32, 1)
MEDIUM = prime(13) * prime(13, 1)


async def factors(pool: FactorPool, number: int, timeout_s: float) -> list[int]:
    """The prime factors that the pool finds."""
    return notation.expanded(await pool.factorise(number, timeout_s))


def workers() -> list[psutil.Process]:
    """The worker processes below this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "forkserver" in " ".join(process.cmdline()) and process.parent().pid != os.getpid():  # type: ignore[union-attr]
                found.append(process)
        except (psutil.NoSuchProcess, AttributeError):
            continue
    return found


def busy() -> list[psutil.Process]:
    """Workers that compute now."""
    found = []
    for process in workers():
        try:
            if process.status() == psutil.STATUS_RUNNING:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


async def until(condition: Callable[[], Any], wait_s: float = 20) -> Any:
    """Wait until the condition returns something true, and return it."""
    end = time.monotonic() + wait_s
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.01)
    return found


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def killed(processes: list[psutil.Process], within_s: float = 2) -> None:
    """They are gone within a second; a second more is for a machine that does much else."""
    assert processes
    await until(lambda: not any(map(lives, processes)), within_s)


async def freed(processes: list[psutil.Process], within_s: float = 2) -> None:
    """Their cores are free: killed, or done with a slice that ended by itself at that very moment."""
    assert processes
    await until(lambda: not set(processes).intersection(busy()), within_s)


@pytest.fixture
async def pool() -> AsyncIterator[FactorPool]:
    async with FactorPool(processes=1, hard_limit=2) as made:
        yield made


async def test_small_numbers_need_no_process(pool: FactorPool) -> None:
    """What costs microseconds is done at once, and no process is started for it."""
    assert await factors(pool, 144, 1) == [2, 2, 2, 2, 3, 3]
    assert await factors(pool, 1, 1) == []
    assert await factors(pool, 2**127 - 1, 1) == [2**127 - 1]
    assert workers() == []


async def test_many_small_numbers_let_the_event_loop_go_round(pool: FactorPool) -> None:
    """A batch never holds the loop for long."""
    semiprimes = [int(gmpy2.next_prime(2**31 + i * 1000)) * int(gmpy2.next_prime(2**32 + i * 999)) for i in range(400)]
    async with Turns() as turns:
        for number in semiprimes:
            await pool.factorise(number, 1)
    assert turns.count > 10


async def test_numbers_below_one_are_refused(pool: FactorPool) -> None:
    """As the engine refuses them."""
    with pytest.raises(ValueError, match="from 1 up"):
        await pool.factorise(0, 1)


async def test_a_medium_number_is_done_in_a_process(pool: FactorPool) -> None:
    """The result is right, and does not come from the event loop."""
    assert await factors(pool, MEDIUM, 30) == sorted([prime(13), prime(13, 1)])
    assert workers()
    assert pool.all_progress() == []


async def test_a_number_too_long_for_the_loop_is_begun_in_a_process(pool: FactorPool) -> None:
    """A prime of 400 digits takes milliseconds: too long for the loop."""
    number = int(gmpy2.next_prime(10**400))
    assert await factors(pool, 2 * number, 30) == [2, number]


async def test_who_asks_for_the_same_number_shares_one_computation(pool: FactorPool) -> None:
    """Eight callers wait for one computation."""
    asked = [asyncio.create_task(pool.factorise(prime(25) * prime(25, 1), 60)) for _ in range(8)]
    await until(lambda: pool.all_progress() and pool.all_progress()[0].waiting == 8)
    assert len(pool.all_progress()) == 1
    assert await asyncio.gather(*asked) == [notation.powers([(p, 1) for p in sorted([prime(25), prime(25, 1)])])] * 8


async def test_the_last_waiter_takes_the_computation_along(pool: FactorPool) -> None:
    """When one of two leaves, the computation goes on; when the other leaves, it ends within a second."""
    first, second = (asyncio.create_task(pool.factorise(EIGHTY_DIGITS, 60)) for _ in range(2))
    await until(busy)
    first.cancel()
    await asyncio.sleep(0.3)
    assert pool.all_progress()[0].waiting == 1
    assert busy()
    computing = await until(busy)
    second.cancel()
    await freed(computing)
    assert pool.all_progress() == []


async def test_a_sieve_is_killed_within_a_second(pool: FactorPool) -> None:
    """The library may compute for minutes without looking at anything."""
    asked = asyncio.create_task(pool.factorise(SIXTY_DIGITS, 100))
    await until(lambda: pool.all_progress() and pool.all_progress()[0].stage == Stage.SIEVE, 60)
    computing = await until(busy)
    asked.cancel()
    await killed(computing)


async def test_the_pool_serves_on_after_a_kill(pool: FactorPool) -> None:
    """Killed processes come back by themselves."""
    for _ in range(3):
        asked = asyncio.create_task(pool.factorise(EIGHTY_DIGITS, 60))
        await until(busy)
        asked.cancel()
    begun = time.monotonic()
    assert await factors(pool, prime(24) * prime(24, 1), 60) == sorted([prime(24), prime(24, 1)])
    assert time.monotonic() - begun < 10


async def test_the_deadline_holds_and_what_is_known_is_told(pool: FactorPool) -> None:
    """A hopeless number: its small factors, what is left, and a free core."""
    number = 2**5 * prime(9) * prime(55) * prime(65)
    begun = time.monotonic()
    asked = asyncio.create_task(pool.factorise(number, 5))
    computing = await until(busy)
    with pytest.raises(DeadlineExceeded, match="120 digits") as raised:
        await asked
    assert time.monotonic() - begun < 6
    assert raised.value.facts["factors"] == [2] * 5 + [prime(9)]
    assert raised.value.facts["unfactored"] == [prime(55) * prime(65)]
    assert raised.value.facts["stage"] == Stage.CURVES
    await freed(computing)


async def test_beyond_the_bound_hard_numbers_are_refused_at_once(pool: FactorPool) -> None:
    """Busy, with a time to try again; easy numbers are still taken."""
    asked = [asyncio.create_task(pool.factorise(EIGHTY_DIGITS * 2**i, 60)) for i in range(2)]
    await until(lambda: len(pool.all_progress()) == 2)
    begun = time.monotonic()
    with pytest.raises(Busy) as raised:
        await pool.factorise(EIGHTY_DIGITS * 3, 60)
    assert time.monotonic() - begun < 0.1
    assert 1 <= (raised.value.retry_after or 0) <= 60
    assert await factors(pool, MEDIUM, 30) == sorted([prime(13), prime(13, 1)])
    for task in asked:
        task.cancel()


async def test_a_hard_number_does_not_hold_up_a_medium_one(pool: FactorPool) -> None:
    """Hard and medium numbers have processes of their own."""
    await pool.factorise(MEDIUM, 30)
    asked = asyncio.create_task(pool.factorise(EIGHTY_DIGITS, 60))
    await until(busy)
    begun = time.monotonic()
    for i in range(1, 20):
        await pool.factorise(prime(13) * prime(13, i + 1), 30)
    assert time.monotonic() - begun < 2
    asked.cancel()


def curves_run(pool: FactorPool) -> list[int]:
    """Return how many curves were run on each number so far."""
    computations = list(pool._computations.values())
    return [one.factoring.composites[0].curves for one in computations if one.factoring is not None]


async def test_hopeless_numbers_take_turns(pool: FactorPool) -> None:
    """Two numbers share one process, and both make progress."""
    numbers = [prime(60, i) * prime(61, i) for i in range(2)]
    asked = [asyncio.create_task(pool.factorise(number, 60)) for number in numbers]

    await until(lambda: len(found := curves_run(pool)) == 2 and all(found))
    for task in asked:
        task.cancel()


async def test_idle_processes_run_curves_on_one_number_together() -> None:
    """Two processes compute for it; one of them goes to the next number that needs one."""
    async with FactorPool(processes=2) as pool:
        asked = [asyncio.create_task(pool.factorise(prime(60) * prime(61), 60))]
        await until(lambda: len(busy()) == 2)
        asked.append(asyncio.create_task(pool.factorise(prime(60, 1) * prime(61, 1), 60)))

        await until(lambda: len(found := curves_run(pool)) == 2 and all(found))
        for task in asked:
            task.cancel()
        await freed(busy())


async def test_a_factor_found_by_one_process_ends_the_curves_of_the_others() -> None:
    """The number has one factor that curves find soon, and is then done."""
    async with FactorPool(processes=2) as pool:
        number = prime(14) * prime(111)
        assert await factors(pool, number, 60) == [prime(14), prime(111)]
        await until(lambda: not busy())


async def test_progress_tells_stage_time_and_estimate(pool: FactorPool) -> None:
    """Progress is told for a job that somebody looks at."""
    assert pool.progress(EIGHTY_DIGITS) is None
    asked = asyncio.create_task(pool.factorise(6 * EIGHTY_DIGITS, 60))
    await until(lambda: (one := pool.progress(6 * EIGHTY_DIGITS)) and one.stage == Stage.CURVES)
    found = pool.progress(6 * EIGHTY_DIGITS)
    assert isinstance(found, Progress)
    assert found.factors == "2 3"
    assert found.unfactored == [EIGHTY_DIGITS]
    assert found.elapsed_s > 0
    assert found.estimate_s is not None
    assert found.estimate_s > 60
    asked.cancel()


async def test_an_estimate_runs_down_while_its_stage_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate begins anew with the next stage, and never goes below 0."""
    computation = Computation(6, None, 0.0, 60.0, asyncio.get_running_loop().create_future(), False)
    assert math.isinf(computation.left_s(1.0, 300))
    computation.factoring = object()  # type: ignore[assignment]
    for seconds, now_s, left_s in ((100.0, 1.0, 100.0), (100.0, 31.0, 70.0), (40.0, 32.0, 40.0), (40.0, 99.0, 0.0)):
        monkeypatch.setattr(pools.engine, "expected_seconds", lambda *_, seconds=seconds: seconds)
        assert computation.left_s(now_s, 300) == left_s


async def test_a_killed_process_costs_a_slice_not_the_number(pool: FactorPool) -> None:
    """The out-of-memory killer may kill a worker; the next worker goes on with the number."""
    asked = asyncio.create_task(pool.factorise(prime(27) * prime(27, 1), 60))
    await until(busy)
    busy()[0].send_signal(signal.SIGKILL)
    assert notation.expanded(await asked) == sorted([prime(27), prime(27, 1)])


async def test_a_number_that_kills_its_processes_is_given_up(pool: FactorPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that has killed two processes is not tried again."""
    monkeypatch.setattr(pools.child, "advance", os._exit)
    monkeypatch.setattr(FactorPool, "_next_call", lambda self, computation: (os._exit, 3))
    with pytest.raises(Unavailable, match="died"):
        await pool.factorise(MEDIUM, 60)
    monkeypatch.undo()
    assert await factors(pool, MEDIUM, 60) == sorted([prime(13), prime(13, 1)])


async def test_idle_processes_that_are_killed_come_back(pool: FactorPool) -> None:
    """All of them may be killed at once, which pebble alone does not survive."""
    await pool.factorise(MEDIUM, 30)
    victims = workers()
    for process in victims:
        process.kill()
    await until(lambda: not any(lives(process) for process in victims))
    await asyncio.sleep(0.3)  # pebble's own look
    assert await factors(pool, prime(13) * prime(13, 5), 30) == sorted([prime(13), prime(13, 5)])


async def test_an_error_of_the_engine_reaches_every_waiter(pool: FactorPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong result is an error, and the pool lives on."""

    async def wrong(*_: object) -> None:
        raise WrongFactors("no")

    monkeypatch.setattr(Lane, "run", wrong)
    found = await asyncio.gather(*(pool.factorise(MEDIUM, 5) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in found] == [WrongFactors] * 3
    monkeypatch.undo()
    assert await pool.factorise(MEDIUM, 30)


def lowered(niceness: int) -> int:
    """Return the niceness of a process that is so much nicer than this one; 19 is the most."""
    return min(19, os.getpriority(os.PRIO_PROCESS, 0) + niceness)


async def test_workers_yield_to_the_event_loop(pool: FactorPool) -> None:
    """Workers have a lower priority than the replica, and those for hard numbers the lowest."""
    await pool.factorise(MEDIUM, 30)
    assert {process.nice() for process in workers()} == {lowered(5)}
    asked = asyncio.create_task(pool.factorise(EIGHTY_DIGITS, 60))
    await until(lambda: any(process.nice() == lowered(10) for process in busy()))
    asked.cancel()


async def test_workers_hold_none_of_our_sockets(pool: FactorPool) -> None:
    """A worker that outlived its replica would otherwise hold its port and its connections."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with server:
        await pool.factorise(MEDIUM, 30)
        port = server.sockets[0].getsockname()[1]
        for process in workers():
            assert not [c for c in process.net_connections() if c.laddr and c.laddr.port == port]


async def test_leaving_kills_what_runs() -> None:
    """Nothing is left of a pool that ended, however much was under way."""
    async with FactorPool(processes=1) as pool:
        asked = asyncio.create_task(pool.factorise(EIGHTY_DIGITS, 60))
        await until(busy)
        begun = time.monotonic()
    assert time.monotonic() - begun < 2
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert busy() == []


CHILD = """
import asyncio, math
from prometheus_client import CollectorRegistry
from quart_app.values.metrics import FactorMetrics
from quart_app.values.lanes import Lane

if __name__ == "__main__":
    lane = Lane(1, niceness=10, metrics=FactorMetrics(CollectorRegistry()).lane_metrics("hard"))
    asyncio.run(lane.run(lambda: (math.factorial, 10**7)))
"""


async def test_a_worker_does_not_outlive_its_replica(tmp_path: Path) -> None:
    """kill -9 of the replica ends a long call into a library, too, which looks at nothing itself."""
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    child = await asyncio.create_subprocess_exec(sys.executable, script)
    below: list[psutil.Process] = []

    def computing() -> bool:
        below[:] = psutil.Process(child.pid).children(recursive=True)
        return any(one.nice() == lowered(10) and one.cpu_times().user > 0.5 for one in below)

    await until(computing, 60)
    child.kill()
    await child.wait()
    try:
        await killed(below)
    finally:
        for process in filter(lives, below):
            process.kill()


async def test_a_pool_that_ended_cancels_its_callers() -> None:
    """A request that a leaving replica cannot finish is another's to do, not an error."""
    async with FactorPool(processes=1) as pool:
        pass
    with pytest.raises(asyncio.CancelledError):
        await pool.factorise(MEDIUM, 5)


async def test_who_comes_before_the_pool_is_open_waits() -> None:
    """Requests arrive as soon as the lease is held, a moment before the services are ready."""
    pool = FactorPool(processes=1)
    early = asyncio.create_task(pool.factorise(MEDIUM, 30))
    late = asyncio.create_task(pool.factorise(MEDIUM, 0.01))
    with pytest.raises(DeadlineExceeded, match="not ready"):
        await late
    async with pool:
        assert notation.expanded(await early) == sorted([prime(13), prime(13, 1)])


async def test_a_job_does_not_hold_up_who_sits_and_waits(pool: FactorPool) -> None:
    """Jobs have processes and a bound of their own."""
    jobs = [asyncio.create_task(pool.factorise(EIGHTY_DIGITS * 2**i, 60, patient=True)) for i in range(2)]
    await until(busy)
    with pytest.raises(Busy):
        await pool.factorise(EIGHTY_DIGITS * 3, 60, patient=True)
    assert await factors(pool, prime(27) * prime(27, 1), 60) == sorted([prime(27), prime(27, 1)])
    for job in jobs:
        job.cancel()


async def test_whether_a_long_number_is_prime_is_found_out_in_a_process(pool: FactorPool) -> None:
    """The test takes milliseconds for 400 digits and seconds for 4000: too long for the loop."""
    number = int(gmpy2.next_prime(10**400))
    assert await pool.is_prime(2**89 - 1, 1)
    assert not await pool.is_prime(2**89 + 1, 1)
    assert workers() == []
    assert await pool.is_prime(number, 30)
    assert not await pool.is_prime(number + 2, 30)
    with pytest.raises(DeadlineExceeded):
        await pool.is_prime(number, 0.0001)
