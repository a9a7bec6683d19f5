"""What is asked of the tables, and nothing about HTTP or streams."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import Executable, Row, func, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from quart_app.movements.database import Database
from quart_app.movements.models import Direction, Event, Stock
from quart_app.movements.summary import Step
from quart_app.movements.tables import movements, warehouses

Key = tuple[str, str]


@dataclass(slots=True)
class Stored:
    """What became of some events."""

    #: new ones, whose rows are committed now
    new: list[Event] = field(default_factory=list)
    #: those that were there before, or twice among them
    duplicates: int = 0
    #: identities that stand for something else already
    taken: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Deficit:
    """Stock that departed before it was heard to arrive, all of it together."""

    products: int
    quantity: int


class Store:
    """The movements in the database. Everything raises Unavailable while it is down."""

    def __init__(self, database: Database) -> None:
        self._database = database
        dialect = postgresql if database.dialect == "postgresql" else sqlite
        identity = (movements.c.source, movements.c.event_id)
        self._insert: Executable = (
            dialect.insert(movements).on_conflict_do_nothing(index_elements=identity).returning(*identity)
        )

    async def add(self, events: Sequence[Event]) -> Stored:
        """Make the events durable, each once however often it comes. All or none.

        An identity that stands for another content is left as it is, and told: `taken` has the places of such events
        in `events`.
        """
        stored, first = Stored(), _first_of_each(events)
        if not first:
            return stored
        # In one order, so that two replicas with the same events never wait for each other in a circle.
        rows = [_row(first[key]) for key in sorted(first)]
        async with self._database.writing() as connection:
            new = {(row.source, row.event_id) for row in await connection.execute(self._insert, rows)}
            known = await connection.execute(_contents(first.keys() - new)) if len(new) < len(first) else ()
            kept = {(row.source, row.event_id): _content(row) for row in known}
        for place, event in enumerate(events):
            if event.key in new and event is first[event.key]:
                stored.new.append(event)
            elif _content_of(event) == (_content_of(first[event.key]) if event.key in new else kept[event.key]):
                stored.duplicates += 1
            else:
                stored.taken.add(place)
        return stored

    async def has(self, event: Event) -> bool:
        """Whether this very event is stored."""
        async with self._database.reading() as connection:
            found = await connection.execute(_contents([event.key]))
            return any(_content(row) == _content_of(event) for row in found)

    async def steps(self, movement_id: UUID) -> list[Step]:
        """What is known of a movement; empty where it has never been heard of."""
        columns = movements.c
        asked = select(columns.occurred_at, columns.warehouse_id, columns.product_id, columns.event, columns.quantity)
        asked = asked.where(columns.movement_id == movement_id)
        async with self._database.reading() as connection:
            rows = (await connection.execute(asked)).all()
        return [Step(at, warehouse, product, Direction(event), n) for at, warehouse, product, event, n in rows]

    async def stock(self, warehouse_id: UUID, product_id: UUID) -> Stock | None:
        """How many items there are; None where none were ever heard of."""
        columns = warehouses.c
        asked = select(columns.quantity, columns.updated_at)
        asked = asked.where(columns.warehouse_id == warehouse_id, columns.product_id == product_id)
        async with self._database.reading() as connection:
            row = (await connection.execute(asked)).one_or_none()
        if row is None:
            return None
        return Stock(warehouse_id=warehouse_id, product_id=product_id, quantity=row.quantity, updated_at=row.updated_at)

    async def deficit(self) -> Deficit:
        """What is missing everywhere; costs as much as there is missing."""
        short = warehouses.c.deficit
        async with self._database.reading() as connection:
            asked = select(func.count(), func.coalesce(func.sum(short), 0)).where(short > 0)
            products, quantity = (await connection.execute(asked)).one()
        return Deficit(products, int(quantity))


def _first_of_each(events: Sequence[Event]) -> Mapping[Key, Event]:
    first: dict[Key, Event] = {}
    for event in events:
        first.setdefault(event.key, event)
    return first


def _row(event: Event) -> dict[str, Any]:
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


#: What an event says; when it was sent may differ between two tries of the sender.
_CONTENT = ("movement_id", "warehouse_id", "product_id", "event", "quantity", "occurred_at")


def _contents(keys: Collection[Key]) -> Executable:
    """The rows of these identities."""
    columns = movements.c
    identity = tuple_(columns.source, columns.event_id)
    return select(columns.source, columns.event_id, *(columns[name] for name in _CONTENT)).where(
        identity.in_(sorted(keys))
    )


def _content(row: Row[Any]) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in _CONTENT)


def _content_of(event: Event) -> tuple[Any, ...]:
    row = _row(event)
    return tuple(row[name] for name in _CONTENT)
