"""The counter of greetings: each counts once."""

from __future__ import annotations

import asyncio

from examples.counter import Greet, Greeted, count, greetings, put, total
from mesh.testing import MeshKit


async def test_each_greeting_counts_once() -> None:
    """Answers of Redis are lost, a replica dies, and a new one takes its database over."""
    async with MeshKit(greetings, replicas=3) as kit:
        kit.lose_answers(7)
        await asyncio.gather(*(kit[0].call(put, Greet(f"n{n}")) for n in range(50)))
        assert await kit[1].gather(count) == {1: 50, 2: 0, 3: 0}
        assert [c.op for c in kit.committed] == ["greetings.put"] * 50
        await kit.kill(0)
        await kit.start()
        assert await kit.read(total, database=1) == 50


async def test_one_handler_alone() -> None:
    """`run` needs no Redis. It returns the reply, and what the handler would write."""
    done = await put.run(Greet("world"), state={total: 3})
    assert done.reply == Greeted("hello world", 1)
    assert done.read(total) == 4
