"""A user's grade, and a change of some of its fields."""

from __future__ import annotations

import unicodedata
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

#: The fields of a grade, in their order in records and backups.
FIELDS = ("postpaid_limit", "spp", "shipping_fee", "return_fee")
#: The most characters of a user's id. A higher number makes longer lines in backups (`backup.MOST_LINE_BYTES`).
USER_ID_MAX = 255


def _without_controls(text: str) -> str:
    """Return the text. Raises ValueError for control characters, line breaks and lone surrogates.

    The first two would break lines of a backup or of the log output, and the last cannot be written as UTF-8.
    """
    if any(unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} for character in text):
        raise ValueError("control characters and line breaks are not allowed")
    return text


UserId = Annotated[str, StringConstraints(min_length=1, max_length=USER_ID_MAX), AfterValidator(_without_controls)]
#: The range of a 64-bit integer.
Amount = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


class GradeUpdate(BaseModel):
    """A change. An absent field stays unchanged, 0 sets a field to 0, and null is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    user_id: Annotated[UserId, Field(examples=["user-1"])]
    postpaid_limit: Amount = 0
    spp: Amount = 0
    shipping_fee: Amount = 0
    return_fee: Amount = 0

    def changes(self) -> dict[str, int]:
        """Return the fields that the change sets, with their values. The defaults of 0 are not among them."""
        return {name: getattr(self, name) for name in FIELDS if name in self.model_fields_set}


class UserGrade(BaseModel):
    """A user's grade. A field that was never set is 0."""

    user_id: str
    postpaid_limit: int = 0
    spp: int = 0
    shipping_fee: int = 0
    return_fee: int = 0
