"""How a child process starts: in a session of its own, and tied to the life of its parent."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import IO

#: prctl(2), looked up before a child is made: in a new child, only calls that take no lock are safe. None on systems
#: without it, which are all but Linux.
_PRCTL: Callable[[int, int | bytes], int] | None = getattr(ctypes.CDLL(None), "prctl", None)
#: Options of prctl(2), with their numbers from Linux's <sys/prctl.h>.
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15


def die_with_parent() -> None:
    """Ask Linux to send this process SIGTERM when its parent ends, even by SIGKILL. Call it in a new child."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def take_name(name: str) -> None:
    """Ask Linux to show this process in `top` and `ps -o comm` under the first 15 bytes of a name."""
    _prctl(PR_SET_NAME, name.encode())


def _prctl(option: int, value: int | bytes) -> None:
    if _PRCTL is not None:
        _PRCTL(option, value)


def spawn(
    command: Sequence[str],
    log: IO[bytes],
    env: Mapping[str, str] | None = None,
    fds: Sequence[int] = (),
    stdin: bytes = b"",
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own, so that Ctrl-C reaches only us.

    The child inherits the file descriptors `fds`. `stdin` must fit into a pipe's buffer: writing more would block this
    process until the child reads it.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=env,
        pass_fds=fds,
        start_new_session=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509  (takes no lock, so other threads do not matter)
    )
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # the child may have ended already
            pipe.write(stdin)
    return process
