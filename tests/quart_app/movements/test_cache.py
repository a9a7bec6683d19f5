"""The cache, bare: its clock is moved, its loads are held."""

from __future__ import annotations

import asyncio
import gc

import pytest

from quart_app.movements.cache import Cache


class Source:
    """What is loaded from: counts, and waits where it is told to."""

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
    """And again when its time is over, to the moment."""
    cache = source.cache(ttl_s=5)
    assert [await cache.get("a"), await cache.get("a")] == [1, 1]
    source.now = 4.999
    await cache.get("a")
    assert source.loads == ["a"]
    source.now = 5.0
    source.values["a"] = 7
    assert await cache.get("a") == 7
    assert source.loads == ["a", "a"]


async def test_many_waiters_share_one_load(source: Source) -> None:
    """However many ask for the same thing at once, the database is asked once."""
    source.open.clear()
    cache = source.cache()
    waiting = [asyncio.create_task(cache.get("a")) for _ in range(1000)]
    await asyncio.sleep(0)
    source.open.set()
    assert set(await asyncio.gather(*waiting)) == {1}
    assert source.loads == ["a"]


async def test_what_is_not_found_is_not_kept(source: Source) -> None:
    """It may come at any moment."""
    cache = source.cache()
    assert await cache.get("z") is None
    assert len(cache) == 0
    source.values["z"] = 26
    assert await cache.get("z") == 26
    assert len(cache) == 1


async def test_a_failure_reaches_every_waiter_and_is_not_kept(source: Source) -> None:
    """The next one tries again."""
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
    """The size is a bound."""
    cache = source.cache(size=2)
    for key in ("a", "b", "a", "c"):
        await cache.get(key)
    assert len(cache) == 2
    await cache.get("a")
    assert source.loads == ["a", "b", "c"]
    await cache.get("b")
    assert source.loads == ["a", "b", "c", "b"]


async def test_a_cache_of_no_size_keeps_nothing(source: Source) -> None:
    """Which is how it is switched off; waiters still share."""
    cache = source.cache(size=0)
    await cache.get("a")
    await cache.get("a")
    assert (len(cache), source.loads) == (0, ["a", "a"])


async def test_a_waiter_that_leaves_does_not_end_the_load(source: Source) -> None:
    """The others get what they wait for."""
    source.open.clear()
    cache = source.cache()
    first, second = asyncio.create_task(cache.get("a")), asyncio.create_task(cache.get("a"))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    source.open.set()
    assert await second == 1
    assert source.loads == ["a"]


async def test_a_failure_that_nobody_waits_for_is_no_noise(source: Source) -> None:
    """Every waiter was cancelled; the load's error must not come up as never retrieved."""
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


async def test_what_has_changed_is_loaded_anew(source: Source) -> None:
    """Forgotten is forgotten."""
    cache = source.cache()
    await cache.get("a")
    source.values["a"] = 9
    cache.forget("a")
    cache.forget("never seen")
    assert await cache.get("a") == 9


async def test_a_load_that_began_before_the_change_is_not_kept(source: Source) -> None:
    """It may have read what was there before; who asks after the change gets a load of their own."""
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


async def test_closing_ends_what_is_being_loaded(source: Source) -> None:
    """No task outlives its parent."""
    source.open.clear()
    cache = source.cache()
    waiter = asyncio.create_task(cache.get("a"))
    await asyncio.sleep(0)
    await cache.close()
    with pytest.raises(asyncio.CancelledError):
        await waiter
