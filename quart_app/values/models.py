"""What travels in /values: requests and answers over HTTP, and the bodies of mesh entries."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, RootModel, TypeAdapter

from quart_app.values.jobs import SMALL
from quart_app.values.settings import ValuesSettings

ClassName = Literal["A", "B", "C", "D"]
ClassesList = RootModel[list[ClassName]]


def _from_decimal(value: Any) -> Any:
    """A decimal string stands for its number; JSON readers that round large integers can send those."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 4000:
        return int(value)
    return value


#: Comes last in an annotation: a bound that stands before it is checked by pydantic's core, one behind it by Python.
Decimal = BeforeValidator(_from_decimal)


def _no_longer_than(digits: int) -> AfterValidator:
    """A bound for large numbers; pydantic's own (`lt`) raises TypeError when it is to name one of 1000 digits."""
    bound = 10**digits

    def check(value: int) -> int:
        if value >= bound:
            raise ValueError(f"at most {digits} digits are allowed")
        return value

    return AfterValidator(check)


class CalculatedValueEntity(BaseModel):
    """A value and its prime factors, ascending, with multiplicity."""

    value: int
    prime_factors: list[int]


SetValueResponse = RootModel[list[CalculatedValueEntity]]


class Page(BaseModel):
    """Which part of an answer."""

    limit: int | None = Field(None, ge=1, description="at most so many values; the header Link names the next page")
    after: int | None = Field(None, ge=0, description="values above this one")


class JobBegun(BaseModel):
    """Nobody waits for it; the header Location says where to look."""

    id: str
    state: Literal["waiting"]


class PlainItem(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """An item as most are: numbers that are numbers."""

    value: Annotated[int, msgspec.Meta(ge=1)]
    ttl: Annotated[int, msgspec.Meta(ge=1)]
    cls: ClassName


class ItemsReader:
    """Reads items: all of them at once where they are plain and of machine words, which is twelve times as quick as
    pydantic; else by pydantic, which takes all that is right and says what is wrong."""

    def __init__(self, settings: ValuesSettings) -> None:
        #: what a request may be, as pydantic describes it
        self.type = values_request(settings)
        self._any: TypeAdapter[list[Any]] = TypeAdapter(self.type)
        self._below = min(SMALL, 10**settings.max_digits)
        self._settings = settings

    def validate_python(self, items: Any, /, *, strict: bool = True) -> list[Any]:
        """The items, each with value, ttl (seconds) and cls. Raises pydantic's ValidationError."""
        try:
            plain = msgspec.convert(items, list[PlainItem])
        except msgspec.ValidationError:
            return self._any.validate_python(items, strict=strict)
        return plain if self._within_limits(plain) else self._any.validate_python(items, strict=strict)

    def _within_limits(self, items: list[PlainItem]) -> bool:
        return (
            len(items) <= self._settings.max_items
            and max((item.value for item in items), default=0) < self._below
            and max((item.ttl for item in items), default=0) <= self._settings.max_ttl_s
        )


def values_request(settings: ValuesSettings) -> Any:
    """The type of a request under these limits."""

    class CreateValueEntity(BaseModel):
        """A value to be factorised and kept for `ttl` seconds by a replica of class `cls`."""

        model_config = ConfigDict(extra="forbid")

        value: Annotated[int, Field(ge=1), _no_longer_than(settings.max_digits), Decimal]
        ttl: Annotated[int, Field(ge=1, le=settings.max_ttl_s), Decimal]
        cls: ClassName

    return Annotated[list[CreateValueEntity], Field(max_length=settings.max_items)]
