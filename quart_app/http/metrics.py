"""Metrics for Prometheus: HTTP by route, and the mesh's counters and books. Only the private port serves them."""

from __future__ import annotations

import asyncio
import itertools
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import NamedTuple

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
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from quart import Blueprint, Response
from redis.exceptions import RedisError

from mesh import BOUNDS_S, Durations, Mesh, MeshError, Missing, keys
from quart_app.service import Context

# Otherwise each counter would have a second series, which has the time at which the counter was created.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types for this function

#: Upper bounds of the histogram of answers, in seconds. Each further bound costs one more series for each route.
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
#: Statuses that an alert looks at; see `RequestMetrics.create_failure_counters`.
FAILURE_STATUSES = (500, 502, 503, 504)
#: Methods that have series of their own; all others count as "other", because a client can invent methods.
COUNTED_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class RequestMetrics:
    """Counts and durations of HTTP requests, by route and never by path.

    A path may name a person. A client can also invent paths without end, and each would have a series.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._request_counter = Counter(
            "mesh_http_requests_total", "HTTP requests", ["method", "route", "status"], registry=registry
        )
        self._duration_histogram = Histogram(
            "mesh_http_request_duration_seconds", "time to answer", ["route"], registry=registry, buckets=BUCKETS_S
        )

        #: (method, route, status) -> the counter and the histogram with these labels
        self._metrics_of: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def count(self, method: str, route: str, status: int, duration_s: float) -> None:
        """Count one request to this route, and how long its answer took."""
        method = method if method in COUNTED_METHODS else "other"
        counter, histogram = self._metrics_of.get((method, route, status)) or self._look_up_metrics(
            method, route, status
        )
        counter.inc()
        histogram.observe(duration_s)

    def create_failure_counters(self, method: str, route: str) -> None:
        """Create the counters of failures at 0, because Prometheus sees no increase in a counter that begins at 1."""
        for status in FAILURE_STATUSES:
            self._request_counter.labels(method, route, status)

    def _look_up_metrics(self, method: str, route: str, status: int) -> tuple[Counter, Histogram]:
        """Look up two metrics and keep them: each look-up takes a lock and turns the labels into strings."""
        counter_and_histogram = (
            self._request_counter.labels(method, route, status),
            self._duration_histogram.labels(route),
        )
        self._metrics_of[method, route, status] = counter_and_histogram
        return counter_and_histogram


class ReplicaCollector(Collector):
    """This replica's counters in the mesh, read at each scrape."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def collect(self) -> Iterable[Metric]:
        replica = self._context.membership  # None while this process holds no lease
        lease_gauge = GaugeMetricFamily(
            "mesh_leased", "1 while a lease is held", labels=["database", "class", "replica"]
        )
        if wanted_replicas := self._context.settings.replicas:
            yield GaugeMetricFamily("mesh_replicas_wanted", "how many replicas there should be", value=wanted_replicas)
        if replica is None:
            yield lease_gauge
            return
        lease_gauge.add_metric([str(replica.database), replica.cls, replica.id], float(replica.trusted))
        yield lease_gauge
        yield from _work_metrics(replica.statistics())
        yield GaugeMetricFamily("mesh_redis_full", "1 while stores are refused", value=float(replica.memory.is_full))
        yield GaugeMetricFamily("mesh_redis_memory_used_bytes", "memory that Redis uses", value=replica.memory.used)
        yield GaugeMetricFamily("mesh_redis_memory_limit_bytes", "maxmemory; 0: none", value=replica.memory.limit)
        yield _duration_metric(replica.durations())
        conflicts = CounterMetricFamily("mesh_key_conflicts", "conflicts at the most contended keys", labels=["key"])
        for key, count in replica.conflicts().items():
            conflicts.add_metric([key], count)
        yield conflicts


def _work_metrics(statistics: Mapping[str, float]) -> Iterator[Metric]:
    """Yield the metrics of this replica's work.

    The label `stream` tells whether requests came by the stream of the class or by that of the database.
    """
    yield GaugeMetricFamily("mesh_calls_waiting", "calls that wait for their reply", value=statistics["waiting"])
    trips = statistics["round_trips"]
    yield CounterMetricFamily("mesh_redis_round_trips", "round trips to Redis for requests and commits", value=trips)
    # `statistics` has each of these names twice: after "class_", and after "database_".
    metric_names = [name.removeprefix("class_") for name in statistics if name.startswith("class_")]
    for name in metric_names:
        family_type = GaugeMetricFamily if name == "in_progress" else CounterMetricFamily
        family = family_type(
            f"mesh_requests_{name}", f"requests {name.replace('_', ' ')} here, by stream", labels=["stream"]
        )
        for stream in ("class", "database"):
            family.add_metric([stream], statistics[f"{stream}_{name}"])
        yield family


