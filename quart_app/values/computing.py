"""Finds factors for the handlers, and says which values are hard."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from mesh import DeadlineExceeded
from mesh.raw import NEVER, Replica, Request
from quart_app.values import notation
from quart_app.values.hard_values import deadline_of
from quart_app.values.notation import is_small
from quart_app.values.pool import FactorPool

#: A value is hard if it is expected to take at least this long. For a faster value, a request of its own is not worth
#: the two round trips that such a request costs. With a higher number, a value would hold up the other values of its
#: request for longer.
HARD_S = 0.05
#: A computation ends this long before the deadline, so that its answer arrives in time. With less, a busy replica's
#: answer comes late; more takes time from the computation.
MARGIN_S = 0.25
#: How many results are kept. A request that runs again after a conflict takes its results from here. With fewer, it may
#: have to compute again; more take more memory.
MOST_FINISHED = 256

#: The fields of `Progress` that clients see.
SHOWN_FACTS = ("stage", "elapsed_s", "estimate_s", "factors", "unfactored")


class Computing:
    """Finds factors for handlers, and keeps those of the last computations.

    `current_replica` returns the present membership, because another one may follow.
    """

    def __init__(self, current_replica: Callable[[], Replica], pool: FactorPool) -> None:
        self._current_replica = current_replica
        self._pool = pool
        #: the factors by request id and value, the oldest first
        self._finished_factors: OrderedDict[tuple[str, str], str] = OrderedDict()

    async def factorise_small(self, values: Sequence[str]) -> list[str]:
        """Return the factors of values below 2^64."""
        return await self._pool.factorise_small([int(value) for value in values])

    async def factorise_quickly(self, value: str) -> str | None:
        """Return the factors of a value if the cheap steps find them on the event loop, else None."""
        return await self._pool.factorise_quickly(int(value))

    def is_hard(self, value: str) -> bool:
        """Return whether a value is expected to take long. Only for values that `factorise_quickly` does not factor."""
        return self._pool.expected_s(int(value)) >= HARD_S

    async def factorise_large(self, value: str, request: Request) -> str:
        """Return the factors of a value from 2^64 on. Raises Busy, DeadlineExceeded, Unavailable."""
        kept_factors = self._finished_factors.get((request.id, value))
        if kept_factors is not None:
            return kept_factors
        number = int(value)
        quick_factors = await self._pool.factorise_quickly(number)
        return await self._compute(value, number, request) if quick_factors is None else quick_factors

    def progress(self, value: str) -> dict[str, Any] | None:
        """Return how the factorisation of a value is going; None if this replica is not factorising the value."""
        if is_small(value):
            return None
        pool_progress = self._pool.progress(int(value))
        if pool_progress is None:
            return None
        facts = asdict(pool_progress) | {"factors": notation.expanded(pool_progress.factors)}
        return {"value": facts["number"], **{name: facts[name] for name in SHOWN_FACTS}}

    async def _compute(self, value: str, number: int, request: Request) -> str:
        """Return the factors of a value that takes the pool longer. Keep them for a later run of the request."""
        # A request of a job has the field "job". No client waits for its factors, so the pool factors a hard number of
        # a job in its lane "patient". If no time is left, the pool gets 1 ms, and then raises DeadlineExceeded.
        try:
            factors = await self._pool.factorise(
                number, max(self._left_s(request), 0.001), patient="job" in request.body
            )
        except DeadlineExceeded as error:
            error.facts["value"] = number
            raise
        self._finished_factors[request.id, value] = factors
        while len(self._finished_factors) > MOST_FINISHED:
            self._finished_factors.popitem(last=False)
        return factors

    def _left_s(self, request: Request) -> float:
        """Return how many seconds a computation for this request may take."""
        deadline = deadline_of(request)
        # A request without a deadline, such as a replayed dead letter, gets the time of the largest sieve: an hour.
        if deadline == NEVER:
            return 3600.0
        return (deadline - self._current_replica().now_ms()) / 1000 - MARGIN_S
