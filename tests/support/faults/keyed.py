"""Workers and callers of row 57: payments with idempotency keys, by processes that live for some moments.

They fork from a process that has everything imported already, so that one of them does some work before it is killed.

    shared:keyed:effects   hash   number of a payment -> how often it took effect

A caller adds a line for each answer to a file: the number and the answer. An answer is different for each run of the
handler.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import secrets
import time
from collections.abc import Callable, Coroutine
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from msgspec import Struct
from pydantic import SecretStr

from mesh import (
    Class,
    MeshClient,
    MeshError,
    MeshSettings,
    Operations,
    RedisSettings,
    Retry,
    Transaction,
    connect,
    join,
)
from tests.support.faults import mutations

NUMBERS = 1000
AT_ONCE = 16
#: Share of calls that are given up at a random moment.
HANGS_UP = 0.1
#: How long a process may take until it has done something.
PATIENCE_S = 10

keyed = Operations("keyed")
effects = keyed.hash("effects", str, int, shared=True)


class Payment(Struct):
    """One payment of a caller."""

    number: int


@keyed.command(retry=Retry(most=2, first=timedelta(milliseconds=50)))
async def pay(tx: Transaction, body: Payment) -> str:
    """Count one effect, and answer with what no other run answers. One try of ten fails, and so one request of a
    hundred is given up."""
    tx.add(effects[str(body.number)])
    await asyncio.sleep(random.random() / 50)
    if random.random() < 0.1:
        raise OSError("this try fails")
    return secrets.token_hex(8)


def key_of(number: int) -> str:
    return f"payment-{number}"


async def ask(mesh: MeshClient, number: int) -> str:
    """Make one payment, or ask what became of it."""
    return await mesh.call(pay, Payment(number), to=Class("A"), key=key_of(number))


def settings_of(port: int) -> MeshSettings:
    """Return settings by which the database of a killed worker is soon free."""
    redis = RedisSettings(url=SecretStr(f"redis://127.0.0.1:{port}/0"))
    return MeshSettings(redis=redis, lease_ttl_ms=3000, claim_idle_ms=1000, deadline_ms=3000, class_="A")


async def work(port: int, _: Path, live: Callable[[], None]) -> None:
    """Serve payments until killed; join again after the server was away."""
    while True:
        try:
            async with join(keyed, settings=settings_of(port)):
                live()
                await asyncio.sleep(3600)
        except MeshError:
            await asyncio.sleep(0.1)


async def call(port: int, answers: Path, live: Callable[[], None]) -> None:
    """Make all payments in random order, again and again; hang up now and then."""
    out = os.open(answers, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def some() -> None:
        for number in random.sample(range(NUMBERS), NUMBERS):
            try:
                async with asyncio.timeout(random.random() / 20 if random.random() < HANGS_UP else 10):
                    answer = await ask(mesh, number)
            except (MeshError, TimeoutError):
                continue
            os.write(out, f"{number} {answer}\n".encode())
            live()

    async with connect(settings=settings_of(port)) as mesh:
        while True:
            await asyncio.gather(*(some() for _ in range(AT_ONCE)))


Play = Callable[[int, Path, Callable[[], None]], Coroutine[Any, Any, None]]


def _run(play: Play, port: int, folder: Path, mutation: str, live: Connection) -> None:
    with (folder / "players.log").open("ab") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    random.seed()
    mutations.apply(mutation)
    asyncio.run(play(port, folder / "answers", lambda: live.send(True)))


class Players:
    """The processes. Each that ends is replaced; `end` leaves none behind."""

    def __init__(self, plays: list[Play], port: int, folder: Path, mutation: str) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._plays = plays
        self._words = (port, folder, mutation)
        self._living: set[BaseProcess] = set()
        self.killed = 0

    async def kill_at_random(self, chance: random.Random, longest_s: float) -> None:
        """Kill one after another, with a pause up to so long."""
        async with asyncio.TaskGroup() as tasks:
            for play in self._plays:
                tasks.create_task(self._live_and_die(play, chance, longest_s * len(self._plays)))

    async def _live_and_die(self, play: Play, chance: random.Random, longest_s: float) -> None:
        """Start and kill a process again and again, at a random moment after it has done something."""
        while True:
            live, sends = self._context.Pipe(duplex=False)
            process = self._context.Process(target=_run, args=(play, *self._words, sends), daemon=True)
            await asyncio.to_thread(process.start)
            self._living.add(process)
            sends.close()
            until = time.monotonic() + PATIENCE_S
            while time.monotonic() < until and not live.poll():
                await asyncio.sleep(0.02)
            await asyncio.sleep(chance.random() * longest_s)
            process.kill()
            await asyncio.to_thread(process.join)
            live.close()
            self._living.discard(process)
            self.killed += 1

    def end(self) -> None:
        """Kill all of them."""
        for process in self._living:
            process.kill()
            process.join()
        self._living = set()
