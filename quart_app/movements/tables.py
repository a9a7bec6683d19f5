"""The two tables of the movements service, for its queries.

`movements` has one row per event; rows are only added. `warehouses` has the sums. A trigger updates `warehouses` in the
transaction that inserts into `movements`. The files in `migrations/versions` create the tables, the indexes and the
trigger; the definitions here must match them.
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
    """A time in UTC. SQLite has no time zones, so the time is stored there without a zone."""

    impl = DateTime(timezone=True)
    #: SQLAlchemy may cache compiled statements with this type, because the type has no parameters
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


#: The type of a row's number. SQLite numbers new rows by itself only in a primary key of the type INTEGER.
RowNumber = BigInteger().with_variant(Integer, "sqlite")

metadata = MetaData()

movements = Table(
    "movements",
    metadata,
    Column("id", RowNumber, primary_key=True),
    # Source and id together identify an event: the two messages of a movement may have the same id, because they come
    # from two sources.
    Column("source", String(255), nullable=False),
    Column("event_id", String(255), nullable=False),
    # The time in the message. It may differ when a sender repeats an event; `occurred_at` is the time of the movement.
    Column("sent_at", UtcDateTime, nullable=False),
    Column("movement_id", Uuid, nullable=False),
    Column("warehouse_id", Uuid, nullable=False),
    Column("product_id", Uuid, nullable=False),
    # What happened at the warehouse (`models.Direction`), not the whole event. "departure" has nine letters.
    Column("event", String(9), nullable=False),
    # How many items moved.
    Column("quantity", BigInteger, nullable=False),
    Column("occurred_at", UtcDateTime, nullable=False),
    UniqueConstraint("source", "event_id", name="movements_identity"),
    CheckConstraint("event IN ('arrival', 'departure')", name="movements_event"),
    CheckConstraint("quantity >= 0", name="movements_quantity"),
    Index("movements_by_movement", "movement_id", "product_id"),
)

#: One row is one product in one warehouse. `balance` is the sum of all arrivals minus all departures, so it does not
#: depend on the order of events. It is negative while the message of an arrival is late. `quantity`, the stock, is the
#: positive part of `balance`, and `deficit` is the amount of the negative part.
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
    # The latest `occurred_at` of all events, so it does not depend on the order of events either.
    Column("updated_at", UtcDateTime, nullable=False),
)
_IN_DEFICIT = warehouses.c.deficit > 0
Index("warehouses_in_deficit", warehouses.c.deficit, sqlite_where=_IN_DEFICIT, postgresql_where=_IN_DEFICIT)
