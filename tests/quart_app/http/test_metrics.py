"""Metrics: on the private port only, by route, with books that balance."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from mesh import MeshSettings
from tests.support.nodes import Node, applications, node
from tests.support.server import Server
from tests.support.waiting import eventually

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def samples(one: Node) -> Samples:
    response = await one.private.get("/metrics")
    assert response.status_code == 200
    text = await response.get_data(as_text=True)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


async def test_metrics_are_private() -> None:
    """The public port does not serve them."""
    app = applications()
    assert (await app.public.test_client().get("/metrics")).status_code == 404
    assert (await app.private.test_client().get("/metrics")).status_code == 200, "without a lease, too"


async def test_requests_are_counted_by_route_and_never_by_path(server: Server) -> None:
    """A path may name a person, and callers can invent paths without end."""
    async with node(MeshSettings(redis=server.settings)) as one:
        for prime in (2, 3, 5):
            assert (await one.public.get(f"/values/{prime}")).status_code == 200
        await one.public.get("/nowhere/at/all")
        found = await samples(one)
        assert value(found, "mesh_http_requests_total", method="GET", route="/values/<prime>", status="200") == 3
        assert value(found, "mesh_http_requests_total", method="GET", route="none", status="404") == 1
        assert value(found, "mesh_http_request_duration_seconds_count", route="/values/<prime>") == 3


async def test_the_books_balance_and_the_lease_is_told(server: Server) -> None:
    """The number of accepted requests is the sum of all other accounts."""
    async with node(MeshSettings(redis=server.settings)) as one:
        body = [{"value": 10, "ttl": 60, "cls": "A"}]
        assert (await one.public.post("/values", json=body)).status_code == 200
        found = await samples(one)
        accounts = {dict(labels)["account"]: v for (name, labels), v in found.items() if name == "mesh_books_total"}
        assert accounts.pop("accepted") == sum(accounts.values()) + value(found, "mesh_books_in_flight") == 1
        labels = {"database": "1", "class": "A", "replica": one.replica.id}
        assert value(found, "mesh_leased", **labels) == 1


async def test_a_queue_tells_its_length_and_its_age(server: Server) -> None:
    """Both are told for every stream of the mesh, also for a database that nobody holds."""
    async with node(MeshSettings(redis=server.settings)) as one:
        with server.redis() as client:
            client.xadd("mesh:requests:db9", {"op": "values.drop"}, id=f"{one.replica.now_ms() - 90_000}-0")
        found = await samples(one)
        assert value(found, "mesh_stream_entries", stream="db9") == 1
        assert 90 <= value(found, "mesh_stream_oldest_seconds", stream="db9") < 100
        assert value(found, "mesh_stream_entries", stream="A") == 0
        assert value(found, "mesh_stream_oldest_seconds", stream="A") == 0


async def test_the_work_of_a_replica_is_counted_by_stream(server: Server) -> None:
    """Counters have `_total`; what is in progress is a gauge."""
    async with node(MeshSettings(redis=server.settings)) as one:
        await one.public.post("/values", json=[{"value": 10, "ttl": 60, "cls": one.replica.cls}])

        async def counted() -> bool:
            # A reply and the answer to its commit come over two connections.
            return value(await samples(one), "mesh_requests_done_total", stream="class") == 1

        await eventually(counted)
        found = await samples(one)
        assert value(found, "mesh_requests_done_total", stream="database") == 0
        assert value(found, "mesh_requests_in_progress", stream="class") == 0
        assert value(found, "mesh_redis_round_trips_total") > 0
        assert ("mesh_replicas_wanted", frozenset()) not in found


async def test_operations_have_histograms_of_their_times(server: Server) -> None:
    """Since the acceptance, and of the handler alone; the buckets are cumulative."""
    async with node(MeshSettings(redis=server.settings)) as one:
        for number in (10, 11):
            await one.public.post("/values", json=[{"value": number, "ttl": 60, "cls": one.replica.cls}])
        found = await samples(one)
        for part in ("total", "work"):
            assert value(found, "mesh_operation_duration_seconds_count", op="values.put", part=part) == 2
            assert value(found, "mesh_operation_duration_seconds_bucket", op="values.put", part=part, le="60.0") == 2
        total, work = (
            value(found, "mesh_operation_duration_seconds_sum", op="values.put", part=part)
            for part in ("total", "work")
        )
        assert total >= work > 0


async def test_metrics_follow_the_conventions() -> None:
    """Failures begin at 0, so that an alert sees the first one; there are process metrics and the release."""
    app = applications()
    text = (await (await app.private.test_client().get("/metrics")).get_data()).decode()
    assert 'mesh_http_requests_total{method="POST",route="/values",status="503"} 0.0' in text
    assert "process_resident_memory_bytes" in text and "process_open_fds" in text
    assert "mesh_build_info{" in text
    assert "_created" not in text
