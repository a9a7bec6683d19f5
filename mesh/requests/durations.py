"""How long the requests of each operation took, as histograms: adding one costs less than a microsecond."""

from __future__ import annotations

from bisect import bisect_left

#: Upper ends of the intervals, in seconds. The last interval has none.
BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class DurationHistogram:
    """How many durations fell into each interval, and their sum."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0


class Durations:
    """Two histograms for each operation.

    total    from the acceptance, by Redis's clock in ms, until the handler is done
    work     the handler alone
    """

    __slots__ = ("by_op",)

    def __init__(self) -> None:
        self.by_op: dict[str, tuple[DurationHistogram, DurationHistogram]] = {}

    def add(self, op: str, total_s: float, work_s: float) -> None:
        """Count one request of an operation that this replica handles."""
        found = self.by_op.get(op)
        if found is None:
            found = self.by_op[op] = DurationHistogram(), DurationHistogram()
        total, work = found
        if total_s < work_s:
            # The clock is an estimate; no request took less time than its handler.
            total_s = work_s
        total.counts[bisect_left(BOUNDS_S, total_s)] += 1
        total.sum_s += total_s
        work.counts[bisect_left(BOUNDS_S, work_s)] += 1
        work.sum_s += work_s
