"""Requests in place: a call to the own class takes one trip where it can, and is the same as any other where not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import pytest

from mesh import Class, Database, DeadlineExceeded, LeaseLost, Refused, keys
from mesh.raw import Answer, Ask, Body, Effects, Replica, Request, ServiceVerbs, Store, Worker
from mesh.requests import in_place, streams, tracing
from tests.support.backend import Backend
from tests.support.waiting import eventually

STREAM = Class("A").stream
SEEN: ContextVar[str] = ContextVar("seen", default="")
LOOK = ServiceVerbs(
    "verbs.look = function(first, last)\n  tx[head + 8] = '{\"looked\": true}'\nend\n", {"look": ("hash",)}
)


class Noting:
    """Handlers that note each run of a request: its id, and whether the run was in place."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.worker = Worker()
        self.worker.writes_with(LOOK)
        for name in ("add", "wait", "refuse", "crash", "send", "forward", "look", "leave", "put"):
            self.worker.handles(f"x.{name}")(getattr(self, name))

    def _note(self, request: Request) -> None:
        self.requests.append(request)

    async def add(self, request: Request, store: Store, transaction: Effects) -> Body:
        self._note(request)
        transaction.incrby("x:count", 1)
        return {"seen": request.body["text"]}

    async def wait(self, request: Request, store: Store, transaction: Effects) -> Body:
        await asyncio.sleep(0)
        return await self.add(request, store, transaction)

    async def refuse(self, request: Request, store: Store, transaction: Effects) -> Body:
        await self.add(request, store, transaction)
        raise Refused("not today", because="rain")

    async def crash(self, request: Request, store: Store, transaction: Effects) -> Body:
        self._note(request)
        if len(self.requests) == 1:
            raise KeyError("only the first time")
        return await self.add(request, store, transaction)

    async def send(self, request: Request, store: Store, transaction: Effects) -> Body:
        transaction.send(Database(store.database), "x.add", {"text": "sent"})
        return await self.add(request, store, transaction)

    async def forward(self, request: Request, store: Store, transaction: Effects) -> None:
        self._note(request)
        if request.stream == STREAM:
            transaction.forward(Database(store.database))
        else:
            transaction.incrby("x:count", 1)
            transaction.reply({"seen": request.body["text"]})

    async def look(self, request: Request, store: Store, transaction: Effects) -> None:
        self._note(request)
        transaction.incrby("x:count", 1)
        transaction.answer_with("look", ["x:hash"], [])

    async def leave(self, request: Request, store: Store, transaction: Effects) -> Body:
        SEEN.set("by the handler")
        return await self.add(request, store, transaction)

    async def put(self, request: Request, store: Store, transaction: Effects) -> Body:
        self._note(request)
        before = await store.shared.get("x:key") if request.found is None else request.found or None
        transaction.shared.expect("x:key", before)
        transaction.shared.set("x:key", request.body["text"])
        return {"before": before}


@pytest.fixture
def noting() -> Noting:
    return Noting()


async def ask(replica: Replica, op: str = "x.add", cls: str = "A", read: Sequence[str] = (), **options: Any) -> Answer:
    """Ask in place, and return the answer."""
    wanted = Ask(Class(cls), op, {"text": "a ü"}, read=read, in_place=True)
    (answer,) = await replica.ask([wanted], **options)
    return answer


async def trips_of(replica: Replica, call: Callable[[], Any]) -> int:
    """Return how many trips a call takes: submissions and commits."""
    link = replica._link
    trip_count, submit, commit = 0, link.submit, link.commit

    def counted(function: Callable[..., None]) -> Callable[..., None]:
        def count(*arguments: Any, **options: Any) -> None:
            nonlocal trip_count
            trip_count += 1
            function(*arguments, **options)

        return count

    link.submit, link.commit = counted(submit), counted(commit)  # type: ignore[method-assign]
    await call()
    link.submit, link.commit = submit, commit  # type: ignore[method-assign]
    return trip_count


async def count(replica: Replica) -> int:
    """Return the number that the handlers increase."""
    return int(await replica.store().get("x:count") or 0)


