"""Mistakes in handlers: their own requests fail with a reason, and no others do."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
import structlog

from mesh import Class, Database, GivenUp, InvalidBody, InvalidReply, keys
from mesh.raw import Effects, Request, Store, Worker
from tests.support import mistakes
from tests.support.backend import Backend
from tests.support.waiting import eventually

OTHERS = ["recurse: ", "read: "]


def worker() -> Worker:
    made = Worker()

    @made.handles("mistake.make")
    async def make(request: Request, store: Store, transaction: Effects) -> Any:
        transaction.set("mistake:effect", 1)
        return await mistakes.make(request.body["mistake"], store, transaction)

    @made.handles(mistakes.SINK)
    async def none(request: Request, store: Store, transaction: Effects) -> dict[str, Any]:
        transaction.incrby("mistake:right", 1)
        return {"right": True}

    @made.handles("mistake.plain")
    def plain(request: Request, store: Store, transaction: Effects) -> Any:  # type: ignore[misc]
        return {}

    @made.handles("mistake.wait")
    async def wait(request: Request, store: Store, transaction: Effects) -> Any:
        await asyncio.sleep(60)

    return made


@pytest.mark.parametrize("to", [Class("A"), Database(1)], ids=["class", "database"])
async def test_a_mistake_fails_its_own_request_with_a_reason(backend: Backend, to: Class | Database) -> None:
    """The caller gets an error with a reason in time, and the replica goes on.

    An answer that cannot be sent is refused; every other mistake becomes a dead letter.
    """
    one = await backend.join(worker(), max_deliveries=1)
    client = backend.redis()
    for mistake in [*mistakes.NAMES, *OTHERS]:
        before = await client.xlen(keys.DEAD)
        asked = one.call(to, "mistake.make", {"mistake": mistake}, deadline_ms=20_000)
        beside = one.call(Class("A"), mistakes.SINK, {})
        wrong, right = await asyncio.gather(asked, beside, return_exceptions=True)
        assert right == {"right": True}, mistake
        if mistake in mistakes.UNSENDABLE:
            assert isinstance(wrong, InvalidReply), (mistake, wrong)
            assert (await client.xlen(keys.DEAD), 10 < len(wrong.detail) < 2500) == (before, True), mistake
            continue
        assert isinstance(wrong, GivenUp), (mistake, wrong)
        ((_, letter),) = await client.xrevrange(keys.DEAD, count=1)
        assert await client.xlen(keys.DEAD) == before + 1, mistake
        assert 10 < len(letter["reason"]) < 2500 and letter["reason"] in wrong.detail, mistake
    assert await one.store().get("mistake:effect") is None
    assert await one.store().get("mistake:right") == str(len(mistakes.NAMES) + len(OTHERS))
    await client.aclose()


async def test_the_reason_names_the_mistake(backend: Backend) -> None:
    """The dead letter tells a developer what to change."""
    one = await backend.join(worker(), claim_idle_ms=200, max_deliveries=1)
    for mistake, says in {
        "raise: exit": "SystemExit: 3",
        "raise: cancelled": "CancelledError",
        "raise: generator exit": "GeneratorExit",
        "raise: no message": "whose message cannot be made",
        "write: an option": "SET cannot be written: it takes a key, a value, and one of KEEPTTL",
        "write: two types in one key": "INCRBY needs a string, and this transaction makes db1:mistake a hash",
        "write: a surrogate": "cannot be sent to Redis",
        "write: 70 MB": "at most 67108864 fit in one trip",
        "write: a send to text": "a request is sent to Class",
    }.items():
        with pytest.raises(GivenUp) as caught:
            await one.call(Class("A"), "mistake.make", {"mistake": mistake})
        assert says in caught.value.detail
    with pytest.raises(GivenUp, match="the handler returned dict, not an awaitable; define it with async def"):
        await one.call(Class("A"), "mistake.plain", {})


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        ("return: a list", "the reply cannot be sent: a handler returns a dict or None, not list"),
        ("return: an object", "the reply cannot be sent: a handler returns a dict or None, not object"),
        ("return: a surrogate", "the reply cannot be sent: the body cannot be written as JSON"),
        ("return: 100,000 levels", "nested too deeply"),
        ("return: 20 MB", "the body is 20000009 characters of JSON; at most 16777216 can be sent"),
        ("raise: a refusal with an object", "the handler raised Refused, which cannot be sent: .*type object"),
    ],
)
async def test_an_answer_that_cannot_be_sent_fails_at_once(backend: Backend, mistake: str, says: str) -> None:
    """The handler runs once and has no effect. The caller and the log have the reason."""
    one = await backend.join(worker())
    with structlog.testing.capture_logs() as lines:
        with pytest.raises(InvalidReply, match=says):
            await one.call(Class("A"), "mistake.make", {"mistake": mistake})

    async def counted() -> bool:
        return one.statistics()["class_done"] == 1

    await eventually(counted)
    assert one.statistics()["class_reclaimed"] == 0
    assert await one.store().get("mistake:effect") is None
    if mistake.startswith("return"):
        (line,) = [line for line in lines if line["event"] == "reply cannot be sent"]
        assert line["op"] == "mistake.make"


async def test_a_mistake_that_is_retried_prints_its_traceback_once(backend: Backend) -> None:
    """Each further delivery is one line in the log."""
    one = await backend.join(worker(), claim_idle_ms=200)
    with structlog.testing.capture_logs() as lines:
        with pytest.raises(GivenUp):
            await one.call(Class("A"), "mistake.make", {"mistake": "raise: exit"})
    failed = [line for line in lines if line["event"] == "handler failed"]
    assert [line["deliveries"] for line in failed] == [1, 2, 3]
    tracebacks = [line.get("exception") for line in failed]
    assert tracebacks[1:] == [None, None] and tracebacks[0].endswith("SystemExit: 3\n")
    assert "consumer.py" not in tracebacks[0], "it begins in the handler"


async def test_a_handler_that_keeps_the_event_loop_is_named_in_the_log(backend: Backend) -> None:
    """The line has the operation and the time. A handler that only waits has no such line."""
    one = await backend.join(worker(), claim_idle_ms=200, max_deliveries=1)
    with structlog.testing.capture_logs() as lines:
        with pytest.raises(GivenUp):
            await one.call(Class("A"), "mistake.make", {"mistake": "block: 0.3"})
        await one.call(Class("A"), mistakes.SINK, {})
    (line,) = [line for line in lines if line["event"] == "handler blocked the event loop"]
    assert line["op"] == "mistake.make" and 300 <= line["blocked_ms"] < 3000


async def test_the_caller_learns_the_reason_before_its_deadline(backend: Backend) -> None:
    """All deliveries fit into the deadline, however long the claim idle time is."""
    one = await backend.join(worker(), claim_idle_ms=2000)
    for deadline_ms in (1500, 5000):
        with pytest.raises(GivenUp, match="grave"):
            await one.call(Class("A"), "mistake.make", {"mistake": "raise: a base exception"}, deadline_ms=deadline_ms)


async def test_a_handler_that_ignores_its_cancellation_does_not_hold_up_the_end(backend: Backend) -> None:
    """The membership ends; the log names the handler."""
    released, stubborn = asyncio.Event(), Worker()

    @stubborn.handles("mistake.stubborn")
    async def ignore(request: Request, store: Store, transaction: Effects) -> Any:
        while not released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await released.wait()

    with structlog.testing.capture_logs() as lines:
        one = await backend.join(stubborn, deadline_ms=500)
        call = asyncio.ensure_future(one.call(Class("A"), "mistake.stubborn", {}))

        async def begun() -> bool:
            return one.statistics()["class_in_progress"] == 1

        await eventually(begun)
        async with asyncio.timeout(20):
            await backend.stop(0)
        await asyncio.gather(call, return_exceptions=True)
    released.set()
    assert [line["op"] for line in lines if line["event"] == "handler ignores its cancellation"] == ["mistake.stubborn"]


@pytest.mark.parametrize("body", [{"in": object()}, {"in": mistakes.SURROGATE}, [1], {"in": "x" * 20_000_000}])
async def test_a_call_with_a_body_that_cannot_be_sent_is_refused_here(backend: Backend, body: Any) -> None:
    """Nothing is sent, and the replica goes on."""
    one = await backend.join(worker())
    with pytest.raises(InvalidBody):
        await one.call(Class("A"), mistakes.SINK, body)
    with pytest.raises(InvalidBody):
        await one.gather(mistakes.SINK, body)
    assert await one.call(Class("A"), mistakes.SINK, {}) == {"right": True}


async def test_bodies_that_are_too_large_together_go_in_several_trips(backend: Backend) -> None:
    """One round trip has a bound in bytes. Every call is answered."""
    one = await backend.join(worker(), deadline_ms=30_000)
    calls = (one.call(Class("A"), mistakes.SINK, {"in": "x" * 9_000_000}) for _ in range(9))
    assert await asyncio.gather(*calls) == [{"right": True}] * 9


@pytest.mark.parametrize(
    "fields",
    [{}, {"status": "ok"}, {"status": "ok", "body": "[1"}, {"status": "ok", "body": "[1]"},
     {"status": "ok", "body": "[" * 100_000}, {"status": "ok", "body": "{}", "forwards": "many"},
     {"status": "refused", "body": '{"self": 1, "detail": 5}'}],
    ids=str,
)  # fmt: skip
async def test_a_reply_that_cannot_be_read_fails_its_own_call(backend: Backend, fields: dict[str, str]) -> None:
    """The other calls of the caller are answered."""
    one = await backend.join(worker())
    client = backend.redis()
    call = asyncio.ensure_future(one.call(Class("A"), "mistake.wait", {}))

    async def begun() -> bool:
        return one.statistics()["class_in_progress"] == 1

    await eventually(begun)
    await client.xadd(keys.replies(one.id), {"request": f"{one.id}-1", **fields})
    with pytest.raises(Exception, match=r"reply|5"):
        await call
    assert await one.call(Class("A"), mistakes.SINK, {}) == {"right": True}
    await client.aclose()
