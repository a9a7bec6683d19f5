"""Metrics: on the private port only, by route, with books that balance."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tests.support.members import mesh_settings
from tests.support.nodes import Node, applications, node
from tests.support.server import Server

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
    async with node(mesh_settings(server.settings)) as one:
        for prime in (2, 3, 5):
            assert (await one.public.get(f"/values/{prime}")).status_code == 200
        await one.public.get("/nowhere/at/all")
        found = await samples(one)
        assert value(found, "http_requests_total", method="GET", route="/values/<prime>", status="200") == 3
        assert value(found, "http_requests_total", method="GET", route="none", status="404") == 1
        assert value(found, "http_request_seconds_count", route="/values/<prime>") == 3


async def test_the_books_balance_and_the_lease_is_told(server: Server) -> None:
    """The number of accepted requests is the sum of all other accounts."""
    async with node(mesh_settings(server.settings)) as one:
        body = [{"value": 10, "ttl": 60, "cls": "A"}]
        assert (await one.public.post("/values", json=body)).status_code == 200
        found = await samples(one)
        accounts = {dict(labels)["account"]: v for (name, labels), v in found.items() if name == "mesh_books"}
        assert accounts.pop("accepted") == sum(accounts.values()) == 1
        labels = {"database": "1", "class": "A", "replica": one.replica.id}
        assert value(found, "mesh_leased", **labels) == 1


async def test_metrics_follow_the_conventions() -> None:
    """Failures begin at 0, so that an alert sees the first one; there are process metrics and the release."""
    app = applications()
    text = (await (await app.private.test_client().get("/metrics")).get_data()).decode()
    assert 'http_requests_total{method="POST",route="/values",status="503"} 0.0' in text
    assert "process_resident_memory_bytes" in text and "process_open_fds" in text
    assert "mesh_build_info{" in text
    assert "_created" not in text
