"""The linearizability check accepts histories that some order explains, and refuses the others."""

from __future__ import annotations

import random

import pytest

from tests.support.faults.linearizability import Kind, Operation, linearizable


def put(tag: int, called: float, returned: float = float("inf")) -> Operation:
    return Operation(Kind.PUT, tag, called, returned)


def seen(there: bool, called: float, returned: float) -> Operation:
    return Operation(Kind.SEEN, 0 if there else None, called, returned)


def peek(tag: int | None, called: float, returned: float) -> Operation:
    return Operation(Kind.PEEK, tag, called, returned)


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], True),
        ([put(1, 0, 1), peek(1, 2, 3)], True),
        ([put(1, 0, 1), seen(False, 2, 3)], False),
        ([put(1, 0, 2), seen(False, 1, 3)], True),
        ([put(1, 0, 5), seen(True, 1, 2), seen(False, 3, 4)], False),
        ([put(1, 0, 1), put(2, 2, 3), peek(1, 4, 5)], False),
        ([put(1, 0, 3), put(2, 1, 2), peek(1, 4, 5)], True),
        ([put(1, 0, 3), put(2, 1, 2), peek(1, 4, 5), peek(2, 6, 7)], False),
        ([put(1, 0), peek(1, 9, 10)], True),
        ([put(1, 0), peek(None, 9, 10)], True),
        ([put(1, 0), peek(1, 5, 6), seen(False, 9, 10)], False),
        ([put(1, 0, 1), put(2, 2), peek(1, 3, 4), peek(2, 5, 6), peek(1, 7, 8)], False),
        ([put(1, 0), seen(True, 3, 4)], True),
        ([put(1, 5, 6), peek(1, 0, 1)], False),
    ],
)
def test_a_history_is_accepted_only_if_an_order_explains_it(history: list[Operation], expected: bool) -> None:
    """An operation takes effect between call and return; one of unknown outcome at any later time, or never."""
    assert linearizable(history) is expected


def actual(chance: random.Random, count: int) -> list[Operation]:
    """Return a history of a register with random calls and returns, in which some answers are lost."""
    history: list[Operation] = []
    state: int | None = None
    for moment in range(1, count):
        called, returned = moment - chance.uniform(0, 4), moment + chance.uniform(0, 4)
        if chance.random() < 0.4:
            lost = chance.random() < 0.3
            if lost and chance.random() < 0.5:
                history.append(put(1000 + moment, called))
                continue
            state = moment
            history.append(put(moment, called) if lost else put(moment, called, returned))
        else:
            history.append(peek(state, called, returned))
    return history


@pytest.mark.parametrize("seed", range(10))
def test_what_happened_is_explained_and_a_lost_write_is_not(seed: int) -> None:
    """The check decides more than a hundred overlapping operations quickly, whether they are correct or not."""
    history = actual(random.Random(seed), 120)
    assert linearizable(history)
    last = max(operation.returned for operation in history if operation.certain) + 1
    lost = [put(-1, last, last + 1), put(-2, last + 2, last + 3), peek(-1, last + 4, last + 5)]
    assert not linearizable([*history, *lost])
