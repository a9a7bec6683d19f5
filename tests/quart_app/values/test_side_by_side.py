"""Curves on one number in several processes at once."""

from __future__ import annotations

import asyncio

import pytest

from quart_app.values.child import Slice
from quart_app.values.factorise import Composite, Factoring
from quart_app.values.side_by_side import race

BEFORE = Factoring(2 * 35 * 77, ((2, 1),), (Composite(35, 1, 10), Composite(77, 1, 4)))
SPLIT = Factoring(2 * 35 * 77, ((2, 1), (5, 1), (7, 1)), (Composite(77, 1, 4),))


def after(curves: int) -> Slice:
    return Factoring(BEFORE.number, BEFORE.powers, (Composite(35, 1, curves), Composite(77, 1, 4))), None


async def test_the_curves_of_all_processes_count() -> None:
    """Each process goes on from ten curves; together they run three and five more."""
    slices = [after(13), after(15)]

    async def run() -> Slice:
        return slices.pop()

    assert await race(BEFORE, run, 2) == after(18)


async def test_the_first_divisor_ends_the_others() -> None:
    """The caller does not wait for slices that can no longer help, and these are cancelled."""
    ended: list[str] = []
    begun = iter(range(3))

    async def run() -> Slice:
        if next(begun) == 1:
            return SPLIT, None
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        raise AssertionError("not reached")

    async with asyncio.timeout(5):
        assert await race(BEFORE, run, 3) == (SPLIT, None)
    assert ended == ["cancelled", "cancelled"]


async def test_a_slice_without_a_divisor_does_not_end_the_others() -> None:
    """A process that is done early leaves the number to the others."""
    begun = iter(range(2))

    async def run() -> Slice:
        if next(begun):
            await asyncio.sleep(0.01)
            return SPLIT, None
        return after(11)

    assert await race(BEFORE, run, 2) == (SPLIT, None)


async def test_a_finished_number_is_a_hit() -> None:
    """A slice that leaves no composite ends the race, too."""
    done = Factoring(35, ((5, 1), (7, 1)), ()), "5 7"

    async def run() -> Slice:
        return done

    assert await race(Factoring(35, (), (Composite(35),)), run, 2) == done


async def test_an_error_of_one_slice_ends_all() -> None:
    """The error reaches the caller after the others have ended."""
    ended: list[str] = []
    begun = iter(range(2))

    async def run() -> Slice:
        if next(begun):
            raise ArithmeticError("wrong")
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("over")
        raise AssertionError("not reached")

    with pytest.raises(ArithmeticError, match="wrong"):
        await race(BEFORE, run, 2)
    assert ended == ["over"]


async def test_cancellation_reaches_every_slice() -> None:
    """No process works on for a caller that has gone."""
    ended: list[str] = []

    async def run() -> Slice:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("over")
        raise AssertionError("not reached")

    task = asyncio.create_task(race(BEFORE, run, 2))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["over", "over"]
