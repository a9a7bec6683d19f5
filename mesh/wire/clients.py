"""Clients of Redis, with the address, the user and the time-outs that the settings say. They do not retry.

In this package a client is an object of redis-py, not a client of the mesh.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import hiredis
from pydantic import SecretStr
from redis import exceptions as redis_errors
from redis._parsers.encoders import Encoder
from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff

from mesh.errors import Busy
from mesh.settings import RedisSettings
from mesh.wire.connection import RedisConnection

#: The most connections of the client that all services of a replica share. While all are in use, a further command
#: waits. With more, fewer commands would wait, but Redis would have more connections to serve.
SHARED_CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class Credentials:
    """The name and the password of a Redis user. A password of None: the user has none."""

    username: str
    password: str | None = field(repr=False)


class _HiredisConnection(Connection):
    """A connection that packs the commands of a pipeline with hiredis, in C. redis-py's own classes pack in Python.

    redis-py still packs a single command, with the `encoder_class` of its options. Neither way sends text that UTF-8
    cannot encode: both raise UnicodeEncodeError.
    """

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        return [b"".join(map(_pack_command, commands))]


def _pack_command(command: Iterable[Any]) -> bytes:
    """Return the bytes of one command. The name that redis-py gives it may have two words, such as "XINFO STREAM"."""
    name, *arguments = command
    packed: bytes = hiredis.pack_command((*name.split(), *arguments))
    return packed


class _StrictEncoder(Encoder):
    """Encodes text as UTF-8, and raises UnicodeEncodeError for text that UTF-8 cannot encode.

    The option `encoding_errors` is "replace", so that bytes which are not UTF-8 can be read. redis-py's own encoder
    would use this option for sending, too, and replace characters silently.
    """

    def encode(self, value: Any) -> Any:
        # redis-py's method has no type annotations, and mypy reports its call. So it is in `_Pool` below.
        return value.encode() if isinstance(value, str) else super().encode(value)  # type: ignore[no-untyped-call]


class _Pool(BlockingConnectionPool):
    """The connections of one redis-py client.

    While all are in use, a command waits, and raises Busy after `timeout` seconds.
    redis-py itself would raise a ConnectionError, as if the network were down.
    """

    async def get_connection(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().get_connection(*args, **options)  # type: ignore[no-untyped-call]
        except redis_errors.ConnectionError as error:
            if not isinstance(error.__cause__, TimeoutError):
                raise
            detail = f"all {self.max_connections} connections to Redis are in use; retry after 1 s"
            raise Busy(detail, retry_after=1) from error


class _SentinelPool(SentinelConnectionPool, _Pool):
    """Connections to the master that the sentinels name. If all are in use, a command waits as in `_Pool`."""


class _SentinelClient(Redis):
    """A client of one sentinel. Redis-py's errors show its `__repr__`: host and port, and not all its options."""

    def __repr__(self) -> str:
        options = self.connection_pool.connection_kwargs
        return f"{options['host']}:{options['port']}"


class _HeedsCancellation:
    """A mixin for redis-py's connections: a cancellation during a send is not lost.

    redis-py sends inside `asyncio.wait_for`. In Python 3.11 `wait_for` loses a cancellation that comes at the moment at
    which the send ends. Then the task goes on, and the code that cancelled it waits forever.

    If a connection was reset, uvloop raises a RuntimeError; the mixin raises a ConnectionError instead. Its comments
    `type: ignore` are for methods of the class that it is mixed into, which mypy does not see.
    """

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        task = asyncio.current_task()
        cancellations_before = 0 if task is None else task.cancelling()
        try:
            await super().send_packed_command(command, check_health)  # type: ignore[misc]
        except RuntimeError as error:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise redis_errors.ConnectionError("the connection to Redis was reset") from error
        if task is not None and task.cancelling() > cancellations_before:
            # The reply to this command may still come, and the next command must not take it for its own.
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise asyncio.CancelledError


def heeding_cancellation(client: Redis) -> Redis:
    """Change a new client, so that its connections lose no cancellation (`_HeedsCancellation`); return it."""
    pool = client.connection_pool
    unchanged_class = pool.connection_class
    pool.connection_class = type(f"Heeding{unchanged_class.__name__}", (_HeedsCancellation, unchanged_class), {})
    return client


def _login_options(username: str, password: SecretStr | None) -> dict[str, Any]:
    """Return redis-py's options for logging in; without a password there are none."""
    return {} if password is None else {"username": username, "password": password.get_secret_value()}


