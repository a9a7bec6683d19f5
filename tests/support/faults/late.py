"""A mesh of workers without HTTP for the rows of `mesh/later`; each has a wire to the server."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import redis

from mesh import Busy, Class, Member, MeshClient, MeshSettings, Operation, Unavailable, connect, keys
from mesh.requests.scripts import BOOKS
from mesh.wire.script import Script
from quart_app.local.ports import free_port
from tests.support.faults import later_worker
from tests.support.faults.checkers import Broken, TooLate
from tests.support.faults.clock import ServerClock
from tests.support.faults.later_worker import Mark, Step
from tests.support.faults.mutations import sha_of
from tests.support.faults.wire import Wire
from tests.support.killed_processes import ACCOUNTS, STREAMS
from tests.support.server import Server

PROFILE = {"MESH_LEASE_TTL_MS": "3000", "MESH_CLAIM_IDLE_MS": "2000", "MESH_DEADLINE_MS": "5000", "MESH_CLASS": "A"}
B = TypeVar("B", Mark, Step)
START_S = 40.0
WORKERS = 3


@dataclass(eq=False)
class LateWorker:
    """One worker process and its wire."""

    popen: subprocess.Popen[bytes]
    wire: Wire

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()


class LateMesh:
    """The server, the workers, and what was sent to them."""

    def __init__(self, server: Server, folder: Path, chance: random.Random, mutation: str) -> None:
        self.server = server
        self.workers: list[LateWorker] = []
        self.chance = chance
        #: texts of marks that must take effect once, and of those that may
        self.sent = set[str]()
        self.doubtful = set[str]()
        self.client: MeshClient
        self._folder = folder
        self._mutation = mutation
        self._numbers = itertools.count()
        self._samples = 0

    def sha_of(self, script: Script) -> bytes:
        """Return the hash of a script as the workers run it."""
        return sha_of(script, self._mutation)

    # Workers

    async def add(self, *, held_at: Script | None = None) -> LateWorker:
        """Start one more worker; `held_at`: hold the first command that runs this script."""
        wire = Wire(self.server.port, self.chance)
        await wire.open()
        if held_at is not None:
            wire.black_hole_at(self.sha_of(held_at))
        self.workers.append(worker := LateWorker(self._spawn(wire.port), wire))
        return worker

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        url = f"redis://127.0.0.1:{port}/0"
        env = {**os.environ, **PROFILE, "REDIS_URL": url, "FAULTS_MUTATION": self._mutation}
        with (self._folder / "workers.log").open("ab") as log:
            command = [sys.executable, "-m", "tests.support.faults.later_worker"]
            return subprocess.Popen(command, stdout=log, stderr=log, env=env)

    async def lose(self, worker: LateWorker) -> None:
        """Kill a worker, and forget what its wire holds."""
        self.workers.remove(worker)
        worker.kill()
        await worker.wire.close()

    async def replace(self) -> None:
        """Start workers for those that were lost, and wait until they are live."""
        while len(self.workers) < WORKERS:
            await self.add()
        await self.live(WORKERS)

    async def live(self, count: int) -> None:
        """Wait until so many workers are live. Raises TooLate."""
        pids = {worker.popen.pid for worker in self.workers}
        async with _bound(START_S, f"{count} workers are live", self):
            while sum(member.leased and member.pid in pids for member in await self._roster()) < count:
                await asyncio.sleep(0.05)

    async def _roster(self) -> list[Member]:
        with contextlib.suppress(Unavailable):
            return await self.client.roster()
        return []

    # Requests

    def text(self) -> str:
        return f"m{next(self._numbers)}"

    async def send(self, *, fails: int = 0, after_ms: int = 300, begins: bool = False) -> str:
        """Send a mark for later, and return its text."""
        body = Mark(self.text(), fails)
        op = later_worker.begin if begins else later_worker.mark
        await self.deliver(op, body, timedelta(milliseconds=after_ms))
        return body.text

    async def deliver(
        self, op: Operation[B, Any], body: B, after: timedelta | None = None, key: str | None = None
    ) -> None:
        """Send a request, and note its text."""
        try:
            await self.client.send(op, body, to=Class("A"), after=after, key=key)
        except (Unavailable, Busy):
            self.doubtful.add(body.text)
        else:
            self.sent.add(body.text)

    async def load(self, pause_s: float = 0.02) -> None:
        """Send marks until cancelled."""
        while True:
            await self.send(
                fails=self.chance.choice([0, 0, 1]),
                after_ms=self.chance.randrange(1, 2000),
                begins=self.chance.random() < 0.3,
            )
            await asyncio.sleep(pause_s)

    # Checks

    async def sample(self) -> None:
        """Read the books again and again until cancelled. Raises Broken where they do not balance."""
        while True:
            await self._sample()
            await asyncio.sleep(0.05)

    async def _sample(self) -> None:
        def read() -> list[int] | None:
            try:
                with self.server.redis() as admin:
                    return [int(each) for each in admin.eval(BOOKS.source, 1 + len(STREAMS), keys.BOOKS, *STREAMS)]
            except (OSError, redis.ConnectionError, redis.TimeoutError):
                return None  # the server restarts

        values = await asyncio.to_thread(read)
        if values is None:
            return
        self._samples += 1
        books = dict(zip(ACCOUNTS, values, strict=True))
        if books["accepted"] != sum(values[1:]):
            raise Broken(f"the books do not balance: {books}")

    async def settled(self, bound_s: float = 40.0) -> None:
        """Wait until every mark that was sent has taken effect or was removed. Raises TooLate."""
        async with _bound(bound_s, "nothing waits and nothing is worked on", self):
            while not await asyncio.to_thread(is_settled, self.server):
                await asyncio.sleep(0.1)

    def judge(self) -> str:
        """Check that each mark took effect once, and that nothing is left; return a note for the table."""
        return f"{judge(self.server, self.sent)}, {self._samples} samples of the books"


def is_settled(server: Server, tick: str = later_worker.tick.name) -> bool:
    """Return whether at one moment nothing waits, and nothing but this operation is on a stream."""
    with server.redis() as admin, admin.pipeline(transaction=True) as pipeline:
        pipeline.zcard(keys.LATER)
        for stream in STREAMS:
            pipeline.xrange(stream)
        waiting, *streams = pipeline.execute()
    ops = {fields.get("op") for entries in streams for _, fields in entries}
    return waiting == 0 and ops <= {tick}


def judge(server: Server, sent: set[str]) -> str:
    """Check that each mark took effect once, that nothing is left, and that each second has its tick. Raises Broken."""
    with server.redis() as admin:
        found = {text: int(times) for text, times in admin.hgetall("shared:late:marks").items()}
        left = [key for key in admin.keys(f"{keys.LATER}*") if not key.startswith(keys.CANCELLED)]
        dead = admin.xlen(keys.DEAD)
    if twice := {text: times for text, times in found.items() if times != 1}:
        raise Broken(f"a mark took effect {max(twice.values())} times: {twice}")
    if lost := sent - found.keys():
        raise Broken(f"{len(lost)} marks never took effect: {sorted(lost)[:5]}")
    if left or dead:
        raise Broken(f"{left} and {dead} dead letters were left")
    return f"{len(found)} marks, {_judge_ticks(server)}"


def _judge_ticks(server: Server) -> str:
    """Check that each second up to the next tick ran, is about to, or was counted as missed; none twice."""
    with server.redis() as admin, admin.pipeline(transaction=True) as pipeline:
        pipeline.hgetall("shared:late:ticks").get("shared:late:missed")
        pipeline.hget(keys.schedule(later_worker.tick.name), "next").xrange(keys.class_requests("A"))
        ran, counted, following, entries = pipeline.execute()
    ticks = {int(second): int(times) for second, times in ran.items()}
    if repeated := {second: times for second, times in ticks.items() if times != 1}:
        raise Broken(f"a tick took effect {max(repeated.values())} times: {repeated}")
    waits = [json.loads(fields["body"]) for _, fields in entries if fields.get("op") == later_worker.tick.name]
    missed = int(counted or 0) + sum(tick["missed"] for tick in waits)
    seconds = int(following) // 1000 - min(ticks)
    if seconds != len(ticks) + len(waits) + missed:
        raise Broken(f"of {seconds} ticks {len(ticks)} ran, {len(waits)} wait, and {missed} were counted as missed")
    return f"{len(ticks)} ticks and {missed} missed"


@contextlib.asynccontextmanager
async def _bound(seconds: float, what: str, mesh: LateMesh) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        log = (mesh._folder / "workers.log").read_text()[-3000:]
        raise TooLate(f"{what}: not within {seconds:.0f} s\n{log}") from error


@contextlib.asynccontextmanager
async def late_mesh(
    folder: Path, chance: random.Random, mutation: str, *, clock: ServerClock | None = None
) -> AsyncIterator[LateMesh]:
    """Start a server and workers; while the block lasts the books balance."""
    (folder / "redis").mkdir(parents=True)
    server = Server(free_port(), folder / "redis", ["--appendfsync", "always"])
    if clock is not None:
        server.program = replace(server.program, environ={**server.program.environ, **clock.environ})
    server.start()
    mesh = LateMesh(server, folder, chance, mutation)
    try:
        settings = MeshSettings(redis=server.settings, lease_ttl_ms=3000, deadline_ms=5000)
        async with connect(settings=settings) as mesh.client:
            for _ in range(WORKERS):
                await mesh.add()
            await mesh.live(WORKERS)
            async with asyncio.TaskGroup() as tasks:
                sampling = tasks.create_task(mesh.sample())
                yield mesh
                sampling.cancel()
    finally:
        for worker in list(mesh.workers):
            await mesh.lose(worker)
        server.kill()
