"""What runs in a worker process of the pool. It imports the engine alone: a process is ready soon and stays small."""

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

#: how far a factorisation is after a slice; with the checked factors, as text, when it is done
Slice = tuple[Factoring, str | None]

#: the time between two looks at a number that only curves can split
SLICE_S = 0.5
#: a process kills itself this long after its deadline, should nobody have done it
GRACE_S = 5.0

_PR_SET_PDEATHSIG = 1


def prepare(niceness: int) -> None:
    """Make a process killable within library code, lower its priority, and let it die when its replica does."""
    engine.load()
    # Python's own handlers run between byte codes, and a sieve is one call of minutes.
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    os.nice(niceness)
    _die_with_the_replica()


def _die_with_the_replica() -> None:
    """A killed replica can tell its workers nothing, and one within library code looks at nothing.

    The fork server, parent of the workers, ends when nobody holds the other end of its pipe; it hands that to every
    worker, so each has to let it go. The system then kills them with their parent. That is Linux's way; elsewhere the
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
    """The cheap steps on a number too long for the event loop."""
    return _with_alarm(partial(engine.begin, number), seconds_left)


def advance(factoring: Factoring, seconds_left: float, sieve_bits: int) -> Slice:
    """One slice more."""
    return _with_alarm(partial(engine.advance, factoring, seconds_left, SLICE_S, sieve_bits), seconds_left)


def _with_alarm(work: Callable[[], Factoring], seconds_left: float) -> Slice:
    """Do the work. The system kills the process should it miss its deadline, even if nobody is left to do so."""
    signal.setitimer(signal.ITIMER_REAL, max(seconds_left, 0) + GRACE_S)
    try:
        factoring = work()
        return factoring, factoring.factors() if factoring.done else None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
