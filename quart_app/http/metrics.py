"""Metrics for Prometheus: HTTP by route, the mesh by its counters and books. Only the private port serves them."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import version

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from quart import Blueprint, Response

from mesh import MeshError
from quart_app.service import Context

# Each counter would have a second series with the time of its birth.
disable_created_metrics()  # type: ignore[no-untyped-call]

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
#: Statuses that an alert looks at.
FAILURES = (500, 502, 503, 504)
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class Requests:
    """Counts and times of HTTP requests, by route and never by path.

    A path may name a person, and a client can invent paths and methods without end.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._count = Counter("http_requests_total", "HTTP requests", ["method", "route", "status"], registry=registry)
        self._seconds = Histogram(
            "http_request_seconds", "time to answer", ["route"], registry=registry, buckets=BUCKETS
        )

        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request to this route, and how long its answer took."""
        method = method if method in METHODS else "other"
        count, duration = self._children.get((method, route, status)) or self._child(method, route, status)
        count.inc()
        duration.observe(seconds)

    def expect(self, method: str, route: str) -> None:
        """Begin the counters of failures at 0: Prometheus sees no increase in a counter that begins with 1."""
        for status in FAILURES:
            self._count.labels(method, route, status)

    def _child(self, method: str, route: str, status: int) -> tuple[Counter, Histogram]:
        """Look up the metrics once: prometheus_client takes a lock and makes strings of the labels each time."""
        child = self._count.labels(method, route, status), self._seconds.labels(route)
        self._children[method, route, status] = child
        return child


class MeshCollector(Collector):
    """This replica's counters in the mesh, read at each scrape."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def collect(self) -> Iterable[GaugeMetricFamily]:
        replica = self._context.replica
        leased = GaugeMetricFamily("mesh_leased", "1 while a lease is held", labels=["database", "class", "replica"])
        if replica is None:
            yield leased
            return
        leased.add_metric([str(replica.database), replica.cls, replica.id], float(replica.trusted))
        yield leased
        for name, value in replica.statistics().items():
            yield GaugeMetricFamily(f"mesh_{name}", f"{name.replace('_', ' ')} of this replica", value=value)
        yield GaugeMetricFamily("mesh_redis_full", "1 while stores are refused", value=float(replica.memory.is_full))
        yield GaugeMetricFamily("mesh_redis_memory_used_bytes", "memory that Redis uses", value=replica.memory.used)
        yield GaugeMetricFamily("mesh_redis_memory_limit_bytes", "maxmemory; 0: none", value=replica.memory.limit)
        conflicts = GaugeMetricFamily("mesh_key_conflicts", "conflicts at the most contended keys", labels=["key"])
        for key, count in replica.conflicts().items():
            conflicts.add_metric([key], count)
        yield conflicts


def routes(context: Context) -> Blueprint:
    """Return the route GET /metrics."""
    blueprint = Blueprint("metrics", __name__)
    ProcessCollector(registry=context.metrics)
    build = Info("mesh_build", "the release that this process runs", registry=context.metrics)
    build.info({"version": version("quart-mesh"), "python": platform.python_version()})
    context.metrics.register(MeshCollector(context))

    @blueprint.get("/metrics")
    async def metrics() -> Response:
        text = generate_latest(context.metrics) + await _books(context)
        return Response(text, content_type=CONTENT_TYPE_LATEST)

    return blueprint


async def _books(context: Context) -> bytes:
    """Return the books of the whole mesh, which every replica can tell; nothing while Redis is away."""
    try:
        books = await context.mesh.books()
    except MeshError:
        return b""
    registry = CollectorRegistry()

    class Books(Collector):
        def collect(self) -> Iterable[GaugeMetricFamily]:
            family = GaugeMetricFamily(
                "mesh_books", "accepted = answered + expired + cancelled + dead + lost + in_flight", labels=["account"]
            )
            for account, value in books.items():
                family.add_metric([account], value)
            yield family

    registry.register(Books())
    return generate_latest(registry)
