"""Keys that somebody has written by hand: no request is lost, looks without end, or waits in silence."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from mesh import Class, GivenUp, Limit, MeshError, Operations, Transaction, keys
from mesh.later import entering
from mesh.requests.streams import keep_minute
from mesh.testing import MeshKit
from tests.support.backend import Backend
from tests.support.lanes import LANE, ONE_CLASS, Job, books, held, work
from tests.support.other_lines import instead
from tests.support.waiting import eventually

ONE = Limit(by="name", concurrency=1)
ENTRY = {"op": "work.do", "request": "r", "reply_to": "", "body": '{"name":"ann","number":9}'}
HIGHEST = "18446744073709551615-18446744073709551615"


async def _letter(backend: Backend) -> dict[str, str]:
    async def buried() -> bool:
        return await backend.redis().xlen(keys.DEAD) == 1

    await eventually(buried)
    ((_, letter),) = await backend.redis().xrange(keys.DEAD)
    return dict(letter)


async def test_a_request_whose_lane_is_a_key_of_another_type_is_given_up_at_once(backend: Backend) -> None:
    """Nobody waits for the request, and a later look would find the same type."""
    table, _, seen = work(ONE)
    mesh = await backend.mesh(table)
    await backend.redis().set(f"{keys.RUNNING}{LANE}", "x")
    await backend.redis().xadd(keys.class_requests(mesh.cls), ENTRY)
    letter = await _letter(backend)
    assert letter["deliveries"] == "1"
    assert letter["reason"] == f"{keys.RUNNING}{LANE} is a key of the wrong type; delete it with redis-cli"
    assert seen.order == {}
    await keep_minute(mesh.replica._link, mesh.replica._streams)
    await books(mesh, dead=1, in_flight=0)


async def test_a_request_whose_stream_takes_no_more_entries_is_not_lost(backend: Backend) -> None:
    """An entry with the highest id there is cannot be put on its stream anew, and does not vanish."""
    table, _, _ = work(ONE)
    mesh = await backend.mesh(table)
    await backend.redis().xadd(stream := keys.class_requests(mesh.cls), ENTRY, id=HIGHEST)
    letter = await _letter(backend)
    assert (letter["id"], letter["body"]) == (HIGHEST, ENTRY["body"])
    assert letter["reason"].startswith(f"{stream} is a key of the wrong type")
    await keep_minute(mesh.replica._link, mesh.replica._streams)
    await books(mesh, dead=1, in_flight=0)
    assert await backend.redis().exists(f"{keys.RUNNING}{LANE}") == 0


async def test_without_the_look_at_what_the_stream_says_it_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this mechanism the request is gone, and the books do not balance."""
    instead(monkeypatch, "ENTER", "if type(new_id) == 'table' then return {'wrong-type', stream} end\n", "", entering)
    table, _, seen = work(ONE)
    with pytest.raises(AssertionError, match="the books do not balance"):
        async with MeshKit(table, **ONE_CLASS) as kit:
            await kit.redis().xadd(keys.class_requests("A"), ENTRY, id=HIGHEST)
            await kit.advance(seconds=2)
            assert await kit.redis().xlen(keys.DEAD) == 0
            assert seen.order == {}


async def test_a_request_that_cannot_be_put_on_its_stream_is_logged_and_waits_on() -> None:
    """It begins when somebody has deleted the key that was in its way."""
    table, do, seen = work(ONE)
    async with MeshKit(table, **ONE_CLASS) as kit:
        await kit.redis().set(f"{keys.RUNNING}{LANE}", "x")
        ticket = await kit[0].send(do, Job("ann"), after=timedelta(seconds=1))
        with capture_logs() as lines:
            await asyncio.sleep(5)
        said = [line for line in lines if line["event"] == "request cannot be put on its stream and waits on"]
        assert 2 <= len(said) <= 5
        assert said[0]["log_level"] == "warning"
        assert said[0]["request"] == ticket.key
        assert "WRONGTYPE" in said[0]["reason"]
        await books(kit[0], waiting=1)
        await kit.redis().delete(f"{keys.RUNNING}{LANE}")
        await books(kit[0], answered=1, waiting=0)
        assert seen.order == {"ann": [0]}


