"""Each mechanism of limits is removed in turn, and what it prevents happens."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from mesh import Limit, keys
from mesh.testing import MeshKit
from tests.support.lanes import LANE, ONE_CLASS, Job, books, held, left, without, work

ONE = Limit(by="name", concurrency=1)


async def test_a_place_that_is_not_freed_stops_its_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lane stands still until a sweep finds the place, some seconds later."""
    without(monkeypatch, "    if fields.limit then options.limits().ended(fields.limit) end\n", "")
    table, do, _ = work(ONE)
    async with MeshKit(table, **ONE_CLASS) as kit:
        for number in range(2):
            await kit[0].send(do, Job("ann", number))
        await books(kit[0], answered=1, waiting=1)
        await asyncio.sleep(3)
        await books(kit[0], answered=1, waiting=1)
        await asyncio.sleep(5)
        await books(kit[0], answered=2, waiting=0)


async def test_of_a_lane_that_is_not_noted_something_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sweep finds the place of a request whose entry was deleted by hand."""
    without(monkeypatch, "    redis.pcall('SADD', 'mesh:lanes', lane)\n", "")
    async with MeshKit(**ONE_CLASS) as kit:
        mesh, _, _, _ = await held(kit, ONE)
        await kit.redis().delete(keys.class_requests(mesh.cls))
        await kit.advance(minutes=1)
        assert await left(kit) == {f"{keys.RUNNING}{LANE}"}


async def test_another_order_of_the_waiting_ones_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    without(
        monkeypatch,
        "redis.call('RPUSH', 'mesh:lane:' .. lane, name)",
        "redis.call('LPUSH', 'mesh:lane:' .. lane, name)",
    )
    table, do, seen = work(ONE)
    async with MeshKit(table, **ONE_CLASS) as kit:
        await asyncio.gather(*(kit[0].send(do, Job("ann", number)) for number in range(6)))
        await books(kit[0], answered=6)
        assert seen.order["ann"] != [*range(6)]


async def test_without_the_count_more_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    without(
        monkeypatch,
        "redis.call('EXISTS', 'mesh:lane:' .. lane) == 0 and redis.call('HLEN', running) < tonumber(concurrency)",
        "true",
    )
    table, do, seen = work(ONE)
    async with MeshKit(table, **ONE_CLASS) as kit:
        await asyncio.gather(*(kit[0].send(do, Job("ann", number)) for number in range(6)))
        await books(kit[0], answered=6)
        assert seen.most["ann"] > 1


async def test_without_the_rate_all_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "if begins_us <= now_us then return append(", "if true then return append(")
    table, do, seen = work(Limit(rate=1, per=timedelta(hours=1)))
    async with MeshKit(table, **ONE_CLASS) as kit:
        for number in range(3):
            await kit[0].send(do, Job("ann", number))
        await books(kit[0], answered=3)
        assert seen.order == {"ann": [0, 1, 2]}
