"""`mesh up`, `mesh status`, Ctrl-C: the newcomer's way, as processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import redis

from quart_app.exits import EXIT_SETUP
from quart_app.local import caddy, discovery
from quart_app.local.data_folder import data_folder
from quart_app.local.ports import free_port
from quart_app.local.processes import ends_within
from tests.support.server import Server
from tests.support.waiting import eventually

START_S = 60.0
#: A product of two primes that no replica factors on its event loop.
HARD = (10**19 + 51) * (10**20 + 39)


class Up:
    """One run of `mesh up`."""

    def __init__(
        self, folder: Path, *options: str, env: dict[str, str] | None = None, terminal: int | None = None
    ) -> None:
        self.port = free_port()
        self.folder = folder
        self.log = folder.parent / f"up-{self.port}.log"
        command = [
            sys.executable, "-m", "quart_app.local.cli", "up", "--replicas", "2", "--port", str(self.port),
            "--data", str(folder), *options,
        ]  # fmt: skip
        own = {**os.environ, "SERVICES": "values", "DRAIN_MS": "0", "COLUMNS": "200", **(env or {})}
        own.pop("REDIS_URL", None)
        with self.log.open("wb") as log:
            out = log.fileno() if terminal is None else terminal
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=own)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def said(self) -> str:
        return self.log.read_text()

    async def ready(self) -> None:
        async def welcomed() -> bool:
            assert self.process.poll() is None, self.said()
            return "Ctrl-C drains and stops everything" in self.said()

        await eventually(welcomed, START_S, self.said)

    async def says(self, text: str, wait_s: float = 10) -> None:
        """Wait until it has said this."""

        async def said() -> bool:
            return text in self.said()

        await eventually(said, wait_s, self.said)

    def child(self, words: str) -> psutil.Process:
        """The child with these words in its command line, or with this name."""
        (found,) = [one for one in self.family()[1:] if words in " ".join(one.cmdline()) or one.name() == words[:15]]
        return found

    def family(self) -> list[psutil.Process]:
        """Itself and every process that it started."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def status(self) -> list[dict[str, Any]]:
        """`mesh status --json`."""
        command = [sys.executable, "-m", "quart_app.local.cli", "status", "--json", "--data", str(self.folder)]
        env = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, env=env)
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    async def interrupt(self) -> int:
        """Press Ctrl-C, and return its exit status."""
        self.process.send_signal(signal.SIGINT)
        assert await ends_within(self.process, 30), self.said()
        return self.process.returncode

    def kill(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in self.family():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Up]]:
    """The runs of a test, which end with it."""
    runs: list[Up] = []
    yield runs
    for run in runs:
        if run.process.poll() is None:
            run.kill()


@pytest.mark.slow
async def test_ctrl_c_leaves_nothing_but_the_data(tmp_path: Path, started: list[Up]) -> None:
    """One address, and a table of who holds what; after Ctrl-C no process is left; a new start has the old data."""
    up = Up(tmp_path / "data")
    started.append(up)
    await up.ready()
    family = up.family()
    assert len(family) >= 4, "itself, a server and two replicas, at least"

    rows = up.status()
    await _is_a_roster(rows)
    assert all(row["class"] in up.said() and row["public"] in up.said() for row in rows), "the table shows them"
    assert f"curl {up.url}/values" in up.said()

    async with httpx.AsyncClient() as client:
        for row in rows:
            items = [{"value": 6 * 5 ** row["database"], "ttl": 600, "cls": row["class"]}]
            assert (await client.post(f"{up.url}/values", json=items)).status_code == 200
        before = (await client.get(f"{up.url}/values/3")).json()
    assert len(before) == 2

    assert await up.interrupt() == 0
    assert "stopped" in up.said()
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", up.port)) != 0

    again = Up(tmp_path / "data")
    started.append(again)
    await again.ready()
    assert {row["database"]: row["class"] for row in again.status()} == {row["database"]: row["class"] for row in rows}
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"{again.url}/values/3")).json() == before
    await _a_killed_replica_is_started_again(again)
    assert await again.interrupt() == 0


async def _is_a_roster(rows: list[dict[str, Any]]) -> None:
    names = {"database", "class", "epoch", "replica", "pid", "public", "private", "state", "not_ready", "since"}
    assert [set(row) for row in rows] == [names, names]
    assert [row["database"] for row in rows] == [1, 2]
    assert [row["class"] for row in rows] == ["A", "B"]
    async with httpx.AsyncClient() as client:
        for row in rows:
            assert psutil.pid_exists(row["pid"])
            assert row["state"] == "ready"
            ready = await client.get(f"http://{row['private']}/readyz")
            assert (ready.status_code, ready.json()["replica"]) == (200, row["replica"])
            assert (await client.get(f"http://{row['public']}/classes")).json() == ["A", "B"]


