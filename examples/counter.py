"""A counter: greetings are counted, each of them once, whatever happens to replicas and connections.

Run it several times at once, beside a Redis: `REDIS_URL=redis://localhost:6379 python -m examples.counter`.
"""

from __future__ import annotations

import asyncio
import sys

from msgspec import Struct

from mesh import Operations, Query, Transaction, join

greetings = Operations("greetings")
total = greetings.value("total", int, 0)
seen = greetings.hash("seen", str, int)


class Greet(Struct):
    name: str


class Greeted(Struct):
    greeting: str
    times: int


@greetings.command
async def put(tx: Transaction, body: Greet) -> Greeted:
    """Count a greeting. If another one changes what this read, it runs again."""
    times = (await tx.get(seen[body.name]) or 0) + 1
    tx.set(seen[body.name], times)
    tx.set(total, await tx.get(total) + 1)
    return Greeted(f"hello {body.name}", times)


@greetings.query
async def count(view: Query) -> int:
    """Return how many greetings this database has counted."""
    return await view.get(total)


async def main() -> None:
    async with join(greetings) as mesh:
        greeted = await mesh.call(put, Greet("world"))
        counted = await mesh.gather(count)
        sys.stdout.write(f"{greeted.greeting}, {greeted.times} times here; {sum(counted.values())} in the whole mesh\n")


if __name__ == "__main__":
    asyncio.run(main())
