"""The factor pool: it factors numbers in processes that can be killed. All callers of one number share a computation.

    factorise(n) ── cheap ──> on the event loop, in microseconds
          │ not cheap
    Computation(n) ── slice by slice ──> Lane "brisk":   numbers that are expected to take at most half a second
                                         Lane "hard":    all others; the number of them is bounded
                                         Lane "patient": hard numbers of jobs, for which no client waits
    HelpForOthers ── curves for another replica ──> Lane "help"

A computation is made in slices. Each slice is a call into a worker process: the state of the factorisation goes in, and
the new state comes out. So the pool always knows how far a computation is, numbers take turns, and a process that dies
costs one slice. A sieve is one slice, however long it takes. When the last caller of its number leaves, the pool kills
the process. While only curves can split a number, all idle processes of its lane run curves on it. After a second,
other replicas of the class run curves on it, too (see `help`).

Worker processes run at low priority, so the event loop gets the processor first. A worker process ends with its
replica, even if the replica is killed. The system kills a worker process that still computes some seconds after its
deadline.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import math
import time
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, Self

from pebble import ProcessExpired
from prometheus_client import CollectorRegistry

from mesh import Busy, DeadlineExceeded, Unavailable
from quart_app.values import child, notation
from quart_app.values import factorise as engine
from quart_app.values.computation import Computation, Progress
from quart_app.values.factorise import Factoring, Stage
from quart_app.values.help import HelpForOthers, HelpFromOthers
from quart_app.values.lanes import Call, Lane, cores
from quart_app.values.metrics import FactorMetrics, FactorOutcome
from quart_app.values.pace import Pace
from quart_app.values.side_by_side import race

#: The most bits of a number, or of its rest after division, that the event loop tests: in 0.5 ms. More would block it.
INLINE_BITS = 512
#: How many numbers below 2^64 are factored in one piece of work: 2.4 ms if each is a product of two primes of 32 bits.
#: Most numbers take a fiftieth of that. More would block the event loop for longer; fewer cost more calls of `pace`.
SMALL_NUMBERS_A_PIECE = 8
#: Numbers that are expected to take at most this long go to the brisk lane. Longer ones would hold up the others there.
BRISK_S = 0.5
#: After this time, a hard number gets the help of other replicas. Earlier, most numbers end before the help comes.
HELP_AFTER_S = 1.0
#: In how many processes a slice is tried, one after the other. If both die, the number is probably the cause.
ATTEMPTS = 2


@lru_cache(maxsize=64)
def _after_cheap_steps(number: int) -> Factoring | None:
    """Return a number's factorisation after its cheap steps; None if these steps would block the event loop for long.

    The cache saves time for callers that ask for the estimate of a number first, and then for its factors. A larger
    cache helps if more callers come in between, and keeps more numbers in memory.
    """
    return engine.begin_unless_long(number, INLINE_BITS)


class FactorPool:
    """Factors numbers: `async with FactorPool() as pool: await pool.factorise(n, timeout_s=5)`.

    `processes` is the number of processes of the hard lane, by default one for each core. The pool accepts at once at
    most `hard_limit` hard numbers of clients and at most `hard_limit` of jobs, by default four for each process. All
    numbers together, brisk ones included, are at most `brisk_limit` + `hard_limit`. Further numbers get Busy, because
    they would wait for a process until their deadlines. A number with a composite of more than `sieve_bits` gets curves
    until its deadline. `help_from_others` lets other replicas run curves on one hard number of each lane at a time. The
    attribute `help_for_others` runs curves for them.
    """

    def __init__(
        self,
        *,
        processes: int | None = None,
        hard_limit: int | None = None,
        brisk_limit: int = 256,
        sieve_bits: int = engine.SIEVE_BITS,
        metrics: FactorMetrics | None = None,
        pace: Pace | None = None,
        help_from_others: HelpFromOthers | None = None,
    ) -> None:
        self.processes = process_count = processes or cores()
        self.hard_limit = 4 * process_count if hard_limit is None else hard_limit
        self.brisk_limit = brisk_limit
        self.sieve_bits = sieve_bits
        self._metrics = metrics or FactorMetrics(CollectorRegistry())
        # A lane with a higher niceness has a lower priority; 19, the lowest, is for the numbers of other replicas. More
        # than two brisk processes, which go first, would slow hard numbers down.
        self._brisk = Lane(min(process_count, 2), niceness=5, metrics=self._metrics.lane_metrics("brisk"))
        self._hard = Lane(process_count, niceness=10, metrics=self._metrics.lane_metrics("hard"))
        self._patient = Lane(process_count, niceness=15, metrics=self._metrics.lane_metrics("patient"))
        self.help_for_others = HelpForOthers(
            Lane(process_count, niceness=19, metrics=self._metrics.lane_metrics("help")),
            self._count_spare_processes,
            self._run_with_retry,
        )
        self._help_from_others = help_from_others
        #: the lanes in which other replicas now help with a number
        self._lanes_with_help: set[Lane] = set()
        self._computations: dict[int, Computation] = {}
        self._pace = pace or Pace()
        self._tasks: asyncio.TaskGroup
        self._opened = asyncio.Event()
        self._is_closed = False

    async def __aenter__(self) -> Self:
        self._tasks = await asyncio.TaskGroup().__aenter__()
        self._opened.set()
        return self

    async def __aexit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        self._is_closed = True
        for computation in list(self._computations.values()):
            self._remove(computation)
        await self._tasks.__aexit__(None, None, None)  # waits for the tasks, which are all cancelled
        await asyncio.gather(self._brisk.stop(), self._hard.stop(), self._patient.stop(), self.help_for_others.stop())
        if error_type is not None:
            # The service has failed, or the lease was lost. The pool will be opened again, so callers wait for that in
            # `_wait_until_open`. After an orderly leave the pool stays closed: callers get a CancelledError there, and
            # the replica hands their requests back.
            self._opened.clear()
            self._is_closed = False

    async def factorise_quickly(self, number: int) -> str | None:
        """Return the prime factors as text if the cheap steps find them on the event loop, else None."""
        await self._pace()
        if number.bit_length() <= engine.SMALL_BITS:
            return engine.factors_of_small(number)
        factoring = _after_cheap_steps(number)
        return factoring.checked_factors() if factoring is not None and factoring.done else None

    async def factorise(self, number: int, timeout_s: float, *, patient: bool = False) -> str:
        """Return the prime factors as text. `patient` says that the caller is a job: no client waits for the factors.

        The computation ends when its last caller leaves. Raises ValueError for a number below 1, and Busy. Raises
        DeadlineExceeded with the facts `factors` (primes found so far) and `unfactored` (composites that are left).
        Raises Unavailable if a slice failed because all processes that tried it died.
        """
        quick_factors = await self.factorise_quickly(number)
        if quick_factors is not None:
            return quick_factors
        factoring = _after_cheap_steps(number)
        begun_s = time.monotonic()
        await self._wait_until_open(timeout_s)
        computation = self._join_or_begin(number, factoring, patient)
        return await self._wait_for_factors(computation, timeout_s - (time.monotonic() - begun_s))

    async def factorise_small(self, numbers: Sequence[int]) -> list[str]:
        """Return the prime factors of numbers below 2^64, each as text. The event loop finds them, piece by piece."""
        texts: list[str] = []
        for start in range(0, len(numbers), SMALL_NUMBERS_A_PIECE):
            await self._pace()
            texts += map(engine.factors_of_small, numbers[start : start + SMALL_NUMBERS_A_PIECE])
        return texts

    async def _wait_until_open(self, timeout_s: float) -> None:
        """Wait until the pool is open. Raises DeadlineExceeded. Raises CancelledError if the pool was closed for good.

        A request that ends with this CancelledError stays pending, and another replica of the class takes it over.
        """
        if not self._opened.is_set():
            try:
                async with asyncio.timeout(timeout_s):
                    await self._opened.wait()
            except TimeoutError:
                raise DeadlineExceeded("this replica was not ready in time") from None
        if self._is_closed:
            raise asyncio.CancelledError("the pool has ended")

    async def is_prime(self, number: int, timeout_s: float) -> bool:
        """Return whether a number is prime; a process tests a long number. Raises DeadlineExceeded, Unavailable."""
        if number.bit_length() <= INLINE_BITS:
            await self._pace()
            return engine.is_prime(number)
        await self._wait_until_open(timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                return bool(await self._run_with_retry(self._brisk, lambda: (engine.is_prime, number)))
        except TimeoutError:
            raise DeadlineExceeded("the test whether the number is prime did not end in time") from None

    def expected_s(self, number: int) -> float:
        """Return how many seconds a number is expected to take; infinite if that is not known."""
        factoring = _after_cheap_steps(number)
        return math.inf if factoring is None else engine.expected_seconds(factoring, self.sieve_bits)

    def progress(self, number: int) -> Progress | None:
        """Return how far the computation of a number is; None if the number is not being computed."""
        computation = self._computations.get(number)
        return None if computation is None else computation.progress(time.monotonic(), self.sieve_bits)

    def all_progress(self) -> list[Progress]:
        """Return the progress of all computations, the oldest first."""
        now_s = time.monotonic()
        return [computation.progress(now_s, self.sieve_bits) for computation in self._computations.values()]

    def _join_or_begin(self, number: int, factoring: Factoring | None, patient: bool) -> Computation:
        """Return the computation of a number; begin one if there is none. Raises Busy.

        `factoring` is the state after the cheap steps; None if a worker process has to do these steps.
        """
        existing = self._computations.get(number)
        if existing is not None:
            return existing
        if len(self._computations) >= self.brisk_limit + self.hard_limit:
            self._metrics.count_ended(FactorOutcome.REFUSED)
            # Each number that ends makes room, and a brisk one takes half a second at most.
            raise Busy("too many factorisations are in progress; retry after 1 s", retry_after=1)
        now_s = time.monotonic()
        factors_future = asyncio.get_running_loop().create_future()
        # The second `now_s` is the deadline, until `_wait_for_factors` sets it.
        computation = Computation(number, factoring, now_s, now_s, factors_future, patient)
        if factoring is not None:
            self._admit_if_hard(computation)
        self._computations[number] = computation
        computation.task = self._tasks.create_task(self._run(computation))
        return computation

    async def _wait_for_factors(self, computation: Computation, timeout_s: float) -> str:
        """Return the factors when they are found. If the last caller leaves before, the computation ends."""
        computation.caller_count += 1
        computation.deadline_s = max(computation.deadline_s, time.monotonic() + timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                # The shield keeps a caller that leaves from cancelling the future of all callers.
                return await asyncio.shield(computation.factors_future)
        except TimeoutError:
            # Requests that came together reach their deadlines together. Their error texts are made in turn, so that
            # the event loop is not blocked.
            await self._pace()
            raise self._deadline_error(computation) from None
        finally:
            computation.caller_count -= 1
            if not computation.caller_count:
                self._remove(computation)

    def _deadline_error(self, computation: Computation) -> DeadlineExceeded:
        """Return the error for a caller whose time is over: it says how far the computation is."""
        progress = computation.progress(time.monotonic(), self.sieve_bits)
        digit_counts = ", ".join(str(len(str(composite))) for composite in progress.unfactored)
        return DeadlineExceeded(
            f"not factorised in time: the composites that are left have {digit_counts} digits",
            factors=notation.expanded(progress.factors),
            unfactored=progress.unfactored,
            stage=progress.stage,
            elapsed_s=progress.elapsed_s,
            estimate_s=progress.estimate_s,
        )

    def _remove(self, computation: Computation) -> None:
        """Remove a computation. If it has not finished, cancel it: this kills the processes that work on the number."""
        if self._computations.get(computation.number) is computation:
            del self._computations[computation.number]
        if computation.task is not None and not computation.task.done():
            is_late = time.monotonic() >= computation.deadline_s
            self._metrics.count_ended(FactorOutcome.LATE if is_late else FactorOutcome.CANCELLED)
            computation.task.cancel()

    def _admit_if_hard(self, computation: Computation) -> None:
        """Mark a computation as hard if it is expected to take long. Raises Busy if there are too many hard ones.

        Hard numbers of clients and those of jobs are counted apart, so neither can take the places of the others.
        """
        assert computation.factoring is not None
        if computation.is_hard or engine.expected_seconds(computation.factoring, self.sieve_bits) <= BRISK_S:
            return
        competing = [
            other for other in self._computations.values() if other.is_hard and other.patient == computation.patient
        ]
        if len(competing) >= self.hard_limit:
            self._metrics.count_ended(FactorOutcome.REFUSED)
            retry_after = math.ceil(self._first_end_s(competing))
            raise Busy(
                f"too many hard numbers ({len(competing)}) are being factorised; retry after {retry_after} s",
                retry_after=retry_after,
            )
        computation.is_hard = True

    def _first_end_s(self, computations: list[Computation]) -> float:
        """Return in how many seconds the first of these computations is expected to end, from 1 to 60 for Retry-After.

        A computation also ends at its deadline. After a minute a client may ask again, because callers may have left.
        """
        now_s = time.monotonic()
        ends_s = [min(other.deadline_s - now_s, other.left_s(now_s, self.sieve_bits)) for other in computations]
        return min(max(min(ends_s, default=1.0), 1.0), 60.0)

    async def _run(self, computation: Computation) -> None:
        """Compute, and pass the result or the error to the callers.

        Raises nothing but CancelledError: any other error would end the task group, and with it all computations.
        """
        factors_future = computation.factors_future
        try:
            factors = await self._compute(computation)
        except asyncio.CancelledError:
            factors_future.cancel()
            raise
        except Exception as error:
            # `_admit_if_hard` has counted a Busy as refused.
            if not isinstance(error, Busy):
                self._metrics.count_ended(FactorOutcome.FAILED)
            if not factors_future.done():
                factors_future.set_exception(error)
                factors_future.exception()  # otherwise asyncio would log the error if the last caller has just left
        else:
            self._metrics.count_ended(FactorOutcome.DONE)
            if not factors_future.done():
                factors_future.set_result(factors)
        if self._computations.get(computation.number) is computation:
            del self._computations[computation.number]

    async def _compute(self, computation: Computation) -> str:
        """Do slice after slice; return the factors. Raises Busy, Unavailable."""
        while True:
            if computation.factoring is None:
                computation.stage = Stage.DIVISION
            else:
                # This matters only after cheap steps in a process: before them, the number has no estimate.
                self._admit_if_hard(computation)
            computation.factoring, factors = await self._advance(computation)
            if factors is not None:
                computation.stage = Stage.DONE
                return factors

    async def _advance(self, computation: Computation) -> child.Slice:
        """Do the next slice. If only curves can split the number, do a slice in each idle process of the lane.

        If other replicas help with the curves, repeat this until some replica has split the composite, or until it is
        time for the sieve. The deadline ends this, too: the last caller leaves then, so the task is cancelled.
        """
        lane = self._choose_lane(computation)
        before = computation.factoring
        run = partial(self._run_with_retry, lane, partial(self._next_call, computation))
        if before is None or self._choose_stage(computation) is not Stage.CURVES:
            result: child.Slice = await run()
            return result
        if self._help_from_others is None or not self._needs_help(computation):
            return await race(before, run, max(1, lane.idle_count))
        self._lanes_with_help.add(lane)
        try:
            async with self._help_from_others.ask_for_curves(before, self.processes) as joint:
                while not joint.first_split.done():
                    computation.factoring = before = joint.factoring
                    if self._choose_stage(computation) is not Stage.CURVES:
                        return before, None
                    joint.add(before, await race(before, run, max(1, lane.idle_count), joint.first_split))
                return joint.first_split.result()
        finally:
            self._lanes_with_help.discard(lane)

    def _needs_help(self, computation: Computation) -> bool:
        """Return whether other replicas should help: the computation is long, and no other one of its lane has help."""
        is_long = computation.is_hard and time.monotonic() - computation.begun_s >= HELP_AFTER_S
        return is_long and self._choose_lane(computation) not in self._lanes_with_help

    def _count_spare_processes(self) -> int:
        """Return how many processes this replica does not need. Curves need all of them, also between two slices."""
        runs_curves = any(computation.stage is Stage.CURVES for computation in self._computations.values())
        if self._is_closed or not self._opened.is_set() or runs_curves:
            return 0
        return max(0, self.processes - self._brisk.call_count - self._hard.call_count - self._patient.call_count)

    def _choose_stage(self, computation: Computation) -> Stage:
        """Return what the next slice will do in the time that is left."""
        assert computation.factoring is not None
        return engine.choose_stage(computation.factoring, computation.deadline_s - time.monotonic(), self.sieve_bits)

    def _choose_lane(self, computation: Computation) -> Lane:
        if not computation.is_hard:
            return self._brisk
        return self._patient if computation.patient else self._hard

    async def _run_with_retry(self, lane: Lane, call: Call) -> Any:
        """Return the result of a call. If its process dies, make the call again in another one. Raises Unavailable."""
        for _ in range(ATTEMPTS):
            with contextlib.suppress(ProcessExpired, concurrent.futures.BrokenExecutor):
                return await lane.run(call)
        raise Unavailable("the processes that tried to factorise the number died")

    def _next_call(self, computation: Computation) -> tuple[Any, ...]:
        """Return the function that does the next slice, and its arguments.

        The lane calls this when a process is free, because the arguments contain the time that is left then.
        """
        seconds_left = computation.deadline_s - time.monotonic()
        factoring = computation.factoring
        if factoring is None:
            return child.begin, computation.number, seconds_left
        computation.stage = self._choose_stage(computation)
        return child.advance, factoring, seconds_left, self.sieve_bits
