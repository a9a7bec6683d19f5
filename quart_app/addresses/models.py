"""What travels: the bodies of requests and answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from quart_app.addresses.phone import MAX_LENGTH


def _no_control_characters(text: str) -> str:
    if any((ord(each) < 32 and each not in "\n\r\t") or ord(each) == 127 for each in text):
        raise ValueError("control characters do not belong in an address")
    return text


PhoneText = Annotated[
    str, Field(max_length=MAX_LENGTH, description="any usual notation", examples=["+7 911 123-45-67"])
]
AddressText = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=10, max_length=255),
    AfterValidator(_no_control_characters),
]


class CustomerAddress(BaseModel):
    """A customer's phone and address."""

    model_config = ConfigDict(extra="forbid")

    phone: PhoneText
    address: AddressText


class NewAddress(BaseModel):
    """Another address for the phone that the path names; a phone in the body must be the same one."""

    model_config = ConfigDict(extra="forbid")

    address: AddressText
    phone: PhoneText | None = None


class Created(BaseModel):
    """The record is new."""

    detail: Literal["Created"] = "Created"
    customer_addr: CustomerAddress


class Updated(BaseModel):
    """The record was there and has another address now."""

    detail: Literal["Updated"] = "Updated"
    customer_addr: CustomerAddress


class PhoneQuery(BaseModel):
    """Which record."""

    phone: str | None = Field(default=None, description="any usual notation; a raw + is understood")
