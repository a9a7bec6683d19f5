"""One read per interval, whoever waits."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from quart_app.dashboard.ticker import Ticker

EVERY_S = 0.05


class Counted:
    """A read that counts, and fails while `broken`."""

    def __init__(self) -> None:
        self.reads = 0
        self.broken = False

    async def __call__(self) -> int:
        self.reads += 1
        await asyncio.sleep(0.01)
        if self.broken:
            raise OSError("away")
        return self.reads


async def test_twenty_viewers_cause_one_read_per_interval() -> None:
    """All of them get the same result."""
    counted = Counted()
    ticker = Ticker(counted, EVERY_S)
    number = 0
    begun = time.monotonic()
    for look in range(1, 5):
        assert await asyncio.gather(*(ticker.next(number) for _ in range(20))) == [look] * 20
        number = ticker.number
    assert counted.reads == 4
    assert time.monotonic() - begun >= 3 * EVERY_S


async def test_a_fresh_result_is_not_read_again() -> None:
    """A page that is loaded while others look costs nothing."""
    counted = Counted()
    ticker = Ticker(counted, EVERY_S)
    assert [await ticker.newest() for _ in range(3)] == [1, 1, 1]
    await asyncio.sleep(EVERY_S)
    assert await ticker.newest() == 2


async def test_the_reader_hangs_up_in_the_middle_and_the_next_one_reads() -> None:
    """No task is left, and nobody waits for ever."""
    counted = Counted()
    ticker = Ticker(counted, EVERY_S)
    first = asyncio.create_task(ticker.next(0))
    await asyncio.sleep(0.005)
    second = asyncio.create_task(ticker.next(0))
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    async with asyncio.timeout(5):
        assert await second == 2


async def test_what_was_changed_is_read_anew() -> None:
    """The newest result is not used after an act, however young it is."""
    counted = Counted()
    ticker = Ticker(counted, 60)
    assert (await ticker.newest(), await ticker.newest()) == (1, 1)
    ticker.expire()
    assert await ticker.newest() == 2


async def test_a_read_that_fails_is_not_repeated_at_once() -> None:
    """Each viewer learns of the error; the pace stays."""
    counted = Counted()
    counted.broken = True
    ticker = Ticker(counted, EVERY_S)
    begun = time.monotonic()
    for _ in range(3):
        with pytest.raises(OSError, match="away"):
            await ticker.next(0)
    assert time.monotonic() - begun >= 2 * EVERY_S
    counted.broken = False
    assert await ticker.next(0) == 4
