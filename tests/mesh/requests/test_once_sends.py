"""Sends with idempotency keys: from handlers, for later, with limits; each key has one request and one ticket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest
from msgspec import Struct

from mesh import Busy, Class, GivenUp, KeyReused, Limit, Mesh, Ticket, Transaction, keys
from mesh.testing import MeshKit
from tests.support.backend import Backend
from tests.support.bank import ONE_CLASS, Paying, Payment, balanced, nothing_open
from tests.support.lanes import books, without

HOUR = timedelta(hours=1)


class Order(Struct):
    key: str
    amount: int = 5
    twice: bool = False
    after_ms: int = 0
    fails: bool = False


class Ordering(Paying):
    """Handlers that send payments with a key, plain and with limits."""

    def __init__(self) -> None:
        super().__init__()
        table, pay = self.table, self.pay
        self.tickets: list[Ticket] = []
        orders = table.value("orders", int, 0, shared=True)

        @table.command(limit=Limit(concurrency=1))
        async def one_by_one(tx: Transaction, body: Payment) -> int:
            return await pay.handler(tx, body)  # type: ignore[misc, no-any-return]

        @table.command
        async def order(tx: Transaction, body: Order) -> None:
            tx.add(orders)
            after = timedelta(milliseconds=body.after_ms)
            self.tickets.append(tx.send(pay, Payment(body.amount), key=body.key, after=after))
            if body.twice:
                tx.send(pay, Payment(body.amount + body.fails), key=body.key)

        @table.command
        async def order_limited(tx: Transaction, body: Order) -> None:
            for number in range(body.amount):
                tx.send(one_by_one, Payment(1), key=f"{body.key}{number}" if body.key else None)

        @table.command
        async def order_later(tx: Transaction, body: Order) -> None:
            for number in range(body.amount):
                key = f"{body.key}{number}" if body.key else None
                tx.send(pay, Payment(1), key=key, after=HOUR)

        self.order, self.order_limited, self.order_later, self.orders = order, order_limited, order_later, orders
        self.one_by_one = one_by_one


@pytest.fixture
async def bank() -> Ordering:
    return Ordering()


async def paid(mesh: Mesh, bank: Paying, amount: int) -> None:
    """Wait until so much is paid, and nothing is left to do."""
    await books(mesh, in_flight=0, waiting=0)
    assert await mesh.call(bank.read) == amount


class TestForLater:
    """`send` with `key=` and `after=` or `at=`."""

    async def test_one_request_waits_and_one_ticket_names_it(self, backend: Backend, bank: Ordering) -> None:
        mesh = await backend.mesh(bank.table)
        first = await mesh.send(bank.pay, Payment(5), key="a", after=HOUR)
        again = await mesh.send(bank.pay, Payment(5), key="a", at=datetime.now(UTC) + 2 * HOUR)
        plain = await mesh.send(bank.pay, Payment(5), key="a")
        assert first == again == plain
        assert first != await mesh.send(bank.pay, Payment(5), key="b", after=HOUR)
        assert (await balanced(mesh))["waiting"] == 2
        with pytest.raises(KeyReused, match="the idempotency key a was used with another body"):
            await mesh.send(bank.pay, Payment(6), key="a", after=HOUR)
        assert await mesh.cancel(plain)
        assert not await mesh.cancel(first)
        await mesh.send(bank.pay, Payment(6), key="a", after=timedelta(milliseconds=100))
        await books(mesh, answered=1)
        await mesh.send(bank.pay, Payment(6), key="a", after=timedelta(milliseconds=1))
        assert not await mesh.cancel(first)
        assert await mesh.call(bank.read) == 6
        assert (await balanced(mesh))["accepted"] == 4

    async def test_a_call_waits_for_the_answer(self, backend: Backend, bank: Ordering) -> None:
        """The request begins at its time, and not earlier because somebody waits for it."""
        mesh = await backend.mesh(bank.table)
        begun = mesh.now_ms()
        await mesh.send(bank.pay, Payment(5), key="a", after=timedelta(milliseconds=400))
        assert await mesh.call(bank.pay, Payment(5), key="a") == 5
        assert mesh.now_ms() - begun >= 390
        assert await mesh.call(bank.pay, Payment(5), key="a") == 5

    async def test_a_client_sends_likewise(self, backend: Backend, bank: Ordering) -> None:
        mesh = await backend.mesh(bank.table)
        async with backend.connect() as client:
            to = Class(mesh.cls)
            ticket = await client.send(bank.pay, Payment(5), key="a", after=HOUR, to=to)
            assert await client.send(bank.pay, Payment(5), key="a", to=to) == ticket
            assert await mesh.send(bank.pay, Payment(5), key="a") == ticket
            with pytest.raises(KeyReused):
                await client.send(bank.pay, Payment(6), key="a", after=HOUR, to=to)
            assert (await balanced(mesh))["waiting"] == 1
            assert await client.cancel(ticket)
            await client.send(bank.pay, Payment(7), key="a", after=timedelta(milliseconds=1), to=Class(mesh.cls))
        await paid(mesh, bank, 7)

    async def test_the_key_is_held_until_the_request_is_due(self, bank: Ordering) -> None:
        """Years from now, too; its answer is kept from then on."""
        async with MeshKit(bank.table, **ONE_CLASS) as kit:
            ticket = await kit[0].send(bank.pay, Payment(5), key="a", after=timedelta(days=3650), keep=HOUR)
            days = await kit.redis().pttl("mesh:once:bank.pay:a") / 86_400_000
            assert 3650 + 366 < days < 3650 + 367, "it may wait for a year beyond that"
            assert await kit[0].cancel(ticket)
            await kit[0].send(bank.pay, Payment(5), key="a", after=HOUR, keep=timedelta(minutes=1))
            await kit.advance(minutes=61)
            assert await kit[0].call(bank.pay, Payment(5), key="a") == 5
            await kit.advance(minutes=2)
            assert await kit[0].call(bank.pay, Payment(5), key="a") == 10
            await nothing_open(kit)

    async def test_a_limit_counts_when_it_is_due(self, backend: Backend, bank: Ordering) -> None:
        mesh = await backend.mesh(bank.table)
        bank.open.clear()
        for key in "abab":
            await mesh.send(bank.one_by_one, Payment(1), key=key, after=timedelta(milliseconds=100))
        await bank.begun.wait()
        await asyncio.sleep(0.3)
        assert (await balanced(mesh))["waiting"] == 1
        bank.open.set()
        await paid(mesh, bank, 2)

    async def test_no_more_wait_than_may(self, bank: Ordering) -> None:
        async with MeshKit(bank.table, later_bound=2, **ONE_CLASS) as kit, kit.connect() as client:
            senders: list[Callable[..., Awaitable[Ticket]]] = [
                kit[0].send,
                lambda *words, **options: client.send(*words, to=Class("A"), **options),
            ]
            for key in "ab":
                await kit[0].send(bank.pay, Payment(1), key=key, after=HOUR)
            for send in senders:
                with pytest.raises(Busy, match="too many requests wait"):
                    await send(bank.pay, Payment(1), key="c", after=HOUR)
                await send(bank.pay, Payment(1), key="a", after=HOUR)
            assert (await balanced(kit[0]))["accepted"] == 2


class TestOfAHandler:
    """`tx.send` with `key=`."""

    @pytest.mark.parametrize("after_ms", [0, 300])
    async def test_one_request_is_sent(self, backend: Backend, bank: Ordering, after_ms: int) -> None:
        """Several handlers, one handler twice, or a handler and a call may send with one key."""
        mesh = await backend.mesh(bank.table)
        body = Order("a", twice=True, after_ms=after_ms)
        await asyncio.gather(*(mesh.call(bank.order, body) for _ in range(5)))
        assert await mesh.call(bank.pay, Payment(5), key="a") == 5
        await mesh.call(bank.order, body)
        await paid(mesh, bank, 5)
        assert len(set(bank.tickets)) == 1
        assert not await mesh.cancel(bank.tickets[0])

    async def test_another_body_refuses_the_whole_transaction(self, backend: Backend, bank: Ordering) -> None:
        """The handler's caller hears of it, whether another request has used the key or the handler itself."""
        mesh = await backend.mesh(bank.table)
        await mesh.call(bank.order, Order("a"))
        for body in (Order("a", 6), Order("b", twice=True, fails=True)):
            with pytest.raises(KeyReused, match=f"the idempotency key {body.key} was used with another body"):
                await mesh.call(bank.order, body)
        await paid(mesh, bank, 5)
        assert await mesh.shared.get("shared:bank:orders") == "1"

    async def test_without_a_caller_it_becomes_a_dead_letter(self, backend: Backend, bank: Ordering) -> None:
        """The request is buried at once, because another try would meet the same."""
        mesh = await backend.mesh(bank.table)
        await mesh.call(bank.order, Order("a"))
        await mesh.send(bank.order, Order("a", 6))
        await books(mesh, dead=1, in_flight=0)
        ((_, letter),) = await mesh.shared.xrange(keys.DEAD)
        assert (letter["reason"], letter["deliveries"]) == ("key-reused a", "1")

    async def test_its_ticket_takes_it_back(self, backend: Backend, bank: Ordering) -> None:
        mesh = await backend.mesh(bank.table)
        await mesh.call(bank.order, Order("a", after_ms=3_600_000))
        assert await mesh.cancel(bank.tickets[0])
        await mesh.call(bank.order, Order("a", 6))
        await paid(mesh, bank, 6)

    async def test_with_a_limit(self, backend: Backend, bank: Ordering) -> None:
        mesh = await backend.mesh(bank.table)
        await asyncio.gather(*(mesh.call(bank.order_limited, Order("k")) for _ in range(3)))
        await paid(mesh, bank, 5)

    async def test_a_key_that_holds_something_else_refuses_it(self, backend: Backend, bank: Ordering) -> None:
        mesh = await backend.mesh(bank.table)
        await mesh.shared.execute_command("SET", "mesh:once:bank.pay:a", "x")
        with pytest.raises(GivenUp, match=r"wrong-type mesh:once:bank\.pay:a"):
            await mesh.call(bank.order, Order("a"))
        assert await mesh.shared.get("shared:bank:orders") is None


