"""The Redis below a kit: fakeredis in this process, or a real server that must be empty."""

from __future__ import annotations

from typing import Any, Protocol

import redis
from pydantic import SecretStr

from mesh.errors import MeshError, SetupError
from mesh.lease import acl
from mesh.settings import Isolation, RedisSettings
from mesh.wire.clients import Connections


class Below(Protocol):
    """What a kit needs of its Redis."""

    @property
    def isolation(self) -> Isolation:
        """What can keep replicas apart here."""

    @property
    def connections(self) -> Connections:
        """Connections with all rights."""

    @property
    def direct(self) -> Any:
        """A client that answers at once, without the event loop."""

    async def begin(self) -> None:
        """Prepare the server. Raises SetupError where it is not for tests."""

    async def end(self) -> None:
        """Leave nothing behind."""


class RealServer:
    """A server at an address. It must be empty, because the kit empties it afterwards."""

    isolation = Isolation.ACL

    def __init__(self, url: str) -> None:
        self.connections = Connections(RedisSettings(url=SecretStr(url)))
        self.direct = redis.Redis.from_url(url, decode_responses=True)

    async def begin(self) -> None:
        """Refuse a server that holds anything."""
        found = self.direct.info("keyspace")
        if found:
            raise SetupError(
                f"the Redis of MeshKit holds keys ({', '.join(found)}), and the kit would delete them all: "
                "name a server that is empty, and that only tests use"
            )

    async def end(self) -> None:
        """Delete all keys, and the users that the mesh made."""
        self.direct.flushall()
        names = {acl.username(database, self.connections.bus) for database in range(16)}
        made = names & set(self.direct.acl_users())
        if made:
            self.direct.acl_deluser(*sorted(made))
        self.direct.close()


def fake_server() -> Below:
    """Return fakeredis, with its own data. Raises MeshError where it is not installed."""
    try:
        from mesh.testing.fake_server import FakeBelow
    except ImportError as error:
        raise MeshError(
            "MeshKit runs over fakeredis, which is not installed: pip install 'quart-mesh[testing]', "
            'or name a real server: MeshKit(..., redis="redis://localhost:6379")'
        ) from error
    return FakeBelow()
