"""Registering handlers: their signatures are their types."""

from __future__ import annotations

from typing import Any

import pytest

from mesh import Operation, Operations, Query, Transaction, UsageError
from tests.support.greetings import Greet, Greeted, contract, greetings, put


async def good(tx: Transaction, body: Greet) -> Greeted:
    """A handler."""
    return Greeted(body.name, 1)


async def reading(view: Query) -> int:
    """A query."""
    return 1


async def untyped(tx, body):  # type: ignore[no-untyped-def]
    """Nothing is known of it."""


async def no_reply(tx: Transaction, body: Greet):  # type: ignore[no-untyped-def]
    """Nothing is known of its reply."""


async def three(tx: Transaction, body: Greet, more: int) -> None:
    """Nobody would give it a third argument."""


async def strange(tx: int) -> None:
    """It asks for what no handler gets."""


async def a_list(tx: Transaction, body: list[int]) -> None:
    """A body has names."""


def plain(tx: Transaction) -> int:
    """It is not async."""
    return 1


def test_an_operation_has_the_name_of_its_table_and_its_function() -> None:
    """A name that is given takes the place of the function's name."""
    table = Operations("table")
    made = table.command(good)
    named = table.query(name="other")(reading)
    assert (made.name, named.name, made.handler) == ("table.good", "table.other", good)
    assert (made.body, made.reply, named.body, named.reply) == (Greet, Greeted, None, int)
    assert [*table.operations] == table.worker.operations == ["table.good", "table.other"]


def test_a_query_has_no_effect_and_a_command_has() -> None:
    """Queries run side by side on a database's stream."""
    found = [greetings.worker.handler(name) for name in ("greetings.put", "greetings.count")]
    assert [each.has_effect for each in found if each is not None] == [True, False]


def test_a_contract_gets_its_handler_in_another_place() -> None:
    """The value that callers have is the same one."""
    assert contract.handler is not None and greetings.operations["greetings.contract"] is contract
    other: Operation[Greet, int] = Operation("table.other", Greet, int)
    with pytest.raises(UsageError, match=r"are not those of <Operation table\.other: Greet -> int>"):
        Operations("table").implements(other)(good)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (untyped, "write the type of tx, body, return"),
        (no_reply, "write the type of return"),
        (three, r"a handler takes \(tx\) or \(tx, body\)"),
        (strange, "its first parameter is|the first parameter is"),
        (a_list, "a body is an object with names"),
        (plain, "a handler is an `async def` function"),
        (reading, "a command gets a Transaction, and this one asks for a Query"),
        (7, "a handler is an `async def` function"),
    ],
)
def test_a_handler_that_cannot_work_is_refused_where_it_is_written(handler: Any, says: str) -> None:
    """The refusal comes at import, and not with the first request."""
    with pytest.raises(UsageError, match=says):
        Operations("table").command(handler)


def test_a_name_has_one_handler() -> None:
    """The second one is a mistake."""
    table = Operations("table")
    table.command(good)
    with pytest.raises(UsageError, match=r"table\.good has a handler already"):
        table.command(good)
    assert put.name == "greetings.put"
