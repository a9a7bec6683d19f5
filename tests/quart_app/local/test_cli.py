"""The `mesh` command: what it says, to people and to programs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mesh import MeshSettings
from mesh.raw import Worker, join
from quart_app.exits import EXIT_SETUP
from quart_app.local.cli import main
from quart_app.local.ports import free_port
from tests.support.server import Server
from tests.support.waiting import eventually

NAMES = {"database", "class", "epoch", "replica", "pid", "public", "private", "state", "not_ready", "since"}


def invoke(*words: str, columns: int = 200) -> Result:
    return CliRunner(env={"REDIS_URL": "", "COLUMNS": str(columns)}).invoke(main, list(words))


async def in_thread(*words: str, columns: int = 200) -> Result:
    return await asyncio.to_thread(invoke, *words, columns=columns)


def test_each_command_says_what_it_does() -> None:
    """--help of the whole and of each; --version is that of the package."""
    assert all(name in invoke("--help").output for name in ("up", "status", "watch", "redis-cli"))
    assert "--replicas" in invoke("up", "--help").output
    assert invoke("--version").output == f"mesh, version {version('quart-mesh')}\n"


@pytest.mark.parametrize("words", [["up", "--replicas", "17"], ["up", "--replicas", "0"], ["up", "--port", "70000"]])
def test_a_number_out_of_its_range_is_refused_before_anything_starts(words: list[str], tmp_path: Path) -> None:
    """A mesh has at most sixteen replicas, one for each database."""
    result = invoke(*words, "--data", str(tmp_path / "data"))
    assert result.exit_code == 2 and "is not in the range" in result.output
    assert not (tmp_path / "data").exists()


async def test_status_is_a_table_for_people_and_a_list_for_programs(server: Server) -> None:
    """Every field by its name, addresses as host:port."""
    async with join(Worker(), MeshSettings(redis=server.settings), public="h:1", private="h:2") as replica:
        rows = json.loads((await in_thread("status", "--json", "--redis-url", server.url)).output)
        assert [(row["database"], row["class"], row["epoch"]) for row in rows] == [(1, "A", replica.epoch)]
        assert [(row["public"], row["private"], row["replica"]) for row in rows] == [("h:1", "h:2", replica.id)]
        assert rows[0]["since"].endswith("+00:00") and set(rows[0]) == NAMES
        table = (await in_thread("status", "--redis-url", server.url)).output
        assert replica.id in table and "h:1" in table and "database" in table
    assert "no replica is live" in (await in_thread("status", "--redis-url", server.url)).output
    assert json.loads((await in_thread("status", "--json", "--redis-url", server.url)).output) == []


async def test_status_names_databases_that_no_replica_holds(server: Server) -> None:
    """A class is named while its replica is expected back."""
    with server.redis() as admin:
        admin.zadd("mesh:written", {"3": "+inf", "5": "+inf"})
        admin.set("mesh:expected:3", "B", ex=60)
    text = (await in_thread("status", "--redis-url", server.url)).output
    assert "database 3 holds data and has no replica; the replica of class B is expected back" in text
    assert "database 5 holds data and has no replica; reads leave it out and say so" in text
    rows = json.loads((await in_thread("status", "--json", "--redis-url", server.url)).output)
    assert rows == [
        {"database": 3, "class": "B", "state": "missing", "has_data": True},
        {"database": 5, "class": "", "state": "missing", "has_data": True},
    ]


@pytest.mark.parametrize("columns", [40, 80, 117, 118, 200])
async def test_the_state_is_in_the_table_however_narrow_the_terminal_is(server: Server, columns: int) -> None:
    """A narrow table cuts no state, because people look for it."""
    async with join(Worker(), MeshSettings(redis=server.settings), public="h:1", private="h:2") as replica:
        table = (await in_thread("status", "--redis-url", server.url, columns=columns)).output
    assert "state" in table and re.search(r"\b(starting|ready)\b", table) and "…" not in table
    assert columns < 80 or replica.id in table
    assert max(map(len, table.splitlines())) <= columns


@pytest.mark.parametrize("command", ["up", "status", "watch"])
def test_an_address_that_is_none_is_a_sentence(command: str, tmp_path: Path) -> None:
    """The message has the name of the setting in the environment, and nothing is started."""
    result = invoke(command, "--redis-url", "localhost:6379", "--data", str(tmp_path / "data"))
    assert result.exit_code == EXIT_SETUP and isinstance(result.exception, SystemExit)
    assert (
        result.output
        == "Error: the environment is not valid: REDIS_URL: the address must begin with redis:// or rediss://\n"
    )
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("command", [["status"], ["status", "--json"], ["watch"]])
def test_no_redis_is_a_sentence(command: list[str]) -> None:
    """The message has the address, and no traceback."""
    port = free_port()
    result = invoke(*command, "--redis-url", f"redis://:word@127.0.0.1:{port}/0")
    assert result.exit_code == 1 and f"Error: Redis at 127.0.0.1:{port} cannot be used: " in result.output
    assert isinstance(result.exception, SystemExit) and "word" not in result.output


def test_without_a_mesh_and_without_a_redis_the_folder_is_named(tmp_path: Path) -> None:
    """One who is in the wrong folder is told so."""
    runner = CliRunner(env={"REDIS_URL": "", "REDIS_PORT": str(free_port())})
    result = runner.invoke(main, ["status", "--data", str(tmp_path / "data")])
    assert f"no mesh runs on {tmp_path / 'data'}" in result.output


@pytest.mark.parametrize("cls", ["E", "AB", "db16", "3", ""])
def test_watch_refuses_a_class_that_does_not_exist(cls: str) -> None:
    """The message lists the classes that exist; the watch would otherwise wait for ever."""
    result = invoke("watch", "--class", cls)
    assert result.exit_code == 2 and "'A', 'B', 'C', 'D', 'db0'" in result.output


def started(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(command, stdout=out, stderr=out)


async def test_watch_says_at_its_start_what_it_watches(server: Server, tmp_path: Path) -> None:
    """Ctrl-C ends the watch without a message."""
    log = tmp_path / "log"
    command = [
        sys.executable, "-m", "quart_app.local.cli", "watch", "--redis-url", server.url, "--class", "db3", "--op", "x.",
    ]  # fmt: skip
    process = started(command, log)
    wanted = (
        "watching requests to db3, all replies and dead letters whose operation begins with x., "
        f"on Redis at 127.0.0.1:{server.port}; Ctrl-C ends it\n"
    )

    async def told() -> bool:
        return wanted in log.read_text()

    await eventually(told, 20, log.read_text)
    process.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(process.wait, 10) == 0
    assert log.read_text() == wanted


def test_redis_cli_gets_the_password_where_ps_does_not_look(tmp_path: Path) -> None:
    """redis-cli gets the password in its environment, and its options as they are."""
    fake = tmp_path / "redis-cli"
    fake.write_text('#!/bin/sh\necho "$REDISCLI_AUTH: $*"\n')
    fake.chmod(0o755)
    command = [sys.executable, "-m", "quart_app.local.cli", "redis-cli", "--data", str(tmp_path), "--scan", "XLEN", "s"]
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "REDIS_URL": "redis://:w%20rd@[::1]:7/2"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=env)
    assert done.stdout == "w rd: -h ::1 -p 7 -n 2 --user default --scan XLEN s\n", done.stderr


def test_without_redis_cli_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The message says what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    result = invoke("redis-cli", "PING")
    assert result.exit_code == 1 and "there is no redis-cli here" in result.output


def test_a_data_folder_that_cannot_be_used_is_a_sentence(tmp_path: Path) -> None:
    """Exit status 78: doing it again will not help."""
    (tmp_path / "data").touch()
    result = invoke("up", "--data", str(tmp_path / "data"))
    assert result.exit_code == EXIT_SETUP and "cannot be used" in result.output
    assert isinstance(result.exception, SystemExit)
