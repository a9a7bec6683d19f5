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

#: The result of a slice: how far the factorisation is, and the checked factors as text if the factorisation is done.
Slice = tuple[Factoring, str | None]

#: About how long a slice of curves takes. The pool learns only after a slice how far the computation is, and a process
#: that dies loses the work of its slice. Each slice costs a call into a process.
SLICE_S = 0.5
#: How long after the deadline the system kills a process that still computes, in case the pool is gone. The pool itself
#: kills it at the deadline, if it lives. A longer time leaves a core busy for longer without a pool; with a shorter
#: one, the system might kill a process before the pool does.
GRACE_S = 5.0

#: The option of prctl(2), as in `quart_app.local.spawning`, which this module does not import to stay small.
_PR_SET_PDEATHSIG = 1


def prepare(niceness: int) -> None:
    """Prepare a worker process: signals end it even inside of C code, its priority is low, it ends with its replica."""
    engine.load_pari()
    # Python runs its signal handlers between byte codes only, and a sieve is one call that takes minutes.
    for signal_number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(signal_number, signal.SIG_DFL)
    os.nice(niceness)
    _die_with_the_replica()


def _die_with_the_replica() -> None:
    """Have the system kill this process when its replica is killed.

    A replica that is killed cannot tell its workers, and a worker inside of C code could not listen. The parent of the
    workers is the fork server. It reads from a pipe, and ends when no process has the writing end any more. The
    replica has the writing end. Each worker inherits it, too, and closes it here. So when the replica is killed, the
    fork server ends. Then Linux kills the workers, because their parent has ended. On other systems, the alarm of
    `_with_alarm` ends them.
    """
    # multiprocessing has no public name for the writing end of the pipe.
    server: Any = vars(forkserver)["_forkserver"]
    alive_fd = getattr(server, "_forkserver_alive_fd", None)
    if alive_fd is not None:
        server._forkserver_alive_fd = None
        os.close(alive_fd)
    with contextlib.suppress(OSError, AttributeError):  # other systems than Linux have no `prctl`
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def begin(number: int, seconds_left: float) -> Slice:
    """Do the cheap steps for a number that is too long to do them on the event loop.

    `seconds_left` is the time until the deadline of the whole computation.
    """
    return _with_alarm(partial(engine.begin, number), seconds_left)


def advance(factoring: Factoring, seconds_left: float, sieve_bits: int) -> Slice:
    """Do the next slice of a factorisation."""
    return _with_alarm(partial(engine.advance, factoring, seconds_left, SLICE_S, sieve_bits), seconds_left)


def _with_alarm(work: Callable[[], Factoring], seconds_left: float) -> Slice:
    """Do the work. GRACE_S after its deadline, the system kills this process, even if the pool has ended by then."""
    signal.setitimer(signal.ITIMER_REAL, max(seconds_left, 0) + GRACE_S)
    try:
        factoring = work()
        return factoring, factoring.checked_factors() if factoring.done else None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
