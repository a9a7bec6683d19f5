"""What travels: the events as the retailer sends them, and the answers."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, StrictStr

#: The end of the year 9999, in ms: the last moment a date can name.
LAST_MS = 253_402_300_799_999
#: So that billions of events of one product still add up within 64 bits.
MOST_ITEMS = 2**31 - 1

_DATE_AND_TIME = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:")


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("control characters do not belong in a name")
    return text


def _written(value: object) -> object:
    """A bare number would be taken for seconds or milliseconds, as its size pleases."""
    if not isinstance(value, str) or not _DATE_AND_TIME.match(value):
        raise ValueError("a moment is written like 2025-02-18T14:34:56Z")
    return value


def _in_utc(moment: datetime) -> datetime:
    """A moment without an offset is UTC, as the retailer's are."""
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("no such moment can be kept in UTC") from None


Name = Annotated[StrictStr, Field(min_length=1, max_length=255), AfterValidator(_printable)]
Moment = Annotated[datetime, BeforeValidator(_written), AfterValidator(_in_utc)]


class Direction(StrEnum):
    """What happened at the warehouse."""

    ARRIVAL = "arrival"
    DEPARTURE = "departure"


class EventData(BaseModel):
    """What moved."""

    model_config = ConfigDict(frozen=True)

    movement_id: UUID
    warehouse_id: UUID
    timestamp: Moment
    event: Direction
    product_id: UUID
    quantity: Annotated[StrictInt, Field(ge=0, le=MOST_ITEMS)]


class Event(BaseModel):
    """One message of a warehouse. (`source`, `id`) is its identity; other attributes are not ours to judge."""

    model_config = ConfigDict(frozen=True)

    id: Name
    source: Name
    time: Annotated[StrictInt, Field(ge=0, le=LAST_MS, description="ms since 1970")]
    data: EventData

    @property
    def key(self) -> tuple[str, str]:
        """Two events with the same key are the same event."""
        return self.source, self.id

    @property
    def sent_at(self) -> datetime:
        return datetime.fromtimestamp(self.time / 1000, UTC)


class Status(StrEnum):
    """How far a movement is, as far as we have heard."""

    #: it departed; no arrival yet
    IN_TRANSIT = "in_transit"
    #: it arrived; its departure has not been heard of
    DEPARTURE_MISSING = "departure_missing"
    #: both are known
    COMPLETED = "completed"


class Leg(BaseModel):
    """From a departure to an arrival, each null until it is heard of."""

    sender: UUID | None = Field(description="the warehouse it departed from first")
    receiver: UUID | None = Field(description="the warehouse it arrived at last")
    product_id: UUID | None = Field(description="null where the movement has several products")
    departure_time: datetime | None = Field(description="of the first departure")
    arrival_time: datetime | None = Field(description="of the last arrival")
    elapsed_seconds: float | None = Field(description="from departure to arrival")
    departure_quantity: int | None
    arrival_quantity: int | None
    quantity_difference: int | None = Field(description="arrived less departed: below 0 where some are missing")
    status: Status


class Named(BaseModel):
    """Which movement; before all else."""

    movement_id: UUID


class Movement(Leg, Named):
    """A movement as a whole, and each of its products."""

    items: list[Leg] = Field(description="one for each product, by product id")


class Stock(BaseModel):
    """How many items of a product a warehouse has."""

    warehouse_id: UUID
    product_id: UUID
    quantity: int = Field(ge=0, description="never below 0")
    updated_at: datetime = Field(description="of the latest movement counted, by its own time")


class MovementQuery(BaseModel):
    """Which part of a movement."""

    product_id: UUID | None = Field(None, description="of this product alone")
