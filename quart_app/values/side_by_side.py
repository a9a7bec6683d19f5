"""Curves on one number in several processes at once.

Each process continues from the same state. Curves are random, so two processes run different curves, and any of them
may find a factor. The first process that finds a factor ends the curves of the others. This may also be a process of
another replica (see `help`). A slice is half a second of curves in one process, and its result (see `child.Slice`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from quart_app.values.child import Slice
from quart_app.values.factorise import Factoring


async def race(
    before: Factoring,
    run_slice: Callable[[], Awaitable[Slice]],
    count: int,
    elsewhere: asyncio.Future[Slice] | None = None,
) -> Slice:
    """Do a slice `count` times at once; return the state that these slices reached together.

    The first slice that splits the composite cancels the others. So does such a slice from another replica: `elsewhere`
    gets it. When all slices of this replica have ended, the race does not wait for `elsewhere`. Raises what a slice
    raises, after all slices have ended.
    """
    running = {asyncio.ensure_future(run_slice()) for _ in range(count)}
    found_elsewhere = set() if elsewhere is None else {elsewhere}
    ended: list[Slice] = []
    still_running = running
    try:
        while still_running and not any(splits(before, result) for result in ended):
            just_ended, _ = await asyncio.wait(still_running | found_elsewhere, return_when=asyncio.FIRST_COMPLETED)
            ended += [slice_task.result() for slice_task in just_ended]
            still_running = still_running - just_ended
    finally:
        for slice_task in still_running:
            slice_task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return combined(before, ended)


def splits(before: Factoring, reached: Slice) -> bool:
    """Return whether a slice found a divisor of the smallest composite, on which it worked."""
    composites = reached[0].composites
    return not composites or composites[0].value != before.composites[0].value


def combined(before: Factoring, slices: Sequence[Slice]) -> Slice:
    """Return the first slice that found a divisor; if there is none, the state after the curves of all slices."""
    for reached in slices:
        if splits(before, reached):
            return reached
    first = before.composites[0]
    return with_curves(before, sum(reached[0].composites[0].curves - first.curves for reached in slices)), None


def with_curves(before: Factoring, curve_count: int) -> Factoring:
    """Return the state after `curve_count` more curves on the smallest composite."""
    smallest, *other_composites = before.composites
    return replace(before, composites=(replace(smallest, curves=smallest.curves + curve_count), *other_composites))
