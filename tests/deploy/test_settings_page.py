"""docs/settings.md says what the code reads."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("settings_page", ROOT / "docs/settings.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(script: ModuleType) -> None:
    """`python docs/settings.py` writes it again."""
    assert script.main(["--check"]) == 0


KINDS = (
    "REDIS_HOST", "REDIS_PASSWORD", "REDIS_DB", "REDIS_SENTINELS", "ENDPOINT_PREFIX", "MESH_CLASS", "DATABASE_URL",
    "MOVEMENT_CACHE_SIZE", "GRADES_PASSWORD", "MESSAGES_JWT_SECRET", "FREE_PROVIDER_URL", "DRAIN_MS", "SITE",
    "UPSTREAMS", "REPLICAS", "SECRETS",
)  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_settings_of_every_kind_are_found(script: ModuleType, name: str) -> None:
    """The page has the settings of the mesh, the application, each service, Caddy and compose."""
    assert f"| `{name}` |" in script.page()
