"""The kit is a mesh: what it promises about replicas, faults and what it shows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from mesh import Class, Database, GivenUp, LeaseLost, MeshError, Operations, Refused, SetupError, Transaction
from mesh.later.due import Due
from mesh.raw import Body, Effects, Request, Store, Worker
from mesh.settings import RedisSettings
from mesh.testing import Committed, MeshKit, Sent
from mesh.testing.record import is_commit
from mesh.testing.wire import KitConnection
from mesh.wire.connection import Command, RedisConnection
from tests.support.server import Server

TOTAL = "greetings:total"


class Greetings:
    """A worker that counts, and what its handlers saw."""

    def __init__(self) -> None:
        self.worker = Worker()
        self.deliveries: list[tuple[int, int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.worker.handles("greetings.put")(self.put)
        self.worker.handles("greetings.refuse")(self.refuse)
        self.worker.handles("greetings.tell")(self.tell)
        self.worker.handles("greetings.count", effect=False)(self.count)

    async def put(self, request: Request, store: Store, transaction: Effects) -> Body:
        self.deliveries.append((store.database, request.deliveries))
        await self.gate.wait()
        transaction.incrby(TOTAL, 1)
        return {"database": store.database}

    async def refuse(self, request: Request, store: Store, transaction: Effects) -> Body:
        transaction.incrby(TOTAL, 1)
        raise Refused("not today")

    async def tell(self, request: Request, store: Store, transaction: Effects) -> Body:
        transaction.send(Database(store.database), "greetings.put", {"from": "tell"})
        return {}

    async def count(self, request: Request, store: Store, transaction: Effects) -> Body:
        return {"count": int(await store.get(TOTAL) or 0)}


@pytest.fixture
def greetings() -> Greetings:
    return Greetings()


@pytest.fixture(params=["fake", "real"])
def kit_of(request: pytest.FixtureRequest, greetings: Greetings) -> Callable[..., MeshKit]:
    """`kit_of(replicas=2)`: a kit of greetings, over fakeredis and over a real server."""
    url = None if request.param == "fake" else request.getfixturevalue("server").url
    return lambda **options: MeshKit(greetings.worker, redis=url, **options)


async def test_its_replicas_are_a_mesh(kit_of: Callable[..., MeshKit]) -> None:
    """Each has a database of its own; a call reaches one, a gather all."""
    async with kit_of(replicas=3) as kit:
        assert [(kit[n].database, kit[n].cls) for n in range(len(kit))] == [(1, "A"), (2, "B"), (3, "C")]
        assert await kit[0].replica.call(Database(2), "greetings.put", {}) == {"database": 2}
        found = await kit[2].replica.gather("greetings.count", {})
        assert found == {1: {"count": 0}, 2: {"count": 1}, 3: {"count": 0}}
        assert await kit.read(TOTAL, database=2) == "1"
        assert (await kit.books())["answered"] == 4


async def test_it_shows_commands_that_had_their_effect(kit_of: Callable[..., MeshKit], greetings: Greetings) -> None:
    """The record has commands and sends with what they led to, and neither queries nor refusals."""
    async with kit_of() as kit:
        await kit[0].replica.call(Class("A"), "greetings.count", {})
        with pytest.raises(Refused):
            await kit[0].replica.call(Class("A"), "greetings.refuse", {})
        await kit[0].replica.call(Class("A"), "greetings.tell", {})
        await kit.advance(seconds=1)
        assert [(c.op, c.database, c.reply) for c in kit.committed] == [
            ("greetings.tell", 1, {}),
            ("greetings.put", 1, None),
        ]
        assert isinstance(kit.committed[0], Committed)
        assert kit.sent == [Sent("greetings.put", Database(1), {"from": "tell"})]
        assert kit.ran("greetings.count") == kit.ran("greetings.refuse") == kit.ran("greetings.put") == 1


async def test_a_lost_answer_changes_nothing(kit_of: Callable[..., MeshKit]) -> None:
    """Redis has done it, the replica does not know, and sends it again."""
    async with kit_of(replicas=2) as kit:
        kit.lose_answers(7)
        for _ in range(5):
            await kit[0].replica.call(Class("B"), "greetings.put", {})
        kit.lose_requests(3)
        await kit[0].replica.call(Class("B"), "greetings.put", {})
        assert await kit.read(TOTAL, database=2) == "6"
        assert [c.op for c in kit.committed] == ["greetings.put"] * 6
        assert kit.ran("greetings.put") == 6


@pytest.mark.parametrize("before", ["handler", "commit"])
async def test_a_run_that_fails_is_delivered_again(kit_of: Callable[..., MeshKit], before: str) -> None:
    """Of a failed run nothing happens; neighbours in the same trip are not touched."""
    async with kit_of() as kit:
        kit.fail("greetings.put", before=before)  # type: ignore[arg-type]
        calls = [kit[0].replica.call(Class("A"), op, {}) for op in ("greetings.put", "greetings.tell", "greetings.put")]
        await asyncio.gather(*calls)
        await kit.advance(seconds=1)
        assert kit.ran("greetings.put") == 4
        assert await kit.read(TOTAL, database=1) == "3"


async def test_a_request_that_fails_too_often_becomes_a_dead_letter(kit_of: Callable[..., MeshKit]) -> None:
    """The caller learns of it, and the kit shows the letter."""
    async with kit_of() as kit:
        kit.fail("greetings.put", 3)
        with pytest.raises(GivenUp):
            await kit[0].replica.call(Class("A"), "greetings.put", {"name": "x"})
        (letter,) = kit.dead
        assert (letter.op, letter.body, letter.deliveries) == ("greetings.put", {"name": "x"}, 3)
        assert "the kit" in letter.reason
        assert kit.committed == []


async def test_the_work_of_a_killed_replica_is_done_by_its_successor(
    kit_of: Callable[..., MeshKit], greetings: Greetings
) -> None:
    """A killed replica hands nothing back, and its lease ends at once."""
    async with kit_of(replicas=2) as kit:
        greetings.gate.clear()
        call = asyncio.create_task(kit[0].replica.call(Database(2), "greetings.put", {}))
        while not greetings.deliveries:
            await asyncio.sleep(0.01)
        await kit.kill(1)
        greetings.gate.set()
        successor = await kit.start()
        assert successor.database == 2
        assert await call == {"database": 2}
        assert greetings.deliveries == [(2, 1), (2, 2)]
        with pytest.raises(MeshError):
            await kit[1].replica.call(Class("A"), "greetings.put", {})


async def test_a_stopped_replica_leaves_in_order(kit_of: Callable[..., MeshKit], greetings: Greetings) -> None:
    """A stopped replica finishes what it has begun."""
    async with kit_of(replicas=2) as kit:
        greetings.gate.clear()
        call = asyncio.create_task(kit[0].replica.call(Class("B"), "greetings.put", {}))
        while not greetings.deliveries:
            await asyncio.sleep(0.01)
        asyncio.get_running_loop().call_later(0.5, greetings.gate.set)
        await kit.stop(1)
        assert await call == {"database": 2}
        assert greetings.deliveries == [(2, 1)]


async def test_a_frozen_replica_loses_its_lease(kit_of: Callable[..., MeshKit], greetings: Greetings) -> None:
    """Redis hears nothing of it, and another one gets its database; it notices when it goes on."""
    async with kit_of(replicas=2) as kit:
        kit.freeze(1)
        successor = await kit.start()
        assert successor.database == 2
        kit.thaw(1)
        await asyncio.sleep(0.5)
        with pytest.raises((LeaseLost, MeshError)):
            await kit[1].replica.call(Class("A"), "greetings.put", {})
        assert await kit[0].replica.call(Database(2), "greetings.put", {}) == {"database": 2}


async def test_a_short_freeze_costs_nothing(kit_of: Callable[..., MeshKit], greetings: Greetings) -> None:
    """A replica that goes on before its lease ends is a member as before."""
    async with kit_of(replicas=2) as kit:
        kit.freeze(1)
        call = asyncio.create_task(kit[0].replica.call(Database(2), "greetings.put", {}))
        await asyncio.sleep(1)
        assert greetings.deliveries == []
        kit.thaw(1)
        assert await call == {"database": 2}


async def test_a_replica_may_have_operations_and_settings_of_its_own(kit_of: Callable[..., MeshKit]) -> None:
    """A replica of the kit can have the operations of the next release."""
    async with kit_of() as kit:
        other = await kit.start(Worker(), class_="D")
        assert (other.cls, other.settings.class_) == ("D", "D")
        with pytest.raises(Refused, match=r"greetings\.put"):
            await kit[0].replica.call(Class("D"), "greetings.put", {})


async def test_books_that_do_not_balance_fail_the_test(kit_of: Callable[..., MeshKit]) -> None:
    """A request that vanished is a defect, whatever made it vanish."""
    with pytest.raises(AssertionError, match="the books do not balance"):
        async with kit_of() as kit:
            await kit[0].replica.call(Class("A"), "greetings.put", {})
            await kit.redis().hincrby("mesh:books", "accepted", 1)


async def test_the_error_of_the_test_itself_is_the_one_that_counts(kit_of: Callable[..., MeshKit]) -> None:
    """An assertion that fails inside of the block is not hidden by what follows from it."""
    with pytest.raises(ZeroDivisionError):
        async with kit_of() as kit:
            await kit.redis().hincrby("mesh:books", "accepted", 1)
            raise ZeroDivisionError


async def test_a_replica_that_ends_by_itself_fails_the_test(kit_of: Callable[..., MeshKit]) -> None:
    """Nobody has to look at it for that."""
    with pytest.raises(MeshError, match="ended by itself"):
        async with kit_of() as kit:
            await kit.redis().set("mesh:lease:1", "somebody else")
            await asyncio.sleep(1)


async def test_settings_come_from_the_test_and_not_from_the_environment(
    greetings: Greetings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A developer's own variables do not change what a test does."""
    monkeypatch.setenv("MESH_CLASSES", "B")
    monkeypatch.setenv("REDIS_PORT", "tcp://10.0.0.1:6379")  # as Kubernetes sets it beside a service named redis
    monkeypatch.setenv("REDIS_DB", "3")
    async with MeshKit(greetings.worker, claim_idle_ms=700) as kit:
        assert await kit.redis(0).exists("mesh:lease:1")
        assert (kit[0].settings.classes, kit[0].settings.claim_idle_ms) == ("ABCD", 700)


