"""The bodies of the address requests and answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from quart_app.addresses.phone import MAX_PHONE_LENGTH


def _no_control_characters(text: str) -> str:
    # The control characters of ASCII are those below 32, and 127.
    if any((ord(character) < 32 and character not in "\n\r\t") or ord(character) == 127 for character in text):
        raise ValueError("an address must not contain control characters")
    return text


PhoneText = Annotated[
    str, Field(max_length=MAX_PHONE_LENGTH, description="in any usual notation", examples=["+7 911 123-45-67"])
]
#: A shorter text is hardly an address, and longer ones would take more room in Redis.
AddressText = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=10, max_length=255),
    AfterValidator(_no_control_characters),
    Field(examples=["Nevsky Prospekt 28, Saint Petersburg"]),
]


class CustomerAddress(BaseModel):
    """A customer's phone and address."""

    model_config = ConfigDict(extra="forbid")

    phone: PhoneText
    address: AddressText


class NewAddress(BaseModel):
    """The new address for the phone in the path. A phone in the body must be the same number."""

    model_config = ConfigDict(extra="forbid")

    address: AddressText
    phone: PhoneText | None = None


class Created(BaseModel):
    """The answer when a record was created."""

    detail: Literal["Created"] = "Created"
    customer_addr: CustomerAddress


class Updated(BaseModel):
    """The answer when the address of a record was replaced."""

    detail: Literal["Updated"] = "Updated"
    customer_addr: CustomerAddress


class PhoneQuery(BaseModel):
    """The query string that names a record."""

    phone: str | None = Field(default=None, description="in any usual notation; a raw + is read as a plus sign")
