"""The HTTP routes over a real database, without a stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from quart import Quart

from mesh.events.reader import DeliveredEvent
from quart_app.http import problems
from quart_app.http.openapi import openapi
from quart_app.movements.database import MovementDatabase
from quart_app.movements.ledger import Ledger
from quart_app.movements.metrics import MovementMetrics
from quart_app.movements.models import Event
from quart_app.movements.producer import sample
from quart_app.movements.routes import MovementRoutes
from quart_app.movements.settings import MovementSettings
from quart_app.movements.store import MovementStore

DEPARTURE, ARRIVAL = (Event.model_validate(message) for message in sample())
MOVEMENT, PRODUCT = ARRIVAL.data.movement_id, ARRIVAL.data.product_id
RECEIVER = ARRIVAL.data.warehouse_id
NOBODY = UUID(int=7)


class Served:
    """The routes of one replica with settings of its own."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.registry = CollectorRegistry()
        self.ledger = Ledger(MovementSettings(database_url=SecretStr(url), **settings), MovementMetrics(self.registry))
        self.routes = MovementRoutes(self.ledger)
        app = Quart("movements")
        problems.install(app)
        app.register_blueprint(self.routes.blueprint)
        self.client = app.test_client()

    @property
    def loads(self) -> float | None:
        return self.registry.get_sample_value("mesh_movements_loads_total")

    async def get(self, path: str) -> tuple[int, Any]:
        response = await self.client.get(path)
        return response.status_code, await response.get_json(force=True)

    async def close(self) -> None:
        await self.ledger._cache.close()
        await self.ledger._database.close()


@pytest.fixture
async def served(database: MovementDatabase, database_url: str) -> AsyncIterator[Served]:
    served = Served(database_url)
    yield served
    await served.close()


async def test_a_movement_is_answered(served: Served, store: MovementStore) -> None:
    """The answer has every field of the interface."""
    await store.add([DEPARTURE, ARRIVAL])
    leg = {
        "sender": str(DEPARTURE.data.warehouse_id),
        "receiver": str(RECEIVER),
        "product_id": str(PRODUCT),
        "departure_time": "2025-02-18T12:12:56Z",
        "arrival_time": "2025-02-18T14:34:56Z",
        "elapsed_seconds": 8520.0,
        "departure_quantity": 100,
        "arrival_quantity": 100,
        "quantity_difference": 0,
        "status": "completed",
    }
    expected = {"movement_id": str(MOVEMENT), **leg, "items": [leg]}
    assert await served.get(f"/api/movements/{MOVEMENT}") == (200, expected)
    assert await served.get(f"/api/movements/{MOVEMENT}?product_id={PRODUCT}") == (200, expected)
    assert await served.get(f"/api/movements/{str(MOVEMENT).upper()}") == (200, expected)


async def test_a_stock_is_answered(served: Served, store: MovementStore) -> None:
    """The answer has the time of the latest movement."""
    await store.add([ARRIVAL])
    assert await served.get(f"/api/warehouses/{RECEIVER}/products/{PRODUCT}") == (
        200,
        {
            "warehouse_id": str(RECEIVER),
            "product_id": str(PRODUCT),
            "quantity": 100,
            "updated_at": "2025-02-18T14:34:56Z",
        },
    )


