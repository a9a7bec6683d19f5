"""How long the event loop of a test is held."""

from __future__ import annotations

import asyncio
import time


class Beats:
    """Measures the longest computation between two turns of the loop, in seconds."""

    longest_s = 0.0

    async def run(self) -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            self.longest_s = max(self.longest_s, time.thread_time() - before)