def _duration_metric(durations: Durations) -> Metric:
    """Return the histograms of all operations. `part` is total (time since the acceptance) or work (in the handler)."""
    description = "by operation: the time since a request was accepted (total), and the time in its handler (work)"
    family = HistogramMetricFamily("mesh_operation_duration_seconds", description, labels=["op", "part"])
    for op, histograms in list(durations.by_op.items()):
        for part, histogram in zip(("total", "work"), histograms, strict=True):
            cumulative_counts = [*itertools.accumulate(histogram.counts)]  # as Prometheus wants them
            bounds = [*map(floatToGoString, BOUNDS_S), "+Inf"]
            family.add_metric([op, part], [*zip(bounds, cumulative_counts, strict=True)], histogram.sum_s)
    return family


class StreamState(NamedTuple):
    """How many requests are on a request stream, and how long the oldest has been there; 0 where there is none."""

    length: int
    oldest_s: float


class _WholeMeshCollector(Collector):
    """Metrics of the whole mesh, which are the same at every replica: books, request streams, missing databases."""

    def __init__(
        self, books: Mapping[str, int], stream_states: Mapping[str, StreamState], missing: Sequence[Missing]
    ) -> None:
        self._books = books
        self._stream_states = stream_states
        self._missing = missing

    def collect(self) -> Iterable[Metric]:
        description = (
            "accepted = answered + expired + cancelled + dead + lost + mesh_books_in_flight + mesh_books_waiting"
        )
        accounts = CounterMetricFamily("mesh_books", description, labels=["account"])
        for account, value in self._books.items():
            # A counter never falls, and these two accounts do. So each of them is a gauge below.
            if account not in ("in_flight", "waiting"):
                accounts.add_metric([account], value)
        yield accounts
        yield GaugeMetricFamily("mesh_books_in_flight", "accepted requests in flight", value=self._books["in_flight"])
        description = "accepted requests that wait for their time"
        yield GaugeMetricFamily("mesh_books_waiting", description, value=self._books["waiting"])
        lengths = GaugeMetricFamily("mesh_stream_entries", "requests on the stream", labels=["stream"])
        ages = GaugeMetricFamily("mesh_stream_oldest_seconds", "age of the oldest one; 0: none", labels=["stream"])
        for name, stream_state in self._stream_states.items():
            lengths.add_metric([name], stream_state.length)
            ages.add_metric([name], stream_state.oldest_s)
        yield lengths
        yield ages
        missing_with_data_count = sum(missing.has_data for missing in self._missing)
        description = "databases that hold data and have no replica"
        yield GaugeMetricFamily("mesh_missing_databases", description, value=missing_with_data_count)


def routes(context: Context) -> Blueprint:
    """Return the route GET /metrics."""
    blueprint = Blueprint("metrics", __name__)
    ProcessCollector(registry=context.metrics)  # registers itself
    build = Info("mesh_build", "the release that this process runs", registry=context.metrics)
    build.info({"version": version("quart-mesh"), "python": platform.python_version()})
    context.metrics.register(ReplicaCollector(context))

    @blueprint.get("/metrics")
    async def metrics() -> Response:
        text = generate_latest(context.metrics) + await _text_of_whole_mesh(context)
        return Response(text, content_type=CONTENT_TYPE_LATEST)

    return blueprint


async def _read_stream_states(replica: Mesh) -> dict[str, StreamState]:
    """Return the length of each request stream, and the age of its oldest entry. Raises RedisError."""
    settings = replica.settings
    stream_names = keys.request_streams(settings.classes, settings.databases)
    pipeline = replica.shared.pipeline(transaction=False)
    pipeline.time()
    for name in stream_names:
        pipeline.xlen(name)
        pipeline.xrange(name, count=1)
    (seconds, microseconds), *lengths_and_entries = await pipeline.execute()
    now_s = int(seconds) + int(microseconds) / 1e6
    # `oldest` has at most one entry: its id, which begins with the ms of its time, and its fields.
    return {
        name.removeprefix(keys.REQUESTS): StreamState(
            length, now_s - int(oldest[0][0].partition("-")[0]) / 1000 if oldest else 0
        )
        for name, length, oldest in zip(stream_names, lengths_and_entries[::2], lengths_and_entries[1::2], strict=True)
    }


async def _text_of_whole_mesh(context: Context) -> bytes:
    """Return the text of the metrics of the whole mesh; b"" without a lease, or while Redis cannot be reached."""
    try:
        replica = context.mesh  # raises MeshError without a lease
        books, stream_states, missing = await asyncio.gather(
            replica.books(), _read_stream_states(replica), replica.missing()
        )
    except (MeshError, RedisError):
        return b""
    registry = CollectorRegistry()
    registry.register(_WholeMeshCollector(books, stream_states, missing))
    return generate_latest(registry)
