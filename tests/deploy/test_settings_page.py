"""docs/settings.md says what the code reads."""

from __future__ import annotations

import pytest

from docs import settings as settings_page


def test_the_page_is_current() -> None:
    """`make pages` writes it again."""
    assert settings_page.PAGE.read_text() == settings_page.page()


KINDS = (
    "REDIS_HOST", "REDIS_PASSWORD", "REDIS_DB", "REDIS_SENTINELS", "ENDPOINT_PREFIX", "MESH_CLASS", "DATABASE_URL",
    "MOVEMENT_CACHE_SIZE", "GRADES_PASSWORD", "MESSAGES_JWT_SECRET", "FREE_PROVIDER_URL", "DRAIN_MS", "SITE",
    "UPSTREAMS", "REPLICAS", "SECRETS",
)  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_settings_of_every_kind_are_found(name: str) -> None:
    """The page has the settings of the mesh, the application, each service, Caddy and compose."""
    assert f"| `{name}` |" in settings_page.page()