class Connections:
    """Makes redis-py clients of one server for one Redis user.

    No client retries: only its caller knows what may be repeated.
    """

    def __init__(self, settings: RedisSettings, credentials: Credentials | None = None) -> None:
        self.settings = settings
        self._credentials = credentials

    def as_user(self, credentials: Credentials) -> Connections:
        """Return an object that makes clients of this server for another Redis user, such as that of an epoch."""
        return type(self)(self.settings, credentials)

    @property
    def bus(self) -> int:
        """The number of the bus database."""
        return self.settings.bus

    def client(self, name: str, *, db: int | None = None, block_ms: int = 0, shared: bool = False) -> Redis:
        """Return a redis-py client with one connection or, if `shared`, with a pool that several tasks share.

        Redis shows `name` in CLIENT LIST. The client's database is `db`, or without `db` the bus database. A command
        may block in Redis for `block_ms`. So the time-out of the socket is `block_ms` plus the setting `timeout_ms`.
        """
        timeout_s = (self.settings.timeout_ms + block_ms) / 1000
        pool_size = SHARED_CONNECTIONS if shared else 1
        return self._make_client(name, self.bus if db is None else db, pool_size, timeout_s, socket_timeout_s=timeout_s)

    def connection(self, name: str, *, block_ms: int = 0) -> RedisConnection:
        """Return one connection to the bus database without redis-py's overhead, for commands that run all the time."""
        timeout_s = (self.settings.timeout_ms + block_ms) / 1000
        # The socket has no time-out: `RedisConnection` has one timer for all its trips, which costs less.
        return RedisConnection(self._make_client(name, self.bus, 1, timeout_s, socket_timeout_s=None), timeout_s)

    def _make_client(
        self, name: str, db: int, pool_size: int, connection_wait_s: float, *, socket_timeout_s: float | None
    ) -> Redis:
        settings = self.settings
        options: dict[str, Any] = {
            **self._server_options(),
            "db": db,
            "max_connections": pool_size,
            "timeout": connection_wait_s,  # longest wait for a free connection of the pool
            "socket_timeout": socket_timeout_s,
            "socket_connect_timeout": settings.connect_timeout_ms / 1000,
            "socket_keepalive": True,
            "retry": Retry(NoBackoff(), 0),  # the caller knows what may be repeated
            "decode_responses": True,
            "encoding_errors": "replace",
            "encoder_class": _StrictEncoder,
            "protocol": 2,  # RESP2: the readers of streams expect lists, and RESP3 would send maps
            "client_name": name,
        }
        if settings.sentinels:
            return self._sentinel_client(options)
        # For a URL with rediss://, `connection_class` is SSLConnection already. TLS and sentinels need redis-py's own
        # classes, which pack pipelines in Python. A `RedisConnection` packs its commands itself, so it is fast with
        # each class.
        options.setdefault("connection_class", _HiredisConnection)
        return heeding_cancellation(Redis.from_pool(_Pool(**options)))

    def _server_options(self) -> dict[str, Any]:
        """Return redis-py's options for the address and the user.

        The URL overrides the other settings. If this object has credentials of its own, such as those of an epoch, they
        override both.
        """
        settings = self.settings
        options: dict[str, Any] = {"host": settings.host, "port": settings.port}
        if settings.url is not None:
            options = dict(parse_url(settings.url.get_secret_value()))
        if self._credentials is not None:
            return options | {"username": self._credentials.username, "password": self._credentials.password}
        # If the URL has no password, that of the settings is used. A user name in the URL stays.
        return options if "password" in options else _login_options(settings.username, settings.password) | options

    def _sentinel_client(self, options: dict[str, Any]) -> Redis:
        settings = self.settings
        # For a URL with rediss://, redis-py's `parse_url` returns SSLConnection as the class of connections. Then the
        # sentinels are asked over TLS, too.
        options["ssl"] = options.pop("connection_class", None) is SSLConnection
        tls_options = {name: value for name, value in options.items() if name.startswith("ssl")}
        sentinel_options = {
            # Seconds; after this, redis-py asks the next sentinel. A shorter time-out might skip a slow sentinel; with
            # a longer one, a client finds the master later while a sentinel is away.
            "socket_timeout": 0.5,
            "socket_connect_timeout": 0.5,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
            **_login_options(settings.sentinel_username, settings.sentinel_password),
            **tls_options,
        }
        # Given addresses, the constructor of Sentinel would make clients of the class Redis. An error that names such a
        # client has a page of options in its text. So this method makes the clients, and their errors are short.
        sentinel = Sentinel([])
        sentinel.sentinels = [
            _SentinelClient(host=host, port=port, **sentinel_options) for host, port in settings.sentinel_addresses
        ]
        client: Redis = sentinel.master_for(
            settings.sentinel_master, redis_class=Redis, connection_pool_class=_SentinelPool, **options
        )
        return heeding_cancellation(client)
