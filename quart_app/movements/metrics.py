"""What Prometheus is told about the movements."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class Metrics:
    """The counters are this replica's; the gauges are about what all share, so any replica's will do."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.stored = Counter("movements_stored_counter", "rows inserted into movements", registry=registry)
        self.duplicates = Counter("movements_duplicates_counter", "events that were stored before", registry=registry)
        self.dead_letters = Counter(
            "movements_dead_letters_counter", "events given up, with their reason in mesh:dead", registry=registry
        )
        self.loads = Counter("movements_loads_counter", "movements read from the database", registry=registry)
        self.lag = Gauge("movements_lag", "events on the stream that are not stored yet", registry=registry)
        self.deficit = Gauge(
            "movements_deficit", "items that departed before they were heard to arrive", registry=registry
        )
        self.deficit_products = Gauge(
            "movements_deficit_products", "products of a warehouse with such a deficit", registry=registry
        )
