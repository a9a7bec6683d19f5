"""Operations with a limit, and what they did: how many at once, and in which order."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from msgspec import Struct

from mesh import (
    Limit,
    Mesh,
    Operation,
    Operations,
    Retry,
    Transaction,
    keys,
)
from mesh.dead.letters import Actor
from mesh.requests import scripts
from mesh.testing import MeshKit
from mesh.wire.script import Script
from tests.support.waiting import eventually

ONE_CLASS = {"classes": "A"}
ACTOR = Actor("operator", "192.0.2.1")
LANE = "work.do:ann"


class Job(Struct):
    name: str
    number: int = 0


class OutOfOrder(Exception):
    """What a handler does now and then."""


@dataclass
class Seen:
    """What ran: in which order, and how many at once in each lane."""

    order: dict[str, list[int]] = field(default_factory=dict)
    most: Counter[str] = field(default_factory=Counter)
    now: Counter[str] = field(default_factory=Counter)
    #: runs instead of nothing while a job is worked on
    during: Callable[[Job], Awaitable[None]] | None = None


def work(limit: Limit, retry: Retry | None = None) -> tuple[Operations, Operation[Job, int], Seen]:
    """One operation with a limit, and what it did."""
    table, seen = Operations("work"), Seen()
    done = table.hash("done", str, int, shared=True)

    @table.command(limit=limit, retry=retry)
    async def do(tx: Transaction, body: Job) -> int:
        seen.now[body.name] += 1
        seen.most[body.name] = max(seen.most[body.name], seen.now[body.name])
        seen.order.setdefault(body.name, []).append(body.number)
        try:
            tx.add(done[f"{body.name} {body.number}"], 1)
            if seen.during is None:
                await asyncio.sleep(0.01)
            else:
                await seen.during(body)
        finally:
            seen.now[body.name] -= 1
        return body.number

    return table, do, seen


async def books(mesh: Mesh, wait_s: float = 10, **expected: int) -> None:
    """Wait until the books say this; they balance at each look."""

    async def so() -> bool:
        found = await mesh.books()
        assert found["accepted"] == sum(found.values()) - found["accepted"], found
        return expected.items() <= found.items()

    await eventually(so, wait_s)


async def left(kit: MeshKit) -> set[str]:
    """The keys of lanes and of what waits that are still there."""
    names = {key async for key in kit.redis().scan_iter("mesh:*")}
    kept = {name for name in names if name.startswith(("mesh:lane", "mesh:later", "mesh:running", "mesh:parked"))}
    return {name for name in kept if not name.startswith(keys.CANCELLED)}


def without(monkeypatch: pytest.MonkeyPatch, lines: str, others: str) -> None:
    """Replace lines of the commit, which places what is sent and ends what is done."""
    assert scripts.COMMIT.source.count(lines) == 1
    monkeypatch.setattr(scripts, "COMMIT", Script(scripts.COMMIT.source.replace(lines, others)))


async def effects(kit: MeshKit) -> dict[str, str]:
    found: dict[str, str] = await kit.redis().hgetall("shared:work:done")
    return found


async def held(backend: MeshKit, limit: Limit, **options: Any) -> tuple[Mesh, Operation[Job, int], Seen, asyncio.Event]:
    """A mesh in which job 0 of Ann is worked on until the event is set."""
    table, do, seen = work(limit, **options)
    go_on = asyncio.Event()

    async def during(job: Job) -> None:
        if (job.name, job.number) == ("ann", 0):
            await go_on.wait()

    seen.during = during
    mesh = await backend.start(table)
    await mesh.send(do, Job("ann", 0))

    async def begun() -> bool:
        return bool(seen.order)

    await eventually(begun)
    return mesh, do, seen, go_on
