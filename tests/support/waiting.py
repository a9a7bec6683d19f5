"""Waits with a bound, and a count of the event loop's turns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any


async def eventually(
    condition: Callable[[], Awaitable[Any]], wait_s: float = 10, explain: Callable[[], str] = lambda: ""
) -> Any:
    """Wait until `condition` returns something true and return it. Raises AssertionError after `wait_s` seconds."""
    until = time.monotonic() + wait_s
    while not (found := await condition()):
        if time.monotonic() > until:
            raise AssertionError(f"not within {wait_s} s: {getattr(condition, '__name__', condition)}\n{explain()}")
        await asyncio.sleep(0.02)
    return found


@dataclass
class Turns:
    """Counts the turns of the event loop while its block runs."""

    count: int = 0

    async def _watch(self) -> None:
        while True:
            self.count += 1
            await asyncio.sleep(0)

    async def __aenter__(self) -> Turns:
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watching.cancel()
