"""A real Redis or Valkey server for a test."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis

from mesh import RedisSettings
from quart_app.local.redis_program import Kind, ServerProgram, find_server, wheel_server

#: The path of a Redis to test on, beside the server of the wheel; by default the redis-server on PATH.
REDIS_PROGRAM = os.environ.get("TEST_REDIS_SERVER") or shutil.which("redis-server")


@dataclass
class Server:
    """A real server under test; `redis()` returns a client with administrator rights."""

    port: int
    folder: Path
    options: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    program: ServerProgram = field(default_factory=find_server)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def settings(self) -> RedisSettings:
        return RedisSettings(host="127.0.0.1", port=self.port)

    def start(self) -> None:
        """Start the server on the data that an earlier run left in its folder."""
        command = [
            self.program.path, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder),
            "--databases", "16", "--appendonly", "yes", "--save", "", *self.options,
        ]  # fmt: skip
        with (self.folder / "server.log").open("ab") as log:
            environ = {**os.environ, **self.program.environ}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environ)
        with self.redis() as client:
            until = time.monotonic() + 20
            # Compare the process id: a server of another test may have taken the port since we found it free.
            while self.process.poll() is None and time.monotonic() < until:
                with contextlib.suppress(redis.RedisError):
                    if client.ping() and client.info("server")["process_id"] == self.process.pid:
                        return
                time.sleep(0.01)
        raise TimeoutError((self.folder / "server.log").read_text()[-2000:])

    def kill(self) -> None:
        """End the server as a power failure would."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None

    def redis(self, db: int = 0) -> redis.Redis:
        """Return a client with administrator rights."""
        return redis.Redis(port=self.port, db=db, decode_responses=True, socket_timeout=5)


def server_programs() -> list[Any]:
    """Return every kind of server that this machine has, as parameters of a test."""
    missing = pytest.mark.skip(reason="no redis-server on PATH or in TEST_REDIS_SERVER")
    redis_program = ServerProgram(REDIS_PROGRAM or "", Kind("Redis", (7, 0)))
    return [
        pytest.param(wheel_server(), id="valkey"),
        pytest.param(redis_program, id="redis", marks=() if REDIS_PROGRAM else (missing,)),
    ]
