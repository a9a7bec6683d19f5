"""The `mesh` command: what it says, to people and to programs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mesh import Worker, join
from quart_app.local import supervisor
from quart_app.local.cli import main
from tests.support.members import mesh_settings
from tests.support.server import Server


def invoke(*words: str) -> Result:
    return CliRunner(env={"REDIS_URL": "", "COLUMNS": "200"}).invoke(main, list(words))


async def in_thread(*words: str) -> Result:
    return await asyncio.to_thread(invoke, *words)


def test_each_command_says_what_it_does() -> None:
    """--help of the whole and of each."""
    assert all(name in invoke("--help").output for name in ("up", "status", "watch"))
    assert "--replicas" in invoke("up", "--help").output


@pytest.mark.parametrize("words", [["up", "--replicas", "17"], ["up", "--replicas", "0"], ["up", "--port", "70000"]])
def test_what_cannot_be_is_refused_before_anything_starts(words: list[str], tmp_path: Path) -> None:
    """There are sixteen databases."""
    result = invoke(*words, "--data", str(tmp_path / "data"))
    assert result.exit_code == 2 and "is not in the range" in result.output
    assert not (tmp_path / "data").exists()


async def test_status_is_a_table_for_people_and_a_list_for_programs(server: Server) -> None:
    """Every field by its name, addresses as host:port."""
    async with join(Worker(), mesh_settings(server.settings), public="h:1", private="h:2") as replica:
        rows = json.loads((await in_thread("status", "--json", "--redis-url", server.url)).output)
        assert [(row["database"], row["class"], row["epoch"]) for row in rows] == [(1, "A", replica.epoch)]
        assert [(row["public"], row["private"], row["replica"]) for row in rows] == [("h:1", "h:2", replica.id)]
        assert rows[0]["since"].endswith("+00:00") and set(rows[0]) == {
            "database", "class", "epoch", "replica", "pid", "public", "private", "state", "since",
        }  # fmt: skip
        table = (await in_thread("status", "--redis-url", server.url)).output
        assert replica.id in table and "h:1" in table and "database" in table
    assert "no replica is live" in (await in_thread("status", "--redis-url", server.url)).output
    assert json.loads((await in_thread("status", "--json", "--redis-url", server.url)).output) == []


@pytest.mark.parametrize("command", ["up", "status", "watch"])
def test_an_address_that_is_none_is_a_sentence(command: str, tmp_path: Path) -> None:
    """With the name that the setting has in the environment; nothing is started."""
    result = invoke(command, "--redis-url", "localhost:6379", "--data", str(tmp_path / "data"))
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert (
        result.output == "Error: the settings are not valid: REDIS_URL: the address begins with redis:// or rediss://\n"
    )
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("command", [["status"], ["status", "--json"], ["watch"]])
def test_no_redis_is_a_sentence(command: list[str]) -> None:
    """Not a traceback."""
    result = invoke(*command, "--redis-url", f"redis://127.0.0.1:{supervisor.free_port()}/0")
    assert result.exit_code == 1 and result.output.startswith("Error: Redis cannot be")
    assert isinstance(result.exception, SystemExit)
