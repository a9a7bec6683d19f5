"""What travels: the bodies of requests and answers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from email_validator import EmailNotValidError, validate_email
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from mesh.quota.quota import Allowance


def _email(text: str) -> str:
    """The address in its normal form; in capitals or not, it is one account."""
    try:
        return validate_email(text, check_deliverability=False).normalized.lower()
    except EmailNotValidError as error:
        raise ValueError(str(error)) from None


Email = Annotated[str, StringConstraints(max_length=254), AfterValidator(_email)]
#: The upper bound keeps the cost of hashing one in sight.
Password = Annotated[str, StringConstraints(min_length=8, max_length=256)]


class _Closed(BaseModel):
    """No other fields: whoever sends `paid_access` where it is not theirs to give shall hear so."""

    model_config = ConfigDict(extra="forbid")


class Credentials(_Closed):
    """Who registers."""

    email: Email
    password: Password


class Login(_Closed):
    """Who logs in. What could never have been registered is simply wrong, so nothing is checked but size."""

    email: Annotated[str, StringConstraints(max_length=254)]
    password: Annotated[str, StringConstraints(max_length=256)]


class ProfileChange(_Closed):
    """What users may change of themselves."""

    email: Email | None = None
    password: Password | None = None

    @model_validator(mode="after")
    def _something(self) -> ProfileChange:
        if self.email is None and self.password is None:
            raise ValueError("give an email, a password, or both")
        return self


class AccessChange(_Closed):
    """What administrators may change of anybody."""

    paid_access: bool | None = None
    is_active: bool | None = None

    @model_validator(mode="after")
    def _something(self) -> AccessChange:
        if self.paid_access is None and self.is_active is None:
            raise ValueError("give paid_access, is_active, or both")
        return self


class Profile(BaseModel):
    """A user as shown."""

    id: str
    email: str
    paid_access: bool
    is_active: bool
    is_admin: bool


class NewMessage(_Closed):
    """A message to be handled."""

    message: Annotated[str, StringConstraints(min_length=1, max_length=10_000)]
    max_wait_ms: int = Field(default=0, ge=0, description="wait this long for the free provider rather than pay")


class QuotaShown(BaseModel):
    """The free provider's allowance, one for all replicas."""

    limit: int
    remaining: int
    blocked_until: str | None = Field(description="when free requests are taken again, UTC; null while they are")
    retry_after: float | None = Field(description="the same in seconds from now")

    @classmethod
    def of(cls, allowance: Allowance) -> QuotaShown:
        if allowance.reopens_ms is None:
            return cls(limit=allowance.limit, remaining=allowance.remaining, blocked_until=None, retry_after=None)
        until = datetime.fromtimestamp(allowance.reopens_ms / 1000, UTC).isoformat(timespec="milliseconds")
        return cls(
            limit=allowance.limit,
            remaining=allowance.remaining,
            blocked_until=until.replace("+00:00", "Z"),
            retry_after=allowance.retry_after_ms / 1000,
        )


class Delivered(BaseModel):
    """A handled message."""

    id: str
    provider: Literal["free", "paid"]
    response: str
    quota: QuotaShown | None = Field(description="null when it could not be read just then")
