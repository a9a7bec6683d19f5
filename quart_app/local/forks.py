"""Children that are forks of one process, the fork server, which imports their modules once for all of them.

A `Fork` has those methods of `subprocess.Popen` that `Child` needs. If the server ends, its forks end with it, and the
next call of `start_fork` starts a new server.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quart_app.local.spawning import spawn

#: The first words of every command that a fork server runs: python without the current folder in its path, and "-m".
PYTHON = (sys.executable, "-P", "-m")
#: Longest wait until the server reads what is sent to it; then the server is ended. A longer wait suits a slow machine,
#: because the server reads nothing while it imports modules. A shorter one notices sooner that the server hangs.
SEND_S = 10.0
#: Pause between two looks of `Fork.wait` whether the program still runs. A longer pause delays the caller; a shorter
#: one takes more of the processor.
POLL_S = 0.005


class ForkServer:
    """Starts forks of a process that has imported `modules`. `fds` are file descriptors that the forks inherit."""

    def __init__(self, modules: Sequence[str], log: Path, env: Mapping[str, str], fds: Sequence[int] = ()) -> None:
        self._modules, self._log, self._env, self._fds = modules, log, env, fds
        self._request_ids = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        #: our end of the socket to the server; None if no server runs
        self._channel: socket.socket | None = None
        #: what has come of a report whose end is still to come
        self._partial_report = b""
        #: id of a request -> its fork, until the fork has ended
        self._forks: dict[int, Fork] = {}

    def start(self) -> None:
        """Start the server, if it does not run. Raises OSError."""
        self.read_reports()  # finds out whether an earlier server has ended
        if self._channel is not None:
            return
        ours, theirs = socket.socketpair()
        # This process closes its copy of `theirs`, so that reading from `ours` shows when the server ends.
        with theirs, self._log.open("ab") as log:
            command = [*PYTHON, "quart_app.local.fork_server", str(theirs.fileno()), *self._modules]
            self._process = spawn(command, log, self._env, [theirs.fileno(), *self._fds])
        ours.settimeout(SEND_S)
        self._channel = ours

    def start_fork(self, name: str, command: Sequence[str], log: Path, env: Mapping[str, str] | None) -> Fork:
        """Run a command that begins with PYTHON; without `env`, in our environment. Raises OSError."""
        self.start()
        fork = Fork(self, next(self._request_ids))
        self._forks[fork.id] = fork  # before `send`, which may fail: `_give_up_server` then ends this fork, too
        module, *arguments = command[len(PYTHON) :]
        variables = dict(os.environ if env is None else env)
        self.send(id=fork.id, name=name, module=module, arguments=arguments, env=variables, log=str(log.resolve()))
        return fork

    def send(self, **request: Any) -> None:
        """Send a request to the server. If no server runs, the fork that the request is about has ended, too.

        Raises OSError. Then the server is ended, because it may have read only a part of the request.
        """
        if self._channel is None:
            return
        try:
            self._channel.sendall(json.dumps(request).encode() + b"\n")
        except OSError:
            self._give_up_server()
            raise

    def read_reports(self) -> None:
        """Read what the server has reported so far, and set the pids and exit statuses of its forks."""
        while self._channel is not None and select.select([self._channel], [], [], 0)[0]:
            data = b""
            with contextlib.suppress(ConnectionError):  # the server was killed, so there are no data
                data = self._channel.recv(1 << 16)  # at most 64 KiB; the loop reads the rest
            if not data:
                self._give_up_server()
                return
            *lines, self._partial_report = (self._partial_report + data).split(b"\n")
            for report in map(json.loads, lines):
                fork = self._forks[report["id"]]
                fork.pid = report.get("pid", fork.pid)
                fork.returncode = report.get("status")
                if fork.returncode is not None:
                    del self._forks[fork.id]

    def _give_up_server(self) -> None:
        """End the server, if it still runs, and kill its forks: no process would report their end any more."""
        self.close()
        for fork in self._forks.values():
            if fork.pid is not None:
                with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                    os.kill(fork.pid, signal.SIGKILL)
            fork.returncode = -signal.SIGKILL
        self._forks.clear()

    def close(self) -> None:
        """End the server."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Fork:
    """One program that runs as a fork; `id` is the id of the request for it."""

    def __init__(self, server: ForkServer, id: int) -> None:
        self._server = server
        self.id = id
        #: None until the server has made the fork
        self.pid: int | None = None
        #: the exit status; None while the program runs
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the program's exit status, or None while the program runs."""
        self._server.read_reports()
        return self.returncode

    def wait(self) -> int:
        """Wait until the program ends, and return its exit status."""
        while (status := self.poll()) is None:
            time.sleep(POLL_S)
        return status

    def send_signal(self, number: int) -> None:
        """Send the program a signal, even if the server has not forked it yet."""
        if self.poll() is None:
            with contextlib.suppress(OSError):  # then the program has ended with its server
                self._server.send(id=self.id, signal=int(number))

    def kill(self) -> None:
        """End the program at once."""
        self.send_signal(signal.SIGKILL)
