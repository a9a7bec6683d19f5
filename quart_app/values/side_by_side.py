"""Curves on one number in several processes at once.

Each process continues from the same state. Curves are random, so two processes run different curves, and any of them
may find a factor. The first process that finds a factor ends the curves of the others. This may also be a process of
another replica (see `help`). A slice is half a second of curves in one process, and also its result (`child.Slice`). Of
a result, this module reads the first part: how far the factorisation is.
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
    slice_count: int,
    found_by_others: asyncio.Future[Slice] | None = None,
) -> Slice:
    """Do a slice `slice_count` times at once, all from the state `before`; return the state that they reached together.

    The first slice that splits the composite cancels the others. So does such a slice from another replica:
    `found_by_others` gets it. When all slices of this replica have ended, the race does not wait for `found_by_others`.
    Raises what a slice raises, after all slices have ended.
    """
    slice_tasks = {asyncio.ensure_future(run_slice()) for _ in range(slice_count)}
    others_future = set() if found_by_others is None else {found_by_others}
    ended: list[Slice] = []
    still_running = slice_tasks
    try:
        while still_running and not any(splits(before, result) for result in ended):
            just_ended, _ = await asyncio.wait(still_running | others_future, return_when=asyncio.FIRST_COMPLETED)
            ended += [future.result() for future in just_ended]
            still_running = still_running - just_ended
    finally:
        for task in still_running:
            task.cancel()
        # Wait for the cancelled slices, too: their processes are free only then. The loop above has raised any error.
        await asyncio.gather(*slice_tasks, return_exceptions=True)
    return combined(before, ended)


def splits(before: Factoring, result: Slice) -> bool:
    """Return whether a slice found a divisor of the smallest composite, on which it worked."""
    composites = result[0].composites
    return not composites or composites[0].value != before.composites[0].value


def combined(before: Factoring, slices: Sequence[Slice]) -> Slice:
    """Return the first slice that found a divisor; if there is none, the state after the curves of all slices."""
    for result in slices:
        if splits(before, result):
            return result
    smallest = before.composites[0]
    return with_curves(before, sum(result[0].composites[0].curves - smallest.curves for result in slices)), None


def with_curves(before: Factoring, curve_count: int) -> Factoring:
    """Return the state after `curve_count` more curves on the smallest composite."""
    smallest, *other_composites = before.composites
    return replace(before, composites=(replace(smallest, curves=smallest.curves + curve_count), *other_composites))
