"""A mesh on this machine: Redis, N replicas that are kept running, and one address.

Mesh
  +-- Redis       given by REDIS_URL, or an embedded server with its data in a folder
  +-- providers   the two that the message service calls
  +-- replicas    N processes with their own ports, as by `python -m quart_app`; each is a fork of the fork server
  +-- Caddy       in front of the replicas; without Caddy they accept from one socket

They start in this order. They stop in the opposite order, so that requests in progress get their answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from mesh import MeshSettings, RedisSettings
from quart_app import providers
from quart_app.environment import NO_SETTING
from quart_app.local import caddy, discovery, redis_server, replicas
from quart_app.local.caddy import Site
from quart_app.local.data_folder import data_folder
from quart_app.local.errors import LocalError
from quart_app.local.forks import PYTHON, ForkServer
from quart_app.local.ports import free_port
from quart_app.local.processes import Child, Program, Supervisor
from quart_app.local.replicas import PortPair
from quart_app.providers.launch import FREE_PORT, PAID_PORT
from quart_app.settings import AppSettings

HOST = "127.0.0.1"
#: Seconds that a stopping replica gets in addition to the deadline of a request, before it is killed. With a larger
#: number, a replica that hangs delays Ctrl-C for longer.
STOP_MARGIN_S = 10
#: The setting DRAIN_MS of each replica behind Caddy, unless our environment has one. A replica that leaves while
#: others stay goes on serving for this long. With less time, Caddy might still send it requests; with more, it leaves
#: later.
DRAIN_MS = "2000"
#: How often the check of the environment is looked at, until it has ended. A longer pause delays the start; a shorter
#: one takes more of the processor.
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class LocalMesh:
    """A mesh that is running."""

    redis: RedisSettings
    #: one for each replica
    children: list[Child]
    #: the port for operators: Caddy's second address, or without Caddy that of the first replica
    private_port: int


@contextlib.asynccontextmanager
async def running_mesh(
    supervisor: Supervisor, *, count: int, port: int, private_port: int, redis_url: str | None, folder: Path
) -> AsyncIterator[LocalMesh]:
    """Run a mesh of `count` replicas behind one address while the block lasts; at its end drain and stop everything.

    If `redis_url` and the environment name no Redis, the mesh runs its own, with its data in `folder`.

    Raises ValidationError, before anything is started, if an address or the environment is not valid, and LocalError if
    a part of the mesh cannot run.
    """
    given_redis = redis_server.named_server(redis_url)  # None: an embedded server is started below
    stop_wait_s = MeshSettings().deadline_ms / 1000 + STOP_MARGIN_S
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(data_folder(folder))
        log_folder = folder / "logs"
        # The user may have named one port for both addresses. Then operators get any free port (0).
        front = Front(port, free_port(private_port if private_port != port else 0), stack)
        service_names = AppSettings().service_names
        fork_server = stack.enter_context(
            contextlib.closing(replicas.fork_server(service_names, log_folder, front.inherited_fds))
        )
        if given_redis is not None:  # a Redis that does not answer ends the start here, before any process is started
            await redis_server.require_answer(given_redis)
        # The imports of the fork server take longest. They go on while the steps below run.
        fork_server.start()
        if given_redis is None:
            redis_url = await stack.enter_async_context(redis_server.embedded(folder / "redis", log_folder, supervisor))
        # Without `given_redis`, `redis_url` is now the address of the embedded server.
        redis = given_redis or RedisSettings(url=SecretStr(redis_url or ""))
        announcement = discovery.Announcement(discovery.url_of(redis), port, os.getpid())
        stack.enter_context(discovery.announcing(folder, announcement))
        ports = replicas.choose_ports(count, front.first_private_port)
        front.set_page_url(ports)
        env = (
            replicas.replica_environment(redis_url, folder)
            | await _run_providers(stack, supervisor, log_folder, fork_server)
            | front.env
        )
        # The metrics of each replica show this number, so that an alert can compare it with the replicas that run.
        env["REPLICAS"] = str(count)
        programs = replicas.replica_programs(ports, env, log_folder, stop_wait_s, fork_server)
        children = await stack.enter_async_context(replicas.running(supervisor, programs))
        await front.start_caddy(stack, supervisor, ports, log_folder)
        await stack.enter_async_context(_running_beside(redis_server.report_silence(redis, supervisor.say)))
        await stack.enter_async_context(_running_beside(_report_misspelt_settings(supervisor, log_folder, fork_server)))
        yield LocalMesh(redis, children, front.private_port)


class Front:
    """The one address of a mesh: Caddy's, or without Caddy a socket that all replicas accept from.

    The constructor checks that the address is free before anything is started. Then `set_page_url` completes `env`,
    the replicas are started, and `start_caddy` starts Caddy.
    """

    def __init__(self, port: int, private_port: int, stack: contextlib.AsyncExitStack) -> None:
        #: the port for operators: Caddy's, or without Caddy that of the first replica (after `set_page_url`)
        self.private_port = private_port
        #: file descriptors that the replicas inherit
        self.inherited_fds: list[int] = []
        #: environment variables that each replica gets because of this address
        self.env: dict[str, str] = {}
        self._port = port
        self._has_caddy = caddy.find_caddy() is not None
        try:
            if self._has_caddy:
                caddy.refuse_if_taken(HOST, port)
                self.env["DRAIN_MS"] = os.environ.get("DRAIN_MS", DRAIN_MS)
                self.env["TRUSTED_PROXIES"] = os.environ.get("TRUSTED_PROXIES", HOST)
            else:
                shared_socket = _listening_socket(port)
                stack.callback(shared_socket.close)
                self.inherited_fds.append(shared_socket.fileno())
                self.env["LISTEN_FD"] = str(shared_socket.fileno())
        except LocalError as error:
            raise LocalError(f"{error}; try --port") from error

    @property
    def first_private_port(self) -> int:
        """The private port to try for the first replica; 0 (any port) if Caddy listens on the port for operators."""
        return 0 if self._has_caddy else self.private_port

    def set_page_url(self, ports: Sequence[PortPair]) -> None:
        """Put the address of the live page, which is on the port for operators, into `env`.

        Without Caddy, also set `private_port` to the private port of the first replica, which is known only now.
        """
        if not self._has_caddy:
            self.private_port = ports[0].private
        self.env["PAGE_URL"] = os.environ.get("PAGE_URL", f"http://{HOST}:{self.private_port}/mesh")

    async def start_caddy(
        self, stack: contextlib.AsyncExitStack, supervisor: Supervisor, ports: Sequence[PortPair], log_folder: Path
    ) -> None:
        """Start Caddy, if this machine has it. Raises LocalError."""
        if self._has_caddy:
            public = Site(self._port, [f"{HOST}:{pair.public}" for pair in ports])
            private = Site(self.private_port, [f"{HOST}:{pair.private}" for pair in ports])
            await stack.enter_async_context(caddy.balancer(supervisor, public, private, log=log_folder / "caddy.log"))


def _listening_socket(port: int) -> socket.socket:
    """Return the socket from which all replicas accept. Raises LocalError if the port is taken."""
    try:
        # Many clients may connect at the same moment. The kernel keeps this many connections until a replica accepts
        # them, and drops the attempts of further ones (see `BACKLOG` in `http.sockets`).
        return socket.create_server((HOST, port), backlog=1024)
    except OSError as error:
        raise LocalError(f"cannot listen on {HOST}:{port}: {error.strerror}") from error


async def _run_providers(
    stack: contextlib.AsyncExitStack, supervisor: Supervisor, log_folder: Path, fork_server: ForkServer
) -> dict[str, str]:
    """Run the two providers if the message service runs, and return the variables that tell replicas their addresses.

    Each provider has its usual port, or any free one. A provider that the environment names is used instead of ours.
    """
    if "messages" not in AppSettings().service_names:
        return {}
    provider_ports = free_port(FREE_PORT), free_port(PAID_PORT)  # FREE_PORT: of the provider that costs nothing
    urls = {name: os.environ.get(name) or url for name, url in providers.environment(*provider_ports).items()}
    for kind, command in providers.commands(*provider_ports).items():  # kind: "free" or "paid"
        if not os.environ.get(f"{kind.upper()}_PROVIDER_URL"):
            log = log_folder / f"provider-{kind}.log"
            # A longer wait delays the end of `mesh up`; after a shorter one, more requests in progress are cut off.
            program = Program(f"the {kind} provider", command, log, stop_wait_s=5.0, fork_server=fork_server)
            child = await stack.enter_async_context(supervisor.running(program))
            await stack.enter_async_context(supervisor.keeping(child))
    return urls


@contextlib.asynccontextmanager
async def _running_beside(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run a coroutine beside the block, and cancel it at the end of the block. Its own errors are not raised."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _report_misspelt_settings(supervisor: Supervisor, log_folder: Path, fork_server: ForkServer) -> None:
    """Tell the user which environment variables look like settings but are not.

    Only the services know the names of their settings, and this package does not import services. So a child process
    looks for wrong names while the replicas start.
    """
    log = log_folder / "environment.log"
    log.unlink(missing_ok=True)
    program = Program("the check of the environment", [*PYTHON, "quart_app.environment"], log, fork_server=fork_server)
    async with supervisor.running(program) as child:
        while not child.has_ended():
            await asyncio.sleep(POLL_S)
    for line in log.read_text(errors="replace").splitlines():
        if NO_SETTING in line:
            supervisor.say(line)
