"""A real PostgreSQL of one test run: a private cluster in a temporary folder, on a port of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg

USER = "mesh"
MISSING = "PostgreSQL's server programs (initdb, pg_ctl) are not installed"


def programs() -> Path | None:
    """The folder of the server's programs; Debian keeps them off the PATH."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return folders[-1].parent if folders else None


def _unprivileged() -> list[str]:
    """What to put before a command: the server refuses to run as root."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]


@contextmanager
def cluster(binaries: Path) -> Iterator[str]:
    """Runs a server; the address of its database `postgres`, without a password on the loopback address."""
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if os.geteuid() == 0:
            shutil.chown(folder, "nobody", "nogroup")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        _run(folder, binaries / "initdb", "-D", "data", "-A", "trust", "-U", USER, "-E", "UTF8", "--no-sync")
        # Durability against power cuts is PostgreSQL's own; here processes are killed, which fsync does not change.
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=200"
        _run(folder, binaries / "pg_ctl", "-D", "data", "-w", "-l", "log", "-o", options, "start")
        try:
            yield f"postgresql://{USER}@127.0.0.1:{port}/postgres"
        finally:
            _run(folder, binaries / "pg_ctl", "-D", "data", "-w", "-m", "immediate", "stop")


async def empty(address: str) -> None:
    """Leave nothing in the database, nor anybody in it: cheaper than a new one for each test."""
    connection = await asyncpg.connect(address)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await connection.close()


def _run(folder: Path, *command: str | Path) -> None:
    words = [*_unprivileged(), *map(str, command)]
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, timeout=60, check=False, env=_environment()
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr or done.stdout}")


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C.UTF-8", "PGDATABASE": "postgres"}
