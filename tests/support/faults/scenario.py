"""What the rows of the fault matrix use: a mesh under a known load, waits with a bound, and the check of the promises.

Mesh
  +-- server       a real Redis or Valkey, which a row can stop, kill or empty
  +-- Caddy        the address to which clients send the load
  +-- Member x N   the process of a replica, restarted whenever it ends, and its wire to the server
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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
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
from quart_app.local.processes import Supervisor
from quart_app.local.spawning import spawn
from tests.support.faults import checkers
from tests.support.faults.checkers import Broken, Data, TooLate
from tests.support.faults.clock import ServerClock
from tests.support.faults.history import History, Sample, send
from tests.support.faults.load import Load
from tests.support.faults.wire import Wire
from tests.support.server import Server

#: The times of the matrix, in seconds: lease, deadline, claim idle time.
L, D, C = 3.0, 5.0, 2.0
PROFILE = {
    "MESH_LEASE_TTL_MS": "3000", "MESH_DEADLINE_MS": "5000", "MESH_CLAIM_IDLE_MS": "2000",
    "SERVICES": "values,tally", "HOST": "127.0.0.1", "LOG_FORMAT": "console",
    "TRUSTED_PROXIES": "127.0.0.1",
}  # fmt: skip
START_S = 40.0
#: How long until nothing is pending. The sweep removes the request of a dead sender after the deadline and a grace.
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
    #: the exit statuses of its processes so far
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
        """Restart the process whenever it ends, as an orchestrator does."""
        while True:
            if self.popen is not None and self.popen.poll() is not None:
                self.exits.append(self.popen.returncode)
                self.popen = None
            if self.popen is None and self.supervised:
                self.start()
            await asyncio.sleep(POLL_S)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send(signal.SIGKILL)

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    @contextlib.contextmanager
    def paused(self) -> Any:
        """Stop the process (SIGSTOP) while the block lasts."""
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
    """A mesh under test, and the history of its requests."""

    def __init__(self, server: Server, folder: Path, chance: random.Random, env: dict[str, str]) -> None:
        self.server = server
        self.folder = folder
        self.chance = chance
        self.env = {**PROFILE, **env, "FAULTS_JOURNAL": str(folder / "journal")}
        self.history = History()
        self.members: list[Member] = []
        #: whether replicas reach the server over wires, which cost this process time
        self.wired = True
        self.address = ""
        self.balancer_pid = 0
        self.client = _client()
        self.admin = redis.asyncio.Redis(
            port=server.port, decode_responses=True, socket_timeout=1, socket_connect_timeout=1
        )
        self.patience_s = int(self.env["MESH_DEADLINE_MS"]) / 1000 + 1
        #: seconds from the moment the last process was up until all were ready
        self.leased_s = 0.0
        self._supervision: list[asyncio.Task[None]] = []

    # Parts of the mesh

    async def add(self, count: int, *, supervised: bool = True, **env: str) -> list[Member]:
        """Start more replicas, and do not wait for them."""
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
        """GET a URL and return the status; 0 when there is no answer."""
        try:
            return (await self.client.get(url, timeout=2)).status_code
        except httpx.HTTPError:
            return 0

    async def post(self, member: Member | None, path: str, asked: Any) -> Sample:
        """Send a POST to one replica, or to Caddy, and add it to the history."""
        base = self.address if member is None else member.public
        sample = replace(await send(self.client, base + path, asked), path=path)
        self.history.samples.append(sample)
        return sample

    def tally(self, member: Member | None, **asked: Any) -> asyncio.Task[Sample]:
        """Start a tally request at one replica, and return the task that waits for its answer."""
        asked.setdefault("id", f"tally-{self.chance.randrange(1 << 48):012x}")
        return asyncio.create_task(self.post(member, "/tally", asked), name=asked["id"])

    def tally_anywhere(self, **asked: Any) -> asyncio.Task[Sample]:
        """Start a tally request at Caddy, and return the task that waits for its answer."""
        return self.tally(None, **asked)

    async def rows(self) -> list[Holder]:
        """Return the rows of the roster, including those whose lease has just ended."""
        return await mesh_roster.read_directly(self.admin)

    async def holders(self) -> list[Holder]:
        """Return the rows of the replicas that hold a database now."""
        return [row for row in await self.rows() if row.leased]

    async def epochs(self) -> dict[int, int]:
        """Return the epoch of each leased database."""
        return {holder.database: holder.epoch for holder in await self.holders()}

    async def holder_of(self, member: Member) -> Holder:
        """Return the roster row of a replica. Raises StopIteration when it holds no database."""
        return next(holder for holder in await self.holders() if holder.pid == member.pid)

    def member(self, pid: int) -> Member:
        return next(member for member in self.members if member.popen is not None and member.popen.pid == pid)

    def journal(self) -> list[dict[str, Any]]:
        """Return a line for each handler run that has begun so far."""
        path = self.folder / "journal"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def begins(self, id: str) -> list[dict[str, Any]]:
        return [line for line in self.journal() if line["id"] == id]

    async def begun(self, task: asyncio.Task[Sample], times: int = 1) -> Member:
        """Wait until a tally was begun `times` times, and return the replica that began it last."""
        id = task.get_name()

        async def is_begun() -> bool:
            return len(self.begins(id)) >= times

        await self.within(D, is_begun, f"{id} is begun")
        return self.member(self.begins(id)[-1]["pid"])

    def effects(self, id: str) -> int:
        """Return how often a tally took effect."""
        return Data(self.connect).effects[id]

    def connect(self, database: int = 0) -> redis.Redis:
        return self.server.redis(database)

    def logs(self) -> str:
        return "\n".join(f"{member.log.name}: {member.log.read_text()[-1500:]}" for member in self.members)

    # Waits, each with a bound

    async def within(
        self, bound_s: float, condition: Callable[[], Awaitable[Any]], what: str, since: float | None = None
    ) -> float:
        """Wait until the condition holds and return the seconds that took. Raises TooLate, Broken."""
        began = time.monotonic() if since is None else since
        while True:
            with contextlib.suppress(redis.RedisError, OSError):
                if await condition():
                    took = time.monotonic() - began
                    if took > bound_s:
                        raise TooLate(f"{what}: {took:.2f} s, and not {bound_s:.2f} s")
                    return took
            # Wait beyond the bound, to tell "too late" from "never".
            if time.monotonic() - began > 2 * bound_s + 5:
                raise Broken(f"{what}: not within {bound_s:.2f} s nor {2 * bound_s + 5:.2f} s\n{self.logs()}")
            await asyncio.sleep(POLL_S)

    @property
    def seats(self) -> int:
        """The number of replicas that can hold a database."""
        running = [member for member in self.members if member.supervised or member.popen is not None]
        return min(len(running), int(self.env.get("MESH_DATABASES", "16")))

    async def ready_members(self) -> list[Member]:
        ready = await asyncio.gather(*(member.ready() for member in self.members))
        return [member for member, is_ready in zip(self.members, ready, strict=True) if is_ready]

    async def all_alive(self) -> bool:
        return all(await asyncio.gather(*(member.alive() for member in self.members)))

    async def all_ready(self) -> bool:
        """Return whether every replica that can hold a database is ready and holds one of its own."""
        holders = {holder.database for holder in await self.holders()}
        return len(holders) == self.seats == len(await self.ready_members())

    async def serves(self) -> bool:
        """Return whether all replicas are ready and every database answers a tally request."""
        if not await self.all_ready():
            return False
        holders = await self.holders()
        asks = []
        for member, holder in zip(await self.ready_members(), holders, strict=False):
            asked = {"id": f"probe-{self.chance.randrange(1 << 48):012x}", "wait_ms": 1000}
            asks.append(self.post(member, "/tally", {**asked, "database": holder.database}))
            asks.append(self.post(member, "/tally", {**asked, "id": asked["id"] + "c", "cls": holder.cls}))
        answers = await asyncio.gather(*asks)
        # A broken connection of the test to a killed process says nothing about the mesh.
        self.history.samples[:] = [sample for sample in self.history.samples if sample.status or sample not in answers]
        return all(sample.ok for sample in answers)

    async def recovered(self, bound_s: float, since: float | None = None) -> float:
        """Wait until all replicas work, and return the seconds that took."""
        return await self.within(bound_s, self.serves, "all replicas work", since)

    # Load and check

    @contextlib.asynccontextmanager
    async def load(self, *, clients: int = 8, pause_s: float = 0.04, to: str = "") -> AsyncIterator[History]:
        """Put the mesh under the known load while the block lasts."""
        holders = await self.holders()
        classes = "".join(sorted({holder.cls for holder in holders}))
        databases = [holder.database for holder in holders]
        load = Load(to or self.address, self.history, classes, databases, self.chance)
        async with load.running(self.admin, clients, pause_s):
            yield self.history

    async def settled(self) -> bool:
        with self.connect() as client:
            return checkers.books(client)["in_flight"] == 0 and checkers.pending(client) == 0

    async def check(self, *, lost_until: float = -math.inf) -> checkers.Findings:
        """Check every promise that each row has to keep, and return what is broken."""
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
        """Close the connections of the test itself."""
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
    clock: ServerClock | None = None,
) -> AsyncIterator[Mesh]:
    """Start a mesh of `count` replicas behind Caddy and wait until all are ready; they get the `classes` in turn."""
    server = _server(folder, list(options), {} if clock is None else clock.environ)
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


def _server(folder: Path, options: list[str], environ: Mapping[str, str]) -> Server:
    (folder / "redis").mkdir(parents=True)
    server = Server(free_port(), folder / "redis", options)
    server.program = replace(server.program, environ={**server.program.environ, **environ})
    server.start()
    return server


async def _reaches(mesh: Mesh) -> bool:
    return await mesh.status(f"{mesh.address}/classes") == 200
