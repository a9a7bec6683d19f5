"""Operations that count their effects, for tests of calls with idempotency keys."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from msgspec import Struct

from mesh import (
    Mesh,
    Operations,
    Query,
    Retry,
    Transaction,
)
from mesh.testing import MeshKit

ONE_CLASS = {"classes": "A"}


class Payment(Struct):
    amount: int


class Paying:
    """Operations that count their effects; each waits while its gate is closed."""

    def __init__(self) -> None:
        table = self.table = Operations("bank")
        paid = table.value("paid", int, 0, shared=True)
        self.open = asyncio.Event()
        self.open.set()
        self.begun = asyncio.Event()
        self.error: Exception | None = None

        @table.command
        async def pay(tx: Transaction, body: Payment) -> int:
            self.begun.set()
            await self.open.wait()
            if self.error is not None:
                raise self.error
            tx.set(paid, await tx.get(paid) + body.amount)
            return await tx.get(paid)

        @table.command(name="try", retry=Retry(most=3, first=timedelta(seconds=10), jitter=0))
        async def attempt(tx: Transaction, body: Payment) -> int:
            return await pay.handler(tx, body)  # type: ignore[misc, no-any-return]

        @table.query
        async def read(view: Query) -> int:
            return await view.get(paid)

        self.pay, self.attempt, self.read = pay, attempt, read


async def balanced(mesh: Mesh) -> dict[str, int]:
    books = await mesh.books()
    assert books["accepted"] == sum(books.values()) - books["accepted"], books
    return books


async def nothing_open(kit: MeshKit) -> None:
    """No key is held, and nothing else is left of one that was."""
    redis = kit.redis()
    async for name in redis.scan_iter("mesh:once:*"):
        facts = await redis.hgetall(name)
        assert facts["state"] != "open" and not [each for each in facts if each.startswith("caller:")], facts
        assert await redis.pttl(name) > 0
    assert not [name async for name in redis.scan_iter("mesh:later*")]
