"""What the address service takes from the environment."""

from __future__ import annotations

import phonenumbers
from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

from mesh.settings import settings_config


class AddressSettings(BaseSettings):
    """Names as in the task text; Redis itself is the application's matter."""

    model_config = settings_config("")

    endpoint_prefix: str = Field("/addr_by_phone", description="where the routes live")
    default_region: str = Field(
        "", description="country of a number written without one (RU); empty: such a number is refused, not guessed"
    )

    @field_validator("endpoint_prefix")
    @classmethod
    def _one_leading_slash(cls, prefix: str) -> str:
        path = "/" + prefix.strip().strip("/")
        if path == "/":
            raise ValueError("the prefix needs a name, such as /addr_by_phone")
        return path

    @field_validator("default_region")
    @classmethod
    def _known_region(cls, region: str) -> str:
        code = region.strip().upper()
        if code and code not in phonenumbers.SUPPORTED_REGIONS:
            raise ValueError("not a country code of two letters, such as RU")
        return code
