"""The functions that run in a worker process of the pool.

This module imports nothing but the engine, so that a process starts fast and stays small.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable
from functools import partial
from multiprocessing import forkserver
from typing import Any

from quart_app.values import factorise as engine
from quart_app.values.factorise import Factoring

#: The result of a slice: how far the factorisation is, and the checked factors as text if it is done.
Slice = tuple[Factoring, str | None]

#: The length of a slice of curves.
SLICE_S = 0.5
#: How long after its deadline the system kills a process that the pool has not killed.
GRACE_S = 5.0

_PR_SET_PDEATHSIG = 1


def prepare(niceness: int) -> None:
    """Let signals end the process also inside of C code, lower its priority, and tie its life to the replica's."""
    engine.load()
    # Python runs its signal handlers between byte codes only, and a sieve is one call that takes minutes.
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    os.nice(niceness)
    _die_with_the_replica()


def _die_with_the_replica() -> None:
    """Have the system kill this process when its replica is killed.

    A replica that is killed cannot tell its workers, and a worker inside of C code could not listen. The fork server is
    the parent of the workers. It ends when the last copy of its pipe's other end is closed. Every worker inherits such
    a copy, so each closes its own. Linux then kills the workers, because their parent has ended. On other systems their
    alarm ends them.
    """
    server: Any = vars(forkserver)["_forkserver"]
    alive = getattr(server, "_forkserver_alive_fd", None)
    if alive is not None:
        server._forkserver_alive_fd = None
        os.close(alive)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def begin(number: int, seconds_left: float) -> Slice:
    """Do the cheap steps for a number that is too long for the event loop."""
    return _with_alarm(partial(engine.begin, number), seconds_left)


def advance(factoring: Factoring, seconds_left: float, sieve_bits: int) -> Slice:
    """Do the next slice of a factorisation."""
    return _with_alarm(partial(engine.advance, factoring, seconds_left, SLICE_S, sieve_bits), seconds_left)


def _with_alarm(work: Callable[[], Factoring], seconds_left: float) -> Slice:
    """Do the work. An alarm makes the system kill this process some seconds after its deadline, also without a pool."""
    signal.setitimer(signal.ITIMER_REAL, max(seconds_left, 0) + GRACE_S)
    try:
        factoring = work()
        return factoring, factoring.factors() if factoring.done else None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