async def books_balance(replica: Replica, accepted: int) -> None:
    """Wait until all accepted requests are answered."""

    async def balanced() -> bool:
        books = await replica.books()
        return (books["accepted"], books["answered"]) == (accepted, accepted)

    await eventually(balanced, 5)


async def test_a_call_takes_one_trip_and_leaves_what_every_call_leaves(backend: Backend, noting: Noting) -> None:
    """Effect, reply, books, the reply's entry, and a stream whose group has nothing more to read."""
    one = await backend.join(noting.worker)
    redis = backend.redis()
    assert await trips_of(one, lambda: ask(one)) == 1
    assert await trips_of(one, lambda: one.call(Class("A"), "x.add", {"text": ""})) == 2
    assert await count(one) == 2
    assert await one.books() == {
        "accepted": 2, "answered": 2, "expired": 0, "cancelled": 0, "dead": 0, "lost": 0, "in_flight": 0, "waiting": 0,
    }  # fmt: skip
    in_place_request, other_request = noting.requests
    assert (in_place_request.op, in_place_request.sender, in_place_request.deliveries) == ("x.add", one.id, 1)
    assert abs(in_place_request.at_ms - other_request.at_ms) < 1000
    assert await redis.xlen(STREAM) == 0
    (group,) = await redis.xinfo_groups(STREAM)
    stream = await redis.xinfo_stream(STREAM)
    assert (group["pending"], group["last-delivered-id"]) == (0, stream["last-generated-id"])
    (_, reply), (_, other_reply) = await redis.xrange(keys.replies(one.id))
    assert reply.keys() == other_reply.keys()
    assert reply["asked"] == in_place_request.id and reply["body"] == '{"seen":"a ü"}'
    assert [reply[name] for name in ("op", "from", "status", "forwards", "db")] == [
        other_reply[name] for name in ("op", "from", "status", "forwards", "db")
    ]
    counters = one.statistics()
    assert (counters["class_done"], counters["class_in_progress"], counters["waiting"]) == (2, 0, 0)
    await redis.aclose()


async def test_the_group_of_the_stream_has_no_lag(backend: Backend, noting: Noting) -> None:
    """What scales replicas by the lag sees none."""
    one = await backend.join(noting.worker)
    for _ in range(3):
        await ask(one)
    (group,) = await backend.redis().xinfo_groups(STREAM)
    assert group.get("lag", 0) == 0


async def test_the_caller_gets_the_fields_of_the_reply(backend: Backend, noting: Noting) -> None:
    """They are those of the entry that people can read."""
    one = await backend.join(noting.worker)
    tracing.CALL.set("a-call")
    trail: list[Any] = []
    tracing.TRAIL.set(trail)
    await ask(one)
    tracing.TRAIL.set(None)
    ((_, reply),) = await backend.redis().xrange(keys.replies(one.id))
    assert trail == [("A", reply)]
    assert reply["call"] == noting.requests[0].call == "a-call"


async def test_ids_are_in_order_and_the_meshs_clock_follows(backend: Backend, noting: Noting) -> None:
    """Two requests in one ms have different ids, and a later request on any stream has no lower one."""
    one = await backend.join(noting.worker)
    await asyncio.gather(*[ask(one) for _ in range(20)])
    await one.call(Class("A"), "x.add", {"text": ""})
    ids = [tuple(map(int, request.id.split("-"))) for request in noting.requests]
    assert len(set(ids)) == len(ids) and ids[:20] == sorted(ids[:20])
    assert max(ids)[0] <= int(await backend.redis().get(keys.CLOCK)) and ids[-1][0] >= ids[-2][0]
    await backend.redis().set(keys.CLOCK, "overwritten")
    await ask(one)
    assert int(await backend.redis().get(keys.CLOCK)) >= ids[-1][0]


