"""The cache alone, with a clock that the test moves and loads that it holds."""

from __future__ import annotations

import asyncio
import gc

import pytest

from quart_app.movements.cache import Cache


class Source:
    """A source of values that counts loads and can hold them."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {"a": 1, "b": 2, "c": 3}
        self.loads: list[str] = []
        self.open = asyncio.Event()
        self.open.set()
        self.now = 0.0

    async def load(self, key: str) -> int | None:
        self.loads.append(key)
        value = self.values.get(key)
        await self.open.wait()
        if value == -1:
            raise ConnectionError("away")
        return value

    def cache(self, size: int = 10, ttl_s: float = 5) -> Cache[str, int]:
        return Cache(self.load, size=size, ttl_s=ttl_s, clock=lambda: self.now)


@pytest.fixture
def source() -> Source:
    return Source()


async def test_a_value_is_loaded_once_while_it_is_fresh(source: Source) -> None:
    """The value is loaded again exactly when its ttl is over."""
    cache = source.cache(ttl_s=5)
    assert [await cache.get("a"), await cache.get("a")] == [1, 1]
    source.now = 4.999
    await cache.get("a")
    assert source.loads == ["a"]
    source.now = 5.0
    source.values["a"] = 7
    assert await cache.get("a") == 7
    assert source.loads == ["a", "a"]


async def test_concurrent_calls_share_one_load(source: Source) -> None:
    """Concurrent calls for one key start one load."""
    source.open.clear()
    cache = source.cache()
    waiting = [asyncio.create_task(cache.get("a")) for _ in range(1000)]
    await asyncio.sleep(0)
    source.open.set()
    assert set(await asyncio.gather(*waiting)) == {1}
    assert source.loads == ["a"]


async def test_a_missing_value_is_not_cached(source: Source) -> None:
    """The next call may find it."""
    cache = source.cache()
    assert await cache.get("z") is None
    assert len(cache) == 0
    source.values["z"] = 26
    assert await cache.get("z") == 26
    assert len(cache) == 1


async def test_a_failure_reaches_every_caller_and_is_not_cached(source: Source) -> None:
    """The next call starts another load."""
    source.values["a"] = -1
    source.open.clear()
    cache = source.cache()
    waiting = [asyncio.create_task(cache.get("a")) for _ in range(3)]
    await asyncio.sleep(0)
    source.open.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(one) for one in found] == [ConnectionError] * 3
    source.values["a"] = 1
    assert await cache.get("a") == 1
    assert source.loads == ["a", "a"]


async def test_the_least_recently_used_goes_first(source: Source) -> None:
    """The cache never holds more values than its size."""
    cache = source.cache(size=2)
    for key in ("a", "b", "a", "c"):
        await cache.get(key)
    assert len(cache) == 2
    await cache.get("a")
    assert source.loads == ["a", "b", "c"]
    await cache.get("b")
    assert source.loads == ["a", "b", "c", "b"]


async def test_a_cache_of_size_0_caches_nothing(source: Source) -> None:
    """A size of 0 turns the cache off; concurrent calls still share a load."""
    cache = source.cache(size=0)
    await cache.get("a")
    await cache.get("a")
    assert (len(cache), source.loads) == (0, ["a", "a"])


async def test_a_cancelled_caller_does_not_cancel_the_load(source: Source) -> None:
    """The other callers get their value."""
    source.open.clear()
    cache = source.cache()
    first, second = asyncio.create_task(cache.get("a")), asyncio.create_task(cache.get("a"))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    source.open.set()
    assert await second == 1
    assert source.loads == ["a"]


async def test_a_failure_without_callers_is_not_reported(source: Source) -> None:
    """All callers were cancelled; asyncio must not report the load's error as never retrieved."""
    noise: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: noise.append(context["message"]))
    source.values["a"] = -1
    source.open.clear()
    cache = source.cache()
    waiter = asyncio.create_task(cache.get("a"))
    await asyncio.sleep(0)
    waiter.cancel()
    source.open.set()
    await asyncio.wait({waiter})
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gc.collect()
    assert noise == []


async def test_a_changed_value_is_loaded_again(source: Source) -> None:
    """The next call after `forget` starts a load."""
    cache = source.cache()
    await cache.get("a")
    source.values["a"] = 9
    cache.forget("a")
    cache.forget("never seen")
    assert await cache.get("a") == 9


async def test_a_load_that_began_before_the_change_is_not_cached(source: Source) -> None:
    """Such a load may return the old value, so calls after the change start another load."""
    source.open.clear()
    cache = source.cache()
    before = asyncio.create_task(cache.get("a"))
    while not source.loads:
        await asyncio.sleep(0)
    source.values["a"] = 9
    cache.forget("a")
    after = asyncio.create_task(cache.get("a"))
    await asyncio.sleep(0)
    source.open.set()
    assert [await before, await after] == [1, 9]
    assert await cache.get("a") == 9
    assert source.loads == ["a", "a"]


async def test_closing_cancels_loads(source: Source) -> None:
    """`close` cancels the loads that are under way."""
    source.open.clear()
    cache = source.cache()
    waiter = asyncio.create_task(cache.get("a"))
    await asyncio.sleep(0)
    await cache.close()
    with pytest.raises(asyncio.CancelledError):
        await waiter
