"""Runs Python programs as forks of a process that has imported their modules.

python -P -m quart_app.local.fork_server FD MODULE...    import these modules, then serve the socket FD

A fork needs no time for its imports, and shares the memory that they take. The process at the other end of the socket
uses `forks`. When it closes the socket or ends, this process ends, and Linux tells its forks to stop. Both sides send
lines of JSON, which have nothing to do with the requests of the mesh:

{"id": 1, "name": "replica 1", "module": "quart_app", "arguments": [], "env": {…}, "log": "…"}   run this program
{"id": 1, "signal": 15}                                                                         send it a signal
{"id": 1, "pid": 4711}      {"id": 1, "status": 0}                                              it runs; it ended
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
from importlib import import_module
from typing import Any

from quart_app.local.spawning import die_with_parent, take_name


class ForkLoop:
    """The loop of the fork server. Its process has one thread only, because a fork would lack any other."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        #: what has come of a request whose end is still to come
        self._partial_request = b""
        #: pid of each fork that runs -> id of the request that started it
        self._request_ids: dict[int, int] = {}
        #: SIGCHLD writes a byte to this pair of sockets, so that `select` returns when a fork has ended
        self._wakeup_reader, self._wakeup_writer = socket.socketpair()
        self._wakeup_reader.setblocking(False)
        self._wakeup_writer.setblocking(False)
        # Python writes the byte only for a signal that has a handler, so it gets one that does nothing.
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)

    def next_program(self) -> dict[str, Any] | None:
        """Serve until the other side ends, then return None. In each fork, return the request that it must run."""
        while True:
            readable, _, _ = select.select([self._channel, self._wakeup_reader], [], [])
            if self._wakeup_reader in readable:
                # Up to 1024 bytes, one a signal, count as one wakeup: all ended forks are reported together.
                self._wakeup_reader.recv(1024)
                self._report_ended_forks()
            if self._channel in readable:
                # At most 64 KiB at once. `_partial_request` keeps what has come so far of a request that goes on.
                if not (data := self._channel.recv(1 << 16)):
                    return None
                *lines, self._partial_request = (self._partial_request + data).split(b"\n")
                for line in lines:
                    request: dict[str, Any] = json.loads(line)
                    if self._obey(request):  # true only in a new fork
                        return request

    def _obey(self, request: dict[str, Any]) -> bool:
        """Do what a request says. Return True only in a new fork, which must run the program of the request."""
        if "signal" in request:
            for pid, id in self._request_ids.items():
                if id == request["id"]:
                    os.kill(pid, request["signal"])
            return False
        pid = os.fork()
        if pid == 0:
            self._close_sockets()
            return True
        self._request_ids[pid] = request["id"]
        self._report(id=request["id"], pid=pid)
        return False

    def _close_sockets(self) -> None:
        """In a new fork, give up what only the server needs: its sockets, and the handler of SIGCHLD."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for sock in (self._channel, self._wakeup_reader, self._wakeup_writer):
            sock.close()

    def _report_ended_forks(self) -> None:
        """Report the exit status of each fork that has ended; one SIGCHLD may stand for several of them."""
        while self._request_ids:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:  # the others still run
                return
            self._report(id=self._request_ids.pop(pid), status=os.waitstatus_to_exitcode(status))

    def _report(self, **report: int) -> None:
        with contextlib.suppress(ConnectionError):  # the other side has ended; `next_program` notices it and returns
            self._channel.sendall(json.dumps(report).encode() + b"\n")


def become(request: dict[str, Any]) -> None:
    """Run a program in this process, which is a new fork, as `python -P -m` does in a new process."""
    os.setsid()  # so that Ctrl-C does not reach it
    die_with_parent()
    take_name(request["name"])
    log_fd = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for output_fd in (1, 2):  # standard output and standard error
        os.dup2(log_fd, output_fd)
    os.close(log_fd)
    os.environ.clear()
    os.environ.update(request["env"])
    module = request["module"]
    sys.argv = [module, *request["arguments"]]
    if not hasattr(sys.modules.get(module), "__path__"):
        # The program is a module, not a package, so the server has imported it. Forget it: otherwise runpy warns.
        sys.modules.pop(module, None)
    gc.enable()  # off since `main`
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main() -> None:
    """Import the modules, and serve. In each fork `next_program` returns a request, whose program the fork runs."""
    take_name("fork server")
    # Imported objects never become garbage. A search for garbage in a fork would write to the memory that it shares.
    gc.disable()
    for module in sys.argv[2:]:
        import_module(module)
    gc.freeze()  # so that the collector of a fork, which is on again, leaves these objects alone
    request = ForkLoop(socket.socket(fileno=int(sys.argv[1]))).next_program()
    if request is not None:
        become(request)


if __name__ == "__main__":
    main()
