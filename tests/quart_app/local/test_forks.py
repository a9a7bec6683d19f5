"""Forks of a process that has imported their modules: they behave as programs of their own."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from quart_app.local.forks import PYTHON, Fork, ForkServer
from tests.support.waiting import eventually

#: Imported by the server: it tells each import, and takes memory.
LIBRARY = """
print("imported", flush=True)
much = [bytes(1000) for _ in range(50_000)]
"""
#: Run by forks: tells what it is, then does what its argument says.
PROGRAM = """
import gc, os, sys, time
import library
files = sorted(os.listdir("/proc/self/fd"))
print(sys.argv[1:], os.environ, os.getsid(0) == os.getpid(), gc.isenabled(), files, flush=True)
if sys.argv[1] == "sleep":
    time.sleep(60)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ForkServer]:
    (tmp_path / "library.py").write_text(LIBRARY)
    (tmp_path / "program.py").write_text(PROGRAM)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with closing(ForkServer(["library"], tmp_path / "server.log", env)) as server:
        yield server


def run(server: ForkServer, folder: Path, *arguments: str) -> Fork:
    """Run the program, with its output in a file of the folder."""
    return server.start_fork("a program", [*PYTHON, "program", *arguments], folder / "log", {"ONLY": "this"})


async def pid_of(fork: Fork) -> int:
    """Return its pid once it runs its program: then it has the name that it was given."""

    async def running() -> bool:
        fork.poll()
        return fork.pid is not None and psutil.Process(fork.pid).name() == "a program"

    await eventually(running, 20)
    assert fork.pid is not None
    return fork.pid


async def status_of(fork: Fork) -> int:
    async def ended() -> bool:
        return fork.poll() is not None

    await eventually(ended, 20)
    assert fork.returncode is not None
    return fork.returncode


async def test_a_fork_is_a_program_of_its_own(server: ForkServer, tmp_path: Path) -> None:
    """A fork has its own arguments, environment, session, log and status, and no file of its server."""
    fork = run(server, tmp_path, "7", "more")
    assert await asyncio.to_thread(fork.wait) == 7
    # The listing itself is one more file.
    said = "['7', 'more'] environ({'ONLY': 'this'}) True True ['0', '1', '2', '3']\n"
    assert (tmp_path / "log").read_text() == said


async def test_forks_share_what_their_server_has_imported(server: ForkServer, tmp_path: Path) -> None:
    """The server imports the code once, and forks share its memory."""
    forks = [run(server, tmp_path, "sleep") for _ in range(2)]
    for fork in forks:
        memory = psutil.Process(await pid_of(fork)).memory_full_info()
        assert memory.rss > 50e6 > 4 * memory.uss
    assert (tmp_path / "server.log").read_text() == "imported\n"


async def test_a_signal_arrives_also_before_the_fork_exists(server: ForkServer, tmp_path: Path) -> None:
    """The server reads requests in their order, once it has imported everything."""
    fork = run(server, tmp_path, "sleep")
    assert fork.pid is None
    fork.send_signal(signal.SIGTERM)
    assert await status_of(fork) == -signal.SIGTERM
    fork.kill()  # nobody is hit: it has ended


async def test_forks_end_with_their_server_and_the_next_one_has_a_new_server(
    server: ForkServer, tmp_path: Path
) -> None:
    """A fork without its server would end unnoticed, so it is killed."""
    fork = run(server, tmp_path, "sleep")
    process = psutil.Process(await pid_of(fork))
    parent = process.parent()
    assert parent is not None
    parent.kill()
    assert await status_of(fork) == -signal.SIGKILL
    _, alive = psutil.wait_procs([process], timeout=20)
    assert not alive
    assert await status_of(run(server, tmp_path, "3")) == 3


async def test_a_closed_server_leaves_no_fork(server: ForkServer, tmp_path: Path) -> None:
    """The end of a mesh ends everything that it started."""
    process = psutil.Process(await pid_of(run(server, tmp_path, "sleep")))
    server.close()
    _, alive = psutil.wait_procs([process], timeout=20)
    assert not alive
