"""The Prometheus metrics of the grades service."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge


class GradesMetrics:
    """The counters and gauges of this process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.applied = Counter("mesh_grades_entries_applied_total", "log entries applied", registry=registry)
        self.unreadable = Counter(
            "mesh_grades_entries_unreadable_total",
            "log entries that no replica can read; they are skipped",
            registry=registry,
        )
        self.carried = Counter(
            "mesh_grades_records_carried_total", "records carried over from a lost log", registry=registry
        )
        self.restores = Counter(
            "mesh_grades_restores_total",
            "attempts to restore a state, by source and outcome",
            ["source", "outcome"],
            registry=registry,
        )
        self.snapshots = Counter("mesh_grades_snapshots_total", "snapshots written", ["outcome"], registry=registry)

    def watch(self, name: str, meaning: str, read_value: Callable[[], float]) -> None:
        """Add a gauge. `read_value` is called whenever the metrics are read."""
        Gauge(f"mesh_grades_{name}", meaning, registry=self._registry).set_function(read_value)
