"""How a mesh that runs on this machine is found: its data folder says how to reach it.

The file in that folder has the password of the embedded server, so only our user can read it. The file counts only
while a mesh holds the lock of the folder, because a mesh that was killed could not remove it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from pydantic import SecretStr

import mesh
from mesh import Connections, Member, Missing, RedisSettings
from quart_app.local.data_folder import in_use
from quart_app.settings import host_and_port


def default_folder() -> Path:
    """Return the data folder to use if the option --data names none."""
    return Path(os.environ.get("MESH_DATA") or "data")


@dataclass(frozen=True, slots=True)
class Announcement:
    """What `mesh.json` in the data folder says: how to reach a mesh that runs on this machine."""

    #: the address of Redis with its password; "" if only sentinels know the address
    redis_url: str
    #: the public port of the mesh, and the process that runs `mesh up`: for people who read the file
    port: int
    pid: int


def _announcement_file(folder: Path) -> Path:
    return folder / "mesh.json"


@contextlib.contextmanager
def announcing(folder: Path, announcement: Announcement) -> Iterator[None]:
    """Keep the announcement in the data folder while the block lasts."""
    path = _announcement_file(folder)
    new_path = path.with_suffix(".new")
    new_path.unlink(missing_ok=True)  # a killed mesh may have left it; O_EXCL then makes a file that only we can read
    with os.fdopen(os.open(new_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(asdict(announcement), file)
    os.replace(new_path, path)  # in one step, so that nobody reads half a file
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def find_running(folder: Path) -> Announcement | None:
    """Return how to reach the mesh that runs on this folder; None if there is none."""
    with contextlib.suppress(OSError, ValueError, TypeError):  # no file, or not one that this release understands
        announcement = Announcement(**json.loads(_announcement_file(folder).read_text()))
        if in_use(folder):
            return announcement
    return None


def redis_settings(redis_url: str | None, folder: Path) -> RedisSettings:
    """Return how to reach Redis: by `redis_url`, or as the mesh on this folder does, or as the environment says."""
    if redis_url:
        return RedisSettings(url=SecretStr(redis_url))
    found = find_running(folder)
    return RedisSettings() if found is None or not found.redis_url else RedisSettings(url=SecretStr(found.redis_url))


def url_of(settings: RedisSettings) -> str:
    """Return the address of a server, with user and password; "" if only sentinels know the address."""
    if settings.sentinels:
        return ""
    if settings.url is not None:
        return settings.url.get_secret_value()
    password = "" if settings.password is None else settings.password.get_secret_value()
    login = f"{quote(settings.username, safe='')}:{quote(password, safe='')}@" if password else ""
    return f"redis://{login}{host_and_port(settings.host, settings.port)}/{settings.bus}"


async def read_roster(settings: RedisSettings) -> list[Member]:
    """Return the roster, read with the shared credentials. Raises redis-py's errors."""
    client = Connections(settings).client("mesh-status")
    try:
        return await mesh.read_roster(client)
    finally:
        await client.aclose()


async def read_missing(settings: RedisSettings) -> list[Missing]:
    """Return the databases that are missing, read with the shared credentials. Raises redis-py's errors."""
    client = Connections(settings).client("mesh-status")
    try:
        return await mesh.read_missing(client)
    finally:
        await client.aclose()
