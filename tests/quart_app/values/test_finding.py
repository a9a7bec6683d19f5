"""Questions that share a request get the same answers as alone."""

from __future__ import annotations

import asyncio
from typing import Any

from mesh import GivenUp
from mesh.raw import Replica
from quart_app.values import store as records
from quart_app.values.finding import SharedGathers, Wanted
from quart_app.values.handlers import values_worker
from quart_app.values.pace import Pace
from quart_app.values.store import MOST_FOUND_VALUES, Part, Place
from tests.support.backend import Backend

NOTHING: Any = None
WORKER = values_worker(NOTHING, NOTHING, Pace(), lambda _: None)


async def write(replica: Replica, factors: dict[str, str]) -> None:
    transaction = replica.transaction()
    expiries = dict.fromkeys(factors, replica.now_ms() + 60_000)
    records.put(transaction, Place(replica.database, replica.cls, "1-0"), expiries, factors)
    assert await replica.commit(transaction)


async def accepted(replica: Replica) -> int:
    return (await replica.books())["accepted"]


async def test_questions_that_come_together_share_a_request(backend: Backend) -> None:
    """Each database answers all of them, with other limits and from other values on, in one reply."""
    gathers, one, two = SharedGathers(), await backend.join(WORKER), await backend.join(WORKER)
    await write(one, {str(2**100): "2^100", "8": "2 2 2", "16": "2 2 2 2"})
    await write(two, {"32": "2 2 2 2 2", "7": "7"})
    questions = [
        Wanted("2", "", 5000),
        Wanted("2", "8", 1),
        Wanted("7", "", 10),
        Wanted("3", "", MOST_FOUND_VALUES + 1),
    ]
    before = await accepted(one)
    together = await asyncio.gather(*(gathers.find(one, each, 5000) for each in questions))
    assert await accepted(one) == before + 2 * 2, "the first one, which waits for no others, and the other three"
    assert together == [await gathers.find(one, each, 5000) for each in questions]
    assert together[1] == {one.database: Part("16", "b16=2 2 2 2"), two.database: Part("32", "b32=2 2 2 2 2")}
    assert together[2][two.database] == Part("", "a7=7")
    assert [answers.left_out for answers in together] == [[]] * 4


async def test_other_deadlines_have_other_requests(backend: Backend) -> None:
    """Nobody waits longer for an answer because others have more time."""
    gathers, one = SharedGathers(), await backend.join(WORKER)
    await asyncio.gather(*(gathers.find(one, Wanted("2", "", 10), deadline_ms) for deadline_ms in (5000, 9000)))
    assert await accepted(one) == 2


async def test_a_database_whose_index_is_broken_answers_nobody(backend: Backend) -> None:
    """Each question is asked alone then, and its client hears why."""
    gathers, one = SharedGathers(), await backend.join(WORKER)
    transaction = one.transaction()
    transaction.set(records.INDEX, "no index")
    assert await one.commit(transaction)
    asked = (gathers.find(one, Wanted(prime, "", 10), 5000) for prime in ("2", "3"))
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(each) for each in found] == [GivenUp, GivenUp]
