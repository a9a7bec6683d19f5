"""The Prometheus metrics of factorisation."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge


class FactorOutcome(StrEnum):
    """How a computation ended. A number that is done at once has no computation."""

    DONE = "done"
    FAILED = "failed"
    #: the deadline of its last caller came before the factors
    LATE = "late"
    #: its last caller left before the deadline
    CANCELLED = "cancelled"
    #: too many other computations were in progress
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class LaneMetrics:
    """The metrics of one lane of processes; `FactorMetrics` says what each of them counts."""

    computing_now: Gauge
    waiting: Gauge
    computing_s: Counter
    killed: Counter
    died: Counter

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Count a process as computing while the block lasts, and add the seconds that this takes."""
        begun_s = time.monotonic()
        with self.computing_now.track_inprogress():
            try:
                yield
            finally:
                self.computing_s.inc(time.monotonic() - begun_s)


class FactorMetrics:
    """The metrics of one replica's factor pool."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._ended_counter = Counter(
            "mesh_values_factorisations", "computations that ended, by outcome", ["outcome"], registry=registry
        )
        self._computing_now = Gauge(
            "mesh_values_factorisation_in_flight", "processes that compute now", ["lane"], registry=registry
        )
        self._waiting = Gauge(
            "mesh_values_factorisation_waiting", "computations that wait for a process", ["lane"], registry=registry
        )
        self._computing_s = Counter(
            "mesh_values_factorisation_seconds", "time that processes were computing", ["lane"], registry=registry
        )
        self._lost_processes = Counter(
            "mesh_values_factorisation_processes_lost",
            "processes that were killed because no caller waited any more, or that died by themselves",
            ["lane", "reason"],
            registry=registry,
        )
        for outcome in FactorOutcome:  # exports a 0 for each outcome from the start, so that the first increase shows
            self._ended_counter.labels(outcome)

    def count_ended(self, outcome: FactorOutcome) -> None:
        """Count a computation that has ended."""
        self._ended_counter.labels(outcome).inc()

    def lane_metrics(self, name: str) -> LaneMetrics:
        """Return the metrics of the lane with this name."""
        return LaneMetrics(
            self._computing_now.labels(name),
            self._waiting.labels(name),
            self._computing_s.labels(name),
            self._lost_processes.labels(name, "killed"),
            self._lost_processes.labels(name, "died"),
        )
