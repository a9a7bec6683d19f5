"""Sends events as warehouses do, to try the service: `python -m quart_app.movements.producer`."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import click
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mesh import Connections, RedisSettings
from quart_app import environment
from quart_app.local.discovery import default_folder, redis_settings
from quart_app.movements.settings import MovementSettings

#: One message of a warehouse: an event as a JSON object.
Message = dict[str, Any]

#: Messages per trip, if they are not sent slowly. With more messages, each trip would only take longer.
MESSAGES_PER_TRIP = 500


@dataclass(frozen=True, slots=True)
class Warehouse:
    """A warehouse that sends messages."""

    id: UUID
    source: str


class MovementSimulator:
    """Makes movements between some warehouses. With the same seed, the messages differ only in their times.

    `warehouses` and `products` are numbers of warehouses and products, named as the options of the command are.
    """

    def __init__(self, *, warehouses: int = 5, products: int = 20, seed: int | None = None) -> None:
        self._random = random.Random(seed)
        self._warehouses = [Warehouse(self._random_uuid(), f"WH-{3000 + n}") for n in range(warehouses)]
        self._products = [self._random_uuid() for _ in range(products)]
        self._base_time = datetime.now(UTC).replace(microsecond=0)

    def make_movement(self) -> tuple[Message, Message]:
        """Return a departure and its arrival. In one of ten movements some items are lost."""
        # The ranges below only have to look natural: departed in the last day, and 10 minutes to 10 hours under way. So
        # some arrivals lie in the future. The service accepts these times, too.
        sender, receiver = self._random.sample(self._warehouses, 2)
        shared_id, movement_id, product_id = (
            self._random_uuid(),
            self._random_uuid(),
            self._random.choice(self._products),
        )
        departed_at = self._base_time - timedelta(seconds=self._random.randrange(86_400))
        arrived_at = departed_at + timedelta(seconds=self._random.randrange(600, 36_000))
        quantity = self._random.randint(1, 200)
        received_quantity = quantity if self._random.random() < 0.9 else self._random.randint(0, quantity)
        return (
            make_message(shared_id, sender, movement_id, product_id, "departure", departed_at, quantity),
            make_message(shared_id, receiver, movement_id, product_id, "arrival", arrived_at, received_quantity),
        )

    def make_messages(self, movements: int, *, duplicates: float = 0.0, shuffle: bool = False) -> Sequence[Message]:
        """Return the messages of `movements` movements. `duplicates` is the share of messages that are sent twice."""
        messages = [message for _ in range(movements) for message in self.make_movement()]
        messages += [message for message in messages if self._random.random() < duplicates]
        if shuffle:
            self._random.shuffle(messages)
        return messages

    def _random_uuid(self) -> UUID:
        return UUID(int=self._random.getrandbits(128), version=4)


def make_message(
    event_id: UUID,
    warehouse: Warehouse,
    movement_id: UUID,
    product_id: UUID,
    direction: str,
    happened_at: datetime,
    quantity: int,
) -> Message:
    """Return a message in the form of the retailer's warehouses. `direction` is "arrival" or "departure".

    Both messages of a movement have the same `event_id`. An event's identity is its source and this id together.
    """
    return {
        "id": str(event_id),
        "source": warehouse.source,
        "specversion": "1.0",
        "type": "ru.retail.warehouses.movement",
        "datacontenttype": "application/json",
        "dataschema": "ru.retail.warehouses.movement.v1.0",
        "time": int(happened_at.timestamp() * 1000),
        "subject": f"{warehouse.source}:{direction.upper()}",
        "destination": "ru.retail.warehouses",
        "data": {
            "movement_id": str(movement_id),
            "warehouse_id": str(warehouse.id),
            "timestamp": happened_at.isoformat().replace("+00:00", "Z"),
            "event": direction,
            "product_id": str(product_id),
            "quantity": quantity,
        },
    }


def sample() -> Sequence[Message]:
    """Return one movement with known ids, from WH-3322 to WH-3423. Both messages have the same `id`."""
    shared_id, movement_id = UUID("b3b53031-e83a-4654-87f5-b6b6fb09fd99"), UUID("c6290746-790e-43fa-8270-014dc90e02e0")
    product_id = UUID("4705204f-498f-4f96-b4ba-df17fb56bf55")
    sender = Warehouse(UUID("25718666-6af6-4281-b5a6-3016e36fa557"), "WH-3322")
    receiver = Warehouse(UUID("c1d70455-7e14-11e9-812a-70106f431230"), "WH-3423")
    departed_at = datetime(2025, 2, 18, 12, 12, 56, tzinfo=UTC)
    arrived_at = datetime(2025, 2, 18, 14, 34, 56, tzinfo=UTC)
    return (
        make_message(shared_id, sender, movement_id, product_id, "departure", departed_at, 100),
        make_message(shared_id, receiver, movement_id, product_id, "arrival", arrived_at, 100),
    )


async def publish(redis: Redis, stream: str, messages: Sequence[Message], *, per_second: float = 0) -> None:
    """Add messages to the stream, at most `per_second` a second. 0 means no limit."""
    messages_per_trip = MESSAGES_PER_TRIP if not per_second else 1
    for start in range(0, len(messages), messages_per_trip):
        async with redis.pipeline(transaction=False) as pipeline:
            for message in messages[start : start + messages_per_trip]:
                pipeline.xadd(stream, {"body": json.dumps(message, ensure_ascii=False)})
            await pipeline.execute()
        if per_second:
            await asyncio.sleep(1 / per_second)


async def send_messages(settings: RedisSettings, messages: Sequence[Message], per_second: float) -> None:
    """Send the messages to a Redis server."""
    redis = Connections(settings).client("movements-producer")
    try:
        await publish(redis, MovementSettings().movements_stream, messages, per_second=per_second)
    finally:
        await redis.aclose()


@click.command(help=__doc__)
@click.option("--redis-url", default=None, envvar="REDIS_URL", help="default: the Redis of the mesh that runs here")
@click.option("--data", default=default_folder, type=click.Path(path_type=Path), help="the folder of that mesh")
@click.option("--movements", default=100, show_default=True, type=click.IntRange(1, 1_000_000))
@click.option("--warehouses", default=5, show_default=True, type=click.IntRange(2))
@click.option("--products", default=20, show_default=True, type=click.IntRange(1))
@click.option(
    "--duplicates", default=0.0, show_default=True, type=click.FloatRange(0, 1), help="share of messages sent twice"
)
@click.option("--shuffle", is_flag=True, help="send in random order")
@click.option("--per-second", default=0.0, type=click.FloatRange(0), help="messages a second; default: without a limit")
@click.option("--seed", type=int, help="the same seed makes the same movements")
@click.option("--sample", "only_sample", is_flag=True, help="send only one movement, with known ids")
def main(
    redis_url: str | None,
    data: Path,
    movements: int,
    warehouses: int,
    products: int,
    duplicates: float,
    shuffle: bool,
    per_second: float,
    seed: int | None,
    only_sample: bool,
) -> None:
    simulator = MovementSimulator(warehouses=warehouses, products=products, seed=seed)
    messages = sample() if only_sample else simulator.make_messages(movements, duplicates=duplicates, shuffle=shuffle)
    try:
        asyncio.run(send_messages(redis_settings(redis_url, data), messages, per_second))
    except (RedisError, OSError) as error:
        raise click.ClickException(f"Redis did not accept the messages: {error}") from error
    last_data = messages[-1]["data"]
    click.echo(f"{len(messages)} messages sent; see")
    click.echo(f"  /api/movements/{last_data['movement_id']}")
    click.echo(f"  /api/warehouses/{last_data['warehouse_id']}/products/{last_data['product_id']}")


if __name__ == "__main__":
    environment.load()
    main()
