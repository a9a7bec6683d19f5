"""Requests in place: a call to the own class takes one trip where it can, and is the same as any other where not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import pytest
from redis import exceptions as redis_errors
from structlog.testing import capture_logs

from mesh import (
    Busy,
    Class,
    Database,
    DeadlineExceeded,
    LeaseLost,
    Limit,
    Refused,
    Unavailable,
    UsageError,
    keys,
)
from mesh.raw import Answer, Ask, Body, Effects, Replica, Request, ServiceVerbs, Store, Worker
from mesh.requests import in_place, streams, tracing
from mesh.requests.once import Once
from mesh.requests.protocol import reply_of
from mesh.requests.runner import BLOCKED_S
from mesh.requests.worker import Handler
from tests.support.backend import Backend
from tests.support.server import Server
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
        #: keeps a task of a test alive
        self.task: asyncio.Task[None] | None = None
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


def in_place_further(replica: Replica, further: str) -> str:
    """Return what the entry of a request in place gets as further fields."""
    place = replica._calls._in_place
    assert place is not None
    handler = place._worker.handler("x.add")
    assert handler is not None
    return place._request_of(handler, [1, further, "A", "x.add", "a-key", "1000", "{}"])[1]


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
    (group,), stream = await backend.redis().xinfo_groups(STREAM), await backend.redis().xinfo_stream(STREAM)
    assert group.get("lag", 0) == 0
    assert group["last-delivered-id"] == stream["last-generated-id"] == noting.requests[-1].id


async def test_the_caller_gets_the_fields_of_the_reply(backend: Backend, noting: Noting) -> None:
    """They are those of the entry that people can read."""
    one = await backend.join(noting.worker)
    tracing.CALL.set("thread-call")  # the word "read" in it is no field
    trail: list[Any] = []
    tracing.TRAIL.set(trail)
    await ask(one)
    tracing.TRAIL.set(None)
    ((_, reply),) = await backend.redis().xrange(keys.replies(one.id))
    assert trail == [("A", reply)]
    assert reply["call"] == noting.requests[0].call == "thread-call"
    assert in_place_further(one, "call thread-call read shared:x:key") == "call thread-call"


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
    assert await trips_of(one, lambda: ask(one)) == 2  # without a try
    assert await count(one) == 2


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
    keyed = Ask(Class("A"), "x.add", {"text": "1"}, once=Once("a-key", 60_000), in_place=True)
    for _ in range(2):
        (answer,) = await one.ask([keyed])
        assert answer.merged() == {"seen": "1"}
    assert await count(one) == 3
    assert await trips_of(one, lambda: ask(one)) == 1  # none of them was a try that failed


async def test_an_operation_with_a_limit_is_submitted(backend: Backend, noting: Noting) -> None:
    """Its lanes are counted with the submission."""
    handle = Handler("x.limited", noting.add, True, limit=Limit(concurrency=1))
    noting.worker.add(handle)
    one = await backend.join(noting.worker)
    assert await trips_of(one, lambda: ask(one, "x.limited")) == 2


async def test_a_replica_that_leaves_tries_nothing(backend: Backend, noting: Noting) -> None:
    """Its consumer takes no more requests, so another replica of the class is to get this one."""
    one = await backend.join(noting.worker)
    place, group = one._calls._in_place, [1, "", "A", "x.add", "a-key", "1000", "{}"]
    assert place is not None and place._handler_for(group) is not None
    one._class_consumer._stopping.set()
    assert place._handler_for(group) is None


async def test_redis_that_is_away_is_said_at_once(backend: Backend, noting: Noting) -> None:
    """Such a call does not wait for the link."""
    one = await backend.join(noting.worker)
    one._link._down = True
    with pytest.raises(Unavailable):
        await ask(one)
    one._link._down = False
    assert not noting.requests


async def test_spans_need_both_trips(backend: Backend, noting: Noting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call and a delivery have a span each."""
    monkeypatch.setattr("mesh.replica.tracing", SimpleNamespace(is_on=lambda: True, activate=lambda: None))
    one = await backend.join(noting.worker)
    assert await trips_of(one, lambda: ask(one)) == 2


async def test_full_memory_refuses_what_stores(server: Server, noting: Noting) -> None:
    """The answer is the one of a submission."""
    async with Backend(server.settings) as members:
        one = await members.join(noting.worker)
        await ask(one)
        redis = members.redis()
        await redis.config_set("maxmemory", 1)
        answer_or_error: Any = None
        with pytest.raises(Busy) as caught:
            answer_or_error = (await ask(one)).merged()
        assert answer_or_error is None and caught.value.facts["retry_after"] > 0
        await redis.config_set("maxmemory", 0)
        assert await count(one) == 1
        await books_balance(one, 1)


