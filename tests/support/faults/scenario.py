"""The words a row of the matrix is written in: a mesh under a known load, faults, waits with a bound, and the check.

Mesh
  +-- server       a real one, which can be stopped, killed, emptied
  +-- Caddy        the address the load is put to
  +-- Member x N   a replica's process, started anew whenever it ends, and its wire to the server
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import redis
import redis.asyncio

from mesh import roster as mesh_roster
from mesh.roster import Member as Holder
from quart_app.local.caddy import Site, balancer
from quart_app.local.ports import free_port, free_ports
from quart_app.local.processes import Supervisor, spawn
from tests.support.faults import checkers
from tests.support.faults.checkers import Broken, Data, TooLate
from tests.support.faults.history import History, Sample, send
from tests.support.faults.load import Load
from tests.support.faults.wire import Wire
from tests.support.server import Server

#: The profile of the matrix, in seconds: lease, deadline, claim idle time.
L, D, C = 3.0, 5.0, 2.0
PROFILE = {
    "MESH_LEASE_TTL_MS": "3000", "MESH_DEADLINE_MS": "5000", "MESH_CLAIM_IDLE_MS": "2000",
    "SERVICES": "values,tally", "HOST": "127.0.0.1", "LOG_FORMAT": "console",
}  # fmt: skip
START_S = 40.0
#: Until nothing is pending: a dead sender's request past its deadline is swept within its grace and one sweep.
SETTLE_S = D + 2 + 5 + 3
POLL_S = 0.02


@dataclass(eq=False)
class Member:
    """One replica of the mesh under test."""

    mesh: Mesh
    wire: Wire
    public: str
    private: str
    env: dict[str, str]
    log: Path
    popen: subprocess.Popen[bytes] | None = None
    #: how its processes ended, so far
    exits: list[int] = field(default_factory=list)
    supervised: bool = True
    was_ready: bool = False

    @property
    def pid(self) -> int:
        assert self.popen is not None
        return self.popen.pid

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.popen = spawn([sys.executable, "-m", "tests.support.faults.replica"], out, {**os.environ, **self.env})

    async def supervise(self) -> None:
        """Start it anew whenever it ends, as any orchestrator does."""
        while True:
            if self.popen is not None and self.popen.poll() is not None:
                self.exits.append(self.popen.returncode)
                self.popen = None
            if self.popen is None and self.supervised:
                self.start()
            await asyncio.sleep(POLL_S)

    def kill(self) -> None:
        """kill -9."""
        self.send(signal.SIGKILL)

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    @contextlib.contextmanager
    def paused(self) -> Any:
        """Stopped while the block lasts."""
        pid = self.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def ready(self) -> bool:
        self.was_ready = await self.mesh.status(f"{self.private}/readyz") == 200
        return self.was_ready

    async def alive(self) -> bool:
        return await self.mesh.status(f"{self.private}/health") == 200

    async def ended(self, pid: int) -> bool:
        return self.popen is None or self.popen.pid != pid or self.popen.poll() is not None


class Mesh:
    """A mesh under test, and what is known of it."""

    def __init__(self, server: Server, folder: Path, chance: random.Random, env: dict[str, str]) -> None:
        self.server = server
        self.folder = folder
        self.chance = chance
        self.env = {**PROFILE, **env, "FAULTS_JOURNAL": str(folder / "journal")}
        self.history = History()
        self.members: list[Member] = []
        #: whether replicas reach the server over wires, which this process has to keep moving
        self.wired = True
        self.address = ""
        self.balancer_pid = 0
        self.client = _client()
        self.admin = redis.asyncio.Redis(
            port=server.port, decode_responses=True, socket_timeout=1, socket_connect_timeout=1
        )
        self.patience_s = int(self.env["MESH_DEADLINE_MS"]) / 1000 + 1
        #: from the last process being up until all were ready
        self.leased_s = 0.0
        self._supervision: list[asyncio.Task[None]] = []

    # Its parts

    async def add(self, count: int, *, supervised: bool = True, **env: str) -> list[Member]:
        """More replicas, started but not waited for."""
        added = []
        for _ in range(count):
            member = await self._member(env)
            member.supervised = supervised
            member.start()
            self._supervision.append(asyncio.create_task(member.supervise()))
            added.append(member)
        self.members += added
        return added

    async def _member(self, env: dict[str, str]) -> Member:
        wire = Wire(self.server.port, self.chance)
        await wire.open()
        public, private = free_ports(2)
        own = {
            **self.env,
            "REDIS_URL": f"redis://127.0.0.1:{wire.port if self.wired else self.server.port}/0",
            "PORT": str(public),
            "PRIVATE_PORT": str(private),
            **env,
        }
        log = self.folder / f"replica-{len(self.members)}-{public}.log"
        return Member(self, wire, f"http://127.0.0.1:{public}", f"http://127.0.0.1:{private}", own, log)

    async def status(self, url: str) -> int:
        """The status of a GET; 0 where nobody answers."""
        try:
            return (await self.client.get(url, timeout=2)).status_code
        except httpx.HTTPError:
            return 0

    async def post(self, member: Member | None, path: str, asked: Any) -> Sample:
        """One request to one replica, or to the balancer, kept in the history."""
        base = self.address if member is None else member.public
        sample = replace(await send(self.client, base + path, asked), path=path)
        self.history.samples.append(sample)
        return sample

    def tally(self, member: Member | None, **asked: Any) -> asyncio.Task[Sample]:
        """One tally asked of one replica, under way."""
        asked.setdefault("id", f"tally-{self.chance.randrange(1 << 48):012x}")
        return asyncio.create_task(self.post(member, "/tally", asked), name=asked["id"])

    def tally_anywhere(self, **asked: Any) -> asyncio.Task[Sample]:
        """One tally asked of the balancer, under way."""
        return self.tally(None, **asked)

    async def rows(self) -> list[Holder]:
        """The roster, with whoever left or let its lease end a moment ago."""
        return await mesh_roster.read_directly(self.admin)

    async def holders(self) -> list[Holder]:
        """Who holds a database now."""
        return [row for row in await self.rows() if row.leased]

    async def epochs(self) -> dict[int, int]:
        """Database to epoch."""
        return {holder.database: holder.epoch for holder in await self.holders()}

    async def holder_of(self, member: Member) -> Holder:
        """What a replica holds."""
        return next(holder for holder in await self.holders() if holder.pid == member.pid)

    def member(self, pid: int) -> Member:
        return next(member for member in self.members if member.popen is not None and member.popen.pid == pid)

    def journal(self) -> list[dict[str, Any]]:
        """What handlers have begun so far."""
        path = self.folder / "journal"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def begins(self, id: str) -> list[dict[str, Any]]:
        return [line for line in self.journal() if line["id"] == id]

    async def begun(self, task: asyncio.Task[Sample], times: int = 1) -> Member:
        """The replica that has begun a tally for this many times."""
        id = task.get_name()

        async def is_begun() -> bool:
            return len(self.begins(id)) >= times

        await self.within(D, is_begun, f"{id} is begun")
        return self.member(self.begins(id)[-1]["pid"])

    def effects(self, id: str) -> int:
        """How often a tally took effect."""
        return Data(self.connect).effects[id]

    def connect(self, database: int = 0) -> redis.Redis:
        return self.server.redis(database)

    def logs(self) -> str:
        return "\n".join(f"{member.log.name}: {member.log.read_text()[-1500:]}" for member in self.members)

    # Waiting, always with a bound

    async def within(
        self, bound_s: float, condition: Callable[[], Awaitable[Any]], what: str, since: float | None = None
    ) -> float:
        """Wait until the condition holds; the seconds it took. Raises TooLate."""
        began = time.monotonic() if since is None else since
        while True:
            with contextlib.suppress(redis.RedisError, OSError):
                if await condition():
                    took = time.monotonic() - began
                    if took > bound_s:
                        raise TooLate(f"{what}: {took:.2f} s, and not {bound_s:.2f} s")
                    return took
            # A little beyond the bound, to tell late from never.
            if time.monotonic() - began > 2 * bound_s + 5:
                raise Broken(f"{what}: not within {bound_s:.2f} s nor {2 * bound_s + 5:.2f} s\n{self.logs()}")
            await asyncio.sleep(POLL_S)

    @property
    def seats(self) -> int:
        """How many replicas can hold a database."""
        running = [member for member in self.members if member.supervised or member.popen is not None]
        return min(len(running), int(self.env.get("MESH_DATABASES", "16")))

    async def ready_members(self) -> list[Member]:
        ready = await asyncio.gather(*(member.ready() for member in self.members))
        return [member for member, is_ready in zip(self.members, ready, strict=True) if is_ready]

    async def all_alive(self) -> bool:
        return all(await asyncio.gather(*(member.alive() for member in self.members)))

    async def all_ready(self) -> bool:
        """As many replicas as can be are ready, and each has a database of its own."""
        holders = {holder.database for holder in await self.holders()}
        return len(holders) == self.seats == len(await self.ready_members())

    async def serves(self) -> bool:
        """All are ready, and every one works: an answer from each database, asked at each in turn."""
        if not await self.all_ready():
            return False
        holders = await self.holders()
        asks = []
        for member, holder in zip(await self.ready_members(), holders, strict=False):
            asked = {"id": f"probe-{self.chance.randrange(1 << 48):012x}", "wait_ms": 1000}
            asks.append(self.post(member, "/tally", {**asked, "database": holder.database}))
            asks.append(self.post(member, "/tally", {**asked, "id": asked["id"] + "c", "cls": holder.cls}))
        answers = await asyncio.gather(*asks)
        # A connection of the test's own to a process that was killed says nothing of the mesh.
        self.history.samples[:] = [sample for sample in self.history.samples if sample.status or sample not in answers]
        return all(sample.ok for sample in answers)

    async def recovered(self, bound_s: float, since: float | None = None) -> float:
        """Wait until all work again."""
        return await self.within(bound_s, self.serves, "all replicas work", since)

    # Load and check

    @contextlib.asynccontextmanager
    async def load(self, *, clients: int = 8, pause_s: float = 0.04, to: str = "") -> AsyncIterator[History]:
        """The known load, while the block lasts."""
        holders = await self.holders()
        classes = "".join(sorted({holder.cls for holder in holders}))
        databases = [holder.database for holder in holders]
        load = Load(to or self.address, self.history, classes, databases, self.chance)
        watching = asyncio.create_task(Watch(self, databases).run())
        try:
            async with load.running(self.admin, clients, pause_s):
                yield self.history
        finally:
            watching.cancel()

    async def settled(self) -> bool:
        with self.connect() as client:
            return checkers.books(client)["in_flight"] == 0 and checkers.pending(client) == 0

    async def check(self, *, lost_until: float = -math.inf) -> checkers.Findings:
        """Every promise that each row has to keep. Raises Broken."""
        took = await self._settle()
        with self.connect() as client:
            found = checkers.books(client)
        findings = checkers.examine(self.history, Data(self.connect), self.patience_s, lost_until)
        if took is None:
            findings.other.append(f"still in flight: {found}")
        if found["accepted"] != sum(count for name, count in found.items() if name != "accepted"):
            findings.other.append(f"the books do not balance: {found}")
        return findings

    async def hang_up(self) -> None:
        """Close the connections of the test's own."""
        await self.client.aclose()
        self.client = _client()

    async def _settle(self) -> float | None:
        until = time.monotonic() + SETTLE_S
        while time.monotonic() < until:
            if await self.settled():
                return until - time.monotonic()
            await asyncio.sleep(0.05)
        return None

    async def close(self) -> None:
        for task in self._supervision:
            task.cancel()
        for member in self.members:
            if member.popen is not None:
                member.popen.kill()
                member.popen.wait()
            await member.wire.close()
        await self.client.aclose()
        await self.admin.aclose()


