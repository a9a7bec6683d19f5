"""An outbox to SQL: an order changes the mesh and, a moment later, a table. Neither happens without the other.

The commit that stores an order also sends the request `record`, so both happen or none. This is the outbox pattern,
but without a table for the outbox. A request may be delivered more than once. So `record` writes each row under the
id of its order, and only once.
"""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

from msgspec import Struct

from mesh import Database, Operations, Query, Refused, Transaction


class Order(Struct):
    id: str
    product: str
    count: int


class Delivery(Struct):
    product: str
    count: int


class Wanted(Struct):
    product: str


class OutOfStock(Refused, code="shop.out-of-stock"):
    """There are not as many as were ordered."""


class Shop:
    """Orders, with the database that they are copied to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.operations = operations = Operations("shop")
        stock = operations.hash("stock", str, int)

        async def deliver(tx: Transaction, body: Delivery) -> int:
            left = (await tx.get(stock[body.product]) or 0) + body.count
            tx.set(stock[body.product], left)
            return left

        async def order(tx: Transaction, body: Order) -> int:
            left = (await tx.get(stock[body.product]) or 0) - body.count
            if left < 0:
                raise OutOfStock(product=body.product, left=left + body.count)
            tx.set(stock[body.product], left)
            # To the replica's own database: rows are written in the order of the commits.
            tx.send(self.record, body, to=Database(tx.database))
            return left

        async def record(tx: Transaction, body: Order) -> None:
            await asyncio.to_thread(self._insert, body)

        async def left(view: Query, body: Wanted) -> int:
            return await view.get(stock[body.product]) or 0

        self.deliver = operations.command(deliver)
        self.order = operations.command(order)
        self.record = operations.command(record)
        self.left = operations.query(left)

    def create(self) -> None:
        """Create the table."""
        with sqlite3.connect(self._path) as sql:
            sql.execute("CREATE TABLE orders (id TEXT PRIMARY KEY, product TEXT, count INTEGER)")

    def _insert(self, order: Order) -> None:
        with sqlite3.connect(self._path) as sql:
            sql.execute(
                "INSERT INTO orders VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING",
                (order.id, order.product, order.count),
            )

    def rows(self) -> list[tuple[str, str, int]]:
        """Return what the table has, in the order of its writing."""
        with sqlite3.connect(self._path) as sql:
            return sql.execute("SELECT id, product, count FROM orders ORDER BY rowid").fetchall()
