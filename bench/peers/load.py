"""The load for every contender: a number of calls in flight for some time, with a check of each answer.

It runs in every peer's environment, so it imports only the standard library. It prints one line of JSON when a level
begins and one when it ends; the bench reads the processor time at these moments.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import statistics
import time
from collections.abc import Awaitable, Callable

#: Makes call number n and returns its answer, which must be n.
Call = Callable[[int], Awaitable[int]]

REDIS_URL = os.environ.get("BENCH_REDIS_URL", "redis://127.0.0.1:6379/0")
NATS_URL = os.environ.get("BENCH_NATS_URL", "nats://127.0.0.1:4222")
LEVELS = [int(level) for level in os.environ.get("BENCH_LEVELS", "1,16,128").split(",")]
SECONDS = float(os.environ.get("BENCH_SECONDS", "2"))
#: Calls a second that are begun, if there are loops free to begin them; 0: as many as are answered.
RATE = float(os.environ.get("BENCH_RATE", "0"))
#: A contender that has not ended a level by this long after its time, or makes no progress for so long, hangs.
PATIENCE_S = 30.0
#: How the options bench calls: plain, key, lane or delayed.
OPTION = os.environ.get("BENCH_OPTION", "plain")
#: In the options bench, the lanes among which calls in order are spread, and how long a delayed request waits.
LANES = int(os.environ.get("BENCH_LANES", "32"))
DELAY_S = float(os.environ.get("BENCH_DELAY_S", "0.5"))
#: How often the client looks whether all delayed requests have run.
LOOK_S = 0.02
#: The worker may still be starting when the first call is made.
START_TIMEOUT_S = 40.0
WARM_UP_S = 0.3


def say(**facts: object) -> None:
    """Print one line for the bench."""
    print(json.dumps(facts), flush=True)


def summary(in_flight: int, latencies: list[float], elapsed: float, failures: int) -> dict[str, object]:
    """The result of a level; latencies are in milliseconds."""
    ordered = sorted(latencies)
    return {
        "event": "end",
        "in_flight": in_flight,
        "calls": len(ordered),
        "failures": failures,
        "rate": len(ordered) / elapsed,
        "median_ms": 1000 * statistics.median(ordered) if ordered else None,
        "p99_ms": 1000 * ordered[int(len(ordered) * 0.99)] if ordered else None,
    }


class Load:
    """Numbers the calls and records their latencies."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.asked = 0
        self.begun, self.paced = 0.0, 0
        self.latencies: list[float] = []
        self.failures = 0

    async def one(self) -> None:
        """Make one call and check its answer. Raises what the contender's client raises."""
        self.asked += 1
        number = self.asked
        begun = time.perf_counter()
        answer = await self.call(number)
        if answer != number:
            raise ValueError(f"asked {number}, answered {answer!r}")
        self.latencies.append(time.perf_counter() - begun)

    async def pace(self) -> None:
        """Wait until the next call is to begin."""
        due = self.begun + self.paced / RATE
        self.paced += 1
        if (left := due - time.perf_counter()) > 0:
            await asyncio.sleep(left)

    async def until(self, end: float) -> None:
        """Make one call after the other; count failures and print the first."""
        while time.perf_counter() < end:
            try:
                if RATE:
                    await self.pace()
                await self.one()
            except Exception as error:
                if not self.failures:
                    say(event="failure", error=f"{type(error).__name__}: {error}"[:300])
                self.failures += 1
                await asyncio.sleep(0.01)

    async def run(self, in_flight: int, seconds: float) -> float:
        """Run loops of calls for some time; return the seconds until the last answer."""
        self.latencies, self.failures = [], 0
        self.begun, self.paced = time.perf_counter(), 0
        loops = asyncio.gather(*(self.until(self.begun + seconds) for _ in range(in_flight)))
        await asyncio.wait_for(loops, seconds + PATIENCE_S)
        return time.perf_counter() - self.begun


async def wait_for_worker(load: Load) -> None:
    """Call until the first answer, which shows that the worker runs."""
    end = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            return await asyncio.wait_for(load.one(), 2.0)
        except Exception:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.1)


async def drive(call_at: Callable[[int], Call]) -> None:
    """Run all levels in turn; `call_at(in_flight)` returns the best way to call at a level."""
    load = Load(call_at(1))
    await wait_for_worker(load)
    for in_flight in LEVELS:
        load.call = call_at(in_flight)
        await load.run(in_flight, WARM_UP_S)
        say(event="begin", in_flight=in_flight)
        elapsed = await load.run(in_flight, SECONDS)
        say(**summary(in_flight, load.latencies, elapsed, load.failures))
    say(event="done", calls=load.asked)


async def drive_option(call: Call, delayed: Call | None, count: Callable[[], Awaitable[int]]) -> None:
    """Run all levels with one option; `delayed` sends a request for later, `count` counts those that have run."""
    if OPTION != "delayed":
        return await drive(lambda in_flight: call)
    load = Load(call)
    await wait_for_worker(load)
    load.call = delayed
    for in_flight in LEVELS:
        await send_and_wait(load, in_flight, WARM_UP_S, count)
        say(event="begin", in_flight=in_flight)
        elapsed = await send_and_wait(load, in_flight, SECONDS, count)
        say(**summary(in_flight, load.latencies, elapsed, load.failures))
    say(event="done", calls=load.asked)


async def send_and_wait(load: Load, in_flight: int, seconds: float, count: Callable[[], Awaitable[int]]) -> float:
    """Send for some time, until all that was sent has run; return the seconds since the first request became due."""
    before = seen = await count()
    begun = time.perf_counter()
    await load.run(in_flight, seconds)
    end = time.perf_counter() + DELAY_S + PATIENCE_S
    while (ran := await count()) - before < len(load.latencies):
        if ran > seen:
            seen, end = ran, time.perf_counter() + PATIENCE_S
        elif time.perf_counter() > end:
            raise TimeoutError(f"{len(load.latencies)} requests were accepted for later, {ran - before} ran")
        await asyncio.sleep(LOOK_S)
    return time.perf_counter() - begun - DELAY_S


def run(main: Awaitable[None]) -> None:
    """Run on uvloop if the environment has it, and collect garbage as seldom as the mesh does."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    try:
        from uvloop import run as run_on_loop
    except ImportError:
        run_on_loop = asyncio.run
    run_on_loop(main)