def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=400))


class Watch:
    """Notes when a database had no row in the roster, so that a gather could not ask its holder.

    It looks every few ms; a row that was gone between two looks is known by its new epoch.
    """

    def __init__(self, mesh: Mesh, databases: Iterable[int]) -> None:
        self._mesh = mesh
        self._databases = set(databases)
        self._fine_at = time.monotonic()
        self._rows: dict[int, Holder] = {}
        self._missed = False

    async def run(self) -> None:
        while True:
            with contextlib.suppress(redis.RedisError, OSError):
                self._look(await self._mesh.rows())
            await asyncio.sleep(POLL_S)

    def _look(self, found: list[Holder]) -> None:
        now = time.monotonic()
        rows = {row.database: row for row in found}
        if not self._databases <= rows.keys():
            self._missed = True
            return
        lapsed = any(
            before.epoch != rows[number].epoch and before.state != "left" for number, before in self._rows.items()
        )
        if lapsed or self._missed:
            self._mesh.history.holderless.append((self._fine_at, now))
        self._missed = False
        self._fine_at, self._rows = now, {number: rows[number] for number in self._databases}


@contextlib.asynccontextmanager
async def open_mesh(
    folder: Path,
    chance: random.Random,
    count: int,
    env: dict[str, str],
    classes: str,
    options: Iterable[str] = (),
    *,
    wired: bool = True,
) -> AsyncIterator[Mesh]:
    """A mesh of this many replicas behind Caddy, all ready. `classes` are given to them in turn."""
    server = _server(folder, list(options))
    mesh = Mesh(server, folder, chance, env)
    mesh.wired = wired
    try:
        for number in range(count):
            await mesh.add(1, **({"MESH_CLASS": classes[number % len(classes)]} if classes else {}))
        await mesh.within(START_S, mesh.all_alive, "every process is up")
        mesh.leased_s = await mesh.within(START_S, mesh.all_ready, "the mesh is ready")
        port = free_port()
        site = Site(port, [member.public.removeprefix("http://") for member in mesh.members])
        async with balancer(Supervisor(print), site) as child:
            assert child.pid is not None
            mesh.balancer_pid = child.pid
            mesh.address = f"http://127.0.0.1:{port}"
            await mesh.within(10, lambda: _reaches(mesh), "Caddy reaches the replicas")
            yield mesh
    finally:
        await mesh.close()
        server.kill()


def _server(folder: Path, options: list[str]) -> Server:
    (folder / "redis").mkdir(parents=True)
    server = Server(free_port(), folder / "redis", options)
    server.start()
    return server


async def _reaches(mesh: Mesh) -> bool:
    return await mesh.status(f"{mesh.address}/classes") == 200