async def test_without_the_look_at_the_key_a_handler_sends_again(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "if known then return known.state == 'open' and", "if false then return")
    bank = Ordering()
    async with MeshKit(bank.table, **ONE_CLASS) as kit:
        for _ in range(2):
            await kit[0].call(bank.order, Order("a"))
        await paid(kit[0], bank, 10)


async def test_without_the_sum_of_a_transaction_more_wait_than_may(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "tx[k] end\n  waiting_count = waiting_count + 1\n", "tx[k] end\n")
    bank = Ordering()
    async with MeshKit(bank.table, later_bound=3, **ONE_CLASS) as kit:
        await kit[0].call(bank.order_later, Order("", 5))
        assert (await balanced(kit[0]))["waiting"] == 5
        await kit.advance(hours=2)


@pytest.mark.parametrize("key", ["", "k"])
@pytest.mark.parametrize("op", ["order_later", "order_limited"])
async def test_the_requests_of_one_transaction_count_together(key: str, op: str) -> None:
    """No more than may wait do, also if one handler sends them all."""
    bank = Ordering()
    async with MeshKit(bank.table, later_bound=3, **ONE_CLASS) as kit:
        bank.open.clear()
        order = getattr(bank, op)
        # One of a lane begins at once.
        fits = 3 + (op == "order_limited")
        with pytest.raises(Busy, match="too many requests wait"):
            await kit[0].call(order, Order(key, fits + 1))
        assert (await balanced(kit[0]))["accepted"] == 1
        await kit[0].call(order, Order(key, fits))
        assert (await balanced(kit[0]))["waiting"] == 3
        bank.open.set()
        await kit.advance(hours=2)
        assert await kit[0].call(bank.read) == fits
