"""The promises of a mesh to its users: one suite, over fakeredis and over a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from mesh import (
    Busy,
    Class,
    Contended,
    Database,
    DeadlineExceeded,
    GivenUp,
    Incomplete,
    LeaseLost,
    MeshError,
    NoReplica,
    Refused,
    keys,
)
from mesh.raw import Ask, Body, Effects, Replica, Request, Store, Worker, join
from tests.support.backend import Backend
from tests.support.server import Server
from tests.support.waiting import eventually


class Counting:
    """A worker with one operation of each kind, and what its handlers saw."""

    def __init__(self) -> None:
        self.worker = Worker()
        self.seen: list[Request] = []
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.crashes = 0
        handles = self.worker.handles
        handles("count.add")(self.add)
        handles("count.read", effect=False)(self.read)
        handles("count.refuse")(self.refuse)
        handles("count.crash")(self.crash)
        handles("count.unsayable")(self.unsayable)
        handles("count.never")(self.never)
        handles("count.wrong")(self.wrong)
        handles("count.many")(self.many)
        handles("count.wait")(self.wait)
        handles("count.forward")(self.forward)
        handles("count.tell")(self.tell)

    async def add(self, request: Request, store: Store, transaction: Effects) -> Body:
        """Read a number, expect it to be unchanged, and write the next one."""
        self.seen.append(request)
        name = request.body.get("name", "count:n")
        before = await store.get(name)
        await asyncio.sleep(0)
        transaction.expect(name, before)
        transaction.set(name, int(before or 0) + 1)
        return {"n": int(before or 0) + 1, "database": store.database}

    async def read(self, request: Request, store: Store, transaction: Effects) -> Body:
        self.seen.append(request)
        return {"n": int(await store.get("count:n") or 0)}

    async def refuse(self, request: Request, store: Store, transaction: Effects) -> Body:
        transaction.set("count:n", 1000)
        transaction.send(Database(store.database), "count.add", {})
        raise Refused("not today", because="rain")

    async def crash(self, request: Request, store: Store, transaction: Effects) -> Body:
        self.seen.append(request)
        transaction.set("count:n", 1000)
        if self.crashes > 0:
            self.crashes -= 1
            raise RuntimeError("a defect")
        return {"deliveries": request.deliveries}

    async def unsayable(self, request: Request, store: Store, transaction: Effects) -> Body:
        transaction.set("count:n", None)  # type: ignore[arg-type]
        return {}

    async def never(self, request: Request, store: Store, transaction: Effects) -> Body:
        """Expect a value that is never there."""
        self.seen.append(request)
        transaction.expect("count:n", "never")
        return {}

    async def wrong(self, request: Request, store: Store, transaction: Effects) -> Body:
        self.seen.append(request)
        transaction.write("HINCRBY", "count:text", "f", 1)
        return {}

    async def many(self, request: Request, store: Store, transaction: Effects) -> Body:
        body = request.body
        transaction.set_until([f"count:{n}" for n in range(body["keys"])], body["value"], body["until"])
        return {}

    async def wait(self, request: Request, store: Store, transaction: Effects) -> Body:
        self.seen.append(request)
        transaction.incrby("count:n", 1)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return {"database": store.database}

    async def forward(self, request: Request, store: Store, transaction: Effects) -> Body:
        """Answer a part, and forward the rest to the databases that the request names."""
        others = [n for n in request.body.get("to", []) if n != store.database]
        for n in others:
            transaction.forward(Database(n), {"to": []})
        return {f"db{store.database}": True}

    async def tell(self, request: Request, store: Store, transaction: Effects) -> Body:
        transaction.send(Database(request.body["to"]), "count.add", {})
        return {}

    async def n(self, replica: Replica) -> int:
        return int(await replica.store().get("count:n") or 0)


@pytest.fixture
def counting() -> Counting:
    return Counting()


async def balanced(replica: Replica) -> dict[str, int]:
    """Return the books. Fails if they do not balance."""
    books = await replica.books()
    assert books["accepted"] == sum(value for name, value in books.items() if name != "accepted"), books
    return books


async def test_a_call_to_a_class_is_answered_by_a_replica_of_that_class(backend: Backend, counting: Counting) -> None:
    """The address of a class means any one of its replicas."""
    one, two = [await backend.join(counting.worker) for _ in range(2)]
    assert (one.cls, two.cls) == ("A", "B")
    answer = await one.call(Class("B"), "count.add", {})
    assert answer == {"n": 1, "database": two.database}
    assert await counting.n(two) == 1 and await counting.n(one) == 0


async def test_a_call_to_a_database_is_answered_by_its_holder(backend: Backend, counting: Counting) -> None:
    """The address of a database means the replica that holds it. This may be the caller."""
    one, two = [await backend.join(counting.worker) for _ in range(2)]
    for replica in (one, two):
        answer = await one.call(Database(replica.database), "count.add", {})
        assert answer["database"] == replica.database


async def test_a_gather_has_the_answer_of_every_live_database(backend: Backend, counting: Counting) -> None:
    """Each gets one request and gives one answer."""
    members = [await backend.join(counting.worker) for _ in range(3)]
    await members[0].call(Database(members[2].database), "count.add", {})
    answers = await members[1].gather("count.read", {})
    assert answers == {1: {"n": 0}, 2: {"n": 0}, 3: {"n": 1}}


async def test_what_a_handler_sees_of_its_request(backend: Backend, counting: Counting) -> None:
    """A handler sees the operation, the body, the sender, and the time and deadline on Redis's clock."""
    one = await backend.join(counting.worker)
    client = backend.redis()
    seconds, microseconds = await client.time()
    await one.call(Class("A"), "count.add", {"text": "ü\u2028\"'\n", "big": 10**300}, deadline_ms=3000)
    (request,) = counting.seen
    assert (request.op, request.sender, request.deliveries) == ("count.add", one.id, 1)
    assert request.body == {"text": "ü\u2028\"'\n", "big": 10**300}
    assert abs(request.at_ms - (seconds * 1000 + microseconds // 1000)) < 2000
    assert abs(request.deadline - request.at_ms - 3000) <= 5
    await client.aclose()


async def test_a_class_without_a_live_replica_is_refused_and_nothing_is_sent(
    backend: Backend, counting: Counting
) -> None:
    """Of several requests all are sent, or none."""
    one = await backend.join(counting.worker)
    with pytest.raises(NoReplica) as caught:
        await one.ask([Ask(Class("A"), "count.add", {}), Ask(Class("D"), "count.add", {})])
    assert caught.value.facts["address"] == "D"
    with pytest.raises(NoReplica):
        await one.call(Database(9), "count.add", {})
    assert (await balanced(one))["accepted"] == 0
    assert not counting.seen


async def test_an_operation_nobody_knows_is_refused(backend: Backend, counting: Counting) -> None:
    """The caller is told at once; nothing is written."""
    one = await backend.join(counting.worker)
    with pytest.raises(Refused, match=r"no live replica serves the operation 'count\.unheard'"):
        await one.call(Class("A"), "count.unheard", {})
    assert (await balanced(one))["accepted"] == 0


async def test_a_replica_that_does_not_know_an_operation_says_so(backend: Backend, counting: Counting) -> None:
    """The caller gets an answer, not a time-out. Another release of the worker's class serves the operation."""
    one = await backend.join(counting.worker, class_="A")
    await backend.join(Worker(), class_="B")
    with pytest.raises(Refused, match="no replica here knows the operation"):
        await one.call(Class("B"), "count.add", {})


async def test_a_refusal_travels_with_its_facts_and_takes_the_effect_back(backend: Backend, counting: Counting) -> None:
    """A handler that raises a MeshError has no effect at all: no write, no send."""
    one = await backend.join(counting.worker)
    with pytest.raises(Refused, match="not today") as caught:
        await one.call(Class("A"), "count.refuse", {})
    assert caught.value.facts == {"because": "rain"}
    assert await counting.n(one) == 0
    assert await balanced(one) == {
        "accepted": 1, "answered": 1, "expired": 0, "cancelled": 0, "dead": 0, "lost": 0, "in_flight": 0,
        "waiting": 0,
    }  # fmt: skip


async def test_an_answer_in_parts_is_complete_when_every_part_is(backend: Backend, counting: Counting) -> None:
    """A handler may answer a part and forward the rest. The caller waits for all parts."""
    members = [await backend.join(counting.worker) for _ in range(3)]
    answer = await members[0].call(Class("A"), "count.forward", {"to": [1, 2, 3]})
    assert answer == {"db1": True, "db2": True, "db3": True}


async def test_what_a_transaction_sends_is_worked_off(backend: Backend, counting: Counting) -> None:
    """The commit turns a send into an entry, which has its effect at its address (an outbox)."""
    one, two = [await backend.join(counting.worker) for _ in range(2)]
    await one.call(Class("A"), "count.tell", {"to": two.database})

    async def told() -> bool:
        return await counting.n(two) == 1

    await eventually(told)
    assert (await balanced(one))["accepted"] == 2


async def set_many_keys(backend: Backend, counting: Counting, count: int) -> None:
    """Twice, so that the second time goes over what is there; fails unless all of them are as they were said to be."""
    replica = await backend.join(counting.worker)
    for value in ("before", "now"):
        until = replica.now_ms() + 60_000
        await replica.call(Database(replica.database), "count.many", {"keys": count, "value": value, "until": until})
    client = backend.redis(db=replica.database)
    names = [f"db{replica.database}:count:{n}" for n in range(count)]
    assert await client.mget(names) == ["now"] * count
    assert {await client.pexpiretime(name) for name in (names[0], names[count // 2], names[-1])} == {until}
    assert len(await client.keys("*count:*")) == count
    await client.aclose()


@pytest.mark.parametrize("count", [1, 2000, 4001], ids=str)
async def test_many_keys_are_set_until_one_moment(backend: Backend, counting: Counting, count: int) -> None:
    """Setting many keys takes as few commands as possible."""
    await set_many_keys(backend, counting, count)


async def test_many_keys_are_set_one_by_one_where_the_server_cannot_otherwise(
    make_server: Callable[..., Server], server: Server, counting: Counting
) -> None:
    """The oldest server that is supported does not have MSETEX."""
    known = server.redis().command_list(pattern="msetex")
    without = make_server("--rename-command", "MSETEX", "") if known else server
    async with Backend(without.settings) as kit:
        await set_many_keys(kit, counting, 4001)


async def test_concurrent_effects_on_one_key_are_all_counted(backend: Backend, counting: Counting) -> None:
    """If a value that a handler expects has changed at the commit, the handler runs again."""
    one = await backend.join(counting.worker)
    answers = await asyncio.gather(*(one.call(Class("A"), "count.add", {}) for _ in range(50)))
    assert sorted(answer["n"] for answer in answers) == list(range(1, 51))
    assert len(counting.seen) > 50, "nothing ran beside anything else, so this shows nothing"
    assert await counting.n(one) == 50


@pytest.mark.parametrize("order", [[0, 21], [21, 0], [9, 3, 20, 4]], ids=str)
async def test_requests_end_in_any_order(backend: Backend, order: list[int]) -> None:
    """One commit may have any of the requests in progress: distant ones, and later ones first."""
    worker = Worker()
    gates = [asyncio.Event() for _ in range(22)]
    begun: list[int] = []

    @worker.handles("gate.pass")
    async def passing(request: Request, store: Store, transaction: Effects) -> Body:
        begun.append(request.body["n"])
        await gates[request.body["n"]].wait()
        transaction.incrby("count:n", 1)
        return {"n": request.body["n"]}

    one = await backend.join(worker)
    calls = [asyncio.ensure_future(one.call(Class("A"), "gate.pass", {"n": n})) for n in range(len(gates))]

    async def all_begun() -> bool:
        return len(begun) == len(gates)

    await eventually(all_begun)
    for n in order:
        gates[n].set()
    assert [await calls[n] for n in order] == [{"n": n} for n in order]
    assert await one.store().get("count:n") == str(len(order))
    for gate in gates:
        gate.set()
    await asyncio.gather(*calls)
    assert len(begun) == len(gates), "none is taken for another's, and begun again when nobody kept it alive"
    assert await one.store().get("count:n") == str(len(gates))
    assert (await balanced(one))["answered"] == len(gates)


async def test_a_databases_stream_is_worked_in_order(backend: Backend, counting: Counting) -> None:
    """Each handler sees the effect of the entry before, so no handler runs again."""
    one = await backend.join(counting.worker)
    to = Database(one.database)
    answers = await asyncio.gather(*(one.call(to, "count.add", {}) for _ in range(30)))
    assert [answer["n"] for answer in answers] == list(range(1, 31))
    assert len(counting.seen) == 30


async def test_a_handler_that_crashes_is_tried_again_and_its_writes_are_not_there(
    backend: Backend, counting: Counting
) -> None:
    """After an unexpected exception the request is delivered again."""
    one = await backend.join(counting.worker, claim_idle_ms=200)
    counting.crashes = 1
    call = asyncio.ensure_future(one.call(Class("A"), "count.crash", {}))

    async def crashed() -> bool:
        return counting.crashes == 0

    await eventually(crashed)
    assert await counting.n(one) == 0
    assert await call == {"deliveries": 2}
    assert await counting.n(one) == 1000
    assert one.statistics()["class_crashed"] == 1


@pytest.mark.parametrize("to", [Class("A"), Database(1)], ids=["class", "database"])
async def test_a_request_that_always_crashes_becomes_a_dead_letter_with_an_answer(
    backend: Backend, counting: Counting, to: Class | Database
) -> None:
    """After the allowed deliveries the dead letter has the reason, and the caller gets an error."""
    one = await backend.join(counting.worker, claim_idle_ms=200)
    counting.crashes = 1000
    with pytest.raises(GivenUp, match="RuntimeError: a defect"):
        await one.call(to, "count.crash", {"for": "the dead"})
    assert [request.deliveries for request in counting.seen] == [1, 2, 3]
    client = backend.redis()
    ((_, letter),) = await client.xrange(keys.DEAD)
    assert letter["op"] == "count.crash" and letter["body"] == '{"for":"the dead"}'
    assert letter["reason"] == "RuntimeError: a defect" and letter["deliveries"] == "3"
    assert (await balanced(one))["dead"] == 1
    await client.aclose()


@pytest.mark.parametrize("to", [Class("A"), Database(1)], ids=["class", "database"])
@pytest.mark.parametrize(
    ("op", "runs", "deliveries", "error"),
    [("count.never", 100, [1], Contended), ("count.wrong", 3, [1, 2, 3], GivenUp)],
)
async def test_a_commit_that_never_comes_true_is_given_up(
    backend: Backend,
    counting: Counting,
    to: Class | Database,
    op: str,
    runs: int,
    deliveries: list[int],
    error: type[MeshError],
) -> None:
    """After a hundred conflicts the caller is told; a write that Redis cannot do is tried once a delivery. The next
    request of the same stream is answered."""
    one = await backend.join(counting.worker, claim_idle_ms=100)
    text = one.transaction()
    text.set("count:text", "text")
    assert await one.commit(text)
    with pytest.raises(error, match=r"count:n changed 100 times|count:text holds a string"):
        await one.call(to, op, {})
    assert len(counting.seen) == runs
    facts = one.statistics()
    assert facts["class_conflicts"] + facts["database_conflicts"] == (runs if error is Contended else 0)
    assert sorted({request.deliveries for request in counting.seen}) == deliveries
    assert (await one.call(to, "count.add", {"name": "count:other"}))["n"] == 1
    assert (await balanced(one))["dead"] == (error is GivenUp)


async def test_what_cannot_be_said_to_redis_fails_its_own_request_and_none_beside_it(
    backend: Backend, counting: Counting
) -> None:
    """A handler that writes something other than text or a number crashes.

    Other transactions of the trip are applied.
    """
    one = await backend.join(counting.worker, claim_idle_ms=200)
    beside = [one.call(Class("A"), "count.add", {"name": f"count:{n}"}) for n in range(20)]
    wrong, *right = await asyncio.gather(one.call(Class("A"), "count.unsayable", {}), *beside, return_exceptions=True)
    assert isinstance(wrong, GivenUp) and "not NoneType" in str(wrong)
    assert [answer["n"] for answer in right if isinstance(answer, dict)] == [1] * 20
    assert {request.deliveries for request in counting.seen} == {1}
    assert (await balanced(one))["dead"] == 1


async def test_an_entry_that_is_no_request_becomes_a_dead_letter_and_holds_nobody_up(
    backend: Backend, counting: Counting
) -> None:
    """An operator may put anything on a stream. The requests behind it are still handled."""
    one = await backend.join(counting.worker)
    client = backend.redis()
    for stream in (Class("A").stream, Database(1).stream):
        await client.xadd(stream, {"hello": "world"})
        await client.xadd(stream, {"op": "count.add", "body": "[1"})
    assert (await one.call(Class("A"), "count.add", {}))["n"] == 1
    assert (await one.call(Database(1), "count.add", {}))["n"] == 2

    async def buried() -> bool:
        return await client.xlen(keys.DEAD) == 4

    await eventually(buried)
    # No script has accepted what was written by hand.
    books = await one.books()
    await client.hincrby(keys.BOOKS, "accepted", sum(books.values()) - 2 * books["accepted"])


async def test_a_call_ends_at_its_deadline_and_its_work_is_cancelled(backend: Backend, counting: Counting) -> None:
    """The handler is cancelled at the deadline and has no effect. The books count the request as expired."""
    one = await backend.join(counting.worker)
    clock = asyncio.get_running_loop().time
    started = clock()
    with pytest.raises(DeadlineExceeded):
        await one.call(Class("A"), "count.wait", {}, deadline_ms=400)
    assert 0.3 < clock() - started < 1.4

    async def over() -> bool:
        return counting.cancelled == 1 and (await balanced(one))["expired"] == 1

    await eventually(over, 3)
    assert await counting.n(one) == 0


async def test_work_past_its_deadline_is_not_begun(backend: Backend, counting: Counting) -> None:
    """A replica that gets a request after its deadline removes it without running its handler."""
    one = await backend.join(counting.worker, concurrency=1)
    busy = asyncio.ensure_future(one.call(Class("A"), "count.wait", {}, deadline_ms=1500))

    async def begun() -> bool:
        return len(counting.seen) == 1

    await eventually(begun)
    with pytest.raises(DeadlineExceeded):
        await one.call(Class("A"), "count.add", {}, deadline_ms=200)
    counting.gate.set()
    await busy

    async def ended() -> bool:
        return (await balanced(one))["in_flight"] == 0

    await eventually(ended, 3)
    assert [request.op for request in counting.seen] == ["count.wait"]
    assert (await balanced(one))["expired"] == 1


async def test_work_nobody_waits_for_any_more_is_cancelled(backend: Backend, counting: Counting) -> None:
    """A cancelled call removes its request from the stream, and the replica that works on it cancels the handler."""
    one = await backend.join(counting.worker)
    call = asyncio.ensure_future(one.call(Class("A"), "count.wait", {}))

    async def begun() -> bool:
        return len(counting.seen) == 1

    await eventually(begun)
    call.cancel()

    async def cancelled() -> bool:
        return counting.cancelled == 1 and (await balanced(one))["cancelled"] == 1

    await eventually(cancelled, 3)
    assert await counting.n(one) == 0


async def test_a_gather_that_is_not_complete_names_who_is_missing(backend: Backend, counting: Counting) -> None:
    """A part of the answers is never returned as if it were all."""
    fast = Counting()
    fast.gate.set()
    one = await backend.join(fast.worker)
    two = await backend.join(counting.worker)
    with pytest.raises(Incomplete) as caught:
        await one.gather("count.wait", {}, deadline_ms=400)
    assert caught.value.missing == [two.database]


async def test_more_than_may_wait_is_refused_at_once(backend: Backend, counting: Counting) -> None:
    """Every queue has a bound. A request beyond it is refused, and is never in the books."""
    one = await backend.join(counting.worker, stream_bound=3)
    calls = [asyncio.ensure_future(one.call(Class("A"), "count.wait", {})) for _ in range(3)]

    async def waiting() -> bool:
        return len(counting.seen) == 3

    await eventually(waiting)
    with pytest.raises(Busy) as caught:
        await one.call(Class("A"), "count.add", {})
    assert caught.value.retry_after is not None
    counting.gate.set()
    assert len(await asyncio.gather(*calls)) == 3
    assert (await balanced(one))["accepted"] == 3


async def test_what_was_answered_leaves_nothing_behind(backend: Backend, counting: Counting) -> None:
    """Requests are acknowledged and deleted, so a request stream holds only those in progress."""
    one = await backend.join(counting.worker)
    await asyncio.gather(*(one.call(Class("A"), "count.add", {}) for _ in range(20)))
    client = backend.redis()
    assert await client.xlen(Class("A").stream) == 0
    assert (await client.xpending(Class("A").stream, keys.GROUP))["pending"] == 0
    await client.aclose()


async def test_a_replicas_data_are_in_its_database_under_its_prefix(backend: Backend, counting: Counting) -> None:
    """The keys db{n}:… are in database n, and none of them in the bus."""
    one, two = [await backend.join(counting.worker) for _ in range(2)]
    await one.call(Database(two.database), "count.add", {})
    client = backend.redis(db=two.database)
    assert sorted(await client.keys()) == ["db2:class", "db2:count:n", "db2:format", "db2:written"]
    assert not [key for key in await backend.redis().keys() if key.startswith("db")]
    await client.aclose()


async def test_a_database_keeps_its_class_and_its_data(backend: Backend, counting: Counting) -> None:
    """A later holder takes over its class, even if it was told to have another one."""
    worker = counting.worker
    async with _joined(backend, worker) as one:
        database, cls = one.database, one.cls
        await one.call(Class(cls), "count.add", {})
    async with _joined(backend, worker, class_="D") as again:
        assert (again.database, again.cls) == (database, cls)
        assert again.epoch > one.epoch
        assert await counting.n(again) == 1


async def test_the_first_class_is_the_rarest_live_one_unless_it_is_set(backend: Backend) -> None:
    """Four replicas have all four classes, unless MESH_CLASS names one."""
    members = [await backend.join() for _ in range(5)]
    assert [member.cls for member in members] == ["A", "B", "C", "D", "A"]
    assert (await backend.join(class_="C")).cls == "C"
    assert [row.cls for row in await members[0].roster()] == ["A", "B", "C", "D", "A", "C"]


async def test_work_of_a_replica_that_is_gone_is_taken_over(backend: Backend, counting: Counting) -> None:
    """Another replica claims a request that was not kept alive for the claim idle time. This counts as a delivery."""
    one = await backend.join(counting.worker, claim_idle_ms=400, class_="A")
    await one.call(Class("A"), "count.read", {})
    client = backend.redis()
    # A consumer that reads and is never heard of again is what kill -9 leaves behind.
    async with Paused(one):
        call = asyncio.ensure_future(one.call(Class("A"), "count.add", {}))
        taken: list[Any] = []

        async def take() -> bool:
            taken[:] = await client.xreadgroup(keys.GROUP, "replica-dead", {Class("A").stream: ">"}, count=1)
            return bool(taken)

        await eventually(take)
    assert (await call)["n"] == 1
    assert counting.seen[1].deliveries == 2
    facts = one.statistics()
    counted = {name: count for name, count in facts.items() if count and name.startswith(("class_", "database_"))}
    assert counted == {"class_reclaimed": 1, "class_done": 2}
    await client.aclose()


async def test_work_claimed_by_another_has_no_effect_here(backend: Backend, counting: Counting) -> None:
    """The commit refuses a request that is not pending for its own consumer. So each effect happens once."""
    one = await backend.join(counting.worker, claim_idle_ms=60_000)
    call = asyncio.ensure_future(one.call(Class("A"), "count.wait", {}, deadline_ms=1000))

    async def begun() -> bool:
        return len(counting.seen) == 1

    await eventually(begun)
    client = backend.redis()
    await client.xclaim(Class("A").stream, keys.GROUP, "replica-other", 0, [counting.seen[0].id])
    counting.gate.set()
    with pytest.raises(DeadlineExceeded):
        await call
    assert await counting.n(one) == 0
    await client.aclose()


async def test_a_lease_in_other_hands_stops_the_replica(backend: Backend, counting: Counting) -> None:
    """Every commit and every submission checks the lease. The membership ends with LeaseLost."""
    client = backend.redis()
    with pytest.raises(LeaseLost):
        async with _joined(backend, counting.worker) as one:
            await client.set(keys.lease(one.database), f"{one.epoch + 1} replica-other", px=60_000)
            transaction = one.transaction()
            transaction.set("count:n", 1)
            with pytest.raises(LeaseLost):
                await one.commit(transaction)
            assert not await backend.redis(db=one.database).get(f"{keys.own(one.database)}count:n")
            await asyncio.sleep(5)
    await client.aclose()


async def test_nothing_is_submitted_under_a_lease_in_other_hands(backend: Backend, counting: Counting) -> None:
    """The successor's requests must not mix with those of a holder that has not noticed yet."""
    other = await backend.join(counting.worker, class_="B")
    client = backend.redis()
    with pytest.raises(LeaseLost):
        async with _joined(backend, counting.worker, lease_ttl_ms=30_000) as one:
            await client.set(keys.lease(one.database), f"{one.epoch + 1} replica-other", px=60_000)
            with pytest.raises(LeaseLost):
                await one.call(Class("B"), "count.add", {})
            await asyncio.sleep(5)
    assert counting.seen == [] and (await balanced(other))["accepted"] == 0
    await client.aclose()


async def test_a_membership_that_ends_by_itself_ends_the_work_under_way(backend: Backend, counting: Counting) -> None:
    """Requests in progress are cancelled, and none is left when `join` raises."""
    client = backend.redis()
    with pytest.raises(LeaseLost):
        async with _joined(backend, counting.worker) as one:
            waiting = asyncio.ensure_future(one.call(Class(one.cls), "count.wait", {}))

            async def begun() -> bool:
                return len(counting.seen) == 1

            await eventually(begun)
            await client.set(keys.lease(one.database), f"{one.epoch + 1} replica-other", px=60_000)
            with pytest.raises(MeshError):
                await one.call(Class(one.cls), "count.add", {})
            await asyncio.sleep(5)
    assert counting.cancelled == 1
    with pytest.raises(MeshError):
        await waiting
    await client.aclose()


async def test_a_replica_that_leaves_hands_its_work_back(backend: Backend, counting: Counting) -> None:
    """In a drain, work that does not end in time is handed back, so that another replica takes it over at once."""
    slow = Counting()
    async with _joined(backend, slow.worker, class_="A", deadline_ms=600) as leaving:
        caller = await backend.join(counting.worker, class_="A", claim_idle_ms=60_000)
        counting.gate.set()
        async with Paused(caller):
            call = asyncio.ensure_future(caller.call(Class("A"), "count.wait", {}, deadline_ms=5000))

            async def begun() -> bool:
                return len(slow.seen) == 1

            await eventually(begun)
    assert leaving.database != caller.database
    # Handed back as if idle for its own claim idle time; this caller's reclaim is told to be as quick.
    client = backend.redis()
    pending = await client.xpending_range(Class("A").stream, keys.GROUP, "-", "+", 10)
    assert [entry["message_id"] for entry in pending] == [slow.seen[0].id]
    assert pending[0]["time_since_delivered"] >= 2000
    assert pending[0]["times_delivered"] == 0, "an interrupted delivery does not count"
    assert slow.cancelled == 1
    call.cancel()
    await client.aclose()


async def test_a_replica_that_leaves_answers_what_waits_for_its_database(backend: Backend, counting: Counting) -> None:
    """No other replica can answer them yet. So it keeps its lease until it has answered them, but not for long."""
    slow = Counting()
    caller = await backend.join(counting.worker)
    async with _joined(backend, slow.worker) as leaving:
        to = Database(leaving.database)
        calls = [asyncio.ensure_future(caller.call(to, "count.wait", {})) for _ in range(2)]

        async def begun() -> bool:
            return len(slow.seen) == 1

        await eventually(begun)

        async def open_gate() -> None:
            """Let the handlers end a moment after the replica has stopped to take requests of its class."""
            await leaving._class_consumer._ended.wait()
            await asyncio.sleep(0.1)
            slow.gate.set()

        opening = asyncio.create_task(open_gate())
    assert await asyncio.gather(*calls, opening) == [{"database": leaving.database}] * 2 + [None]
    assert slow.cancelled == 0


async def test_released_and_granted_again_at_once(backend: Backend) -> None:
    """After an orderly end the database is free at once, not only at the end of its lease."""
    async with _joined(backend) as one:
        first = one.database
    started = time.monotonic()
    again = await backend.join()
    assert again.database == first
    assert time.monotonic() - started < 1


def _joined(backend: Backend, worker: Worker | None = None, **settings: Any) -> Any:
    """Return a membership that the test ends itself."""
    chosen = backend.settings.model_copy(update=settings)
    return join(worker or Worker(), chosen, connections=backend.connections)


class Paused:
    """Stops a replica from reading the requests of its class while the block lasts."""

    def __init__(self, replica: Replica) -> None:
        self._reader = replica._class_consumer._reader

    async def __aenter__(self) -> None:
        self._read = self._reader.read
        idle = asyncio.Event()

        async def nothing(count: int, block_ms: int) -> list[Any]:
            idle.set()
            await asyncio.sleep(0.01)
            return []

        self._reader.read = nothing  # type: ignore[method-assign]
        async with asyncio.timeout(5):
            await idle.wait()

    async def __aexit__(self, *_: object) -> None:
        self._reader.read = self._read  # type: ignore[method-assign]
