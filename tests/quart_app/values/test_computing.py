"""What is computed again and what is not, and what an error says of a computation."""

from __future__ import annotations

import pytest

from mesh import DeadlineExceeded
from tests.support.values import DONE, HARD, Values
from tests.support.waiting import eventually


async def test_a_late_one_says_what_is_known(values: Values) -> None:
    """The computation ends before the deadline, so that the error with its facts still reaches the client."""
    (replica,) = await values.join(1)
    with pytest.raises(DeadlineExceeded) as raised:
        await values.put(replica, ms=1000)
    assert raised.value.facts["unfactored"] == [HARD]
    assert raised.value.facts["value"] == HARD


async def test_a_repeat_computes_nothing(values: Values) -> None:
    """A repeated value is not computed while its record lives, on whatever replica."""
    replicas = await values.join(2)
    values.pool.may_end.set()
    for _ in range(2):
        for replica in replicas:
            assert await values.put(replica) == DONE
    assert values.pool.computed == [HARD]


async def test_a_conflict_after_a_computation_does_not_repeat_it(values: Values) -> None:
    """Another class has written its record meanwhile: the commit is tried again, the sieve is not."""
    (replica,) = await values.join(1)
    asked = values.put(replica)
    await eventually(values.begun)
    # What the handler has read of the value is no longer so.
    await replica.shared.set(f"shared:values:where:{HARD}", "15 B 1-0", px=60_000)
    values.pool.may_end.set()
    assert await asked == DONE
    assert values.pool.computed == [HARD]
    assert replica.statistics()["class_conflicts"] >= 1
