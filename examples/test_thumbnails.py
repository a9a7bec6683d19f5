"""Thumbnails: made in a pool, stored once, also when the replica that made one dies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from examples.thumbnails import Named, NotRectangular, Picture, Thumbnail, Thumbnails
from mesh import Class, Database
from mesh.testing import MeshKit

CHESS = Picture("chess", 8, bytes([0, 0, 0, 0, 255, 255, 255, 255]) * 8)
SMALL = Thumbnail(2, bytes([0, 255, 0, 255]))


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1) as pool:
        yield pool


async def test_a_thumbnail_is_made_in_another_process(processes: ProcessPoolExecutor) -> None:
    """While the pool works, the clock of the kit runs at real speed."""
    thumbnails = Thumbnails(processes)
    async with MeshKit(thumbnails.operations, replicas=2) as kit:
        assert await kit[0].call(thumbnails.make, CHESS, to=Class("B")) == SMALL
        assert await kit[0].gather(thumbnails.look, Named("chess")) == {1: None, 2: SMALL}


async def test_a_picture_that_is_none_is_refused_with_the_reason(processes: ProcessPoolExecutor) -> None:
    """An error of this service is raised as itself at the caller."""
    thumbnails = Thumbnails(processes)
    async with MeshKit(thumbnails.operations) as kit:
        with pytest.raises(NotRectangular):
            await kit[0].call(thumbnails.make, Picture("torn", 7, b"12345678"))
        assert kit.committed == []


async def test_a_killed_replica_costs_the_work_but_not_the_result() -> None:
    """Its successor makes the thumbnail again; one result is committed."""
    with ThreadPoolExecutor(1) as pool:
        thumbnails = Thumbnails(pool)
        async with MeshKit(thumbnails.operations, replicas=2) as kit:
            call = asyncio.create_task(kit[0].call(thumbnails.make, CHESS, to=Database(2)))
            while not kit.ran(thumbnails.make):
                await asyncio.sleep(0.001)
            await kit.kill(1)
            await kit.start()
            assert await call == SMALL
            assert [c.op for c in kit.committed] == ["thumbnails.make"]
