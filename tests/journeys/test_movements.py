"""Movements over real HTTP: warehouses send events, any replica stores them, every replica answers."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from quart_app.movements.producer import Message, MovementSimulator, sample
from tests.support import postgres
from tests.support.replicas import Process, Replicas
from tests.support.waiting import eventually

STREAM, DEAD = "events:movements", "mesh:dead"
DEPARTURE, ARRIVAL = (message["data"] for message in sample())
MOVEMENT = f"/api/movements/{ARRIVAL['movement_id']}"
STOCK = f"/api/warehouses/{ARRIVAL['warehouse_id']}/products/{ARRIVAL['product_id']}"
NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of replicas that share one SQLite file and soon take over the events of a dead one."""
    return {
        "SERVICES": "movements",
        "MOVEMENTS_DB_PATH": str(tmp_path / "shared" / "movements.db"),
        "MOVEMENTS_CLAIM_IDLE_MS": "1000",
        "MOVEMENTS_BATCH": "50",
        "MOVEMENT_CACHE_EXPIRATION": "0.5",
    }


def trade(seed: int) -> MovementSimulator:
    """Return a source of messages with few warehouses and products, so that their stocks change often."""
    return MovementSimulator(warehouses=3, products=5, seed=seed)


def send(replicas: Replicas, messages: Sequence[Message | str]) -> None:
    """Add messages to the stream, as the retailer does. A text is sent unchanged."""
    with replicas.server.redis() as client:
        pipe = client.pipeline(transaction=False)
        for message in messages:
            pipe.xadd(STREAM, {"body": message if isinstance(message, str) else json.dumps(message)})
        pipe.execute()


def dead_letters(replicas: Replicas) -> list[dict[str, str]]:
    with replicas.server.redis() as client:
        return [fields for _, fields in client.xrange(DEAD)]


async def get(replicas: Replicas, replica: Process, path: str) -> tuple[int, Any]:
    answer = await replicas.client.get(replica.public + path)
    return answer.status_code, answer.json()


async def told(replicas: Replicas, replica: Process, path: str, **wanted: Any) -> Any:
    """Wait until a replica answers these values, and return the answer."""

    async def as_wanted() -> Any:
        status, answer = await get(replicas, replica, path)
        return status == 200 and wanted.items() <= answer.items() and answer

    return await eventually(as_wanted, 20)


async def metrics(replicas: Replicas, replica: Process) -> dict[str, float]:
    text = (await replicas.client.get(replica.private + "/metrics")).text
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith(("movements_", "mesh_movements_"))
    }


async def all_settled(replicas: Replicas, wait_s: float = 40) -> None:
    """Wait until the stream is empty."""

    async def settled() -> bool:
        with replicas.server.redis() as client:
            return bool(client.exists(STREAM)) and client.xlen(STREAM) == 0

    await eventually(settled, wait_s)


def stock_of(messages: Sequence[Message]) -> dict[str, int]:
    """Return the path of each stock and the quantity it must have."""
    found: dict[str, int] = {}
    for message in {(one["source"], one["id"]): one for one in messages}.values():
        data = message["data"]
        path = f"/api/warehouses/{data['warehouse_id']}/products/{data['product_id']}"
        found[path] = found.get(path, 0) + (data["quantity"] if data["event"] == "arrival" else -data["quantity"])
    return found


