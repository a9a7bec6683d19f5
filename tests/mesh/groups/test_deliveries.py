"""What the number of its deliveries means for an entry."""

from __future__ import annotations

import pytest

from mesh.groups.deliveries import Pending, is_last, is_overdelivered, next_to_claim


@pytest.mark.parametrize(("deliveries", "last", "over"), [(1, False, False), (3, True, False), (4, True, True)])
def test_an_entry_is_given_up_after_its_last_delivery(deliveries: int, last: bool, over: bool) -> None:
    """A failure in the last delivery is final; a delivery after the last one is not tried at all."""
    assert is_last(deliveries, 3) is last
    assert is_overdelivered(deliveries, 3) is over


def test_a_group_is_the_oldest_and_its_equals() -> None:
    """Entries with another number of deliveries are handled later: their group has another size."""
    pending = [Pending("1-0", 1), Pending("2-0", 1), Pending("3-0", 2), Pending("4-0", 1)]
    assert next_to_claim(pending, 500) == pending[:2]
    assert next_to_claim(pending, 1) == pending[:1]
    assert next_to_claim(pending[2:], 500) == [pending[2]]
