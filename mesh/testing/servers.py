"""The Redis of a kit: fakeredis in this process, or a real server that must be empty."""

from __future__ import annotations

from typing import Any, Protocol

import redis
from pydantic import SecretStr, ValidationError

from mesh.errors import MeshError, SetupError
from mesh.lease import acl
from mesh.settings import Isolation, RedisSettings, explain, without_environment
from mesh.wire.clients import Connections


class KitServer(Protocol):
    """What a kit needs from its Redis."""

    @property
    def isolation(self) -> Isolation:
        """How replicas are kept out of all databases but their own."""

    @property
    def connections(self) -> Connections:
        """Connections with all rights."""

    @property
    def sync_client(self) -> Any:
        """A synchronous redis-py client of the bus database, which does not need the event loop."""

    async def begin(self) -> None:
        """Prepare the server. Raises SetupError if the server is not empty."""

    async def end(self) -> None:
        """Remove everything that the kit has stored."""


class RealServer:
    """A real server, given by its address or settings. It must be empty: at its end, the kit deletes all keys."""

    isolation = Isolation.ACL

    def __init__(self, location: str | RedisSettings) -> None:
        try:
            settings = (
                location
                if isinstance(location, RedisSettings)
                else without_environment(RedisSettings, url=SecretStr(location))
            )
        except ValidationError as error:
            raise SetupError(explain(error)) from error
        self.connections = Connections(settings)
        self.sync_client = _new_sync_client(settings)

    async def begin(self) -> None:
        """Raise SetupError if the server holds any key."""
        keyspace = self.sync_client.info("keyspace")
        if keyspace:
            raise SetupError(
                f"the Redis of MeshKit holds keys ({', '.join(keyspace)}), and the kit would delete them all: "
                "name a server that is empty, and that only tests use"
            )

    async def end(self) -> None:
        """Delete all keys, and the Redis users that the mesh has made."""
        self.sync_client.flushall()
        # The server may have users of other programs, which stay. 16 is `keys.MOST_DATABASES`: only these databases are
        # leased, and each lease makes a user.
        possible_users = {acl.username(database, self.connections.bus) for database in range(16)}
        mesh_users = possible_users & set(self.sync_client.acl_users())
        if mesh_users:
            self.sync_client.acl_deluser(*sorted(mesh_users))
        self.sync_client.close()


def _new_sync_client(settings: RedisSettings) -> redis.Redis:
    """Return a redis-py client of the bus database that blocks while it waits for an answer."""
    password = None if settings.password is None else settings.password.get_secret_value()
    if settings.url is not None:
        return redis.Redis.from_url(settings.url.get_secret_value(), db=settings.bus, decode_responses=True)
    return redis.Redis(
        host=settings.host,
        port=settings.port,
        db=settings.bus,
        # If redis-py has a user name, it logs in, even without a password.
        username=settings.username if password else None,
        password=password,
        decode_responses=True,
    )


def new_fake_server() -> KitServer:
    """Return a new fakeredis server, which is empty. Raises MeshError if fakeredis is not installed."""
    try:
        from mesh.testing.fake_server import FakeKitServer
    except ImportError as error:
        raise MeshError(
            "MeshKit runs over fakeredis, which is not installed: pip install 'quart-mesh[testing]', "
            'or name a real server: MeshKit(..., redis="redis://localhost:6379")'
        ) from error
    return FakeKitServer()
