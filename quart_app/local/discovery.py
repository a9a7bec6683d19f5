"""How a mesh that runs on this machine is found: it says in its data folder how to reach it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import SecretStr

from mesh import RedisSettings

#: Where a mesh of this machine keeps its data, its logs, and how to reach it.
FOLDER = Path(os.environ.get("MESH_DATA", "data"))


def _file(folder: Path) -> Path:
    return folder / "mesh.json"


@contextlib.contextmanager
def announced(folder: Path, *, redis_url: str, port: int) -> Iterator[None]:
    """Say how to reach the mesh, for as long as it runs. Only for our user's eyes: the address may have a password."""
    path = _file(folder)
    path.touch(mode=0o600)
    path.write_text(json.dumps({"redis_url": redis_url, "port": port, "pid": os.getpid()}))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def redis_settings(redis_url: str | None, folder: Path) -> RedisSettings:
    """Which Redis is meant: the one given, that of the mesh running here, or what the environment says."""
    if redis_url:
        return RedisSettings(url=SecretStr(redis_url))
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return RedisSettings(url=SecretStr(json.loads(_file(folder).read_text())["redis_url"]))
    return RedisSettings()
