"""What the grades service counts."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge


class Metrics:
    """One process's counters. The registry is the application's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.applied = Counter("grades_entries_applied_total", "log entries applied", registry=registry)
        self.unreadable = Counter(
            "grades_entries_unreadable_total", "log entries that no replica could read, passed over", registry=registry
        )
        self.carried = Counter(
            "grades_records_carried_total", "records carried over from a log that was lost", registry=registry
        )
        self.restores = Counter(
            "grades_restores_total", "states taken over, or refused", ["source", "outcome"], registry=registry
        )
        self.snapshots = Counter("grades_snapshots_total", "snapshots written", ["outcome"], registry=registry)

    def watch(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """A number that is asked for when it is looked at."""
        Gauge(f"grades_{name}", meaning, registry=self._registry).set_function(value)
