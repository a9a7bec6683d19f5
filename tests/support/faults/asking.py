"""A client without a lease for the fault matrix: it calls, gathers and sends tallies until it is killed.

    python -m tests.support.faults.asking REDIS_URL PREFIX

It prints the id of each tally that was answered or that Redis has: these must have their effect.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from pydantic import SecretStr

from mesh import Class, MeshClient, MeshError, MeshSettings, Operation, RedisSettings, connect

add = Operation("tally.add", dict, dict)
counted = Operation("tally.counted", None, int)

#: What Redis keeps of a client expires ten lease ttls after its death.
LEASE_TTL_MS = 600
AT_ONCE = 20


async def ask(mesh: MeshClient, prefix: str, numbers: Iterator[int]) -> None:
    """Ask again and again, in each of four ways."""
    for number in numbers:
        body: dict[str, Any] = {
            "id": f"{prefix}-{number}", "hold_ms": 20, "block_ms": 0, "keys": 0, "poison": False, "mistake": "",
            "always": False,
        }  # fmt: skip
        to = Class("AB"[number // 4 % 2])
        try:
            match number % 4:
                case 0:
                    await mesh.gather(counted)
                    continue
                case 1:
                    await mesh.send(add, body, to=to)
                case 2:
                    await mesh.send(add, body, to=to, after=timedelta(milliseconds=100))
                case _:
                    await mesh.call(add, body, to=to)
        except MeshError:
            continue
        sys.stdout.write(f"{body['id']}\n")
        sys.stdout.flush()


async def main(url: str, prefix: str) -> None:
    """Ask until killed."""
    settings = MeshSettings(redis=RedisSettings(url=SecretStr(url)), lease_ttl_ms=LEASE_TTL_MS)
    async with connect(settings=settings) as mesh:
        numbers = itertools.count()
        await asyncio.gather(*(ask(mesh, prefix, numbers) for _ in range(AT_ONCE)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
