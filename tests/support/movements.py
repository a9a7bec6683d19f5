"""Consumers of movements in processes of their own that kill themselves between a commit and its acknowledgement."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from multiprocessing.context import ForkServerContext, ForkServerProcess

from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from mesh.events.consumer import Events
from mesh.events.reader import DeliveredEvent
from quart_app.movements.address import async_url
from quart_app.movements.database import MovementDatabase
from quart_app.movements.intake import Intake
from quart_app.movements.metrics import MovementMetrics
from quart_app.movements.store import MovementStore

STREAM, GROUP = "events:movements", "movements"
NEVER = 0


def consume(redis_url: str, database_url: str, name: str, batch: int, die_after: int) -> None:
    """Run one consumer until SIGTERM, or until it kills itself after `die_after` commits."""
    asyncio.run(_consume(redis_url, database_url, name, batch, die_after))


async def _consume(redis_url: str, database_url: str, name: str, batch: int, die_after: int) -> None:
    database = MovementDatabase(async_url(database_url))
    intake = Intake(
        MovementStore(database), MovementMetrics(CollectorRegistry()), on_movement_changed=lambda movement_id: None
    )
    commits = count(1)

    async def handle(entries: Sequence[DeliveredEvent]) -> Mapping[str, str]:
        refused = await intake(entries)
        if next(commits) == die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return refused

    def connect() -> Redis:
        return Redis.from_url(
            redis_url, decode_responses=True, protocol=2, socket_timeout=3, retry=Retry(NoBackoff(), 0)
        )

    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    options = {"batch": batch, "claim_idle_ms": 500}
    async with Events(connect, STREAM, GROUP, name, handle, **options, is_done=intake.is_done):
        await ended.wait()
    await database.close()


def forked() -> ForkServerContext:
    """Return a context that forks processes from one with all modules imported, so that fifty starts are cheap."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class Consumers:
    """Keeps `size` consumers alive until `kills` of them have killed themselves and the work is done."""

    def __init__(self, redis_url: str, database_url: str, *, size: int, batch: int, kills: int, seed: int) -> None:
        self._addresses = (redis_url, database_url)
        self._batch, self._kills = batch, kills
        self._random = random.Random(seed)
        self._names = (f"consumer-{n}" for n in count())
        self.killed = 0
        self._planned = 0
        self._running = [self._start() for _ in range(size)]

    def _start(self) -> ForkServerProcess:
        die_after = NEVER
        if self._planned < self._kills:
            self._planned += 1
            die_after = self._random.randint(2, 8)
        process = forked().Process(
            target=consume, args=(*self._addresses, next(self._names), self._batch, die_after), daemon=True
        )
        process.start()
        return process

    def replace_the_dead(self) -> None:
        """Start a new consumer for each that has killed itself."""
        for place, process in enumerate(self._running):
            if process.is_alive():
                continue
            assert process.exitcode == -signal.SIGKILL, f"it ended by itself: {process.exitcode}"
            self.killed += 1
            self._running[place] = self._start()

    def run_until(self, done: Callable[[], bool], within_s: float) -> None:
        """Wait until all kills have happened and the work is done. Raises AssertionError after `within_s` seconds."""
        until = time.monotonic() + within_s
        while self.killed < self._kills or not done():
            assert time.monotonic() < until, f"not done in {within_s} s after {self.killed} kills"
            self.replace_the_dead()
            time.sleep(0.05)

    def stop(self) -> None:
        for process in self._running:
            process.terminate()
        for process in self._running:
            process.join(5)
            process.kill()
            process.join(5)


@contextmanager
def consumers(
    redis_url: str, database_url: str, *, size: int, batch: int, kills: int, seed: int
) -> Iterator[Consumers]:
    running = Consumers(redis_url, database_url, size=size, batch=batch, kills=kills, seed=seed)
    try:
        yield running
    finally:
        running.stop()
