"""The two tables.

`movements` has one row per event and only ever grows; `warehouses` is what they add up to. A trigger keeps the
second in step with the first inside the same transaction, whoever inserts.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    Dialect,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    TypeDecorator,
    UniqueConstraint,
    Uuid,
)


class UtcDateTime(TypeDecorator[datetime]):
    """A moment. SQLite has no time zones, so it keeps UTC without saying so."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


#: SQLite counts rows by itself in an INTEGER key only.
RowNumber = BigInteger().with_variant(Integer, "sqlite")

metadata = MetaData()

movements = Table(
    "movements",
    metadata,
    Column("id", RowNumber, primary_key=True),
    # The identity of an event: the two messages of one movement may share an id, never a source.
    Column("source", String(255), nullable=False),
    Column("event_id", String(255), nullable=False),
    Column("sent_at", UtcDateTime, nullable=False),
    Column("movement_id", Uuid, nullable=False),
    Column("warehouse_id", Uuid, nullable=False),
    Column("product_id", Uuid, nullable=False),
    Column("event", String(9), nullable=False),
    Column("quantity", BigInteger, nullable=False),
    Column("occurred_at", UtcDateTime, nullable=False),
    UniqueConstraint("source", "event_id", name="movements_identity"),
    CheckConstraint("event IN ('arrival', 'departure')", name="movements_event"),
    CheckConstraint("quantity >= 0", name="movements_quantity"),
    Index("movements_by_movement", "movement_id", "product_id"),
)

#: `balance` is all arrivals less all departures, and may be below 0 while an arrival is on its way to us. Being a sum,
#: it does not depend on the order of events; `quantity` and `deficit` are its two sides.
warehouses = Table(
    "warehouses",
    metadata,
    Column("warehouse_id", Uuid, primary_key=True),
    Column("product_id", Uuid, primary_key=True),
    Column("balance", BigInteger, nullable=False),
    Column(
        "quantity",
        BigInteger,
        Computed("CASE WHEN balance > 0 THEN balance ELSE 0 END", persisted=True),
        nullable=False,
    ),
    Column(
        "deficit",
        BigInteger,
        Computed("CASE WHEN balance < 0 THEN -balance ELSE 0 END", persisted=True),
        nullable=False,
    ),
    # Of the latest movement, by its own time: independent of the order, too.
    Column("updated_at", UtcDateTime, nullable=False),
)
_SHORT = warehouses.c.deficit > 0
Index("warehouses_in_deficit", warehouses.c.deficit, sqlite_where=_SHORT, postgresql_where=_SHORT)
