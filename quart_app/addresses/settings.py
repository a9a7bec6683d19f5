"""The settings of the address service, read from the environment."""

from __future__ import annotations

import re

import phonenumbers
from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

from mesh import settings_config

#: The characters of one part of a path. Other characters have a special meaning in a route, a query or a URL.
_PATH_SEGMENT = re.compile(r"[\w.~-]+")


class AddressSettings(BaseSettings):
    """The names are those of the task text."""

    model_config = settings_config("")  # the names of the task text have no common prefix

    endpoint_prefix: str = Field("/addr_by_phone", description="the path of the address routes")
    default_region: str = Field(
        "", description="country of numbers without a country code, such as RU; empty: such numbers are refused"
    )

    @field_validator("endpoint_prefix")
    @classmethod
    def _path_if_plain(cls, prefix: str) -> str:
        path = prefix.strip().strip("/")
        for segment in path.split("/"):
            if not _PATH_SEGMENT.fullmatch(segment) or segment in {".", ".."}:
                raise ValueError("the prefix is a path of letters, digits and . _ ~ -, such as /addr_by_phone")
        return f"/{path}"

    @field_validator("default_region")
    @classmethod
    def _region_if_known(cls, region: str) -> str:
        code = region.strip().upper()
        if code and code not in phonenumbers.SUPPORTED_REGIONS:
            raise ValueError("the region is a country code of two letters, such as RU")
        return code
