"""A real PostgreSQL for one test run: a private cluster in a temporary folder, on a port of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from tests.support.tls import Certificate

USER = "mesh"


def programs() -> Path | None:
    """Return the folder of the server's programs, which Debian does not put on PATH, or None."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    found_here = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found_here[-1].parent if found_here else None


@dataclass
class Cluster:
    """A server under test that needs no password from this machine."""

    binaries: Path
    folder: Path
    port: int
    #: further options of the server
    options: str = ""

    @property
    def address(self) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/postgres"

    def create(self) -> None:
        self._run("initdb", "-D", "data", "-A", "trust", "-U", USER, "-E", "UTF8", "--no-sync")

    def start(self) -> None:
        # A process that is killed loses nothing that was written, so fsync would only cost time here.
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off {self.options}"
        self._run("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", options, "start")

    def stop(self) -> None:
        """Stop the server at once, as a crash would."""
        self._run("pg_ctl", "-D", "data", "-w", "-m", "immediate", "stop")

    def _run(self, program: str, *options: str) -> None:
        words = [*_unprivileged(), str(self.binaries / program), *options]
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            words,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=environment,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr or done.stdout}")


def _unprivileged() -> list[str]:
    """Return the words to put before a command, because the server refuses to run as root."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]


@contextmanager
def with_tls(certificate: Certificate) -> Iterator[Cluster]:
    """Run a server that speaks TLS with this certificate."""
    with tempfile.TemporaryDirectory(prefix="pg-tls-") as name:
        files = [Path(shutil.copy(path, name)) for path in (certificate.path, certificate.key)]
        for path in (Path(name), *files):
            path.chmod(0o700 if path.is_dir() else 0o600)
            if os.geteuid() == 0:
                shutil.chown(path, "nobody", "nogroup")
        with cluster(f"-c ssl=on -c ssl_cert_file={files[0]} -c ssl_key_file={files[1]}") as made:
            yield made


@contextmanager
def cluster(options: str = "") -> Iterator[Cluster]:
    """Run a server while the block lasts; skip the test if its programs are missing."""
    binaries = programs()
    if binaries is None:
        pytest.skip("PostgreSQL's server programs (initdb, pg_ctl) are not installed")
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as name:
        if os.geteuid() == 0:
            shutil.chown(name, "nobody", "nogroup")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            made = Cluster(binaries, Path(name), probe.getsockname()[1], options)
        made.create()
        made.start()
        try:
            yield made
        finally:
            made.stop()


async def empty(address: str) -> None:
    """Remove all tables and end all other connections, which is faster than a new database for each test."""
    connection = await asyncpg.connect(address)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await connection.close()
