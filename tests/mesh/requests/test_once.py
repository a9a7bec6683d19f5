"""Idempotency keys: one effect and one answer for all calls with a key, although callers hang up and replicas die."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from mesh import (
    Busy,
    Class,
    DeadlineExceeded,
    KeyReused,
    Limit,
    Mesh,
    MeshError,
    OlderRelease,
    Operations,
    Refused,
    Transaction,
    Unavailable,
    UsageError,
    keys,
)
from mesh.testing import MeshKit
from tests.support.backend import Backend
from tests.support.bank import ONE_CLASS, Paying, Payment, balanced, nothing_open
from tests.support.waiting import eventually


@pytest.fixture
async def bank() -> Paying:
    return Paying()


async def test_the_second_call_gets_the_answer_of_the_first(backend: Backend, bank: Paying) -> None:
    mesh = Mesh(await backend.join(bank.table.worker))
    assert await mesh.call(bank.pay, Payment(5), key="a") == 5
    assert await mesh.call(bank.pay, Payment(5), key="a") == 5
    assert await mesh.call(bank.pay, Payment(5), key="b") == 10
    assert await mesh.call(bank.pay, Payment(5)) == 15
    assert (await balanced(mesh))["accepted"] == 3


async def test_calls_at_the_same_time_have_one_effect(backend: Backend, bank: Paying) -> None:
    """All of them wait for the one request, in one batch and in several."""
    one = Mesh(await backend.join(bank.table.worker, classes="A"))
    two = Mesh(await backend.join(bank.table.worker, classes="A"))
    bank.open.clear()
    calls = [asyncio.create_task(each.call(bank.pay, Payment(7), key="a")) for each in (one, two) * 10]
    await bank.begun.wait()
    late = asyncio.create_task(two.call(bank.pay, Payment(7), key="a"))
    await asyncio.sleep(0.05)
    bank.open.set()
    assert await asyncio.gather(*calls, late) == [7] * 21
    assert await one.call(bank.read) == 7
    assert (await balanced(one))["answered"] == 2


async def test_an_answer_is_kept_for_a_day_unless_the_caller_says_otherwise(backend: Backend, bank: Paying) -> None:
    """The time counts from the answer."""
    mesh = Mesh(await backend.join(bank.table.worker))
    await mesh.call(bank.pay, Payment(5), key="a")
    await mesh.call(bank.pay, Payment(5), key="b", keep=timedelta(hours=2))
    client = backend.redis()
    ends = sorted([await client.pttl(key) / 3_600_000 async for key in client.scan_iter("mesh:once:*")])
    assert ends == pytest.approx([2, 24], abs=0.01)
    await client.aclose()


async def test_a_later_call_gets_what_the_first_one_got(backend: Backend, bank: Paying) -> None:
    """The reply also says who answered, where, and which request."""
    one = await backend.join(bank.table.worker)
    client = backend.redis()
    for _ in range(2):
        assert await Mesh(one).call(bank.pay, Payment(5), key="a") == 5
    first, second = [fields for _, fields in await client.xrange(keys.replies(one.id)) if "request" in fields]
    for name in ("op", "from", "status", "forwards", "body", "asked", "db"):
        assert first[name] == second[name], name
    assert (first["from"], first["db"]) == (one.id, str(one.database))
    await client.aclose()


async def test_another_body_is_refused(backend: Backend, bank: Paying) -> None:
    """The key holds while the first request is in progress and afterwards, for its own operation only."""
    mesh = Mesh(await backend.join(bank.table.worker))
    bank.open.clear()
    first = asyncio.create_task(mesh.call(bank.pay, Payment(5), key="a"))
    await bank.begun.wait()
    with pytest.raises(KeyReused, match="the idempotency key a was used with another body"):
        await mesh.call(bank.pay, Payment(6), key="a")
    bank.open.set()
    assert await first == 5
    with pytest.raises(KeyReused):
        await mesh.call(bank.pay, Payment(6), key="a")
    assert await mesh.call(bank.attempt, Payment(6), key="a") == 11


async def test_operations_in_one_batch_share_no_key(backend: Backend, bank: Paying) -> None:
    """Calls of two operations have one key, one body and one deadline, and go to Redis together."""
    mesh = Mesh(await backend.join(bank.table.worker))
    assert await mesh.call(bank.pay, Payment(5), key="a") == 5
    again = mesh.call(bank.pay, Payment(5), key="a")
    other = mesh.call(bank.attempt, Payment(5), key="a")
    assert await asyncio.gather(again, other) == [5, 10]


async def test_the_answer_is_kept_for_so_long(bank: Paying) -> None:
    async with MeshKit(bank.table, **ONE_CLASS) as kit:
        mesh = kit[0]
        assert await mesh.call(bank.pay, Payment(1), key="day") == 1
        assert await mesh.call(bank.pay, Payment(1), key="minute", keep=timedelta(minutes=1)) == 2
        await kit.advance(seconds=59)
        assert await mesh.call(bank.pay, Payment(1), key="minute", keep=timedelta(minutes=1)) == 2
        await kit.advance(seconds=2)
        assert await mesh.call(bank.pay, Payment(1), key="minute") == 3
        await kit.advance(hours=23)
        assert await mesh.call(bank.pay, Payment(1), key="day") == 1
        await kit.advance(hours=2)
        assert not [name async for name in kit.redis().scan_iter("mesh:once:*")]


async def test_a_request_holds_its_key_longer_than_its_answer_is_kept(bank: Paying) -> None:
    """A request may have no deadline, or callers that wait long for a place in a lane."""
    second = timedelta(seconds=1)
    gate, begun = asyncio.Event(), asyncio.Event()

    @bank.table.command(limit=Limit(concurrency=1))
    async def queue(tx: Transaction, body: Payment) -> int:
        begun.set()
        await gate.wait()
        return body.amount

    async with MeshKit(bank.table, **ONE_CLASS) as kit:
        mesh = kit[0]
        bank.open.clear()
        await mesh.send(bank.pay, Payment(5), key="a", keep=second)
        running = asyncio.create_task(mesh.call(queue, Payment(1), deadline=100 * second))
        await bank.begun.wait()
        await begun.wait()
        short = asyncio.create_task(mesh.call(queue, Payment(2), key="b", keep=second, deadline=second))
        await asyncio.sleep(0.1)
        long = asyncio.create_task(mesh.call(queue, Payment(2), key="b", keep=second, deadline=60 * second))
        await asyncio.sleep(0.1)
        await kit.advance(seconds=1.5)
        with pytest.raises(DeadlineExceeded):
            await short
        await kit.advance(seconds=3)
        await mesh.send(bank.pay, Payment(5), key="a", keep=second)
        bank.open.set()
        gate.set()
        assert await asyncio.gather(running, long) == [1, 2]

        async def over() -> bool:
            books = await balanced(mesh)
            return books["in_flight"] == books["waiting"] == 0

        await eventually(over)
        assert await mesh.call(bank.read) == 5


async def test_a_refusal_is_an_answer(backend: Backend, bank: Paying) -> None:
    mesh = Mesh(await backend.join(bank.table.worker))
    bank.error = Refused("no money", missing=3)
    for _ in range(2):
        with pytest.raises(Refused, match="no money") as caught:
            await mesh.call(bank.pay, Payment(1), key="a")
        assert caught.value.facts["missing"] == 3
        bank.error = None
    assert await mesh.call(bank.read) == 0


@pytest.mark.parametrize("error", [Busy("later", retry_after=1), Refused("later", retry_after=1), Unavailable("away")])
async def test_what_may_succeed_later_frees_the_key(backend: Backend, bank: Paying, error: Exception) -> None:
    mesh = Mesh(await backend.join(bank.table.worker))
    bank.error = error
    with pytest.raises(type(error)):
        await mesh.call(bank.pay, Payment(1), key="a")
    bank.error = None
    assert await mesh.call(bank.pay, Payment(2), key="a") == 2


class TestWhoHangsUp:
    """Only that caller leaves, even if it is the first; with the last one the request goes, too."""

    @pytest.mark.parametrize("who", [0, 1])
    async def test_one_of_two(self, backend: Backend, bank: Paying, who: int) -> None:
        mesh = Mesh(await backend.join(bank.table.worker))
        bank.open.clear()
        calls = [asyncio.create_task(mesh.call(bank.pay, Payment(5), key="a")) for _ in range(2)]
        await bank.begun.wait()
        await asyncio.sleep(0.05)
        calls[who].cancel()
        await asyncio.sleep(0.4)
        bank.open.set()
        assert await calls[1 - who] == 5
        assert (await balanced(mesh))["cancelled"] == 0
        assert await mesh.call(bank.pay, Payment(5), key="a") == 5

    async def test_all(self, backend: Backend, bank: Paying) -> None:
        """Nothing happens, and the key is free."""
        mesh = Mesh(await backend.join(bank.table.worker))
        bank.open.clear()
        calls = [asyncio.create_task(mesh.call(bank.pay, Payment(5), key="a")) for _ in range(3)]
        await bank.begun.wait()
        for call in calls:
            call.cancel()

        async def gone() -> bool:
            return (await balanced(mesh))["cancelled"] == 1

        await eventually(gone)
        bank.open.set()
        assert await mesh.call(bank.pay, Payment(6), key="a") == 6

    async def test_a_caller_with_more_time_than_the_first(self, bank: Paying) -> None:
        """The request goes on with its deadline."""
        async with MeshKit(bank.table, **ONE_CLASS) as kit:
            mesh = kit[0]
            bank.open.clear()
            first = asyncio.create_task(mesh.call(bank.pay, Payment(5), key="a", deadline=timedelta(seconds=2)))
            await bank.begun.wait()
            second = asyncio.create_task(mesh.call(bank.pay, Payment(5), key="a", deadline=timedelta(seconds=20)))
            with pytest.raises(DeadlineExceeded):
                await first
            await kit.advance(seconds=5)
            bank.open.set()
            assert await second == 5
            assert (await balanced(mesh))["expired"] == 1
            await nothing_open(kit)

    async def test_all_are_late(self, bank: Paying) -> None:
        async with MeshKit(bank.table, **ONE_CLASS) as kit:
            mesh = kit[0]
            bank.open.clear()
            calls = [mesh.call(bank.pay, Payment(5), key="a", deadline=timedelta(seconds=n)) for n in (2, 4)]
            assert all(
                isinstance(each, DeadlineExceeded) for each in await asyncio.gather(*calls, return_exceptions=True)
            )
            await kit.advance(seconds=5)
            bank.open.set()
            await nothing_open(kit)
            assert await mesh.call(bank.pay, Payment(6), key="a") == 6


class TestSend:
    """`send(key=)`: a request that nobody waits for, and calls that ask for its answer."""

    async def test_once(self, backend: Backend, bank: Paying) -> None:
        mesh = Mesh(await backend.join(bank.table.worker))
        for _ in range(3):
            await mesh.send(bank.pay, Payment(5), key="a")
        assert await mesh.call(bank.pay, Payment(5), key="a") == 5
        await mesh.send(bank.pay, Payment(5), key="a")
        with pytest.raises(KeyReused):
            await mesh.send(bank.pay, Payment(6), key="a")
        assert (await balanced(mesh))["accepted"] == 1

    async def test_it_goes_on_without_the_calls_that_wait_for_it(self, backend: Backend, bank: Paying) -> None:
        mesh = Mesh(await backend.join(bank.table.worker))
        bank.open.clear()
        call = asyncio.create_task(mesh.call(bank.pay, Payment(5), key="a"))
        await bank.begun.wait()
        await mesh.send(bank.pay, Payment(5), key="a")
        call.cancel()
        await asyncio.sleep(0.4)
        bank.open.set()
        assert await mesh.call(bank.pay, Payment(5), key="a") == 5
        assert (await balanced(mesh))["cancelled"] == 0


async def test_lost_answers_change_nothing(bank: Paying) -> None:
    async with MeshKit(bank.table, replicas=2, **ONE_CLASS) as kit:
        kit.lose_answers(5)
        kit.lose_requests(3)
        calls = [kit[n % 2].call(bank.pay, Payment(1), key=f"k{n % 10}") for n in range(40)]
        found = await asyncio.gather(*calls)
        assert [found[n] == found[n % 10] for n in range(40)] == [True] * 40
        assert await kit[0].call(bank.read) == 10
        await nothing_open(kit)


async def test_the_successor_of_a_killed_replica_answers_all(bank: Paying) -> None:
    async with MeshKit(bank.table, replicas=2, **ONE_CLASS) as kit:
        bank.open.clear()
        calls = [asyncio.create_task(kit[0].call(bank.pay, Payment(1), key="a")) for _ in range(2)]
        await bank.begun.wait()
        await kit.kill(1)
        bank.open.set()
        await kit.start()
        assert await asyncio.gather(*calls) == [1, 1]


async def test_no_key_while_an_older_release_is_live(bank: Paying) -> None:
    """An older release would end a request without freeing its key."""
    async with MeshKit(bank.table, **ONE_CLASS) as kit:
        await kit.redis().hset("mesh:replica:5", mapping={"class": "B", "replica": "old", "reads": "1"})
        with pytest.raises(OlderRelease, match=r"key= cannot be used while old \(database 5"):
            await kit[0].call(bank.pay, Payment(5), key="a")
        await kit.redis().delete("mesh:replica:5")
        await kit.advance(seconds=2)
        assert await kit[0].call(bank.pay, Payment(5), key="a") == 5


@pytest.mark.parametrize("key", ["", "two words", "x" * 201, "ä", 5])
async def test_a_key_is_a_word(backend: Backend, bank: Paying, key: str) -> None:
    mesh = Mesh(await backend.join(bank.table.worker))
    with pytest.raises(UsageError, match="a key is 1 to 200 visible ASCII characters"):
        await mesh.call(bank.pay, Payment(5), key=key)
    with pytest.raises(UsageError, match="keep= is a timedelta"):
        await mesh.call(bank.pay, Payment(5), key="a", keep=timedelta(0))


async def test_a_request_that_is_passed_on_takes_no_key(backend: Backend) -> None:
    table = Operations("pass")

    @table.command
    async def on(tx: Transaction, body: Payment) -> int | None:
        tx.forward(on, body, to=Class("A"))
        return None

    mesh = Mesh(await backend.join(table.worker))
    with pytest.raises(UsageError, match="forwards its requests"):
        await mesh.call(on, Payment(5), key="a")


async def test_the_key_holds_something_else(backend: Backend, bank: Paying) -> None:
    mesh = Mesh(await backend.join(bank.table.worker))
    await mesh.shared.execute_command("SET", "mesh:once:bank.pay:a", "x")
    with pytest.raises(MeshError, match=r"mesh:once:bank\.pay:a is a key of the wrong type"):
        await mesh.call(bank.pay, Payment(5), key="a")
    assert await mesh.call(bank.pay, Payment(5), key="b") == 5
