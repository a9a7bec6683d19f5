"""The events as the retailer sends them, and the bodies of the answers."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, StrictStr

#: The end of the year 9999 in ms, the last time that a datetime can hold.
LAST_TIME_MS = 253_402_300_799_999
#: The most items in one event. Billions of events of one product still add up within 64 bits.
MOST_ITEMS = 2**31 - 1

_DATE_AND_TIME = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:")


def _require_printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("a name must not contain control characters")
    return text


def _require_date_and_time(value: object) -> object:
    """Refuse a bare number: pydantic would guess seconds or milliseconds from its size."""
    if not isinstance(value, str) or not _DATE_AND_TIME.match(value):
        raise ValueError("a time is written like 2025-02-18T14:34:56Z")
    return value


def _in_utc(moment: datetime) -> datetime:
    """Return the time in UTC. A time without an offset is UTC, as in the retailer's messages."""
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("this time is out of range in UTC") from None


#: An id or a source. The columns of the table hold 255 characters.
Name = Annotated[StrictStr, Field(min_length=1, max_length=255), AfterValidator(_require_printable)]
Moment = Annotated[datetime, BeforeValidator(_require_date_and_time), AfterValidator(_in_utc)]


class Direction(StrEnum):
    """What happened at a warehouse."""

    ARRIVAL = "arrival"
    DEPARTURE = "departure"


class EventData(BaseModel):
    """The content of an event: which items moved, where, when and how many."""

    model_config = ConfigDict(frozen=True)

    movement_id: UUID
    warehouse_id: UUID
    timestamp: Moment
    #: what happened at the warehouse, not the whole event
    event: Direction
    product_id: UUID
    quantity: Annotated[StrictInt, Field(ge=0, le=MOST_ITEMS)]


class Event(BaseModel):
    """One message of a warehouse. Its identity is (`source`, `id`); other attributes are ignored."""

    model_config = ConfigDict(frozen=True)

    id: Name
    source: Name
    #: when the message was sent; `data.timestamp` is when the items moved
    time: Annotated[StrictInt, Field(ge=0, le=LAST_TIME_MS, description="ms since 1970")]
    data: EventData

    @property
    def key(self) -> tuple[str, str]:
        """The identity of the event."""
        return self.source, self.id

    @property
    def sent_at(self) -> datetime:
        return datetime.fromtimestamp(self.time / 1000, UTC)


class Status(StrEnum):
    """How far a movement is, by the events that are known."""

    #: it departed; no arrival is known
    IN_TRANSIT = "in_transit"
    #: it arrived; no departure is known
    DEPARTURE_MISSING = "departure_missing"
    #: both are known
    COMPLETED = "completed"


class Leg(BaseModel):
    """A departure and an arrival. A field is null until its event is known."""

    sender: UUID | None = Field(description="the warehouse of the first departure")
    receiver: UUID | None = Field(description="the warehouse of the last arrival")
    product_id: UUID | None = Field(description="null when the movement has several products")
    departure_time: datetime | None = Field(description="time of the first departure")
    arrival_time: datetime | None = Field(description="time of the last arrival")
    elapsed_seconds: float | None = Field(description="time from the first departure to the last arrival")
    departure_quantity: int | None
    arrival_quantity: int | None
    quantity_difference: int | None = Field(description="arrived minus departed; negative when items are missing")
    status: Status


class MovementId(BaseModel):
    """The id of a movement. A base class of its own, so that the id comes first in an answer."""

    movement_id: UUID


class Movement(Leg, MovementId):
    """A whole movement, with each of its products."""

    items: list[Leg] = Field(description="one item per product, sorted by product id")


class Stock(BaseModel):
    """How many items of a product a warehouse has."""

    warehouse_id: UUID
    product_id: UUID
    quantity: int = Field(ge=0, description="never below 0")
    updated_at: datetime = Field(description="time of the latest event that is counted")


class MovementQuery(BaseModel):
    """The query string that selects one product."""

    product_id: UUID | None = Field(None, description="only this product of the movement")
