"""The replicas of a local mesh: how each is started, and when all are ready."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from redis import exceptions as redis_errors

from mesh import Member, RedisSettings
from quart_app.exits import EXIT_SETUP
from quart_app.local import allocator, discovery
from quart_app.local.data_folder import MOVEMENTS_FILE
from quart_app.local.errors import LocalError
from quart_app.local.forks import PYTHON, ForkServer
from quart_app.local.ports import free_port, free_ports
from quart_app.local.processes import Child, Program, Supervisor, last_line
from quart_app.registry import SERVICES

#: How often `wait_until_ready` reads the roster. A longer pause shows ready replicas later; a shorter one costs Redis
#: more reads.
POLL_S = 0.1

#: Called with the number of replicas that are ready, each time that `wait_until_ready` has read the roster.
ShowReadyCount = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class PortPair:
    """The two ports of one replica."""

    public: int
    private: int


def choose_ports(count: int, first_private: int) -> list[PortPair]:
    """Return ports for each replica. The first private port is `first_private`, if that is free; 0: any free port."""
    unused_ports = free_ports(2 * count)
    # `unused_ports[count]` stays unused: the first replica has `first_private` in its place.
    private_ports = [free_port(first_private), *unused_ports[count + 1 :]]
    return [PortPair(*pair) for pair in zip(unused_ports[:count], private_ports, strict=True)]


def replica_environment(redis_url: str | None, folder: Path) -> dict[str, str]:
    """Return the environment of a replica. Its data are in `folder`, unless our environment names another place.

    If `redis_url` is None, the replica finds Redis in our environment, as we did.
    """
    defaults = {
        "LOG_FORMAT": "console",
        "MOVEMENTS_DB_PATH": str(folder / MOVEMENTS_FILE),
        "GRADES_SNAPSHOT_DIR": str(folder / "grades"),
        # Over plain HTTP, which a local mesh uses, a browser does not send a secure cookie.
        "MESSAGES_COOKIE_SECURE": "false",
    }
    redis_variables = {} if redis_url is None else {"REDIS_URL": redis_url}
    # A later part of this dict wins over the same variable in an earlier part.
    return {**defaults, **allocator.python_variables(), **os.environ, **redis_variables, "HOST": "127.0.0.1"}


def fork_server(service_names: Sequence[str], log_folder: Path, fds: Sequence[int] = ()) -> ForkServer:
    """Return a fork server for replicas that run these services, and for the programs that run beside them.

    The forks inherit the file descriptors `fds`.
    """
    # The last module is what the programs of the providers import.
    modules = ["quart_app.process", *(SERVICES[name] for name in service_names), "quart_app.providers.simulator"]
    return ForkServer(modules, log_folder / "fork-server.log", {**allocator.python_variables(), **os.environ}, fds)


def replica_programs(
    ports: Sequence[PortPair],
    env: Mapping[str, str],
    log_folder: Path,
    stop_wait_s: float,
    fork_server: ForkServer | None = None,
) -> list[Program]:
    """Return what to run for replicas with these ports: forks of the fork server, or without one new processes."""
    return [
        Program(
            name=f"replica {number}",
            command=[*PYTHON, "quart_app"],
            log=log_folder / f"replica-{number}.log",
            env={**env, "PORT": str(pair.public), "PRIVATE_PORT": str(pair.private)},
            # SIGINT, not SIGTERM: all replicas leave together, so they need not wait until a balancer notices.
            stop_signal=signal.SIGINT,
            stop_wait_s=stop_wait_s,
            stopping_phrase="requests in progress get their answers",
            fork_server=fork_server,
        )
        for number, pair in enumerate(ports, 1)
    ]


@contextlib.asynccontextmanager
async def running(supervisor: Supervisor, programs: Sequence[Program]) -> AsyncIterator[list[Child]]:
    """Keep a replica running for each program while the block lasts; then let all drain at once."""
    async with contextlib.AsyncExitStack() as stack:
        children = [await stack.enter_async_context(supervisor.running(program)) for program in programs]
        await stack.enter_async_context(supervisor.keeping(*children))
        yield children


def refuse_wrong_setup(children: Sequence[Child]) -> None:
    """Raise LocalError if every replica has ended with EXIT_SETUP: its setup is wrong, and a new start does not help.

    If only some replicas have, the supervisor starts them again later.
    """
    if children and all(child.status == EXIT_SETUP for child in children):
        raise LocalError(f"no replica can run: {last_line(children[0].program.log)}")


async def wait_until_ready(
    settings: RedisSettings, children: Sequence[Child], show_ready_count: ShowReadyCount, wait_s: float
) -> list[Member]:
    """Wait at most `wait_s` until all of these replicas are ready, and return the members that are ready by then.

    Raises LocalError if none is ready by then, or none can run.
    """
    # Other replicas may use the same Redis. The private address says which members are ours.
    private_addresses = {f"127.0.0.1:{(child.program.env or {})['PRIVATE_PORT']}" for child in children}
    give_up_at_s = time.monotonic() + wait_s
    ready_members: list[Member] = []
    while len(ready_members) < len(children) and time.monotonic() < give_up_at_s:
        if not ready_members:  # a ready replica shows that the setup can work
            refuse_wrong_setup(children)
        with contextlib.suppress(redis_errors.RedisError, OSError):  # the next look may succeed
            roster = await discovery.read_roster(settings)
            ready_members = [
                member
                for member in roster
                if member.leased and member.state == "ready" and member.private in private_addresses
            ]
            show_ready_count(len(ready_members))
        await asyncio.sleep(POLL_S)
    if not ready_members:
        log = children[0].program.log
        raise LocalError(f"no replica was ready within {wait_s:.0f} s; {log} ends with: {last_line(log)}")
    return ready_members
