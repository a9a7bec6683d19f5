"""Computes the summary of a movement from its events. Pure; the order of the events does not matter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from quart_app.movements.models import Direction, Leg, Movement, Status


@dataclass(frozen=True, slots=True, order=True)
class Step:
    """One event of a movement. Steps sort by time, which is their first field."""

    occurred_at: datetime
    warehouse_id: UUID
    product_id: UUID
    direction: Direction
    quantity: int


def summarize(movement_id: UUID, steps: Sequence[Step]) -> Movement:
    """Return the movement that consists of these steps. There must be at least one step."""
    steps_by_product: dict[UUID, list[Step]] = defaultdict(list)
    for step in steps:
        steps_by_product[step.product_id].append(step)
    items = [make_leg(steps_by_product[product_id]) for product_id in sorted(steps_by_product)]
    # One product may have arrived while another one is in transit, so the status comes from those of the products.
    whole_leg = make_leg(steps).model_copy(update={"status": status_of([item.status for item in items])})
    return Movement(movement_id=movement_id, items=items, **whole_leg.model_dump())


def make_leg(steps: Sequence[Step]) -> Leg:
    """Return the leg of some steps, all of one product or of the whole movement.

    Several departures are added up, and so are several arrivals.
    """
    departures = [step for step in steps if step.direction is Direction.DEPARTURE]
    arrivals = [step for step in steps if step.direction is Direction.ARRIVAL]
    # `min` and `max` compare the times first.
    first_departure, last_arrival = min(departures, default=None), max(arrivals, default=None)
    departure_quantity = sum(step.quantity for step in departures) if departures else None
    arrival_quantity = sum(step.quantity for step in arrivals) if arrivals else None
    product_ids = {step.product_id for step in steps}
    return Leg(
        sender=first_departure and first_departure.warehouse_id,
        receiver=last_arrival and last_arrival.warehouse_id,
        product_id=product_ids.pop() if len(product_ids) == 1 else None,
        departure_time=first_departure and first_departure.occurred_at,
        arrival_time=last_arrival and last_arrival.occurred_at,
        elapsed_seconds=(last_arrival.occurred_at - first_departure.occurred_at).total_seconds()
        if first_departure and last_arrival
        else None,
        departure_quantity=departure_quantity,
        arrival_quantity=arrival_quantity,
        quantity_difference=(
            None if departure_quantity is None or arrival_quantity is None else arrival_quantity - departure_quantity
        ),
        status=_status_of_leg(bool(departures), bool(arrivals)),
    )


def _status_of_leg(has_departed: bool, has_arrived: bool) -> Status:
    if has_departed and has_arrived:
        return Status.COMPLETED
    return Status.IN_TRANSIT if has_departed else Status.DEPARTURE_MISSING


def status_of(item_statuses: Sequence[Status]) -> Status:
    """Return the status of a whole movement: in transit if a product is, else departure missing, else completed."""
    for status in (Status.IN_TRANSIT, Status.DEPARTURE_MISSING):
        if status in item_statuses:
            return status
    return Status.COMPLETED