@pytest.mark.parametrize(
    "error", [redis_errors.InvalidResponse("a bad answer"), redis_errors.ResponseError("of the script"), LeaseLost()]
)
async def test_a_commit_that_may_have_been_applied_is_not_followed_by_a_submission(
    backend: Backend, noting: Noting, error: Exception
) -> None:
    """The caller gets the error, and the effect happens once at most."""
    one = await backend.join(noting.worker)
    commit = one._link.commit

    def lose_the_answer(transaction: Any, waiter: Any) -> None:
        async def applied() -> None:
            outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            commit(transaction, outcome)
            await outcome
            waiter.set_exception(error)

        noting.task = asyncio.create_task(applied())

    one._link.commit = lose_the_answer  # type: ignore[method-assign]
    with pytest.raises(type(error)):
        await ask(one)
    one._link.commit = commit  # type: ignore[method-assign]
    assert await count(one) == 1 and len(noting.requests) == 1


async def test_a_request_whose_transaction_cannot_be_sent_is_submitted(backend: Backend, noting: Noting) -> None:
    """Its consumer meets the same, and deals with it."""
    one = await backend.join(noting.worker)
    commit = one._link.commit

    def refuse(transaction: Any, waiter: Any) -> None:
        one._link.commit = commit  # type: ignore[method-assign]
        waiter.set_exception(redis_errors.DataError("too large"))

    one._link.commit = refuse  # type: ignore[method-assign]
    assert (await ask(one)).merged() == {"seen": "a ü"}
    assert await count(one) == 1


async def test_a_link_that_has_ended_meanwhile_ends_the_call(backend: Backend, noting: Noting) -> None:
    """The submission after a failed try raises this error, which the caller gets."""
    one = await backend.join(noting.worker)
    commit, submit = one._link.commit, one._link.submit

    def refuse(transaction: Any, waiter: Any) -> None:
        one._link.commit = commit  # type: ignore[method-assign]
        error = redis_errors.DataError("too large")
        asyncio.get_running_loop().call_soon(waiter.set_exception, error)

    def ended(requests: Any, waiter: Any) -> None:
        raise Unavailable("the link has ended")

    one._link.commit, one._link.submit = refuse, ended  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await asyncio.wait_for(ask(one), 2)
    one._link.submit = submit  # type: ignore[method-assign]
    assert one._calls._reader._waiting_count == 0


async def test_a_handler_that_waits_is_closed_and_one_that_has_ended_writes_no_more(
    backend: Backend, noting: Noting
) -> None:
    """As of a handler that runs after a submission, nothing goes on behind the caller's back."""
    closed: list[str] = []
    effects: list[Effects] = []

    @noting.worker.handles("x.hold")
    async def hold(request: Request, store: Store, transaction: Effects) -> Body:
        effects.append(transaction)
        try:
            if len(effects) == 1:
                await asyncio.sleep(0)
        finally:
            closed.append(request.id)
        return {}

    one = await backend.join(noting.worker)
    await ask(one, "x.hold")
    assert len(closed) == len(effects) == 2
    one._calls._in_place._left_to_skip = 0  # type: ignore[union-attr]
    assert await trips_of(one, lambda: ask(one, "x.hold")) == 1
    with pytest.raises(UsageError):
        effects[-1].set("x:late", "1")


async def test_a_handler_that_blocks_is_named_in_the_log(backend: Backend, noting: Noting) -> None:
    """As any handler is. On a real server its commit comes too late for its id, so it runs a second time."""

    @noting.worker.handles("x.block")
    async def block(request: Request, store: Store, transaction: Effects) -> Body:
        time.sleep(BLOCKED_S * 1.5)  # noqa: ASYNC251 - it blocks the event loop
        return {}

    one = await backend.join(noting.worker)
    with capture_logs() as lines:
        trip_count = await trips_of(one, lambda: ask(one, "x.block"))
    blocked = [line for line in lines if line["event"] == "handler blocked the event loop"]
    assert (trip_count, [line["op"] for line in blocked]) in [(1, ["x.block"]), (3, ["x.block"] * 2)]


async def test_durations_count(backend: Backend, noting: Noting) -> None:
    """The metrics and the roster have the time of a request in place."""
    one = await backend.join(noting.worker)
    await ask(one)
    assert one.durations.by_op["x.add"]
    assert len(one._class_consumer.last_durations_us) == 1


async def test_two_replicas_never_give_the_same_id(backend: Backend, noting: Noting) -> None:
    """The second number of an id says which database it is of, because both may choose the same ms."""
    one = await backend.join(noting.worker)
    two = await backend.join(noting.worker, class_="A")
    places = [one._calls._in_place, two._calls._in_place]
    ids = [place._next_id(1000) for place in places if place is not None for _ in range(20)]
    assert len(set(ids)) == 40