@pytest.mark.parametrize(
    "path",
    [
        f"/api/movements/{NOBODY}",
        f"/api/movements/{MOVEMENT}?product_id={NOBODY}",
        f"/api/warehouses/{RECEIVER}/products/{NOBODY}",
        f"/api/warehouses/{NOBODY}/products/{PRODUCT}",
    ],
)
async def test_an_unknown_id_is_404(served: Served, store: MovementStore, path: str) -> None:
    """The detail says what is unknown."""
    await store.add([DEPARTURE, ARRIVAL])
    status, answer = await served.get(path)
    assert (status, answer["status"]) == (404, 404)
    assert "no event names" in answer["detail"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/api/movements/M-1", "movement_id"),
        ("/api/movements/%00", "movement_id"),
        (f"/api/movements/{MOVEMENT}x", "movement_id"),
        (f"/api/movements/{MOVEMENT}?product_id=", "product_id"),
        (f"/api/movements/{MOVEMENT}?product_id=bolts", "product_id"),
        (f"/api/warehouses/north/products/{PRODUCT}", "warehouse_id"),
        (f"/api/warehouses/{RECEIVER}/products/1;DROP", "product_id"),
    ],
)
async def test_a_text_that_is_no_id_is_422(served: Served, path: str, name: str) -> None:
    """The answer names the parameter."""
    status, answer = await served.get(path)
    assert status == 422
    assert answer["errors"] == [{"pointer": f"/{name}", "message": "not a UUID"}]


async def test_concurrent_requests_share_one_load(served: Served, store: MovementStore) -> None:
    """Concurrent requests share one load; requests soon after need none."""
    await store.add([DEPARTURE, ARRIVAL])
    answers = await asyncio.gather(*(served.get(f"/api/movements/{MOVEMENT}") for _ in range(50)))
    assert {status for status, _ in answers} == {200}
    await served.get(f"/api/movements/{MOVEMENT}?product_id={PRODUCT}")
    assert served.loads == 1


async def test_a_404_is_not_cached(served: Served, store: MovementStore) -> None:
    """A later request may find the movement."""
    assert (await served.get(f"/api/movements/{MOVEMENT}"))[0] == 404
    await store.add([DEPARTURE])
    assert (await served.get(f"/api/movements/{MOVEMENT}"))[0] == 200


async def test_a_cached_movement_expires(database_url: str, database: MovementDatabase) -> None:
    """The writes of another replica show after `MOVEMENT_CACHE_EXPIRATION` at the latest."""
    served, store = Served(database_url, movement_cache_expiration=0.05), MovementStore(database)
    await store.add([DEPARTURE])
    assert (await served.get(f"/api/movements/{MOVEMENT}"))[1]["status"] == "in_transit"
    await store.add([ARRIVAL])
    async with asyncio.timeout(5):
        while (await served.get(f"/api/movements/{MOVEMENT}"))[1]["status"] != "completed":
            await asyncio.sleep(0.01)
    await served.close()


async def test_storing_an_event_drops_its_movement_from_the_cache(
    database_url: str, database: MovementDatabase
) -> None:
    """The answers of a replica are never behind its own writes."""
    served = Served(database_url, movement_cache_expiration=3600)
    departure, arrival = (DeliveredEvent(f"{n}-0", {"body": json.dumps(one)}) for n, one in enumerate(sample()))
    for entry, status in ((departure, "in_transit"), (arrival, "completed")):
        await served.ledger._intake([entry])
        assert (await served.get(f"/api/movements/{MOVEMENT}"))[1]["status"] == status
    await served.close()


async def test_without_the_database_the_routes_are_503() -> None:
    """The answer has Retry-After and the reason, and no address; it is never 404."""
    served = Served("postgresql://mesh:secret-word@127.0.0.1:9/none", database_timeout_ms=500)
    for path in (f"/api/movements/{MOVEMENT}", f"/api/warehouses/{RECEIVER}/products/{PRODUCT}"):
        response = await served.client.get(path)
        assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
        assert (await response.get_json(force=True))[
            "detail"
        ] == "the movements database cannot be used: it cannot be reached"
    await served.close()


async def test_the_routes_are_documented(served: Served) -> None:
    """/docs shows their parameters and answers."""
    paths = (await openapi([served.routes.blueprint], "1"))["paths"]
    movement = paths["/api/movements/{movement_id}"]["get"]
    assert [one["name"] for one in movement["parameters"]] == ["movement_id", "product_id"]
    answer = movement["responses"][200]
    assert "quantity_difference" in answer["content"]["application/json"]["schema"]["properties"]
    assert "/api/warehouses/{warehouse_id}/products/{product_id}" in paths
