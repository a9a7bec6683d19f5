"""The queries over the tables `movements` and `warehouses`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import Executable, Row, func, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from quart_app.movements.database import MovementDatabase
from quart_app.movements.models import Direction, Event, Stock
from quart_app.movements.summary import Step
from quart_app.movements.tables import movements, warehouses

#: The identity of an event: its source and id (`Event.key`).
EventKey = tuple[str, str]


@dataclass(slots=True)
class StoringResult:
    """What `MovementStore.add` did with some events."""

    #: the events that were not stored before; their rows are committed now
    new_events: list[Event] = field(default_factory=list)
    #: how many events were stored before, or repeat another event of the same call
    duplicate_count: int = 0
    #: indexes of the events whose identity is stored with another content
    refused_indexes: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Deficit:
    """All items whose departure from a warehouse is stored, but not yet their arrival there."""

    #: how many pairs of warehouse and product have a deficit
    pair_count: int
    #: how many items are in deficit, of all these pairs
    quantity: int


class MovementStore:
    """The stored movements. Every method raises Unavailable while the database cannot be used."""

    def __init__(self, database: MovementDatabase) -> None:
        self._database = database
        dialect = postgresql if database.dialect == "postgresql" else sqlite
        identity = (movements.c.source, movements.c.event_id)
        self._insert: Executable = (
            dialect.insert(movements).on_conflict_do_nothing(index_elements=identity).returning(*identity)
        )

    async def add(self, events: Sequence[Event]) -> StoringResult:
        """Store the events in one transaction. An event that comes several times is stored once.

        An event whose identity is stored with another content changes nothing; its index is in `refused_indexes`.
        """
        result, first_by_key = StoringResult(), _first_event_by_key(events)
        if not first_by_key:
            return result
        # All replicas insert rows in the same order, so that two replicas with the same events cannot deadlock.
        rows = [_row_of(first_by_key[key]) for key in sorted(first_by_key)]
        async with self._database.writing() as connection:
            new_keys = {(row.source, row.event_id) for row in await connection.execute(self._insert, rows)}
            # Events that are not new were stored before, perhaps with another content.
            stored_rows = (
                await connection.execute(_contents_query(first_by_key.keys() - new_keys))
                if len(new_keys) < len(first_by_key)
                else ()
            )
            content_by_key = {(row.source, row.event_id): _row_content(row) for row in stored_rows}
        for index, event in enumerate(events):
            if event.key in new_keys and event is first_by_key[event.key]:
                result.new_events.append(event)
            # The event repeats one of this call (its key is new), or one that was stored before. It must have the same
            # content.
            elif _event_content(event) == (
                _event_content(first_by_key[event.key]) if event.key in new_keys else content_by_key[event.key]
            ):
                result.duplicate_count += 1
            else:
                result.refused_indexes.add(index)
        return result

    async def has_event(self, event: Event) -> bool:
        """Return whether this event is stored with the same content."""
        stored_rows = await self._database.fetch(_contents_query([event.key]))
        return any(_row_content(row) == _event_content(event) for row in stored_rows)

    async def steps(self, movement_id: UUID) -> list[Step]:
        """Return the events of a movement; an empty list when there are none."""
        columns = movements.c
        query = select(columns.occurred_at, columns.warehouse_id, columns.product_id, columns.event, columns.quantity)
        rows = await self._database.fetch(query.where(columns.movement_id == movement_id))
        return [
            Step(occurred_at, warehouse, product, Direction(event), quantity)
            for occurred_at, warehouse, product, event, quantity in rows
        ]

    async def stock(self, warehouse_id: UUID, product_id: UUID) -> Stock | None:
        """Return the stock of a product in a warehouse, or None when no event names both."""
        columns = warehouses.c
        query = select(columns.quantity, columns.updated_at)
        rows = await self._database.fetch(
            query.where(columns.warehouse_id == warehouse_id, columns.product_id == product_id)
        )
        if not rows:
            return None
        quantity, updated_at = rows[0]
        return Stock(warehouse_id=warehouse_id, product_id=product_id, quantity=quantity, updated_at=updated_at)

    async def deficit(self) -> Deficit:
        """Return the deficit of all products. The query reads only the rows with a deficit."""
        deficit_column = warehouses.c.deficit
        query = select(func.count(), func.coalesce(func.sum(deficit_column), 0)).where(deficit_column > 0)
        ((pair_count, quantity),) = await self._database.fetch(query)
        return Deficit(pair_count, int(quantity))


def _first_event_by_key(events: Sequence[Event]) -> Mapping[EventKey, Event]:
    first_by_key: dict[EventKey, Event] = {}
    for event in events:
        first_by_key.setdefault(event.key, event)
    return first_by_key


def _row_of(event: Event) -> dict[str, Any]:
    data = event.data
    return {
        "source": event.source,
        "event_id": event.id,
        "sent_at": event.sent_at,
        "movement_id": data.movement_id,
        "warehouse_id": data.warehouse_id,
        "product_id": data.product_id,
        "event": data.event.value,
        "quantity": data.quantity,
        "occurred_at": data.timestamp,
    }


#: The columns that are compared between two events of one identity. `sent_at` is not among them, because it may differ
#: when a sender repeats an event.
_CONTENT_COLUMNS = ("movement_id", "warehouse_id", "product_id", "event", "quantity", "occurred_at")


def _contents_query(event_keys: Collection[EventKey]) -> Executable:
    """Return the query for the content of the events with these identities."""
    columns = movements.c
    identity = tuple_(columns.source, columns.event_id)
    return select(columns.source, columns.event_id, *(columns[name] for name in _CONTENT_COLUMNS)).where(
        identity.in_(sorted(event_keys))
    )


def _row_content(row: Row[Any]) -> tuple[Any, ...]:
    """Return the content of a stored event: its _CONTENT_COLUMNS."""
    return tuple(getattr(row, name) for name in _CONTENT_COLUMNS)


def _event_content(event: Event) -> tuple[Any, ...]:
    """Return the content of an event that was sent, to be compared with that of a stored one (`_row_content`)."""
    row = _row_of(event)
    return tuple(row[name] for name in _CONTENT_COLUMNS)