async def _a_killed_replica_is_started_again(up: Up) -> None:
    victim = up.status()[0]
    os.kill(victim["pid"], signal.SIGKILL)

    async def replaced() -> bool:
        rows = await asyncio.to_thread(up.status)
        return len(rows) == 2 and victim["pid"] not in [row["pid"] for row in rows]

    await eventually(replaced, 30)
    await up.says("(killed by SIGKILL); starting it again")


@pytest.mark.slow
async def test_everything_that_is_killed_is_said_and_started_again(tmp_path: Path, started: list[Up]) -> None:
    """Row 43: this holds for the server, Caddy, a provider, and the fork server with its forks."""
    up = Up(tmp_path / "data", env={"SERVICES": "values,messages"})
    started.append(up)
    await up.ready()
    victims = {
        "Redis": up.child("-server 127.0.0.1:"),
        "the free provider": up.child("the free provider"),
        **({} if caddy.find_caddy() is None else {"Caddy": up.child("caddy run")}),
    }
    for name, victim in victims.items():
        victim.kill()
        await up.says(f"{name} ended (killed by SIGKILL); starting it again")

    async def serves() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            async with httpx.AsyncClient(timeout=5) as client:
                items = [{"value": value, "ttl": 600, "cls": "A"} for value in (15, HARD)]
                return (await client.post(f"{up.url}/values", json=items)).status_code == 200
        return False

    await eventually(serves, 30, up.said)
    up.child("fork server").kill()
    await up.says("replica 1 ended (killed by SIGKILL); starting it again")
    await eventually(serves, 30, up.said)
    assert await up.interrupt() == 0


@pytest.mark.slow
async def test_a_closed_terminal_drains_the_mesh(tmp_path: Path, started: list[Up]) -> None:
    """SIGHUP, with an output that nobody can read any more, is like Ctrl-C: no process and no state file are left."""
    ours, theirs = pty.openpty()
    up = Up(tmp_path / "data", terminal=theirs)
    os.close(theirs)
    started.append(up)
    reading = asyncio.create_task(asyncio.to_thread(_copy, ours, up.log))
    await up.ready()
    family = up.family()
    os.close(ours)
    up.process.send_signal(signal.SIGHUP)
    assert await ends_within(up.process, 30)
    await reading
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive and up.process.returncode == 0
    assert not (tmp_path / "data" / "mesh.json").exists()
    log = (tmp_path / "data" / "logs" / "replica-1.log").read_text()
    assert "draining" in log and "lease released" in log


