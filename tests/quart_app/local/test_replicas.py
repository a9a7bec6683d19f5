"""The replicas of a local mesh: what they are told, and when the mesh gives up."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from pathlib import Path

import pytest

from quart_app.exits import EXIT_SETUP
from quart_app.local import replicas
from quart_app.local.errors import LocalError
from quart_app.local.ports import free_port
from quart_app.local.processes import Child, Supervisor
from quart_app.local.replicas import PortPair
from tests.support.server import Server


def children(folder: Path, *statuses: int | None) -> list[Child]:
    ports = [PortPair(0, number) for number in range(1, len(statuses) + 1)]
    made = [Child(program, print) for program in replicas.replica_programs(ports, {}, folder, 1)]
    for child, status in zip(made, statuses, strict=True):
        child.status = status
    return made


async def test_replicas_that_cannot_run_end_the_mesh_with_their_last_words(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit status 78 of all of them: starting them again and again would help nobody."""
    monkeypatch.setenv("PATH", "")
    programs = replicas.replica_programs([PortPair(0, 0)], {"SERVICES": "nonsense"}, tmp_path, 5)
    with pytest.raises(LocalError, match=r"no replica can run: .*no such service: nonsense"):
        async with replicas.running(Supervisor(print), programs) as started, asyncio.timeout(30):
            await replicas.wait_until_ready(server.settings, started, lambda ready: None, 60)


def test_one_replica_that_cannot_run_does_not_end_a_mesh(tmp_path: Path) -> None:
    """The other replicas serve, and this one is tried again."""
    replicas.refuse_wrong_setup(children(tmp_path, EXIT_SETUP, None))
    replicas.refuse_wrong_setup(children(tmp_path, EXIT_SETUP, 75))
    with pytest.raises(LocalError):
        replicas.refuse_wrong_setup(children(tmp_path, EXIT_SETUP, EXIT_SETUP))


async def test_a_mesh_of_which_nothing_gets_ready_says_where_to_look(tmp_path: Path, server: Server) -> None:
    """The log's name and its last line."""
    made = children(tmp_path, None)
    made[0].program.log.write_text("waiting for a lease\n")
    with pytest.raises(LocalError, match=r"no replica was ready within 0 s; .*replica-1\.log ends with: waiting"):
        await replicas.wait_until_ready(server.settings, made, lambda ready: None, 0.2)


def test_the_first_private_port_is_the_one_that_is_wanted() -> None:
    """The wanted port is used if it is free; all ports differ."""
    wanted = free_port()
    ports = replicas.choose_ports(3, wanted)
    assert ports[0].private == wanted
    assert len({port for pair in ports for port in (pair.public, pair.private)}) == 6
    with socket.create_server(("127.0.0.1", wanted)):
        assert replicas.choose_ports(1, wanted)[0].private != wanted


def test_the_environment_wins_over_what_a_local_mesh_suggests(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mesh itself sets where Redis is, and no process listens beyond loopback."""
    monkeypatch.setenv("LOG_FORMAT", "json")
    monkeypatch.setenv("HOST", "0.0.0.0")
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere/0")
    told = replicas.replica_environment("redis://127.0.0.1:1/0", Path("data"))
    assert (told["LOG_FORMAT"], told["HOST"], told["REDIS_URL"]) == ("json", "127.0.0.1", "redis://127.0.0.1:1/0")
    assert replicas.replica_environment(None, Path("data"))["REDIS_URL"] == "redis://elsewhere/0"


def test_no_module_of_the_present_folder_is_run(tmp_path: Path) -> None:
    """Somebody may start a mesh in any folder; one of its folders may be called `mesh`."""
    for name in ("mesh", "quart_app"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('a module of this folder')")
    (program,) = replicas.replica_programs([PortPair(1, 2)], {}, tmp_path, 1)
    env = {**os.environ, **program.env, "PORT": "no port"}
    done = subprocess.run(program.command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert "a module of this folder" not in done.stderr
    assert done.returncode == EXIT_SETUP, done.stderr
