"""The Prometheus metrics of the movements service."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class MovementMetrics:
    """Counters of this replica, and gauges of the shared tables and stream. The gauges are the same on all replicas."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.stored = Counter("movements_stored_counter", "rows inserted into movements", registry=registry)
        self.duplicates = Counter("mesh_movements_duplicates", "events that were already stored", registry=registry)
        self.dead_letters = Counter(
            "mesh_movements_dead_letters", "events moved to mesh:dead with a reason", registry=registry
        )
        self.loads = Counter("mesh_movements_loads", "movements read from the database", registry=registry)
        self.lag = Gauge("mesh_movements_lag", "events on the stream that are not stored yet", registry=registry)
        self.deficit = Gauge(
            "mesh_movements_deficit", "items that departed before their arrival was known", registry=registry
        )
        self.deficit_products = Gauge(
            "mesh_movements_deficit_products", "pairs of warehouse and product with a deficit", registry=registry
        )