@pytest.mark.slow
async def test_an_output_that_nobody_reads_does_not_stop_the_supervision(tmp_path: Path, started: list[Up]) -> None:
    """Row 44: with a full pipe as output, what is killed is started again, and Ctrl-C ends everything."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writing, b"x" * 4096):
            pass
    os.set_blocking(writing, True)
    up = Up(tmp_path / "data", terminal=writing)
    os.close(writing)
    started.append(up)
    await eventually(lambda: _two_are_live(up), START_S)
    victim = next(row["pid"] for row in up.status())
    os.kill(victim, signal.SIGKILL)

    async def replaced() -> bool:
        return victim not in {row["pid"] for row in up.status()} and await _two_are_live(up)

    await eventually(replaced, 30)
    assert await up.interrupt() == 0
    os.close(reading)


async def _two_are_live(up: Up) -> bool:
    try:
        return [row["state"] for row in up.status()] == ["ready", "ready"]
    except subprocess.CalledProcessError:  # there is no mesh yet
        return False


def _copy(terminal: int, log: Path) -> None:
    """Write what a terminal shows into a file, until it is closed."""
    with log.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while data := os.read(terminal, 4096):
            file.write(data)


async def test_ctrl_c_says_what_it_waits_for_and_a_second_one_ends_it(
    tmp_path: Path, started: list[Up], server: Server
) -> None:
    """The first Ctrl-C waits for replicas that hang; a second one ends everything at once."""
    up = Up(tmp_path / "data", "--redis-url", server.url)
    started.append(up)
    await up.ready()
    for row in up.status():
        os.kill(row["pid"], signal.SIGSTOP)
    up.process.send_signal(signal.SIGINT)
    up.process.send_signal(signal.SIGTERM)  # as `timeout` does: the same wish, sent twice
    await up.says("waiting for 2 replicas: requests in progress get their answers")
    await asyncio.sleep(0.5)
    assert up.process.poll() is None
    assert "ending everything" not in up.said()
    assert await up.interrupt() == 0
    assert "stopping; Ctrl-C again ends everything at once" in up.said()
    assert "ending everything at once" in up.said()


async def test_a_dead_redis_is_said_within_three_seconds(tmp_path: Path, started: list[Up]) -> None:
    """The user does not wait a minute for replicas that cannot start."""
    at = time.monotonic()
    command = [sys.executable, "-m", "quart_app.local.cli", "--version"]
    await asyncio.to_thread(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
    start_s = time.monotonic() - at
    at = time.monotonic()
    up = Up(tmp_path / "data", "--redis-url", f"redis://:word@127.0.0.1:{free_port()}/0")
    started.append(up)
    async with failed(up) as said:
        assert "does not answer" in said and "word" not in said
    assert time.monotonic() - at < 3 + start_s


@pytest.mark.slow
async def test_nobody_else_on_the_machine_can_read_the_data_or_the_password(tmp_path: Path, started: list[Up]) -> None:
    """Folders have 0700 and files 0600, the server has a password, and `ps` shows none."""
    up = Up(tmp_path / "data", env={"SERVICES": "values,grades,movements"})
    started.append(up)
    await up.ready()
    state = discovery.find_running(tmp_path / "data")
    assert state is not None
    password = urlsplit(state.redis_url).password
    assert password is not None and len(password) >= 32
    assert [one for one in up.family() if password in " ".join(one.cmdline())] == []
    assert password not in up.said()
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "data", *(tmp_path / "data").rglob("*")]}
    assert {path: oct(mode) for path, mode in modes.items() if mode != (0o700 if path.is_dir() else 0o600)} == {}
    with pytest.raises(redis.AuthenticationError):
        redis.Redis.from_url(state.redis_url.replace(f":{password}@", "")).ping()
    assert len(up.status()) == 2
    assert await up.interrupt() == 0


@pytest.mark.slow
@pytest.mark.skipif(caddy.find_caddy() is None, reason="no Caddy here")
async def test_operators_have_an_address_of_their_own_that_is_printed(tmp_path: Path, started: list[Up]) -> None:
    """Grades and metrics are on the private ports; Caddy leads there from loopback, as in compose."""
    port = free_port()
    up = Up(tmp_path / "data", "--private-port", str(port), env={"SERVICES": "values,grades"})
    started.append(up)
    await up.ready()
    assert f"for operators  http://127.0.0.1:{port}" in up.said()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", auth=("grades", "grades")) as client:
        answer = await client.post("/set", json={"user_id": "alice", "spp": 5})
        assert answer.status_code == 200, answer.text
        assert (await client.get("/metrics")).status_code == 200
        assert "All is well." in (await client.get("/mesh")).text
        assert f'<a href="http://127.0.0.1:{port}/mesh">Live page</a>' in (await client.get(up.url)).text
        assert (await client.get(f"{up.url}/metrics")).status_code == 404
    assert await up.interrupt() == 0


async def test_the_end_of_its_parent_ends_a_mesh(tmp_path: Path, started: list[Up], server: Server) -> None:
    """No child stays behind after kill -9, and nobody believes the file that the mesh left."""
    up = Up(tmp_path / "data", "--redis-url", server.url)
    started.append(up)
    await up.ready()
    children = up.family()[1:]
    up.process.kill()
    up.process.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    for process in alive:
        process.kill()
    assert not alive
    assert (tmp_path / "data" / "mesh.json").exists() and discovery.find_running(tmp_path / "data") is None


@contextlib.asynccontextmanager
async def failed(up: Up) -> AsyncIterator[str]:
    """Wait until a run that cannot work ends by itself, without a traceback; yield what it said."""
    try:
        assert await ends_within(up.process, 30), up.said()
        assert up.process.returncode == EXIT_SETUP
        assert "Traceback" not in up.said()
        yield up.said()
    finally:
        if up.process.poll() is None:
            up.kill()


async def test_a_second_mesh_on_the_same_data_is_refused(tmp_path: Path, started: list[Up], server: Server) -> None:
    """Two servers must never write the same files."""
    with data_folder(tmp_path / "data"):
        up = Up(tmp_path / "data")
        async with failed(up) as said:
            assert "a mesh is already running" in said


async def test_a_port_that_is_taken_is_told(tmp_path: Path, server: Server) -> None:
    """The message names the address and what to do, before anything is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        up = Up(tmp_path / "data", "--port", str(port), "--redis-url", server.url)
        async with failed(up) as said:
            assert str(port) in said and "--port" in said and "starting" not in said


async def test_credentials_that_are_wrong_end_it_with_a_sentence(tmp_path: Path, server: Server) -> None:
    """Starting the replicas again and again would help nobody."""
    with server.redis() as admin:
        admin.config_set("requirepass", "secret")
    up = Up(tmp_path / "data", "--redis-url", f"redis://:wrong@127.0.0.1:{server.port}/0")
    async with failed(up) as said:
        assert "refuses the user or the password" in said
        assert "wrong@" not in said, "no password is told"
