"""The bodies of requests and answers of the message service."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from mesh.quota import Allowance
from quart_app.security.identity import (
    MAX_EMAIL,
    MAX_PASSWORD,
    MIN_PASSWORD,
    normal_email,
    normal_password,
    why_weak,
)


def _normal_email_or_error(text: str) -> str:
    try:
        return normal_email(text)
    except ValueError as error:
        raise PydanticCustomError("email", "{reason}", {"reason": str(error)}) from None


def _normal_email_or_empty(text: str) -> str:
    """Return the normal form of an address; "" for an invalid one: see `Login`."""
    try:
        return normal_email(text)
    except ValueError:
        return ""


def _password_unless_too_long(password: SecretStr) -> SecretStr:
    # The length is checked before `_normal_password`, because normalising megabytes would hold the event loop.
    if len(password.get_secret_value()) > MAX_PASSWORD:
        raise PydanticCustomError("long_password", "a password has at most {most} characters", {"most": MAX_PASSWORD})
    return password


def _normal_password(password: SecretStr) -> SecretStr:
    return SecretStr(normal_password(password.get_secret_value()))


def _password_unless_weak(password: SecretStr) -> SecretStr:
    reason = why_weak(password.get_secret_value())
    if reason is not None:
        raise PydanticCustomError("weak_password", "{reason}", {"reason": reason})
    return password


Email = Annotated[str, StringConstraints(max_length=MAX_EMAIL), AfterValidator(_normal_email_or_error)]
NewPassword = Annotated[
    SecretStr,
    AfterValidator(_password_unless_too_long),
    AfterValidator(_normal_password),
    AfterValidator(_password_unless_weak),
    Field(json_schema_extra={"minLength": MIN_PASSWORD, "maxLength": MAX_PASSWORD}),
]
#: A password that is only compared with a stored hash. It may be short or easy to guess: such a password does not match
#: the hash. Only one that is too long is refused here.
GivenPassword = Annotated[
    SecretStr,
    AfterValidator(_password_unless_too_long),
    AfterValidator(_normal_password),
    Field(json_schema_extra={"maxLength": MAX_PASSWORD}),
]


class _StrictBody(BaseModel):
    """A body in which an unknown field is an error. So `paid_access` in the wrong body is refused, not ignored."""

    # `hide_input_in_errors`: an error that is logged must not repeat a password.
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Registration(_StrictBody):
    """An account to be created."""

    email: Annotated[Email, Field(examples=["you@example.org"])]
    password: Annotated[NewPassword, Field(examples=["a long phrase of your own"])]


class Login(_StrictBody):
    """A login. An invalid address becomes "", which no account has, so it gets the same 401 as an unknown address."""

    email: Annotated[
        str,
        StringConstraints(max_length=MAX_EMAIL),
        AfterValidator(_normal_email_or_empty),
        Field(examples=["you@example.org"]),
    ]
    password: Annotated[GivenPassword, Field(examples=["a long phrase of your own"])]


class ProfileChange(_StrictBody):
    """What users may change of their own account. The current password proves that the account is theirs."""

    email: Email | None = None
    password: NewPassword | None = None
    current_password: GivenPassword

    @model_validator(mode="after")
    def _at_least_one_change(self) -> ProfileChange:
        if self.email is None and self.password is None:
            raise ValueError("give an email, a password, or both")
        return self


class AccessChange(_StrictBody):
    """What administrators may change of any account."""

    paid_access: bool | None = None
    is_active: bool | None = None

    @model_validator(mode="after")
    def _at_least_one_change(self) -> AccessChange:
        if self.paid_access is None and self.is_active is None:
            raise ValueError("give paid_access, is_active, or both")
        return self


class Profile(BaseModel):
    """An account as clients see it."""

    id: str
    email: str
    paid_access: bool
    is_active: bool
    is_admin: bool


class IdempotencyKeyHeader(BaseModel):
    """A name for the message. A message sent again with its name gets the same answer and is not delivered twice."""

    # This model only documents the header. `_read_idempotency_key` in routes.py reads it and checks its characters.
    key: str | None = Field(
        None, alias="Idempotency-Key", description="1 to 255 visible ASCII characters, new for each message"
    )


class NewMessage(_StrictBody):
    """A message to be delivered."""

    # With a larger bound of the length, the messages in progress may need more memory.
    message: Annotated[str, StringConstraints(min_length=1, max_length=10_000), Field(examples=["hello"])]
    # The upper bound is the setting MESSAGES_MAX_WAIT_MS, which the route checks: a model does not know the settings.
    max_wait_ms: int = Field(default=0, ge=0, description="wait this long for the free provider instead of paying")


class QuotaShown(BaseModel):
    """The allowance of the free provider, which all replicas share."""

    limit: int
    remaining: int
    blocked_until: str | None = Field(description="when the free provider opens again, UTC; null while it is open")
    retry_after: float | None = Field(description="seconds until the free provider opens; null while it is open")

    @classmethod
    def of(cls, allowance: Allowance) -> QuotaShown:
        if allowance.reopens_ms is None:
            return cls(limit=allowance.limit, remaining=allowance.remaining, blocked_until=None, retry_after=None)
        # `reopens_ms` is a moment of Redis's clock, and `retry_after_ms` a time from now.
        reopens_at = datetime.fromtimestamp(allowance.reopens_ms / 1000, UTC).isoformat(timespec="milliseconds")
        return cls(
            limit=allowance.limit,
            remaining=allowance.remaining,
            blocked_until=reopens_at.replace("+00:00", "Z"),
            retry_after=allowance.retry_after_ms / 1000,
        )


class Delivered(BaseModel):
    """A delivered message."""

    id: str
    provider: Literal["free", "paid"]
    response: str
    quota: QuotaShown | None = Field(description="the free provider's allowance; null if it could not be read")
