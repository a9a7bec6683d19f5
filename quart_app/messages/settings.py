"""The settings of the message service, from the environment."""

from __future__ import annotations

from pydantic import AnyHttpUrl, Field, SecretStr, TypeAdapter, ValidationInfo, field_validator
from pydantic_settings import BaseSettings

from mesh import settings_config
from quart_app.providers.launch import environment
from quart_app.security.credentials import Limits
from quart_app.security.identity import normal_email, normal_password, why_weak

#: The default URLs: providers on this machine, at the ports that the task text names.
_LOCAL_PROVIDERS = environment()
_URL_TYPE = TypeAdapter(AnyHttpUrl)
#: The least number of bytes of a signing key for HS256 (RFC 7518, section 3.2).
SHORTEST_SECRET_BYTES = 32
#: The longest pause (ms) between two tries to reach a provider. Every message may need it, so it is part of `work_ms`.
LONGEST_PAUSE_MS = 500


class MessageSettings(BaseSettings):
    """All names begin with MESSAGES_, except those of the two URLs. A secret may also come from a file."""

    model_config = settings_config("MESSAGES_")

    free_url: str = Field(
        _LOCAL_PROVIDERS["FREE_PROVIDER_URL"],
        validation_alias="FREE_PROVIDER_URL",
        description="the URL of the free provider",
    )
    paid_url: str = Field(
        _LOCAL_PROVIDERS["PAID_PROVIDER_URL"],
        validation_alias="PAID_PROVIDER_URL",
        description="the URL of the paid provider",
    )
    free_limit: int = Field(10, ge=1, description="requests that the free provider accepts before it blocks")
    free_block_seconds: float = Field(60, gt=0, description="how long the free provider blocks after these requests")

    connect_timeout_ms: int = Field(500, ge=10, description="longest wait for a connection to a provider")
    provider_timeout_ms: int = Field(5_000, ge=10, description="longest wait for a provider's answer")
    hold_ms: int = Field(
        2_000, ge=100, description="a request leaves within this time after its reservation, or is not sent"
    )
    connect_tries: int = Field(
        3, ge=1, le=10, description="tries to reach a provider; a request that may have left is not repeated"
    )
    probe_wait_ms: int = Field(5_000, ge=0, description="longest wait while another request probes, before paying")
    max_wait_ms: int = Field(30_000, ge=0, description="the longest max_wait_ms that a client may ask for")
    max_in_flight: int = Field(512, ge=1, description="most messages in progress on one replica; more get 503")
    keep_answers_s: int = Field(86_400, ge=60, description="how long the answer for an Idempotency-Key is kept")

    jwt_secret: SecretStr | None = Field(
        None, description="the key that signs sessions; if empty, the first replica creates a key in Redis"
    )
    jwt_previous_secret: SecretStr | None = Field(
        None, description="the previous signing key, still accepted during a change of keys"
    )
    jwt_issuer: str = Field("quart-mesh", description="the issuer in session tokens")
    jwt_audience: str = Field("quart-mesh-messages", description="the audience in session tokens")
    session_s: int = Field(3_600, ge=60, description="how long a login lasts")
    cookie_secure: bool = Field(True, description="false only for trials by hand over plain HTTP")
    allowed_origins: str = Field("", description="origins of other sites that may use the cookies, comma separated")
    login_tries: int = Field(
        10, ge=1, description="most wrong passwords for one account from one address or device, before 429"
    )
    login_wait_s: int = Field(300, ge=1, description="how long wrong passwords are counted")
    login_source_tries: int = Field(
        50, ge=1, description="most wrong passwords for all accounts from one address, before 429"
    )
    login_account_tries: int = Field(
        100, ge=1, description="most wrong passwords for one account from all unknown addresses, before 429 for these"
    )
    registrations: int = Field(200, ge=1, description="most new accounts from one address within MESSAGES_LOGIN_WAIT_S")
    hash_concurrency: int = Field(
        2, ge=1, description="passwords hashed at the same time; each takes 19 MiB and a core"
    )

    admin_email: str = Field(
        "", description="the first administrator, created once; never promotes an existing account; empty: none"
    )
    admin_password: SecretStr | None = Field(
        None, description="the first administrator's password; changes nothing once the account exists"
    )

    @field_validator("jwt_secret", "jwt_previous_secret")
    @classmethod
    def _secret_if_long_enough(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and len(secret.get_secret_value().encode()) < SHORTEST_SECRET_BYTES:
            raise ValueError(
                f"a signing key needs at least {SHORTEST_SECRET_BYTES} bytes; create one with: openssl rand -hex 32"
            )
        return secret

    @field_validator("admin_email")
    @classmethod
    def _normal_email(cls, email: str) -> str:
        return normal_email(email) if email else ""

    @field_validator("admin_password")
    @classmethod
    def _password_if_strong(cls, password: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if password is None:
            return None
        normal = normal_password(password.get_secret_value())
        # `info.data` has the fields that are declared above this one.
        if reason := why_weak(normal, info.data.get("admin_email") or None):
            raise ValueError(reason)
        return SecretStr(normal)

    @field_validator("free_url", "paid_url")
    @classmethod
    def _url_if_valid(cls, url: str) -> str:
        _URL_TYPE.validate_python(url)
        return url

    @property
    def free_block_ms(self) -> int:
        """How long the free provider blocks; at least 1 ms, because the quota accepts no 0."""
        return max(1, round(self.free_block_seconds * 1000))

    @property
    def origins(self) -> frozenset[str]:
        """The other sites of `allowed_origins`, one by one."""
        return frozenset(origin.strip() for origin in self.allowed_origins.split(",") if origin.strip())

    @property
    def limits(self) -> Limits:
        """The limits on guessing passwords."""
        return Limits(
            self.login_tries, self.login_wait_s, self.login_source_tries, self.login_account_tries, self.registrations
        )

    @property
    def work_ms(self) -> int:
        """The longest time for a message, besides its `max_wait_ms`: a probe, then both providers at their slowest."""
        # A try may wait for `connect_timeout_ms` twice: for a place in the pool, and for the connection itself. A pause
        # comes before it. The last 2 s are for everything else.
        connecting_ms = self.connect_tries * (2 * self.connect_timeout_ms + LONGEST_PAUSE_MS)
        return self.probe_wait_ms + 2 * (connecting_ms + self.provider_timeout_ms) + 2_000
