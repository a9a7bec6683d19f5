"""What travels: a user's grade, and a change of some of its fields."""

from __future__ import annotations

import unicodedata
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

#: The fields of a grade, in the order in which records and backups hold them.
FIELDS = ("postpaid_limit", "spp", "shipping_fee", "return_fee")
USER_ID_MAX = 255


def _without_controls(text: str) -> str:
    """A line break in a user id would break lines of backups and logs."""
    if any(unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} for character in text):
        raise ValueError("control characters and line breaks are not allowed")
    return text


UserId = Annotated[str, StringConstraints(min_length=1, max_length=USER_ID_MAX), AfterValidator(_without_controls)]
#: What a 64-bit `int` of the task text holds.
Amount = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


class GradeUpdate(BaseModel):
    """A change: a field that is absent stays as it is, 0 sets it to 0, null is not allowed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    user_id: UserId
    postpaid_limit: Amount = 0
    spp: Amount = 0
    shipping_fee: Amount = 0
    return_fee: Amount = 0

    def changes(self) -> dict[str, int]:
        """The fields that were given."""
        return {name: getattr(self, name) for name in FIELDS if name in self.model_fields_set}


class UserGrade(BaseModel):
    """A user's grade; a field that nobody set is 0."""

    user_id: str
    postpaid_limit: int = 0
    spp: int = 0
    shipping_fee: int = 0
    return_fee: int = 0
