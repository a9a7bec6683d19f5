"""The requests and answers of /values over HTTP."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, RootModel, TypeAdapter, WithJsonSchema

from quart_app.values.settings import ValuesSettings

ClassName = Literal["A", "B", "C", "D"]
ClassesList = RootModel[list[ClassName]]


#: A ttl that is a longer decimal string is not converted to a number, because it exceeds any limit.
_MOST_TTL_DIGITS = 20


def _from_decimal(value: Any) -> Any:
    """Return the number of a decimal string. Clients whose JSON library rounds large integers send such strings."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _MOST_TTL_DIGITS:
        return int(value)
    return value


#: Makes a number of a decimal string. It must come last in an annotation. Pydantic's core, which is fast, checks only
#: the bounds that stand before it. Python would check bounds that stand after it.
FROM_DECIMAL = BeforeValidator(_from_decimal)


def _digits_validator(most_digits: int) -> BeforeValidator:
    """Return a validator that turns an integer or a decimal string into a text of at most `most_digits` digits."""
    first_too_large = 10**most_digits

    def checked_digits(value: Any) -> str:
        if type(value) is int:
            if value < 1:
                raise ValueError("the value must be at least 1")
            if value >= first_too_large:
                raise ValueError(f"at most {most_digits} digits are allowed")
            return str(value)
        if not (type(value) is str and value.isascii() and value.isdigit()):
            raise ValueError("the value must be an integer, or its decimal digits as a string")
        digits = value.lstrip("0")
        if not digits:
            raise ValueError("the value must be at least 1")
        if len(digits) > most_digits:
            raise ValueError(f"at most {most_digits} digits are allowed")
        return digits

    return BeforeValidator(checked_digits)


class CalculatedValueEntity(BaseModel):
    """A value and its prime factors, ascending, with multiplicity."""

    value: int
    prime_factors: list[int]


SetValueResponse = RootModel[list[CalculatedValueEntity]]


class PreferHeader(BaseModel):
    """What a client prefers (RFC 7240)."""

    prefer: str | None = Field(
        None,
        alias="Prefer",
        description="`wait=N`: answer within N seconds; `respond-async` (POST): begin a job and answer 202; "
        "`handling=strict` (GET): 503 where data are missing",
        examples=["wait=10"],
    )


class Page(BaseModel):
    """Which part of the answer a client asks for."""

    limit: int | None = Field(None, ge=1, description="at most so many values; the header Link names the next page")
    after: int | None = Field(None, ge=0, description="values above this one")


class JobBegun(BaseModel):
    """A job that was begun. With `Prefer: wait`, `state` is its state after the wait. Location names its path."""

    id: str
    state: Literal["waiting", "running", "failed"]


class _ItemText(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """An item whose value is still JSON text. It is in no cycle, so the garbage collector need not track it (`gc`)."""

    value: msgspec.Raw
    ttl: Annotated[int, msgspec.Meta(ge=1)]
    cls: ClassName


class PlainItem(NamedTuple):
    """An item that msgspec has read: the digits of its value, its time to live in seconds, and its class."""

    value: str
    ttl: int
    cls: ClassName


#: How many quotation marks an item has: two for each of its three names, and two for the class.
_QUOTES_PER_ITEM = 8


class ItemsReader:
    """Reads the items of a request.

    `decode` reads plain items from their text, and never converts the digits of a value to a number. Pydantic reads
    every valid item, and says what is wrong with an invalid one, but takes a dozen times as long.
    """

    def __init__(self, settings: ValuesSettings) -> None:
        #: the type of a request, for pydantic and for the OpenAPI document
        self.request_type = _request_type(settings)
        #: pydantic's reader of any request
        self._adapter: TypeAdapter[list[Any]] = TypeAdapter(self.request_type)
        self._decoder = msgspec.json.Decoder(list[_ItemText])
        self._settings = settings

    def decode(self, text: bytes) -> list[Any] | None:
        """Return the items if all are plain; None if pydantic has to read the text (`validate_python`)."""
        # No plain item has an escape sequence or a character beyond ASCII.
        if b"\\" in text or not text.isascii():
            return None
        try:
            raw_items = self._decoder.decode(text)
        except msgspec.DecodeError:
            return None
        # The decoder accepts an item that has a name twice. Such a text has more quotation marks than its items need,
        # so they are counted.
        if text.count(b'"') != _QUOTES_PER_ITEM * len(raw_items) or len(raw_items) > self._settings.max_items:
            return None
        items = [PlainItem(str(item.value, "ascii"), item.ttl, item.cls) for item in raw_items]
        return items if all(map(self._is_plain, items)) else None

    def validate_python(self, items: Any, /, *, strict: bool = True) -> list[Any]:
        """Return the items, each with value, ttl (seconds) and cls; `read_items` calls this. Raises ValidationError."""
        return self._adapter.validate_python(items, strict=strict)

    def _is_plain(self, item: PlainItem) -> bool:
        """Return whether the value is digits without a leading zero, and value and ttl are within the limits."""
        value, ttl, _cls = item
        settings = self._settings
        return value.isdigit() and value[0] != "0" and len(value) <= settings.max_digits and ttl <= settings.max_ttl_s


#: The OpenAPI document describes a value as an integer, because most clients send integers.
_VALUE_SCHEMA = WithJsonSchema({"type": "integer", "minimum": 1, "examples": [720720]})


def _request_type(settings: ValuesSettings) -> Any:
    """Return the type of a request, for pydantic, under these limits."""

    class CreateValueEntity(BaseModel):
        """A value to be factorised and kept for `ttl` seconds by a replica of class `cls`."""

        model_config = ConfigDict(extra="forbid")

        value: Annotated[str, _digits_validator(settings.max_digits), _VALUE_SCHEMA]
        ttl: Annotated[int, Field(ge=1, le=settings.max_ttl_s, examples=[300]), FROM_DECIMAL]
        cls: ClassName

    return Annotated[list[CreateValueEntity], Field(max_length=settings.max_items)]
