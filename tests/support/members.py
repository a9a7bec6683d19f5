"""Settings of a mesh on the server of a test."""

from __future__ import annotations

from typing import Any

from mesh import MeshSettings, RedisSettings


def mesh_settings(redis_settings: RedisSettings, **settings: Any) -> MeshSettings:
    """Return settings for this server; all others have their defaults, unless `settings` names them."""
    return MeshSettings(redis=redis_settings, **settings)
