"""What waits for its time, as an operator reads it."""

from __future__ import annotations

from datetime import timedelta

from msgspec import Struct

from mesh import Operations, Tick, Transaction, keys
from mesh.control import read_waiting
from tests.support.backend import Backend
from tests.support.waiting import eventually


class Note(Struct):
    text: str


async def test_requests_and_schedules_are_read_in_the_order_of_their_times(backend: Backend) -> None:
    """No more is read than was asked for, and all are counted."""
    table = Operations("notes")

    @table.command
    async def put(tx: Transaction, body: Note) -> None: ...

    @table.every("0 4 * * *", tz="Europe/Berlin")
    async def nightly(tx: Transaction, tick: Tick) -> None: ...

    @table.every("*/5 * * * *", each=True)
    async def often(tx: Transaction, tick: Tick) -> None: ...

    mesh = await backend.mesh(table)
    for minutes in (9, 3, 6):
        await mesh.send(put, Note("x"), after=timedelta(minutes=minutes))

    async def scheduled() -> bool:
        return len((await read_waiting(mesh.shared, 2)).schedules) == 2

    await eventually(scheduled, 10)
    found = await read_waiting(mesh.shared, 2)
    assert (found.request_count, found.schedule_count) == (3, 2)
    assert [round(((each.due_ms or 0) - mesh.now_ms()) / 60_000) for each in found.requests] == [3, 6]
    assert {(each.op, each.tries, each.error) for each in found.requests} == {("notes.put", 0, "")}
    ticks = found.schedules
    assert {(tick.op, tick.cron, tick.tz, tick.each, tick.last_ms) for tick in ticks} == {
        ("notes.nightly", "0 4 * * *", "Europe/Berlin", False, 0),
        ("notes.often", "*/5 * * * *", "UTC", True, 0),
    }
    assert mesh.now_ms() < ticks[0].next_ms <= ticks[1].next_ms


async def test_what_no_time_lets_go_is_read_too(backend: Backend) -> None:
    """Requests that wait for a place in a lane, or for the end of a pause, are read, too."""
    redis = backend.redis()
    facts = {
        "a": {"limit": "lane 1 a notes.put:x"},
        "b": {"parked": "notes.put"},
        "c": {"limit": "lane 1 c x:", "try": "1"},
    }
    for key, fields in facts.items():
        await redis.hset(keys.later(key), mapping={"op": "notes.put", "to": "A", **fields})
        await redis.zadd(keys.LATER, {key: "+inf" if key != "c" else 2000})
    found = await read_waiting(redis, 5)
    assert [(each.key, each.due_ms, each.waits_for) for each in found.requests] == [
        ("c", 2000, ""), ("a", None, "lane"), ("b", None, "pause"),
    ]  # fmt: skip
    await redis.delete(keys.LATER, *map(keys.later, facts))


async def test_nothing_waits_on_a_new_server(backend: Backend) -> None:
    """No key is there yet."""
    mesh = await backend.mesh()
    found = await read_waiting(mesh.shared, 5)
    assert (found.request_count, found.requests, found.schedule_count, found.schedules) == (0, [], 0, [])