@pytest.mark.parametrize("op", ["wait", "crash", "send", "forward", "look"])
async def test_a_handler_that_cannot_run_in_place_runs_after_the_submission(
    backend: Backend, noting: Noting, op: str
) -> None:
    """The answer and the effect are those of one run."""
    one = await backend.join(noting.worker)
    answer = await ask(one, f"x.{op}")
    assert answer.merged() == ({"looked": True} if op == "look" else {"seen": "a ü"})

    async def counted() -> bool:
        return await count(one) == (2 if op == "send" else 1)

    await eventually(counted, 5)
    await books_balance(one, 2 if op in ("send", "forward") else 1)
    assert noting.requests[-1].id != noting.requests[0].id or op == "wait"


async def test_an_error_of_the_handler_is_the_answer(backend: Backend, noting: Noting) -> None:
    """The handler then has no effect."""
    one = await backend.join(noting.worker)
    answer = await ask(one, "x.refuse")
    assert isinstance(answer.error, Refused) and answer.error.facts == {"because": "rain"}
    assert await count(one) == 0
    await books_balance(one, 1)


async def test_a_handler_sets_no_context_variables_of_its_caller(backend: Backend, noting: Noting) -> None:
    """It has a context of its own, as every handler has."""
    one = await backend.join(noting.worker)
    assert await trips_of(one, lambda: ask(one, "x.leave")) == 1
    assert SEEN.get() == ""


async def test_another_class_gets_the_request(backend: Backend, noting: Noting) -> None:
    """Only a replica of the class may work on it."""
    one = await backend.join(noting.worker, class_="A")
    two = await backend.join(noting.worker, class_="B")
    await ask(one, cls="B")
    assert (await count(one), await count(two)) == (0, 1)


async def test_a_request_overtakes_no_other(backend: Backend, noting: Noting) -> None:
    """While the stream has a request, a further one waits behind it."""
    one = await backend.join(noting.worker)
    fields = {"op": "x.hang", "request": "by-hand", "from": "x", "reply_to": "", "deadline": "0", "body": "{}"}
    hanging = asyncio.Event()

    @one._class_consumer._worker.handles("x.hang")
    async def hang(request: Request, store: Store, transaction: Effects) -> Body:
        hanging.set()
        await asyncio.sleep(30)
        return {}

    await backend.redis().xadd(STREAM, fields)
    await asyncio.wait_for(hanging.wait(), 5)
    assert await trips_of(one, lambda: ask(one)) == 3  # the try, the submission and the commit
    assert await count(one) == 1


async def test_after_a_failure_requests_get_no_try_for_a_while(backend: Backend, noting: Noting) -> None:
    """Then they do again."""
    one = await backend.join(noting.worker)
    assert await trips_of(one, lambda: ask(one, "x.wait")) == 2
    runs = [await trips_of(one, lambda: ask(one)) for _ in range(in_place.SKIPPED + 1)]
    assert runs == [2] * in_place.SKIPPED + [1]


async def test_a_key_that_is_not_absent_is_a_conflict_and_the_submission_finds_it(
    backend: Backend, noting: Noting
) -> None:
    """In place, keys that the submission would read count as absent."""
    one = await backend.join(noting.worker)
    assert (await ask(one, "x.put", read=["x:key"])).merged() == {"before": None}
    assert (await ask(one, "x.put", read=["x:key"])).merged() == {"before": "a ü"}
    assert [request.found for request in noting.requests] == ["", "", "a ü"]
    place = one._calls._in_place
    assert place is not None
    place._left_to_skip = 0
    assert await trips_of(one, lambda: ask(one, "x.add", read=["x:key", "x:other"])) == 1
    assert noting.requests[-1].found == '["",""]'


async def test_an_idempotency_key_and_several_requests_are_submitted(backend: Backend, noting: Noting) -> None:
    """Their rules need the submission."""
    one = await backend.join(noting.worker)
    asks = [Ask(Class("A"), "x.add", {"text": "1"}, in_place=True)] * 2
    assert await trips_of(one, lambda: one.ask(asks)) == 3  # a submission, and a commit for each
    assert await count(one) == 2


async def test_a_paused_operation_is_refused(backend: Backend, noting: Noting) -> None:
    """A pause of an operator holds in place, too."""
    one = await backend.join(noting.worker)
    place = one._calls._in_place
    assert place is not None
    place._host.paused = lambda: frozenset({"x.add"})
    answer = await ask(one)
    assert answer.error is not None and answer.error.code == "paused"
    assert not noting.requests


