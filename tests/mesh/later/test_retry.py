"""Another try later: no worker waits for it, and the caller hears the last error as soon as no try is left."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta
from typing import Any

import pytest

from mesh import Database, GivenUp, Operations, Refused, Retry, Transaction, UsageError
from mesh.testing import MeshKit
from tests.support.waiting import eventually

ONE_CLASS = {"classes": "A"}


class OutOfOrder(Exception):
    """A provider that fails."""


def failing(times: int, retry: Retry, error: Exception | None = None) -> tuple[Operations, list[datetime]]:
    """An operation whose first runs fail, and the moments of its runs."""
    table, runs = Operations("provider"), list[datetime]()
    done = table.value("done", int, 0, shared=True)

    @table.command(retry=retry)
    async def ask(tx: Transaction) -> int:
        runs.append(tx.at)
        count = await tx.get(done)
        tx.set(done, count + 1)
        if len(runs) <= times:
            raise error or OutOfOrder("the provider is down")
        return len(runs)

    return table, runs


def test_pauses_grow_to_the_longest() -> None:
    retry = Retry(most=6, first=timedelta(seconds=1), factor=3, longest=timedelta(seconds=20), jitter=0)
    assert [retry.pause_ms(tries) for tries in range(1, 7)] == [1000, 3000, 9000, 20_000, 20_000, None]


def test_a_random_part_of_the_pause_is_left_out() -> None:
    """Requests that failed together are not tried together."""
    retry = Retry(first=timedelta(seconds=1), jitter=0.5)
    assert [retry.pause_ms(1, lambda chance=chance: chance) for chance in (0.0, 0.5, 1.0)] == [1000, 750, 500]


def test_very_many_tries_do_not_overflow() -> None:
    assert Retry(most=10**6, factor=10, jitter=0).pause_ms(99_999) == 3_600_000


@pytest.mark.parametrize(
    "options",
    [
        {"most": 0},
        {"most": 1.5},
        {"first": 1},
        {"first": timedelta(0)},
        {"longest": timedelta(seconds=-1)},
        {"factor": 0.5},
        {"jitter": 2},
        {"on": "OSError"},
        {"on": ()},
        {"on": (OSError, KeyboardInterrupt)},
    ],
)
def test_mistakes_say_what_to_write(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"Retry\("):
        Retry(**options)


@pytest.mark.parametrize(
    ("options", "pauses"),
    [
        ({"most": 1}, [None]),
        ({"factor": 1, "jitter": 0}, [1000, 1000, None]),
        ({"factor": 1.5, "jitter": 0}, [1000, 1500, None]),
        ({"jitter": 1}, [1, 1, None]),
        ({"first": timedelta(microseconds=1)}, [1, 1, None]),
    ],
)
def test_the_bounds_themselves_are_allowed(options: dict[str, Any], pauses: list[int | None]) -> None:
    """The pause may stay the same, and all of it may be left out; 1 ms is the shortest one."""
    retry = Retry(**options)
    assert [retry.pause_ms(tries, lambda: 1.0) for tries in range(1, retry.most + 1)] == pauses[-retry.most :]


async def test_it_is_tried_until_it_succeeds() -> None:
    """The effect happens once, and the caller gets its answer; `tx.at` is the same at each try."""
    table, runs = failing(3, Retry(most=5, first=timedelta(milliseconds=200)))
    async with MeshKit(table, replicas=2, **ONE_CLASS) as kit:
        assert await kit[0].call(table.operations["provider.ask"]) == 4
        assert len(runs) == 4
        assert len(set(runs)) == 1
        assert await kit.redis().get("shared:provider:done") == "1"
        books = await kit.books()
        assert (books["accepted"], books["answered"], books["waiting"]) == (1, 1, 0)


async def test_without_a_caller_it_waits_for_hours() -> None:
    """The request is on no stream meanwhile; redis-cli shows the error and the number of tries."""
    table, runs = failing(2, Retry(most=3, first=timedelta(hours=1), jitter=0))
    async with MeshKit(table, **ONE_CLASS) as kit:
        ticket = await kit[0].send(table.operations["provider.ask"])
        await kit.advance(seconds=5)
        kept = await kit.redis().hgetall(f"mesh:later:{ticket.key}")
        assert (kept["try"], kept["error"]) == ("1", "OutOfOrder: the provider is down")
        assert (await kit.books())["waiting"] == 1
        await kit.advance(hours=1, seconds=1)
        assert len(runs) == 2
        await kit.advance(hours=2, seconds=1)
        assert len(runs) == 3
        assert await kit.redis().get("shared:provider:done") == "1"


async def test_a_retry_can_be_cancelled_by_its_ticket() -> None:
    table, runs = failing(9, Retry(most=9, first=timedelta(hours=1)))
    async with MeshKit(table, **ONE_CLASS) as kit:
        ticket = await kit[0].send(table.operations["provider.ask"])
        await kit.advance(seconds=5)
        assert await kit[0].cancel(ticket)
        await kit.advance(hours=3)
        assert len(runs) == 1


async def test_no_try_left_is_told_at_once() -> None:
    """The caller gets the last error long before the deadline."""
    table, runs = failing(9, Retry(most=3, first=timedelta(milliseconds=10)))
    async with MeshKit(table, **ONE_CLASS) as kit:
        before = kit.now
        with pytest.raises(GivenUp, match="OutOfOrder: the provider is down"):
            await kit[0].call(table.operations["provider.ask"])
        assert kit.now - before < timedelta(seconds=1)
        assert len(runs) == 3
        assert [letter.reason for letter in kit.dead] == ["OutOfOrder: the provider is down"]
        assert await kit.redis().get("shared:provider:done") is None


async def test_a_try_beyond_the_deadline_is_not_waited_for() -> None:
    table, runs = failing(9, Retry(most=9, first=timedelta(minutes=1)))
    async with MeshKit(table, **ONE_CLASS) as kit:
        before = kit.now
        with pytest.raises(GivenUp, match="OutOfOrder"):
            await kit[0].call(table.operations["provider.ask"])
        assert kit.now - before < timedelta(seconds=1)
        assert len(runs) == 1


async def test_other_exceptions_are_no_tries() -> None:
    """A request whose handler raises another exception is delivered again, as without a Retry."""
    table, runs = failing(9, Retry(most=9, first=timedelta(hours=1), on=ConnectionError))
    async with MeshKit(table, **ONE_CLASS) as kit:
        with pytest.raises(GivenUp):
            await kit[0].call(table.operations["provider.ask"])
        assert len(runs) == 3


async def test_a_refusal_is_an_answer() -> None:
    table, runs = failing(9, Retry(most=9, first=timedelta(hours=1)), Refused("no"))
    async with MeshKit(table, **ONE_CLASS) as kit:
        with pytest.raises(Refused, match="no"):
            await kit[0].call(table.operations["provider.ask"])
        assert len(runs) == 1


async def test_on_a_database_it_keeps_its_place() -> None:
    """The next entries of that stream wait for it, so it is tried again at once."""
    table, runs = failing(1, Retry(most=3, first=timedelta(hours=1)))
    async with MeshKit(table, **ONE_CLASS) as kit:
        assert await kit[0].call(table.operations["provider.ask"], to=Database(kit[0].database)) == 2
        assert len(runs) == 2


async def test_a_request_written_by_hand_needs_no_deadline() -> None:
    """It is tried again, and requests that wait beside it begin in their time."""
    table, runs = failing(1, Retry(first=timedelta(seconds=10), jitter=0))
    async with MeshKit(table, **ONE_CLASS) as kit:
        await kit.redis().xadd("mesh:requests:A", {"op": "provider.ask", "body": "{}"})
        await eventually(lambda: kit.redis().zcard("mesh:later"))
        await kit.advance(seconds=11)
        await eventually(lambda: kit.redis().get("shared:provider:done"))
        assert len(runs) == 2
        assert not await kit.redis().zcard("mesh:later")


async def test_kills_and_lost_answers_neither_lose_nor_double_a_request() -> None:
    """Each of thirty requests fails twice, while replicas die."""
    table, tries = Operations("work"), dict[str, int]()
    done = table.hash("done", str, int, shared=True)

    @table.command(retry=Retry(most=9, first=timedelta(seconds=2)))
    async def do(tx: Transaction) -> None:
        key = tx.request.key
        tries[key] = tries.get(key, 0) + 1
        tx.set(done[key], (await tx.get(done[key]) or 0) + 1)
        if tries[key] <= 2:
            raise OutOfOrder(key)

    async with MeshKit(table, replicas=3, **ONE_CLASS) as kit:
        tickets = [await kit[2].send(do) for _ in range(30)]
        for number, step in zip((0, 1, None), itertools.count(1), strict=False):
            kit.lose_answers(1)
            await kit.advance(seconds=step)
            if number is not None:
                await kit.kill(number)
        await kit.advance(minutes=5)
        found = await kit.redis().hgetall("shared:work:done")
        assert found == {ticket.key: "1" for ticket in tickets}
