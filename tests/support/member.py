"""A process that is a member of the mesh and nothing else, for tests that start several and kill some."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from mesh import MeshSettings, Operations, join
from mesh.raw import Worker


async def work(operations: Operations | Worker) -> None:
    """Be a member with the settings of the environment, until SIGTERM."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with join(operations, settings=MeshSettings()):
        await ended.wait()


def starts(module: str, log: Path, **settings: str) -> Callable[[], subprocess.Popen[bytes]]:
    """Return a function that starts `python -m module` with these settings and adds its output to a file."""

    def spawn() -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            command = [sys.executable, "-m", module]
            return subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **settings})

    return spawn