async def test_a_real_server_is_the_one_that_the_test_names(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's variables lead to no other server, and to no other database of this one."""
    monkeypatch.setenv("REDIS_SENTINELS", "localhost:1")
    monkeypatch.setenv("REDIS_DB", "5")
    async with MeshKit(Worker(), redis=server.url) as kit:
        assert await kit.redis(0).exists("mesh:lease:1")
    monkeypatch.delenv("REDIS_SENTINELS")
    settings = RedisSettings(url=SecretStr(server.url.rpartition("/")[0]), db=5)
    async with MeshKit(Worker(), redis=settings) as kit:
        assert await kit.redis(5).keys("mesh:lease:*") == kit._server.sync_client.keys("mesh:lease:*") != []


async def test_a_server_that_is_not_empty_is_left_alone(server: Server) -> None:
    """The kit would delete what it holds."""
    kit = MeshKit(Worker(), redis=server.url)
    await kit.redis(3).set("precious", "1")
    with pytest.raises(SetupError, match="db3"):
        async with kit:
            raise AssertionError
    assert await kit.redis(3).get("precious") == "1"


async def test_a_real_server_is_empty_afterwards(server: Server) -> None:
    """Keys and users are gone, so that the next test finds it as this one did."""
    for _ in range(2):
        async with MeshKit(Worker(), redis=server.url) as kit:
            redis = kit.redis()
            assert len(await redis.acl_list()) > 1
    redis = kit.redis()
    assert await redis.info("keyspace") == {}
    assert len(await redis.acl_list()) == 1
    await redis.aclose()


reminders = Operations("reminders")
told = reminders.value("told", int, 0)


@reminders.command
async def tell(tx: Transaction) -> None:
    """Count that somebody was told."""
    tx.set(told, await tx.get(told) + 1)


@reminders.command
async def remind(tx: Transaction) -> None:
    """Have somebody told tomorrow."""
    tx.send(tell, to=Database(tx.database), after=timedelta(days=1))


async def test_replicas_on_a_real_server_start_at_once(server: Server, greetings: Greetings) -> None:
    """A replica waits until it sees each lease renewed, which is next due after ten seconds here."""
    async with asyncio.timeout(15), MeshKit(greetings.worker, replicas=3, redis=server.url, lease_ttl_ms=60_000) as kit:
        assert [kit[n].database for n in range(len(kit))] == [1, 2, 3]


async def test_a_request_for_later_is_sent_now_and_done_when_it_is_due() -> None:
    """A jump of the clock stops where something is due."""
    async with MeshKit(reminders, replicas=2) as kit:
        await kit[0].call(remind)
        assert kit.sent == [Sent("reminders.tell", Database(1), None, Due.of(timedelta(days=1), None))]
        await kit.advance(hours=23)
        assert kit.ran(tell) == 0
        await kit.advance(hours=2)
        assert kit.ran(tell) == await kit.read(told, database=1) == 1
        assert (await kit.books())["waiting"] == 0


async def test_a_replica_for_which_there_is_no_database_fails_the_test(greetings: Greetings) -> None:
    """Such a replica would wait for a database for ever."""
    async with MeshKit(greetings.worker, databases=1) as kit:
        with pytest.raises(MeshError, match="no lease within 60 s; 1 databases exist"):
            await kit.start()


async def test_who_has_a_reply_finds_its_commit_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit is noted even if the reply comes on another connection before the commit's answer."""
    begin = KitConnection.__init__

    def with_late_commits(connection: KitConnection, inner: RedisConnection, *others: Any) -> None:
        send = inner.send

        async def late(commands: Sequence[Command]) -> list[Any]:
            answers = await send(commands)
            if any(map(is_commit, commands)):
                await asyncio.sleep(1)
            return answers

        inner.send = late  # type: ignore[method-assign]
        begin(connection, inner, *others)

    monkeypatch.setattr(KitConnection, "__init__", with_late_commits)
    async with MeshKit(Greetings().worker, replicas=2) as kit:
        await kit[0].replica.call(Database(2), "greetings.put", {})
        assert [(each.op, each.database) for each in kit.committed] == [("greetings.put", 2)]
