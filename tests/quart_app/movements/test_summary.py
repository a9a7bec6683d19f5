"""The summary of a movement, computed from its events."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from quart_app.movements.models import Direction, Status
from quart_app.movements.summary import Step, status_of, summarize

ID = UUID(int=1)
NORTH, SOUTH, EAST = UUID(int=11), UUID(int=12), UUID(int=13)
BOLTS, NUTS = UUID(int=21), UUID(int=22)
NOON = datetime(2025, 2, 18, 12, tzinfo=UTC)


def departed(hour: float, at: UUID, quantity: int, product: UUID = BOLTS) -> Step:
    return Step(NOON + timedelta(hours=hour), at, product, Direction.DEPARTURE, quantity)


def arrived(hour: float, at: UUID, quantity: int, product: UUID = BOLTS) -> Step:
    return Step(NOON + timedelta(hours=hour), at, product, Direction.ARRIVAL, quantity)


def test_a_movement_with_both_ends() -> None:
    """The summary has the sender, the receiver, the elapsed time and the missing items."""
    found = summarize(ID, [departed(0, NORTH, 100), arrived(2.5, SOUTH, 98)])
    assert (found.movement_id, found.sender, found.receiver, found.product_id) == (ID, NORTH, SOUTH, BOLTS)
    assert (found.departure_time, found.arrival_time) == (NOON, NOON + timedelta(hours=2.5))
    assert found.elapsed_seconds == 9000
    assert (found.departure_quantity, found.arrival_quantity, found.quantity_difference) == (100, 98, -2)
    assert found.status is Status.COMPLETED
    assert [item.model_dump() for item in found.items] == [found.model_dump(exclude={"movement_id", "items"})]


def test_a_movement_in_transit() -> None:
    """A field whose event is unknown is null, not 0."""
    found = summarize(ID, [departed(0, NORTH, 100)])
    assert (found.sender, found.receiver, found.status) == (NORTH, None, Status.IN_TRANSIT)
    assert (found.arrival_time, found.elapsed_seconds) == (None, None)
    assert (found.departure_quantity, found.arrival_quantity, found.quantity_difference) == (100, None, None)


def test_an_arrival_without_a_departure() -> None:
    """The message of the departure is late."""
    found = summarize(ID, [arrived(0, SOUTH, 0)])
    assert (found.sender, found.receiver, found.status) == (None, SOUTH, Status.DEPARTURE_MISSING)
    assert (found.departure_quantity, found.arrival_quantity) == (None, 0)


def test_several_products_of_one_movement() -> None:
    """`items` has each product, sorted by id; the movement is completed when all of them are."""
    steps = [
        departed(0, NORTH, 5, NUTS),
        departed(1, NORTH, 10),
        arrived(3, SOUTH, 10),
    ]
    found = summarize(ID, steps)
    assert [(item.product_id, item.status) for item in found.items] == [
        (BOLTS, Status.COMPLETED),
        (NUTS, Status.IN_TRANSIT),
    ]
    assert (found.product_id, found.status) == (None, Status.IN_TRANSIT)
    assert (found.departure_quantity, found.arrival_quantity) == (15, 10)
    assert summarize(ID, [*steps, arrived(4, SOUTH, 5, NUTS)]).status is Status.COMPLETED


def test_a_movement_in_several_loads() -> None:
    """Times run from the first departure to the last arrival, and quantities are added up."""
    found = summarize(ID, [departed(0, NORTH, 60), departed(1, EAST, 40), arrived(2, EAST, 60), arrived(5, SOUTH, 30)])
    assert (found.sender, found.receiver) == (NORTH, SOUTH)
    assert found.elapsed_seconds == 5 * 3600
    assert (found.departure_quantity, found.arrival_quantity, found.quantity_difference) == (100, 90, -10)


def test_the_order_of_events_does_not_matter() -> None:
    """The order does not matter for events of the same time, either."""
    steps = [departed(0, NORTH, 1), departed(0, EAST, 2), arrived(3, SOUTH, 3), arrived(3, EAST, 4, NUTS)]
    found = {summarize(ID, order).model_dump_json() for order in itertools.permutations(steps)}
    assert len(found) == 1


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        ([Status.COMPLETED, Status.COMPLETED], Status.COMPLETED),
        ([Status.COMPLETED, Status.IN_TRANSIT], Status.IN_TRANSIT),
        ([Status.COMPLETED, Status.DEPARTURE_MISSING], Status.DEPARTURE_MISSING),
        ([Status.DEPARTURE_MISSING, Status.IN_TRANSIT], Status.IN_TRANSIT),
    ],
)
def test_the_status_of_the_whole(parts: list[Status], whole: Status) -> None:
    """The status in transit comes before departure missing, and completed last."""
    assert status_of(parts) is whole
