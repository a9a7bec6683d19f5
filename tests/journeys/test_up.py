"""`mesh up`, `mesh status`, Ctrl-C: the newcomer's way, as processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from quart_app.local import supervisor
from tests.support.server import Server
from tests.support.waiting import eventually

START_S = 60.0


class Up:
    """One run of `mesh up`."""

    def __init__(self, folder: Path, *options: str, env: dict[str, str] | None = None) -> None:
        self.port = supervisor.free_port()
        self.folder = folder
        self.log = folder.parent / f"up-{self.port}.log"
        command = [
            sys.executable, "-m", "quart_app.local.cli", "up", "--replicas", "2", "--port", str(self.port),
            "--data", str(folder), *options,
        ]  # fmt: skip
        own = {**os.environ, "SERVICES": "values", "DRAIN_MS": "0", "COLUMNS": "200", **(env or {})}
        own.pop("REDIS_URL", None)
        with self.log.open("wb") as out:
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

    def family(self) -> list[psutil.Process]:
        """It and whatever it started."""
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
        """Ctrl-C; its exit status."""
        self.process.send_signal(signal.SIGINT)
        assert await supervisor.ended(self.process, 30), self.said()
        return self.process.returncode

    def kill(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in self.family():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Up]]:
    """Whatever a test starts ends with it."""
    runs: list[Up] = []
    yield runs
    for run in runs:
        if run.process.poll() is None:
            run.kill()


@pytest.mark.slow
async def test_up_status_and_ctrl_c_leaves_nothing_but_the_data(tmp_path: Path, started: list[Up]) -> None:
    """One address, a table that says who holds what; after Ctrl-C no process; a new start has the old data."""
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
    await _a_killed_replica_is_started_anew(again)
    assert await again.interrupt() == 0


async def _is_a_roster(rows: list[dict[str, Any]]) -> None:
    names = {"database", "class", "epoch", "replica", "pid", "public", "private", "state", "since"}
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


async def _a_killed_replica_is_started_anew(up: Up) -> None:
    victim = up.status()[0]
    os.kill(victim["pid"], signal.SIGKILL)

    async def replaced() -> bool:
        rows = await asyncio.to_thread(up.status)
        return len(rows) == 2 and victim["pid"] not in [row["pid"] for row in rows]

    await eventually(replaced, 30)


async def test_the_end_of_its_parent_ends_a_mesh(tmp_path: Path, started: list[Up], server: Server) -> None:
    """However `mesh up` ends, kill -9 included, its children do not stay behind."""
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


@contextlib.asynccontextmanager
async def failed(up: Up) -> AsyncIterator[str]:
    """What a run says that cannot work; it ends by itself, with a sentence and no traceback."""
    try:
        assert await supervisor.ended(up.process, 30), up.said()
        assert up.process.returncode == 1
        assert "Traceback" not in up.said()
        yield up.said()
    finally:
        if up.process.poll() is None:
            up.kill()


async def test_a_second_mesh_on_the_same_data_is_refused(tmp_path: Path, started: list[Up], server: Server) -> None:
    """Two servers must never write the same files."""
    with supervisor.data_folder(tmp_path / "data"):
        up = Up(tmp_path / "data")
        async with failed(up) as said:
            assert "a mesh is already running" in said


async def test_a_port_that_is_taken_is_told(tmp_path: Path, server: Server) -> None:
    """With the address, and what to do about it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        up = Up(tmp_path / "data", "--port", str(port), "--redis-url", server.url)
        async with failed(up) as said:
            assert str(port) in said and "--port" in said


async def test_credentials_that_are_wrong_end_it_with_a_sentence(tmp_path: Path, server: Server) -> None:
    """Starting the replicas anew again and again would help nobody."""
    with server.redis() as admin:
        admin.config_set("requirepass", "secret")
    up = Up(tmp_path / "data", "--redis-url", f"redis://:wrong@127.0.0.1:{server.port}/0")
    async with failed(up) as said:
        assert "refuses the user or the password" in said
        assert "wrong@" not in said, "no password is told"
