"""The outbox: the table has each accepted order once, and no other order."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from examples.outbox import Delivery, Order, OutOfStock, Shop, Wanted
from mesh.testing import MeshKit


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    shop = Shop(tmp_path / "orders.db")
    shop.create()
    return shop


async def recorded(kit: MeshKit) -> None:
    while (await kit.books())["in_flight"]:
        await asyncio.sleep(0.01)


async def test_an_order_that_was_accepted_is_in_the_table_once(shop: Shop) -> None:
    """The row is there once, also when the handler fails after it has written it."""
    async with MeshKit(shop.operations, replicas=2) as kit:
        await kit[0].call(shop.deliver, Delivery("tea", 3))
        kit.fail(shop.record, 2)
        left = [await kit[0].call(shop.order, Order(f"o{n}", "tea", 1)) for n in range(3)]
        await recorded(kit)
        assert left == [2, 1, 0]
        assert kit.ran(shop.record) == 5
        assert shop.rows() == [("o0", "tea", 1), ("o1", "tea", 1), ("o2", "tea", 1)]
        assert len(kit.sent) == 3


async def test_an_order_that_was_refused_is_not_in_the_table(shop: Shop) -> None:
    """Of ten orders for four, four are accepted."""
    async with MeshKit(shop.operations) as kit:
        await kit[0].call(shop.deliver, Delivery("tea", 4))
        orders = [kit[0].call(shop.order, Order(f"o{n}", "tea", 1)) for n in range(10)]
        answers = await asyncio.gather(*orders, return_exceptions=True)
        await recorded(kit)
        assert sum(isinstance(answer, OutOfStock) for answer in answers) == 6
        assert len(shop.rows()) == 4
        assert await kit[0].call(shop.left, Wanted("tea")) == 0


async def test_the_row_is_written_by_the_successor_of_a_dead_replica(shop: Shop) -> None:
    """The send belongs to the commit of the order; it does not die with the process."""
    async with MeshKit(shop.operations) as kit:
        await kit[0].call(shop.deliver, Delivery("tea", 1))
        await kit[0].call(shop.order, Order("o1", "tea", 1))
        await kit.kill(0)
        await kit.start()
        await recorded(kit)
        assert shop.rows() == [("o1", "tea", 1)]