async def test_a_lane_waits_while_the_stream_of_its_next_request_takes_no_entries(
    mesh_of: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request keeps its place, and goes to its stream with the next sweep that can put it there."""
    monkeypatch.setattr("mesh.replica.SWEEP_S", 0.2)
    mesh, do, seen, go_on = await held(mesh_of, ONE)
    await mesh.send(do, Job("ann", 1))
    stream, redis = keys.class_requests(mesh.cls), mesh_of.redis()
    async with redis.pipeline(transaction=True) as pipeline:
        await pipeline.xadd(stream, {"op": "x"}, id=HIGHEST).xdel(stream, HIGHEST).execute()
    go_on.set()
    await books(mesh, answered=1, waiting=1)
    await asyncio.sleep(0.5)
    assert await redis.llen(f"{keys.LANE}{LANE}") == 1
    await redis.delete(stream)
    await books(mesh, answered=2, waiting=0)
    assert seen.order == {"ann": [0, 1]}


async def test_a_send_to_a_stream_that_takes_no_entries_fails_its_own_request(mesh_of: Backend) -> None:
    """Its idempotency key stays free, and the requests beside it are answered."""
    table, do, _ = work(ONE)
    again, number = Operations("again"), table.value("number", int, 0)

    @again.command
    async def pass_on(tx: Transaction, body: Job) -> None:
        tx.send(do, body, to=Class("D"), key="k")

    @again.command
    async def count(tx: Transaction) -> None:
        tx.add(number)

    mesh = await mesh_of.mesh(table, again)
    stream, redis = keys.class_requests("D"), mesh_of.redis()
    async with redis.pipeline(transaction=True) as pipeline:
        await pipeline.xadd(stream, {"op": "x"}, id=HIGHEST).xdel(stream, HIGHEST).execute()
    counts = [mesh.call(count) for _ in range(5)]
    failed, *right = await asyncio.gather(mesh.call(pass_on, Job("ann")), *counts, return_exceptions=True)
    assert isinstance(failed, GivenUp) and f"{stream} takes no more entries" in failed.detail
    assert right == [None] * 5
    assert await redis.exists("mesh:once:work.do:k") == 0
    await redis.delete(stream)


async def test_a_limited_send_to_a_stream_that_takes_no_entries_writes_nothing(mesh_of: Backend) -> None:
    """The commit looks at the stream before the first write: else each delivery would write again."""
    table, do, _ = work(ONE)
    again, number = Operations("again"), table.value("number", int, 0)

    @again.command
    async def pass_on(tx: Transaction, body: Job) -> None:
        tx.add(number)
        tx.send(do, body, to=Class("D"))

    mesh = await mesh_of.mesh(table, again)
    stream, redis = keys.class_requests("D"), mesh_of.redis()
    async with redis.pipeline(transaction=True) as pipeline:
        await pipeline.xadd(stream, {"op": "x"}, id=HIGHEST).xdel(stream, HIGHEST).execute()
    with pytest.raises(MeshError, match="takes no more entries"):
        await mesh.call(pass_on, Job("ann"))
    assert await mesh.replica.store().get("number") is None
    await redis.delete(stream)


async def test_overwritten_names_of_lanes_stop_no_commit(mesh_of: Backend) -> None:
    """Requests with a limit begin and end; the names are for the sweep alone."""
    table, do, seen = work(ONE)
    mesh = await mesh_of.mesh(table)
    await mesh_of.redis().set(keys.LANES, "overwritten")
    for n in range(3):
        await mesh.call(do, Job("ann", n))
    assert seen.order == {"ann": [0, 1, 2]}
    await mesh_of.redis().delete(keys.LANES)
