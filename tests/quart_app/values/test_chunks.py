"""Chunks of items: of one class each, so many small values or few large ones."""

from __future__ import annotations

import gmpy2
import pytest

from quart_app.values import store
from quart_app.values.chunks import ITEMS_BETWEEN_PACES, Chunks, most_commit_bytes
from quart_app.values.models import PlainItem
from quart_app.values.pace import Pace
from quart_app.values.routes import LARGE_CHUNK_BYTES

LARGE = "9" * 30


async def divided(chunks: Chunks, *items: PlainItem) -> list[tuple[str, list[str]]]:
    await chunks.extend(items, Pace())
    return [(cls, [item["value"] for item in chunk]) for cls, chunk in chunks.all]


async def test_small_values_go_together_up_to_a_number() -> None:
    """Each class has its own chunks, in the order of their first items."""
    items = [PlainItem(str(n), 60, "AB"[n % 2]) for n in range(6)]
    assert await divided(Chunks(2, 0), *items) == [("A", ["0", "2"]), ("B", ["1", "3"]), ("A", ["4"]), ("B", ["5"])]


async def test_large_values_go_together_up_to_so_many_bytes() -> None:
    """Alone where no bytes are allowed; a small value between them does not end their chunk."""
    items = [PlainItem(value, 60, "A") for value in (LARGE, "6", LARGE, LARGE)]
    assert await divided(Chunks(5, 2 * most_commit_bytes(LARGE)), *items) == [
        ("A", [LARGE, LARGE]),
        ("A", ["6"]),
        ("A", [LARGE]),
    ]
    assert await divided(Chunks(5, 0), *items) == [("A", [LARGE]), ("A", ["6"]), ("A", [LARGE]), ("A", [LARGE])]


@pytest.mark.parametrize("digits", [25, 60, 100, 300, 600, 990])
async def test_the_commit_of_a_chunk_has_few_bytes(digits: int) -> None:
    """Values may have as many different prime factors as their digits allow."""
    product, factors = 1, []
    for prime in filter(gmpy2.is_prime, range(2, 2600)):
        if len(str(product * prime * 1000)) > digits:
            break
        product *= prime
        factors.append(str(prime))
    values = [str(product * n) for n in range(900, 1000)]
    chunks = Chunks(125, LARGE_CHUNK_BYTES)
    await chunks.extend([PlainItem(value, 60, "A") for value in values], Pace())
    most = max(sum(store.record_bytes(item["value"], " ".join(factors)) for item in chunk) for _, chunk in chunks.all)
    assert LARGE_CHUNK_BYTES / 3 < most < LARGE_CHUNK_BYTES


async def test_many_items_are_divided_piece_by_piece() -> None:
    """The event loop is not held by ten thousand of them."""
    turns = 0

    async def pace() -> None:
        nonlocal turns
        turns += 1

    chunks = Chunks(125, 0)
    await chunks.extend([PlainItem("6", 60, "A")] * 4 * ITEMS_BETWEEN_PACES, pace)  # type: ignore[arg-type]
    assert turns == 4
