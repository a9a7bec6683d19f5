"""Answers as text: the same JSON as ever, in pieces, with their memory counted."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quart import Quart, Response

from mesh import Busy
from quart_app.values import notation
from quart_app.values.answers import PIECE_BYTES, Array, Responses, element, elements
from quart_app.values.budget import Budget
from quart_app.values.pace import Pace
from quart_app.values.store import with_prefix

ELEMENT = {"value": 144, "prime_factors": [2, 2, 2, 2, 3, 3]}


async def array(count: int) -> Array:
    found = Array()
    await found.extend([("144", "2^4 3^2")] * count, Pace())
    return found


async def sent(response: Response) -> Any:
    """What a client reads."""
    app = Quart(__name__)
    app.add_url_rule("/", "view", lambda: response)
    answer = await app.test_client().get("/")
    data = await answer.get_data()
    assert int(answer.headers["Content-Length"]) == len(data)
    return json.loads(data)


@pytest.mark.parametrize("count", [0, 1, 2, 100, 10_000])
async def test_an_answer_is_json_of_any_length(count: int) -> None:
    """The answer has one piece or many."""
    responses = Responses(Budget(1 << 30, "bytes", 1))
    assert await sent(responses.respond(await array(count))) == [ELEMENT] * count
    found = await sent(responses.respond(await array(count), '{"id": 1, "result": ', "}"))
    assert found == {"id": 1, "result": [ELEMENT] * count}


async def test_the_size_is_that_of_the_json() -> None:
    """The size bounds an answer while it grows."""
    for count in (1, 7, 10_000):
        found = await array(count)
        size = found.size
        assert abs(sum(map(len, found.pieces("", ""))) - size) <= 2


@given(st.dictionaries(st.integers(2, 10**40), st.lists(st.integers(2, 10**30), min_size=1), min_size=1))
def test_what_a_search_finds_is_written_as_each_element_is(found: dict[int, list[int]]) -> None:
    """All at once or one by one, values of any length give the same JSON."""
    factors = {str(value): " ".join(map(str, each)) for value, each in found.items()}
    text = ";".join(f"{with_prefix(value)}={each}" for value, each in factors.items())
    one_by_one = b",".join(element(value, each) for value, each in factors.items())
    assert elements(text) == (one_by_one, len(found))
    assert json.loads(b"[%b]" % one_by_one) == [
        {"value": value, "prime_factors": each} for value, each in found.items()
    ]
    assert all(notation.expanded(each) == found[int(value)] for value, each in factors.items())


async def test_a_long_answer_takes_its_memory_until_it_is_gone() -> None:
    """The memory counts whether the answer was sent or not."""
    budget = Budget(3 * PIECE_BYTES, "bytes", 1)
    responses = Responses(budget)
    first = responses.respond(await array(4000))
    assert budget.taken == first.content_length
    with pytest.raises(Busy):
        responses.respond(await array(4000))
    assert responses.respond(await array(10)), "a short one takes nothing"
    del first
    gc.collect()
    assert budget.taken == 0
    await asyncio.sleep(0)
