"""One computation of the factor pool, and how far it is."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field

from quart_app.values import factorise as engine
from quart_app.values.factorise import Factoring


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a computation is. `estimate_s` is the expected time to its end; None if nobody can tell.

    `factors` are the primes found so far as text, and `unfactored` the composites that are left. `waiting` is the
    number of callers, and `curves` is the number of curves that were run on the smallest composite.
    """

    number: int
    stage: str
    elapsed_s: float
    estimate_s: float | None
    waiting: int
    factors: str
    unfactored: list[int]
    curves: int


@dataclass(slots=True, eq=False)
class Computation:
    """The factorisation of one number, for all of its callers. The pool makes it and changes its fields."""

    number: int
    #: None if a process has to do the cheap steps, until it has done them
    factoring: Factoring | None
    #: `begun_s` and `deadline_s` are values of `time.monotonic()`
    begun_s: float
    deadline_s: float
    #: gets the factors as text, or the error, for all callers
    factors_future: asyncio.Future[str]
    #: whether a job began it; if the number is hard, it then goes into the lane "patient"
    patient: bool
    #: a `Stage` of the engine, or "waiting" before the first one
    stage: str = "waiting"
    #: how many callers wait
    caller_count: int = 0
    #: whether the number is hard: it then goes into the lane "hard", or "patient" for a job; the pool sets this
    is_hard: bool = False
    #: the pool's task that computes; it is cancelled when the last caller has left
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    #: the latest estimate of the engine (s), and the `time.monotonic()` at which it was made (s)
    _estimated: tuple[float, float] = (math.inf, 0.0)

    def left_s(self, now_s: float, sieve_bits: int) -> float:
        """Return for how many more seconds the computation is expected to take.

        While the engine's estimate stays the same, the time that has passed meanwhile is subtracted from it.
        """
        factoring = self.factoring
        estimate_s = math.inf if factoring is None else engine.expected_seconds(factoring, sieve_bits)
        if estimate_s != self._estimated[0]:
            self._estimated = (estimate_s, now_s)
        return max(0.0, estimate_s - (now_s - self._estimated[1]))

    def progress(self, now_s: float, sieve_bits: int) -> Progress:
        """Return how far the computation is. A composite of more than `sieve_bits` bits is too large for a sieve."""
        factoring = self.factoring
        left_s = self.left_s(now_s, sieve_bits)
        return Progress(
            number=self.number,
            stage=self.stage,
            elapsed_s=round(now_s - self.begun_s, 3),
            estimate_s=None if math.isinf(left_s) else round(left_s, 3),
            waiting=self.caller_count,
            factors=factoring.known_factors() if factoring else "",
            unfactored=[composite.value for composite in factoring.composites] if factoring else [self.number],
            curves=factoring.composites[0].curves if factoring and factoring.composites else 0,
        )
