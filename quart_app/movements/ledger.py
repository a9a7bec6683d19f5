"""The movements service of one replica: it stores events, and answers questions about movements and stocks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mesh import Mesh, Unavailable
from mesh.events import Events
from quart_app.movements.cache import Cache
from quart_app.movements.database import MovementDatabase
from quart_app.movements.intake import Intake
from quart_app.movements.metrics import MovementMetrics
from quart_app.movements.models import Movement, Stock
from quart_app.movements.settings import MovementSettings
from quart_app.movements.store import MovementStore
from quart_app.movements.summary import Step, summarize

log = structlog.get_logger(__name__)

#: The consumer group of the event stream.
GROUP = "movements"
#: Pause between two measurements for the gauges, in seconds. Each measurement costs a query and a command. With a
#: longer pause, the gauges are older.
MEASURE_PAUSE_S = 2.0


class Ledger:
    """Reads movements and stocks for the routes. Inside a block of `running` it also stores events of the stream."""

    def __init__(self, settings: MovementSettings, metrics: MovementMetrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._database = MovementDatabase.of(settings)
        self._store = MovementStore(self._database)
        self._cache: Cache[UUID, tuple[Step, ...]] = Cache(
            self._load_steps, size=settings.movement_cache_size, ttl_s=settings.movement_cache_expiration
        )
        self._intake = Intake(self._store, metrics, self._cache.forget)
        #: why the database could not be read at the last measurement; "" when it could
        self._read_trouble = ""

    def trouble(self) -> str:
        """Return why events cannot be stored or movements cannot be read now, or ""."""
        return self._intake.trouble or self._read_trouble

    async def movement(self, movement_id: UUID, product_id: UUID | None = None) -> Movement | None:
        """Return a movement, or only one product of it. None if no event names the movement or the product in it.

        Raises Unavailable.
        """
        steps = await self._cache.get(movement_id) or ()
        if product_id is not None:
            steps = tuple(step for step in steps if step.product_id == product_id)
        return summarize(movement_id, steps) if steps else None

    async def stock(self, warehouse_id: UUID, product_id: UUID) -> Stock | None:
        """Return the stock of a product in a warehouse; None when no event names both. Raises Unavailable.

        It is not cached, so it counts every event that is stored.
        """
        return await self._store.stock(warehouse_id, product_id)

    @asynccontextmanager
    async def running(self, replica: Mesh) -> AsyncIterator[None]:
        """Migrate the tables, then store events while the block lasts. Raises Unavailable, SetupError."""
        try:
            await self._database.migrate()
            async with self._event_consumer(replica), asyncio.TaskGroup() as tasks:
                measure_task = tasks.create_task(self._keep_gauges_current(replica.shared))
                yield
                measure_task.cancel()  # the task group waits for this task, which would run for ever
        finally:
            await self._cache.close()  # first, because its loads use the database
            await self._database.close()

    def _event_consumer(self, replica: Mesh) -> Events:
        return Events(
            replica.connect,
            self._settings.movements_stream,
            GROUP,
            replica.id,
            self._intake,
            batch=self._settings.movements_batch,
            claim_idle_ms=self._settings.movements_claim_idle_ms,
            on_buried=lambda entry, reason: self._metrics.dead_letters.inc(),
            is_done=self._intake.is_done,
        )

    async def _load_steps(self, movement_id: UUID) -> tuple[Step, ...] | None:
        self._metrics.loads.inc()
        # None for a movement without events: the cache does not keep None, so a later read finds the first event.
        return tuple(await self._store.steps(movement_id)) or None

    async def _keep_gauges_current(self, redis: Redis) -> None:
        """Keep the gauges current, and note whether the database can be read.

        A gauge that cannot be measured keeps its last value.
        """
        while True:
            try:
                deficit = await self._store.deficit()
                self._read_trouble = ""
                self._metrics.deficit.set(deficit.quantity)
                self._metrics.deficit_products.set(deficit.pair_count)
                self._metrics.lag.set(await redis.xlen(self._settings.movements_stream))
            except Unavailable as error:
                self._read_trouble = str(error)
            except (RedisError, OSError) as error:
                # A line for debugging is enough: the event consumer warns while Redis does not answer.
                log.debug("stream not measured", error=str(error))
            await asyncio.sleep(MEASURE_PAUSE_S)
