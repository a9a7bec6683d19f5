"""Create the tables `movements` and `warehouses`, and the trigger that adds each event to the stock.

`movements` has one row for each event, and `warehouses` one row for each product in a warehouse. Its `balance` is the
sum of arrivals minus departures. `quantity` is the number of items there, and `deficit` is how many departed before
their arrival was known. Alembic calls `upgrade` and `downgrade`, and reads the four names below.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

#: The trigger in SQLite, which has only triggers per row. A tuple, because PostgreSQL needs two statements.
SQLITE_STATEMENTS = (
    """
    CREATE TRIGGER movements_keep_stock AFTER INSERT ON movements BEGIN
        INSERT INTO warehouses (warehouse_id, product_id, balance, updated_at)
        VALUES (
            NEW.warehouse_id, NEW.product_id,
            CASE NEW.event WHEN 'arrival' THEN NEW.quantity ELSE -NEW.quantity END, NEW.occurred_at
        )
        ON CONFLICT (warehouse_id, product_id) DO UPDATE SET
            balance = balance + excluded.balance,
            updated_at = max(updated_at, excluded.updated_at);
    END
    """,
)

#: The trigger in PostgreSQL, per statement: it changes each row of `warehouses` once, however many events a batch has.
#: All batches change the rows in the same order, so that two of them cannot deadlock.
POSTGRESQL_STATEMENTS = (
    """
    CREATE FUNCTION movements_keep_stock() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO warehouses AS kept (warehouse_id, product_id, balance, updated_at)
        SELECT warehouse_id, product_id,
            sum(CASE event WHEN 'arrival' THEN quantity ELSE -quantity END)::bigint, max(occurred_at)
        FROM inserted
        GROUP BY warehouse_id, product_id
        ORDER BY warehouse_id, product_id
        ON CONFLICT (warehouse_id, product_id) DO UPDATE SET
            balance = kept.balance + excluded.balance,
            updated_at = greatest(kept.updated_at, excluded.updated_at);
        RETURN NULL;
    END
    $$
    """,
    """
    CREATE TRIGGER movements_keep_stock AFTER INSERT ON movements
    REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION movements_keep_stock()
    """,
)


def upgrade() -> None:
    time_type = sa.DateTime(timezone=True)
    op.create_table(
        "movements",
        # SQLite numbers new rows by itself only if this column is an INTEGER.
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("source", sa.String(255), nullable=False),
        sa.Column("event_id", sa.String(255), nullable=False),
        sa.Column("sent_at", time_type, nullable=False),
        sa.Column("movement_id", sa.Uuid, nullable=False),
        sa.Column("warehouse_id", sa.Uuid, nullable=False),
        sa.Column("product_id", sa.Uuid, nullable=False),
        sa.Column("event", sa.String(9), nullable=False),  # "departure" has 9 letters
        sa.Column("quantity", sa.BigInteger, nullable=False),
        sa.Column("occurred_at", time_type, nullable=False),
        # An event may be delivered again: then the insertion meets this constraint, and the event does not count twice.
        sa.UniqueConstraint("source", "event_id", name="movements_identity"),
        sa.CheckConstraint("event IN ('arrival', 'departure')", name="movements_event"),
        sa.CheckConstraint("quantity >= 0", name="movements_quantity"),
    )
    op.create_index("movements_by_movement", "movements", ["movement_id", "product_id"])
    positive_part = sa.Computed("CASE WHEN balance > 0 THEN balance ELSE 0 END", persisted=True)
    negative_part = sa.Computed("CASE WHEN balance < 0 THEN -balance ELSE 0 END", persisted=True)
    op.create_table(
        "warehouses",
        sa.Column("warehouse_id", sa.Uuid, primary_key=True),
        sa.Column("product_id", sa.Uuid, primary_key=True),
        sa.Column("balance", sa.BigInteger, nullable=False),
        sa.Column("quantity", sa.BigInteger, positive_part, nullable=False),
        sa.Column("deficit", sa.BigInteger, negative_part, nullable=False),
        sa.Column("updated_at", time_type, nullable=False),
    )
    in_deficit = sa.text("deficit > 0")
    op.create_index(
        "warehouses_in_deficit", "warehouses", ["deficit"], sqlite_where=in_deficit, postgresql_where=in_deficit
    )
    for statement in SQLITE_STATEMENTS if op.get_context().dialect.name == "sqlite" else POSTGRESQL_STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.drop_table("movements")  # its trigger goes with it
    op.drop_table("warehouses")
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP FUNCTION movements_keep_stock()")
