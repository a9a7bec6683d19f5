"""Every way in which a request with an idempotency key ends treats the key rightly."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from mesh import (
    Cancelled,
    Class,
    DeadlineExceeded,
    GivenUp,
    Mesh,
    MeshError,
)
from mesh.dead.letters import Actor, DeadLetters
from mesh.testing import MeshKit
from tests.support.backend import Backend
from tests.support.bank import ONE_CLASS, Paying, Payment, balanced, nothing_open


@pytest.fixture
async def bank() -> Paying:
    return Paying()


async def test_a_request_that_is_given_up(bank: Paying) -> None:
    """All callers learn it, and the key is free."""
    async with MeshKit(bank.table, **ONE_CLASS) as kit:
        mesh = kit[0]
        bank.error = ValueError("broken")
        calls = [mesh.call(bank.pay, Payment(5), key="a") for _ in range(3)]
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(each) for each in found] == [GivenUp] * 3
        bank.error = None
        assert await mesh.call(bank.pay, Payment(6), key="a") == 6
        await nothing_open(kit)


async def test_a_request_that_is_tried_again_later(bank: Paying) -> None:
    """The key is held while the request waits for its next try; calls meanwhile wait with it."""
    async with MeshKit(bank.table, **ONE_CLASS) as kit:
        mesh, minute = kit[0], timedelta(minutes=1)
        bank.error = ValueError("not yet")
        first = asyncio.create_task(mesh.call(bank.attempt, Payment(5), key="a", deadline=minute))
        await kit.advance(seconds=2)
        second = asyncio.create_task(mesh.call(bank.attempt, Payment(5), key="a", deadline=minute))
        await kit.advance(seconds=2)
        bank.error = None
        await kit.advance(seconds=15)
        assert (await first, await second) == (5, 5)
        assert kit.ran(bank.attempt) == 2
        assert await mesh.call(bank.attempt, Payment(5), key="a") == 5
        await nothing_open(kit)


async def test_a_request_that_nobody_waits_for_is_not_tried_again(bank: Paying) -> None:
    """All callers have left before the next try."""
    async with MeshKit(bank.table, **ONE_CLASS) as kit:
        mesh, minute = kit[0], timedelta(minutes=1)
        bank.error = ValueError("not yet")
        calls = [asyncio.create_task(mesh.call(bank.attempt, Payment(5), key="a", deadline=minute)) for _ in range(2)]
        await kit.advance(seconds=2)
        assert (await balanced(mesh))["waiting"] == 1
        for call in calls:
            call.cancel()
        await kit.advance(seconds=1)
        books = await balanced(mesh)
        assert (books["waiting"], books["cancelled"]) == (0, 1)
        bank.error = None
        assert await mesh.call(bank.attempt, Payment(6), key="a") == 6
        await nothing_open(kit)


async def test_a_request_that_is_swept(bank: Paying) -> None:
    """The replica of the request is gone when its deadline passes."""
    async with MeshKit(bank.table, replicas=2, classes="AB") as kit:
        bank.open.clear()
        first = asyncio.create_task(
            kit[0].call(bank.pay, Payment(5), to=Class("B"), key="a", deadline=timedelta(seconds=2))
        )
        await bank.begun.wait()
        await kit.kill(1)
        with pytest.raises(MeshError):
            await first
        await kit.advance(seconds=20)
        await nothing_open(kit)
        await balanced(kit[0])


async def test_a_request_that_is_cancelled_by_its_ticket(backend: Backend, bank: Paying) -> None:
    """A call that waits for the answer learns that the request was cancelled."""
    mesh = Mesh(await backend.join(bank.table.worker))
    bank.open.clear()
    ticket = await mesh.send(bank.pay, Payment(5), key="a")
    await bank.begun.wait()
    call = asyncio.create_task(mesh.call(bank.pay, Payment(5), key="a"))
    await asyncio.sleep(0.1)
    assert await mesh.cancel(ticket)
    with pytest.raises(Cancelled):
        await call
    bank.open.set()
    assert await mesh.call(bank.pay, Payment(6), key="a") == 6
    await balanced(mesh)


async def test_a_request_that_is_replayed(bank: Paying) -> None:
    """A replayed request takes its key again; if a later request has the key, it is not replayed."""
    async with MeshKit(bank.table, **ONE_CLASS) as kit:
        mesh, letters = kit[0], DeadLetters(kit.redis(), stream_bound=100)
        bank.error = ValueError("broken")
        for key in ("a", "b"):
            with pytest.raises(GivenUp):
                await mesh.call(bank.pay, Payment(5), key=key)
        bank.error = None
        (second, first) = [letter.id for letter in await letters.look(10)]
        assert await mesh.call(bank.pay, Payment(5), key="b") == 5
        assert (await letters.replay([first], Actor("ann", "test"))).done == 1
        assert await mesh.call(bank.pay, Payment(5), key="a") == 10
        assert await mesh.call(bank.read) == 10
        assert "b, which a later request has used" in (await letters.replay([second], Actor("ann", "test"))).problem
        await nothing_open(kit)


async def test_a_request_that_is_deleted_by_hand(bank: Paying) -> None:
    """The next call does not wait for a request that is gone."""
    async with MeshKit(bank.table, **ONE_CLASS) as kit:
        mesh = kit[0]
        bank.open.clear()
        first = asyncio.create_task(mesh.call(bank.pay, Payment(5), key="a"))
        await bank.begun.wait()
        await kit.redis().delete(Class("A").stream)
        with pytest.raises(DeadlineExceeded):
            await first
        bank.open.set()
        assert await mesh.call(bank.pay, Payment(5), key="a") == 5
        await nothing_open(kit)


async def test_who_called_a_request_that_is_deleted_by_hand_gets_no_other_answer(bank: Paying) -> None:
    """A later request with the key has another body, and its answer is for its own callers only."""
    async with MeshKit(bank.table, **ONE_CLASS) as kit:
        mesh = kit[0]
        bank.open.clear()
        first = [asyncio.create_task(mesh.call(bank.pay, Payment(5), key="a")) for _ in range(2)]
        await bank.begun.wait()
        await asyncio.sleep(0.05)
        await kit.redis().delete(Class("A").stream)
        bank.open.set()
        assert await mesh.call(bank.pay, Payment(9), key="a") == 9
        for call in first:
            with pytest.raises(DeadlineExceeded):
                await call
        await nothing_open(kit)