async def test_a_paused_operation_is_refused(backend: Backend, noting: Noting) -> None:
    """A pause of an operator holds in place, too."""
    one = await backend.join(noting.worker)
    place = one._calls._in_place
    assert place is not None
    place._host.paused = lambda: frozenset({"x.add"})
    answer = await ask(one)
    assert answer.error is not None and answer.error.code == "paused"
    assert not noting.requests


@pytest.mark.parametrize("clock_ms", [-5000, -200, 100, 5000])
async def test_a_request_whose_time_may_not_be_right_is_submitted(
    backend: Backend, noting: Noting, clock_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The estimate of the server's clock may be wrong. The mesh's clock does not follow it."""
    one = await backend.join(noting.worker)
    await one.call(Class("A"), "x.add", {"text": ""})
    place = one._calls._in_place
    assert place is not None
    now_ms = place._host.now_ms
    monkeypatch.setattr(place._host, "now_ms", lambda: now_ms() + clock_ms)
    before = int(await backend.redis().get(keys.CLOCK))
    assert await trips_of(one, lambda: ask(one, deadline_ms=20_000)) == 3
    assert abs(int(await backend.redis().get(keys.CLOCK)) - before) < 3000
    assert await count(one) == 2


async def test_after_a_step_back_of_the_servers_clock_requests_are_submitted(backend: Backend, noting: Noting) -> None:
    """Their ids, from which expiries count, are then of the mesh's clock, which stands still."""
    one = await backend.join(noting.worker)
    ahead_ms = one.now_ms() + 60_000
    await backend.redis().set(keys.CLOCK, ahead_ms)
    assert await trips_of(one, lambda: ask(one)) == 3
    assert noting.requests[-1].at_ms == ahead_ms


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
    read, submit = reader.read, one._link.submit
    submitted: list[Any] = []  # on a busy machine, some requests may come too late for their ids

    def noted(requests: Any, waiter: Any) -> None:
        submitted.append(waiter)
        submit(requests, waiter)

    one._link.submit = noted  # type: ignore[method-assign]

    async def counted(take: Any) -> None:
        nonlocal read_count
        read_count += 1
        await read(take)

    reader.read = counted  # type: ignore[method-assign]
    for _ in range(100):
        await ask(one)
    assert read_count <= 1 + 2 * len(submitted)  # one read may have begun before
    for _ in range(1000):
        await ask(one)
    assert len(submitted) < 500
    assert 2 <= read_count <= 12 + 2 * len(submitted)
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
                assert (await ask(one)).bodies == [{"seen": "a ü"}]
            else:
                assert await one.call(Class("A"), "x.add", {"text": str(number)}) == {"seen": str(number)}

    async def keep_busy() -> None:
        while True:
            time.sleep(0.001)  # noqa: ASYNC251 - it blocks the event loop
            await asyncio.sleep(0)

    busy = asyncio.create_task(keep_busy())  # so that both connections have an answer in one turn of the loop
    try:
        await asyncio.gather(*map(many, range(16)))
    finally:
        busy.cancel()
    await books_balance(one, 320)
    assert one._calls._reader._waiting_count == 0


async def test_a_reply_that_was_read_from_the_stream_first_counts_once(backend: Backend, noting: Noting) -> None:
    """Both come over connections of their own, so either may be the first."""
    one = await backend.join(noting.worker)
    commit, calls = one._link.commit, one._calls

    def commit_and_read_first(transaction: Any, waiter: Any) -> None:
        async def run() -> None:
            outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            commit(transaction, outcome)
            answer = await outcome
            ((id, fields),) = await backend.redis().xrange(keys.replies(one.id))

            async def read() -> bool:
                return calls._reader._last_id == id

            await eventually(read, 5)
            waiter.set_result(answer)
            flat = [word for pair in fields.items() for word in pair]
            reply = reply_of(flat)
            assert reply is not None
            calls._take(reply, flat)  # as if it were read in the same turn of the loop

        noting.task = asyncio.create_task(run())

    one._link.commit = commit_and_read_first  # type: ignore[method-assign]
    assert (await ask(one)).bodies == [{"seen": "a ü"}]
    assert noting.task is not None
    await noting.task


async def test_large_replies_in_place_are_trimmed_soon(backend: Backend, noting: Noting) -> None:
    """The bound of the stream counts characters, too."""

    @noting.worker.handles("x.large")
    async def large(request: Request, store: Store, transaction: Effects) -> Body:
        return {"text": "x" * 300_000}

    one = await backend.join(noting.worker)
    for _ in range(20):
        await ask(one, "x.large")

    async def trimmed() -> bool:
        return bool(await backend.redis().xlen(keys.replies(one.id)) < 12)

    await eventually(trimmed, 5)