@pytest.mark.parametrize("clock_ms", [-5000, 5000])
async def test_a_replica_whose_estimate_of_the_clock_is_wrong_submits(
    backend: Backend, noting: Noting, clock_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids are in order, and the mesh's clock does not run ahead."""
    one = await backend.join(noting.worker)
    await one.call(Class("A"), "x.add", {"text": ""})
    place = one._calls._in_place
    assert place is not None
    now_ms = place._host.now_ms
    monkeypatch.setattr(place._host, "now_ms", lambda: now_ms() + clock_ms)
    before = int(await backend.redis().get(keys.CLOCK))
    assert (await ask(one, deadline_ms=20_000)).merged() == {"seen": "a ü"}
    assert abs(int(await backend.redis().get(keys.CLOCK)) - before) < 3000
    assert await count(one) == 2


async def test_a_deadline_that_is_over_leaves_no_effect(backend: Backend, noting: Noting) -> None:
    """The link may send a try later, after Redis was away."""
    one = await backend.join(noting.worker)
    send, may_send = one._link._connection.send, asyncio.Event()

    async def later(commands: Any) -> Any:
        await may_send.wait()
        return await send(commands)

    one._link._connection.send = later  # type: ignore[method-assign]
    with pytest.raises(DeadlineExceeded):
        await ask(one, deadline_ms=50)
    await asyncio.sleep(0.02)
    may_send.set()
    one._link._connection.send = send  # type: ignore[method-assign]
    await one.call(Class("A"), "x.add", {"text": ""})
    assert await count(one) == 1
    await books_balance(one, 1)


async def test_a_cancelled_call_is_not_submitted_after_a_failed_try(backend: Backend, noting: Noting) -> None:
    """Nobody waits for it any more."""
    one = await backend.join(noting.worker)
    await one.call(Class("A"), "x.put", {"text": "there"})
    task = asyncio.create_task(ask(one, "x.put", read=["x:key"]))
    while len(noting.requests) < 2:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.05)
    await books_balance(one, 1)
    assert one.statistics()["waiting"] == 0


async def test_the_end_of_a_membership_is_the_error_of_a_try(backend: Backend, noting: Noting) -> None:
    """The caller learns of it, as of any other call."""
    one = await backend.join(noting.worker)
    one._link.commit = lambda transaction, waiter: waiter.set_exception(LeaseLost())  # type: ignore[method-assign]
    with pytest.raises(LeaseLost):
        await ask(one)
    assert one.statistics()["waiting"] == 0


async def test_replies_in_place_wake_nobody_and_are_trimmed(backend: Backend, noting: Noting) -> None:
    """Nothing is read while only requests in place are answered, but for a read when as many are there as are kept."""
    one = await backend.join(noting.worker)
    await ask(one)
    read_count, reader = 0, one._calls._reader
    read = reader.read

    async def counted(take: Any) -> None:
        nonlocal read_count
        read_count += 1
        await read(take)

    reader.read = counted  # type: ignore[method-assign]
    for _ in range(100):
        await ask(one)
    assert read_count <= 1  # one read may have begun before
    for _ in range(1000):
        await ask(one)
    assert 2 <= read_count <= 12
    assert await backend.redis().xlen(keys.replies(one.id)) <= 4 * streams.REPLIES_KEPT
    assert (await one.call(Class("A"), "x.add", {"text": "b"})) == {"seen": "b"}
    assert await count(one) == 1102


async def test_calls_of_both_kinds_get_their_answers(backend: Backend, noting: Noting) -> None:
    """Replies on the stream are read although other calls get theirs from the commit."""
    one = await backend.join(noting.worker)
    await backend.join(noting.worker, class_="A")

    async def many(number: int) -> None:
        for turn in range(20):
            if (number + turn) % 3:
                assert (await ask(one)).merged() == {"seen": "a ü"}
            else:
                assert await one.call(Class("A"), "x.add", {"text": str(number)}) == {"seen": str(number)}

    await asyncio.gather(*map(many, range(16)))
    await books_balance(one, 320)