async def assert_exact(replicas: Replicas, replica: Process, messages: Sequence[Message]) -> None:
    """Check every stock and a part of the movements: each message must count exactly once."""
    for path, balance in stock_of(messages).items():
        status, answer = await get(replicas, replica, path)
        assert (status, answer["quantity"]) == (200, max(balance, 0)), path
    expected: dict[str, dict[str, int]] = {}
    for data in (message["data"] for message in messages):
        expected.setdefault(data["movement_id"], {})[data["event"]] = data["quantity"]
    for movement_id, quantities in list(expected.items())[:: len(expected) // 50]:
        status, answer = await get(replicas, replica, f"/api/movements/{movement_id}")
        assert status == 200
        assert answer["departure_quantity"] == quantities.get("departure")
        assert answer["arrival_quantity"] == quantities.get("arrival")


async def test_an_event_that_one_replica_stores_is_answered_by_all(
    replicas: Replicas, environment: dict[str, str]
) -> None:
    """The two sample messages share an id, and both count. An earlier 404 is not cached."""
    both = await replicas(2, environment)
    for replica in both:
        assert (await get(replicas, replica, MOVEMENT))[0] == 404
        assert (await get(replicas, replica, STOCK))[0] == 404
    send(replicas, sample()[:1])
    for replica in both:
        await told(replicas, replica, MOVEMENT, status="in_transit", departure_quantity=100, arrival_quantity=None)
    send(replicas, sample()[1:])
    for replica in both:
        found = await told(replicas, replica, MOVEMENT, status="completed")
        assert found["elapsed_seconds"] == 8520
        assert found["quantity_difference"] == 0
        assert (found["sender"], found["receiver"]) == (DEPARTURE["warehouse_id"], ARRIVAL["warehouse_id"])
        assert [item["product_id"] for item in found["items"]] == [ARRIVAL["product_id"]]
        assert (await get(replicas, replica, f"{MOVEMENT}?product_id={ARRIVAL['product_id']}"))[1] == found
        assert await get(replicas, replica, STOCK) == (
            200,
            {
                "warehouse_id": ARRIVAL["warehouse_id"],
                "product_id": ARRIVAL["product_id"],
                "quantity": 100,
                "updated_at": "2025-02-18T14:34:56Z",
            },
        )
        assert (await get(replicas, replica, f"{MOVEMENT}?product_id={NOBODY}"))[0] == 404
        assert (await get(replicas, replica, "/api/movements/M-1"))[0] == 422
        assert (await get(replicas, replica, f"/api/warehouses/1/products/{NOBODY}"))[0] == 422


async def test_replicas_share_the_work_and_count_it(replicas: Replicas, environment: dict[str, str]) -> None:
    """The replica that inserted a row counts it; lag and deficit are equal at all replicas."""
    both = await replicas(2, environment)
    messages = trade(seed=3).make_messages(1000, duplicates=0.2, shuffle=True)
    only_departures = [message for message in sample() if message["data"]["event"] == "departure"]
    send(replicas, [*messages, *only_departures])
    await all_settled(replicas)
    found = [await metrics(replicas, replica) for replica in both]
    stored = [one["movements_stored_counter_total"] for one in found]
    assert sum(stored) == 2001
    assert all(stored), "one replica did it all"
    assert sum(one["mesh_movements_duplicates_total"] for one in found) == len(messages) - 2000
    deficit = sum(-balance for balance in stock_of([*messages, *only_departures]).values() if balance < 0)

    async def measured() -> bool:
        now = [await metrics(replicas, replica) for replica in both]
        return all((one["mesh_movements_lag"], one["mesh_movements_deficit"]) == (0, deficit) for one in now)

    await eventually(measured, 10)
    await assert_exact(replicas, both[0], messages)


async def test_a_poison_message_ends_as_a_dead_letter_with_its_reason(
    replicas: Replicas, environment: dict[str, str]
) -> None:
    """A poison message delays no other message."""
    both = await replicas(2, environment)
    spoilt = json.dumps({**sample()[0], "time": "soon"})
    send(replicas, ["no json", spoilt, *sample()])
    await told(replicas, both[0], MOVEMENT, status="completed")
    await all_settled(replicas)
    letters = {letter["body"]: letter for letter in dead_letters(replicas)}
    assert letters.keys() == {"no json", spoilt}
    assert letters["no json"]["reason"] == "the body is not JSON: Expecting value at character 0"
    assert letters[spoilt]["reason"].startswith("/time: ")
    assert {letter["stream"] for letter in letters.values()} == {STREAM}
    found = [await metrics(replicas, replica) for replica in both]
    assert sum(one["mesh_movements_dead_letters_total"] for one in found) == 2


async def test_replicas_that_come_and_go_lose_and_double_nothing(
    replicas: Replicas, environment: dict[str, str]
) -> None:
    """One replica is killed, one leaves in order and one joins while events arrive."""
    first, second, third = await replicas(3, environment)
    messages = trade(seed=4).make_messages(1200, duplicates=0.3, shuffle=True)
    for place, start in enumerate(range(0, len(messages), 300)):
        send(replicas, messages[start : start + 300])
        await asyncio.sleep(0.1)
        if place == 2:
            first.kill()
        if place == 4:
            second.send(signal.SIGTERM)
    await replicas(1, environment)
    assert await second.ended() == 0
    await all_settled(replicas)
    await assert_exact(replicas, third, messages)
    assert dead_letters(replicas) == []


async def test_restarting_everything_loses_nothing(replicas: Replicas, environment: dict[str, str]) -> None:
    """Replicas and Redis are killed meanwhile; every event of the stream is stored afterwards."""
    both = await replicas(2, environment)
    messages = trade(seed=5).make_messages(1000, duplicates=0.3, shuffle=True)
    send(replicas, messages)
    for replica in both:
        replica.kill()
    replicas.server.kill()
    replicas.server.start()
    (replica, _) = await replicas(2, environment)
    await all_settled(replicas)
    await assert_exact(replicas, replica, messages)


async def test_postgresql_goes_and_comes_back(replicas: Replicas, environment: dict[str, str]) -> None:
    """Meanwhile reads are 503, events wait, none becomes a dead letter, and the other routes work."""
    with postgres.cluster() as cluster:
        both = await replicas(2, {**environment, "DATABASE_URL": cluster.address, "DATABASE_TIMEOUT_MS": "3000"})
        send(replicas, sample())
        await told(replicas, both[1], MOVEMENT, status="completed")
        cluster.stop()
        messages = trade(seed=6).make_messages(300, shuffle=True)
        send(replicas, [*messages, "no json"])
        for replica in both:
            answer = await replicas.client.get(replica.public + STOCK)
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
            assert await replicas.status(replica, "/readyz") == 200
        cluster.start()
        await all_settled(replicas)
        for replica in both:
            await assert_exact(replicas, replica, messages)
        assert [letter["body"] for letter in dead_letters(replicas)] == ["no json"]


async def test_postgresql_away_at_the_start_stops_the_movements_alone(replicas: Replicas) -> None:
    """The replica is ready and factors; it names the movements and the reason, and opens them when PostgreSQL is up."""
    with postgres.cluster() as cluster:
        cluster.stop()
        env = {"SERVICES": "values,movements", "DATABASE_URL": cluster.address, "MESH_CLASS": "A"}
        (replica,) = await replicas(1, env)
        status, ready = await get(replicas, replica, "/readyz")
        assert status == 200 and ready["not_ready"] == {
            "movements": "the movements database cannot be used: it cannot be reached"
        }
        answer = await replicas.client.post(replica.public + "/values", json=[{"value": 6, "ttl": 60, "cls": "A"}])
        assert answer.json() == [{"value": 6, "prime_factors": [2, 3]}]
        refused = await replicas.client.get(replica.public + STOCK)
        assert refused.status_code == 503 and int(refused.headers["Retry-After"]) >= 1
        assert "the service movements is not ready: the movements database" in refused.json()["detail"]

        async def named() -> bool:
            return [member.not_ready for member in await replicas.roster()] == [("movements",)]

        await eventually(named)
        cluster.start()
        send(replicas, sample())
        await told(replicas, replica, STOCK, quantity=100)
        assert (await get(replicas, replica, "/readyz"))[1]["not_ready"] == {}


async def test_a_damaged_database_stops_the_movements_alone(replicas: Replicas, tmp_path: Path) -> None:
    """Nothing is overwritten; with another file in its place the movements go on without a restart."""
    damaged = tmp_path / "movements.db"
    damaged.write_bytes(b"this is not a database" * 1000)
    (replica,) = await replicas(1, {"SERVICES": "values,movements", "MOVEMENTS_DB_PATH": str(damaged)})
    _, ready = await get(replicas, replica, "/readyz")
    assert "the file is not an SQLite database" in ready["not_ready"]["movements"]
    assert damaged.read_bytes() == b"this is not a database" * 1000
    damaged.rename(tmp_path / "aside.db")
    send(replicas, sample())
    await told(replicas, replica, STOCK, quantity=100)
