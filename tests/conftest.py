"""Fixtures: a real server, a fake one, members in this process, replicas in processes of their own.

server     a Redis or Valkey for one test, on a port of its own, with its data in the test's folder
backend    the same suite over the real server and over fakeredis: `await backend.join(worker)`
mesh_of    `await mesh_of(n)` members in this process
replicas   `await replicas(n)` processes of `python -m quart_app`, spoken to over HTTP
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fakeredis
import httpx
import pytest
import redis
import redis.asyncio

from mesh import Connections, Isolation, Member, MeshSettings, RedisSettings, Replica, Worker, join
from mesh.wire.clients import heeding_cancellation
from mesh.wire.connection import Line, pack
from quart_app.local import supervisor

#: The profile of the fault matrix: short enough to wait for.
PROFILE = {"MESH_LEASE_TTL_MS": "3000", "MESH_DEADLINE_MS": "5000", "MESH_CLAIM_IDLE_MS": "2000"}
START_WAIT_S = 40.0


@dataclass
class Server:
    """A real server under test; `redis` speaks to it as its administrator."""

    port: int
    folder: Path
    options: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    program: supervisor.Binary = field(default_factory=supervisor.find_server)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def settings(self) -> RedisSettings:
        return RedisSettings(host="127.0.0.1", port=self.port)

    def start(self) -> None:
        """Start it, with what an earlier run left in its folder."""
        command = [
            self.program.path, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder),
            "--databases", "16", "--appendonly", "yes", "--save", "", *self.options,
        ]  # fmt: skip
        with (self.folder / "server.log").open("ab") as log:
            environ = {**os.environ, **self.program.environ}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environ)
        with self.redis() as client:
            until = time.monotonic() + 20
            # Not just anybody's answer: the port was free a moment ago, and another's server may be quicker to take it.
            while self.process.poll() is None and time.monotonic() < until:
                with contextlib.suppress(redis.RedisError):
                    if client.ping() and client.info("server")["process_id"] == self.process.pid:
                        return
                time.sleep(0.01)
        raise TimeoutError((self.folder / "server.log").read_text()[-2000:])

    def kill(self) -> None:
        """End it as a power failure would."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None

    def redis(self, db: int = 0) -> redis.Redis:
        """A client as the administrator."""
        return redis.Redis(port=self.port, db=db, decode_responses=True, socket_timeout=5)


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Servers with options of their own: `make_server("--maxmemory", "20mb")`, or of a certain program."""
    made: list[Server] = []

    def make(*options: str, program: supervisor.Binary | None = None) -> Server:
        folder = tmp_path / f"redis-{len(made)}"
        folder.mkdir()
        server = Server(supervisor.free_port(), folder, list(options), program=program or supervisor.find_server())
        made.append(server)
        server.start()
        return server

    yield make
    for server in made:
        server.kill()


@pytest.fixture
def server(make_server: Callable[..., Server]) -> Server:
    """A real server for one test."""
    return make_server()


#: A Redis to test on beside the server of the wheel, by path; else the redis-server on PATH.
REDIS_PROGRAM = os.environ.get("TEST_REDIS_SERVER") or shutil.which("redis-server")


def server_programs() -> list[Any]:
    """Every kind of server that this machine has, as parameters of a test."""
    missing = pytest.mark.skip(reason="no redis-server on PATH or in TEST_REDIS_SERVER")
    return [
        pytest.param(supervisor.wheel_server(), id="valkey"),
        pytest.param(supervisor.Binary(REDIS_PROGRAM or "", {}), id="redis", marks=() if REDIS_PROGRAM else (missing,)),
    ]


def mesh_settings(redis_settings: RedisSettings, **settings: Any) -> MeshSettings:
    """Settings for a test, in the profile of the fault matrix unless it says otherwise."""
    chosen = {"lease_ttl_ms": 3000, "deadline_ms": 5000, "claim_idle_ms": 2000, **settings}
    return MeshSettings(redis=redis_settings, **chosen)


class Members:
    """Members of a mesh in this process."""

    def __init__(self, settings: MeshSettings, connections: Connections | None = None) -> None:
        self.settings = settings
        self._connections = connections
        self._stack = contextlib.AsyncExitStack()

    async def join(self, worker: Worker | None = None, **settings: Any) -> Replica:
        """One more member."""
        chosen = self.settings.model_copy(update=settings)
        membership = join(worker or Worker(), chosen, connections=self._connections)
        return await self._stack.enter_async_context(membership)

    async def __call__(self, count: int, worker: Worker | None = None, **settings: Any) -> list[Replica]:
        return [await self.join(worker, **settings) for _ in range(count)]

    async def close(self) -> None:
        await self._stack.aclose()


@pytest.fixture
async def mesh_of(server: Server) -> AsyncIterator[Members]:
    """`await mesh_of(n, worker)`: members in this process, on the real server."""
    members = Members(mesh_settings(server.settings))
    yield members
    await members.close()


def without_flags(script: str) -> str:
    """A script as fakeredis can read it."""
    return script.partition("\n")[2] if script.startswith("#!lua") else script


class FakeClient(fakeredis.FakeAsyncRedis):
    """fakeredis with what it lacks: INFO, and scripts whose first line names flags (`#!lua flags=...`)."""

    async def info(self, section: str | None = None) -> dict[str, str]:
        return {"redis_version": "7.0.0"}

    async def eval(self, script: str, numkeys: int, *words: Any) -> Any:
        return await super().eval(without_flags(script), numkeys, *words)

    async def script_load(self, script: str) -> str:
        # Known by the hash of its whole text, as on a real server.
        sha = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        self.get_connection_kwargs()["server"].script_cache[sha.encode()] = without_flags(script).encode()
        return sha


class FakeLine(Line):
    """A line to fakeredis, whose answers come back as a real server sends them."""

    def __init__(self, client: FakeClient) -> None:
        super().__init__(client, timeout_s=5)
        self._fake = client
        client.response_callbacks.clear()

    async def say(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        pack(commands)
        return [await self._say(command) for command in commands]

    async def _say(self, command: tuple[Any, ...]) -> Any:
        if command[:2] == ("SCRIPT", "LOAD"):
            return await self._fake.script_load(command[2])
        try:
            return await self._fake.execute_command(*command)
        except redis.exceptions.ResponseError as error:
            return error


class FakeConnections(Connections):
    """Clients of a server that is only an object in this process."""

    def __init__(self, settings: RedisSettings, server: fakeredis.FakeServer | None = None) -> None:
        super().__init__(settings)
        self.server = server or fakeredis.FakeServer(version=(7,))

    def client(self, name: str, *, db: int | None = None, block_ms: int = 0, shared: bool = False) -> FakeClient:
        client = FakeClient(server=self.server, db=self.bus if db is None else db, decode_responses=True)
        heeding_cancellation(client)
        return client

    def line(self, name: str, *, block_ms: int = 0) -> FakeLine:
        client = FakeClient(server=self.server, db=self.bus, decode_responses=True, protocol=2)
        return FakeLine(heeding_cancellation(client))


@dataclass
class Backend:
    """A Redis, real or fake, with members of a mesh on it."""

    members: Members
    connections: Connections

    async def join(self, worker: Worker | None = None, **settings: Any) -> Replica:
        """One more member."""
        return await self.members.join(worker, **settings)

    def redis(self, db: int = 0) -> redis.asyncio.Redis:
        """A client as the administrator."""
        return self.connections.client("test", db=db)


@pytest.fixture(params=["fake", "real"])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    """Members in this process, over fakeredis (which enforces no access rules) and over the real server."""
    if request.param == "fake":
        settings = mesh_settings(RedisSettings(), isolation=Isolation.PREFIX)
        connections: Connections = FakeConnections(settings.redis)
    else:
        settings = mesh_settings(request.getfixturevalue("server").settings)
        connections = Connections(settings.redis)
    members = Members(settings, connections)
    yield Backend(members, connections)
    await members.close()


@dataclass
class Process:
    """One replica in a process of its own."""

    popen: subprocess.Popen[bytes]
    public: str
    private: str
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    def send(self, number: int) -> None:
        """Send it a signal."""
        self.popen.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self.popen.send_signal(signal.SIGCONT)
        self.popen.kill()
        self.popen.wait()

    async def ended(self, wait_s: float = 10) -> int:
        """Its exit status, once it has ended by itself."""
        if not await supervisor.ended(self.popen, wait_s):
            raise TimeoutError(f"process {self.pid} is still running:\n{self.log.read_text()[-3000:]}")
        return self.popen.returncode


class Replicas:
    """Replicas of a test, each in a process of its own, on ports of their own."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.processes: list[Process] = []
        self.client = httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=500))

    def spawn(self, env: dict[str, str] | None = None) -> Process:
        """Start one more, without waiting for anything."""
        public, private = supervisor.free_ports(2)
        log = self.folder / f"replica-{len(self.processes)}.log"
        own = {
            **os.environ, **PROFILE, "REDIS_URL": self.server.url, "SERVICES": "values", "HOST": "127.0.0.1",
            "PORT": str(public), "PRIVATE_PORT": str(private), "LOG_FORMAT": "console", **(env or {}),
        }  # fmt: skip
        with log.open("wb") as out:
            popen = subprocess.Popen([sys.executable, "-m", "quart_app"], stdout=out, stderr=out, env=own)
        process = Process(popen, f"http://127.0.0.1:{public}", f"http://127.0.0.1:{private}", log)
        self.processes.append(process)
        return process

    async def __call__(self, count: int, env: dict[str, str] | None = None) -> list[Process]:
        """Start this many and wait until each is ready."""
        started = [self.spawn(env) for _ in range(count)]
        for process in started:
            await self.ready(process)
        return started

    async def ready(self, process: Process, wait_s: float = START_WAIT_S) -> None:
        """Wait until a replica is ready."""

        async def is_ready() -> bool:
            if process.popen.poll() is not None:
                raise AssertionError(f"it ended: {process.log.read_text()[-3000:]}")
            return await self.status(process, "/readyz") == 200

        await eventually(is_ready, wait_s, lambda: process.log.read_text()[-3000:])

    async def status(self, process: Process, path: str) -> int:
        """The status a GET of the private port has, 0 where nobody listens."""
        try:
            return (await self.client.get(process.private + path)).status_code
        except httpx.TransportError:
            return 0

    async def roster(self) -> list[Member]:
        """Who holds a database now."""
        return [member for member in await supervisor.read_roster(self.server.settings) if member.leased]

    async def close(self) -> None:
        for process in self.processes:
            process.kill()
        await self.client.aclose()


@pytest.fixture
async def replicas(server: Server, tmp_path: Path) -> AsyncIterator[Replicas]:
    """`await replicas(n)`: processes, spoken to over HTTP."""
    made = Replicas(server, tmp_path)
    yield made
    await made.close()


async def eventually(
    condition: Callable[[], Awaitable[Any]], wait_s: float = 10, explain: Callable[[], str] = lambda: ""
) -> Any:
    """What the condition returns once that is true. Fails after `wait_s`."""
    until = time.monotonic() + wait_s
    while not (found := await condition()):
        if time.monotonic() > until:
            raise AssertionError(f"not within {wait_s} s: {condition.__name__}\n{explain()}")
        await asyncio.sleep(0.02)
    return found


@dataclass
class Turns:
    """How often the event loop went round while this was entered."""

    count: int = 0

    async def _watch(self) -> None:
        while True:
            self.count += 1
            await asyncio.sleep(0)

    async def __aenter__(self) -> Turns:
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watching.cancel()
