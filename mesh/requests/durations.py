"""How long the requests of each operation took, as histograms.

Durations are counted in the histograms many at a time. To count a single one costs 2 µs, because the code and the data
for that are no longer in the processor's cache. The runner adds the durations, and the metrics read the histograms.
"""

from __future__ import annotations

from bisect import bisect_left

#: Upper ends of the intervals of a histogram, in seconds. One more interval, the last one, has no upper end. With more
#: intervals, percentiles are more exact, but the metrics of each operation have more lines.
BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
#: When this number of durations is collected, they are counted in the histograms. To count more of them at a time costs
#: less for each, but the list takes more memory.
MOST_UNCOUNTED = 256


class DurationHistogram:
    """How many durations fell into each interval, and their sum."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        #: one for each interval
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0


class Durations:
    """Two histograms for each operation, of the durations of its requests.

    total    from the acceptance, by Redis's clock in ms, until the handler is done
    work     only the runs of the handler
    """

    __slots__ = ("_by_op", "_uncounted")

    def __init__(self) -> None:
        #: by operation: the histograms `total` and `work`
        self._by_op: dict[str, tuple[DurationHistogram, DurationHistogram]] = {}
        #: the arguments of each call of `add` whose durations are not in the histograms yet
        self._uncounted: list[tuple[str, float, float]] = []

    def add(self, op: str, total_s: float, work_s: float) -> None:
        """Count one request of an operation that this replica handles, with its two durations."""
        self._uncounted.append((op, total_s, work_s))
        if len(self._uncounted) == MOST_UNCOUNTED:
            self._count_all()

    @property
    def by_op(self) -> dict[str, tuple[DurationHistogram, DurationHistogram]]:
        """By operation: the histograms `total` and `work` of all its requests so far."""
        self._count_all()
        return self._by_op

    def _count_all(self) -> None:
        for op_and_durations in self._uncounted:
            self._count(*op_and_durations)
        self._uncounted.clear()

    def _count(self, op: str, total_s: float, work_s: float) -> None:
        """Count the two durations of one request in the histograms of its operation."""
        histograms = self._by_op.get(op)
        if histograms is None:
            histograms = self._by_op[op] = DurationHistogram(), DurationHistogram()
        total_histogram, work_histogram = histograms
        if total_s < work_s:
            # The total is too short if the replica's estimate of Redis's clock is wrong: the handler took longer.
            total_s = work_s
        total_histogram.counts[bisect_left(BOUNDS_S, total_s)] += 1
        total_histogram.sum_s += total_s
        work_histogram.counts[bisect_left(BOUNDS_S, work_s)] += 1
        work_histogram.sum_s += work_s
