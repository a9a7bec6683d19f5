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
    """The metrics of one lane."""

    in_flight: Gauge
    waiting: Gauge
    seconds: Counter
    killed: Counter
    died: Counter

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Count a process as computing while the block lasts, and add the seconds that this takes."""
        begun_s = time.monotonic()
        with self.in_flight.track_inprogress():
            try:
                yield
            finally:
                self.seconds.inc(time.monotonic() - begun_s)


class FactorMetrics:
    """The figures of one replica's pool."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._ended = Counter(
            "mesh_values_factorisations", "computations that ended, by outcome", ["outcome"], registry=registry
        )
        self._in_flight = Gauge(
            "mesh_values_factorisation_in_flight", "processes that compute now", ["lane"], registry=registry
        )
        self._waiting = Gauge(
            "mesh_values_factorisation_waiting", "computations that wait for a process", ["lane"], registry=registry
        )
        self._seconds = Counter(
            "mesh_values_factorisation_seconds", "time that processes were computing", ["lane"], registry=registry
        )
        self._lost = Counter(
            "mesh_values_factorisation_processes_lost",
            "processes that were killed because no caller waited any more, or that died by themselves",
            ["lane", "reason"],
            registry=registry,
        )
        for outcome in FactorOutcome:  # exports a 0 for each outcome from the start, so that the first increase shows
            self._ended.labels(outcome)

    def ended(self, outcome: FactorOutcome) -> None:
        self._ended.labels(outcome).inc()

    def lane(self, name: str) -> LaneMetrics:
        return LaneMetrics(
            self._in_flight.labels(name),
            self._waiting.labels(name),
            self._seconds.labels(name),
            self._lost.labels(name, "killed"),
            self._lost.labels(name, "died"),
        )
