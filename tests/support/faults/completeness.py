"""A watch on complete answers: no GET with 200 may lack an acknowledged value without naming a database.

It stores known values that outlive the row, and then asks one replica after the other for all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence

from tests.support.faults.checkers import Broken
from tests.support.faults.history import Sample, send
from tests.support.faults.scenario import Mesh

#: A prime that no other load uses.
PRIME = 1_000_037
TTL_S = 36_000
PAUSE_S = 0.03


class Watch:
    """Asks for values that every complete answer shows, and sorts the answers by what they say."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self.values: set[int] = set()
        #: answers by kind: complete, says so, refused, other
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def store(self, classes: str, each: int = 5) -> None:
        """Store values in every class. Raises Broken when that does not work."""
        items = [
            {"value": PRIME * factor, "ttl": TTL_S, "cls": classes[factor % len(classes)]}
            for factor in range(2, 2 + each * len(classes))
        ]
        if not (await self._mesh.post(None, "/values", items)).ok:
            raise Broken("the values of the watch could not be stored")
        self.values |= {item["value"] for item in items}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch while the block lasts. Raises Broken for an answer that silently lacks a value."""
        asking = asyncio.create_task(self._ask())
        try:
            yield
        finally:
            asking.cancel()
        if self.wrong:
            raise Broken(f"{len(self.wrong)} answers lack values and do not say so: {self.wrong[:3]}")

    async def look(self) -> Sequence[Sample]:
        """Ask every replica once."""
        samples = await asyncio.gather(
            *(send(self._mesh.client, f"{member.public}/values/{PRIME}") for member in self._mesh.members)
        )
        for sample in samples:
            self._note(sample)
        return samples

    async def everything(self) -> bool:
        """Return whether all replicas are ready and show all values."""
        if not await self._mesh.all_ready():
            return False
        return all(sample.ok and not sample.left_out for sample in await self.look())

    async def _ask(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(PAUSE_S)

    def _note(self, sample: Sample) -> None:
        if sample.status == 503:
            self.seen["refused"] += 1
        elif not sample.ok:
            self.seen["other"] += 1
        elif sample.left_out:
            self.seen["says so"] += 1
        else:
            self.seen["complete"] += 1
            lacking = self.values - {item["value"] for item in sample.answer}
            if lacking:
                self.wrong.append(f"{len(lacking)} of {len(self.values)} at {sample.called:.2f}")

    def says(self) -> str:
        return ", ".join(f"{what}: {count}" for what, count in sorted(self.seen.items()))
