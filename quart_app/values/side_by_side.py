"""Curves on one number in several processes at once.

Each process continues from the same state. Curves are random, so two processes run different ones, and it does not
matter which of them finds a factor. The first that does ends the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from quart_app.values.child import Slice
from quart_app.values.factorise import Factoring


async def race(before: Factoring, run: Callable[[], Awaitable[Slice]], count: int) -> Slice:
    """Do a slice `count` times at once and return what they reached together.

    A slice that splits the composite cancels the others. Raises what a slice raises, after all have ended.
    """
    running = {asyncio.ensure_future(run()) for _ in range(count)}
    ended: list[Slice] = []
    waiting = running
    try:
        while waiting and not any(splits(before, one) for one in ended):
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            ended += [one.result() for one in done]
    finally:
        for one in waiting:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return together(before, ended)


def splits(before: Factoring, after: Slice) -> bool:
    """Return whether a slice found a divisor of the composite that it worked on."""
    composites = after[0].composites
    return not composites or composites[0].value != before.composites[0].value


def together(before: Factoring, slices: Sequence[Slice]) -> Slice:
    """Return the first slice that found a divisor, or the state after the curves of all of them."""
    for one in slices:
        if splits(before, one):
            return one
    first, *others = before.composites
    run = sum(one[0].composites[0].curves - first.curves for one in slices)
    return replace(before, composites=(replace(first, curves=first.curves + run), *others)), None
