"""A client of the mesh: it sends requests without a lease, and so takes no database.

    absent --presence written--> present --not renewed in time--> absent: a new presence, with a new name
       |
       +--the server cannot be used for this mesh, or refuses the credentials--> over: every call raises the reason

A presence is a key that expires and that the client renews, like the lease of a replica. While the key is missing,
Redis refuses each request of the client. If the client could not renew the key in time, its link ends, and does not
repeat a failed batch. A client that dies leaves three keys: its presence, its reply stream and the result of its latest
batch. All three expire. Replicas still answer its requests, or the requests expire. Nobody reads the answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import structlog
from redis.asyncio import Redis

from mesh import keys, roster
from mesh.discovery import LATER, READ_SERVED, Directory
from mesh.errors import LeaseLost, MeshError, SetupError, Unavailable
from mesh.groups.reader import BLOCK_MS
from mesh.later import waking
from mesh.later.due import Due
from mesh.lease import server
from mesh.requests import scripts, streams, tracing
from mesh.requests.answers import Answer, Ask, Replies, needed_ops_and_level
from mesh.requests.calls import Calls
from mesh.requests.once import Once
from mesh.requests.protocol import Address, Body, Decode, decode_object
from mesh.requests.streams import ReplyReader
from mesh.roster import Member
from mesh.settings import MeshSettings, given_or_environment
from mesh.wire import failures
from mesh.wire.clients import Connections
from mesh.wire.connection import RedisConnection
from mesh.wire.durability import Durability
from mesh.wire.link import Link
from mesh.wire.script import Script

log = structlog.get_logger(__name__)

WRITE_PRESENCE = Script.beside(__file__, "present.lua")
#: The scripts that a client runs over its link, beside SUBMIT. If the server does not know one, the link loads it.
LINK_SCRIPTS = (
    roster.READ_ROSTER, roster.READ_MISSING, READ_SERVED, scripts.END, scripts.BOOKS, waking.CANCEL,
)  # fmt: skip
#: A presence holds for this number of lease ttls, and is renewed once in each ttl. It may hold for longer than a lease:
#: no replica waits for its end, because a client holds no database. With a larger number, the keys of a dead client
#: stay for longer; with a smaller one, the presence survives only shorter failures of Redis.
PRESENCE_TTLS = 10
#: The client stops trusting its presence when this share of the presence's time is left. So it stops before Redis ends
#: the presence. With a larger share, fewer late renewals are survived; with a smaller one, the client may send requests
#: that Redis refuses, because the presence has just ended there.
SAFETY_SHARE = 0.1
#: Wait, in seconds, before a new presence is written after the last one has ended or could not be written. A longer
#: wait keeps the program without a presence for longer; a shorter one costs Redis more attempts.
RETRY_PAUSE_S = 0.5


class Presence:
    """One presence of a client, with its connections. `run` renews the presence until it ends."""

    def __init__(self, settings: MeshSettings, connections: Connections) -> None:
        self.id = f"{keys.CLIENT_NAME_PREFIX}{secrets.token_hex(4)}"  # 32 random bits: two equal ids are unlikely
        self._settings = settings
        self._connections = connections
        self._ttl_ms = PRESENCE_TTLS * settings.lease_ttl_ms
        self._host_and_pid = f"{socket.gethostname()}:{os.getpid()}"
        #: when the last renewal that succeeded was sent (`time.monotonic()`)
        self._renewed_at = 0.0
        #: names of operations that only read, from the latest roster: they can be called even while Redis is full
        self._reading_ops: frozenset[str] = frozenset()
        #: what `end` will close
        self._closed_at_end: list[Redis | RedisConnection] = []
        #: a client of redis-py that renews the presence
        self._presence_client = self._close_at_end(connections.client(f"keeper-{self.id}"))
        self.link = self._make_link()
        self._durability = self._make_durability()
        reader = ReplyReader(self._connection("replies", BLOCK_MS), keys.replies(self.id))
        self.calls = Calls(self.link, reader, self.id, self._durability, self._only_reads, settings.later_bound)
        self.directory = Directory(self.link, ())  # empty, because a client serves no operation itself

    def _only_reads(self, op: str) -> bool:
        """Return whether an operation is known to have no effect."""
        return op in self._reading_ops

    def _close_at_end(self, opened: Any) -> Any:
        """Return a client of redis-py or a RedisConnection, which `end` will close."""
        self._closed_at_end.append(opened)
        return opened

    def _connection(self, name: str, block_ms: int = 0) -> RedisConnection:
        connection: RedisConnection = self._close_at_end(
            self._connections.connection(f"{name}-{self.id}", block_ms=block_ms)
        )
        return connection

    def _make_link(self) -> Link:
        settings = self._settings
        # First the number of keys (3), the keys and ARGV 1: what the presence holds. Then ARGV 2 to 7 of submit.lua.
        # `concurrency` is taken for that of each replica, to judge how full a queue is.
        submit_arguments = (
            3, keys.client(self.id), keys.BOOKS, keys.submitted(self.id), self._host_and_pid,
            self._ttl_ms, keys.MOST_DATABASES, settings.stream_bound, self.id, keys.replies(self.id),
            settings.concurrency,
        )  # fmt: skip
        return Link(
            self._connection("link"),
            bus=self._connections.bus,
            database=self._connections.bus,  # a client has no database of its own, so it runs nothing there
            trusted=lambda: self.trusted,
            remembered_ms=self._ttl_ms,  # the result of a batch is needed only while this presence can repeat the batch
            submit_script=(scripts.variants(scripts.SUBMIT), submit_arguments),
            commit_script=None,  # a client handles no requests
            scripts=LINK_SCRIPTS,
        )

    def _make_durability(self) -> Durability | None:
        redis = self._settings.redis
        if not redis.wait_replicas:
            return None
        return Durability(
            self._connection("durability", redis.wait_timeout_ms),
            keys.replies(self.id),  # exists while the presence holds
            keep_ms=self._ttl_ms,  # present.lua gives this key the same expiry
            copies=redis.wait_replicas,
            timeout_ms=redis.wait_timeout_ms,
        )

    @property
    def trusted(self) -> bool:
        """Whether the presence still holds, for certain."""
        return time.monotonic() - self._renewed_at < self._ttl_ms / 1000 * (1 - SAFETY_SHARE)

    async def begin(self) -> None:
        """Check the server, and that no other mesh uses it; write the presence. `run` then renews it.

        Raises MeshError, and redis-py's errors.
        """
        await server.check(self._presence_client)
        await self._check_mesh()
        await self._renew()

    async def _check_mesh(self) -> None:
        bus = self._connections.bus
        # The claim is in database 0, so that meshes with different bus databases see each other's.
        claim_client = self._connections.client(f"claim-{self.id}", db=0)
        try:
            server.check_claim(str(await claim_client.get(keys.CLAIM) or ""), f"{self._settings.name} {bus}")
        finally:
            await claim_client.aclose()
        server.check_format(str(await self._presence_client.get(keys.FORMAT) or ""), "to this mesh")

    async def _renew(self) -> None:
        sent_at = time.monotonic()  # before the renewal: Redis counts the expiry from a later moment
        await WRITE_PRESENCE.run(
            self._presence_client, [keys.client(self.id), keys.replies(self.id)], self._host_and_pid, self._ttl_ms
        )
        self._renewed_at = sent_at
        members = await roster.read_directly(self._presence_client)
        self._reading_ops = frozenset().union(*[member.readers for member in members])

    async def run(self) -> None:
        """Stay present until cancelled. Raises an exception group; a LeaseLost in it says that the presence is over."""
        async with asyncio.TaskGroup() as tasks:
            for activity in (
                self._renew_on_time,
                self.link.run,
                self.calls.run,
                *([self._durability.run] if self._durability else []),
            ):
                tasks.create_task(activity())

    async def _renew_on_time(self) -> None:
        while True:
            await asyncio.sleep(self._settings.lease_ttl_ms / 1000)
            try:
                await self._renew()
            except failures.ANY as error:
                # A lasting error ends the presence at once. Callers get its cause: see `_error_without_presence`.
                if not self.trusted or not failures.is_passing(error):
                    raise LeaseLost("Redis could not be reached for too long") from error
                log.warning("presence not renewed", client=self.id, error=failures.text_of(error))

    async def end(self) -> None:
        """Remove what Redis keeps of this client, and close its connections."""
        with contextlib.suppress(*failures.ANY):  # without the deletion, the keys expire
            await self._presence_client.delete(keys.client(self.id), keys.replies(self.id), keys.submitted(self.id))
        for opened in self._closed_at_end:
            # Closing sends no command, so Redis cannot refuse it: only the connection can fail.
            with contextlib.suppress(*failures.PASSING):
                await opened.aclose()


class Client:
    """Sends requests to a mesh, and is not a member of the mesh. `connect` makes it.

    While Redis cannot be reached, calls raise Unavailable. When Redis is back, they work again.
    """

    def __init__(self, settings: MeshSettings, connections: Connections) -> None:
        self.settings = settings
        self._connections = connections
        self._streams = keys.request_streams(settings.classes, settings.databases)
        self._presence: Presence | None = None
        #: what calls raise while there is no presence; after a SetupError, no new presence is tried
        self._no_presence_error: MeshError = Unavailable("Redis cannot be reached; retry after 1 s", retry_after=1)
        #: set when the first attempt to become present has ended
        self._first_attempt_ended = asyncio.Event()

    @property
    def id(self) -> str:
        """The name under which Redis knows this client now. Each new presence has a new name."""
        return self._require_presence().id

    async def ask(
        self, asks: Sequence[Ask], *, deadline_ms: int | None = None, decode: Decode = decode_object
    ) -> list[Answer]:
        """Send several requests, all or none, and wait for every reply, which `decode` reads. Raises MeshError."""
        with _lease_lost_as_unavailable():
            presence = await self._presence_for(*needed_ops_and_level(asks))
            return await presence.calls.ask(asks, deadline_ms or self.settings.deadline_ms, decode)

    async def call(self, to: Address, op: str, body: Mapping[str, Any], *, deadline_ms: int | None = None) -> Body:
        """Send one request and wait for its reply. Merge a reply in several parts key by key. Raises MeshError."""
        (answer,) = await self.ask([Ask(to, op, body)], deadline_ms=deadline_ms)
        return answer.merged()

    async def gather(
        self,
        op: str,
        body: Mapping[str, Any] | bytes,
        *,
        deadline_ms: int | None = None,
        decode: Decode = decode_object,
    ) -> Replies[Any]:
        """Send one request to every live database at one moment; return the replies by database.

        Raises Incomplete if a holder is expected back or did not answer in time; also MeshError.
        """
        with _lease_lost_as_unavailable():
            presence = await self._presence_for([op])
            return await presence.calls.gather(op, body, deadline_ms or self.settings.deadline_ms, decode)

    async def send(
        self,
        to: Address,
        op: str,
        body: Mapping[str, Any] | bytes,
        *,
        key: str = "",
        due: Due | None = None,
        once: Once | None = None,
        limit: str = "",
    ) -> None:
        """Send a request whose reply nobody waits for; return when Redis has the request.

        The request stays there if this client ends.

        `key` names the request, for `cancel`. A request that is `due` later, or that has an idempotency key or a limit,
        needs such a name.
        """
        with _lease_lost_as_unavailable():
            ask = Ask(to, op, body, once, limit)
            ops, level = needed_ops_and_level([ask])
            presence = await self._presence_for(ops, level if due is None else max(level, LATER))
            await presence.calls.send(ask, key, due)

    async def cancel(self, key: str) -> bool:
        """Remove the request with this key. Return False if it has ended already."""
        with _lease_lost_as_unavailable():
            return await waking.cancel(self._require_presence().link, self._streams, key)

    async def roster(self) -> list[Member]:
        """Return the rows of the roster at this moment."""
        with _lease_lost_as_unavailable():
            return await roster.read(self._require_presence().link)

    async def books(self) -> dict[str, int]:
        """Return how many requests had each outcome in the mesh; `accepted` is the sum of all other counts."""
        with _lease_lost_as_unavailable():
            return await streams.read_books(self._require_presence().link, self._streams)

    async def _presence_for(self, ops: Sequence[str], level: int = 0) -> Presence:
        """Return the presence if the live replicas serve these operations and know options of this level.

        Raises Unserved if no live replica serves one of the operations, and OlderRelease if a live replica does not
        know the level. Without a presence, raises `_no_presence_error`.
        """
        presence = self._require_presence()
        await presence.directory.check(ops, level)
        return presence

    def _require_presence(self) -> Presence:
        """Return the presence. Raises `_no_presence_error` if there is none."""
        if self._presence is None:
            raise self._no_presence_error
        return self._presence

    async def run(self) -> None:
        """Become present, and again whenever a presence has ended. Run until cancelled or until a SetupError."""
        while not isinstance(self._no_presence_error, SetupError):
            presence = Presence(self.settings, self._connections)
            try:
                await presence.begin()
                self._presence = presence
                self._first_attempt_ended.set()
                await presence.run()
            except Exception as error:  # of any kind: the next presence begins with new connections
                self._no_presence_error = _error_without_presence(error)
                log.warning("the client is absent", client=presence.id, reason=str(self._no_presence_error))
            finally:
                self._presence = None
                self._first_attempt_ended.set()
                await presence.end()
            await asyncio.sleep(RETRY_PAUSE_S)

    async def begun(self) -> None:
        """Wait until the first attempt to become present has ended. Raises SetupError if it failed for good.

        `connect` calls this before its block begins.
        """
        await self._first_attempt_ended.wait()
        if self._presence is None and isinstance(self._no_presence_error, SetupError):
            raise self._no_presence_error

    def close(self) -> None:
        """Let every later call raise Unavailable. `run` must have ended, because it sets the error of calls, too."""
        self._no_presence_error = Unavailable("this client has left the mesh: the block of connect() is over")

    async def leave(self) -> None:
        """Wait until the calls in progress are answered, but no longer than the default deadline.

        This closes nothing: a call that another task makes meanwhile still works.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.deadline_ms / 1000):
                while self._presence is not None and self._presence.calls.unanswered:
                    # A longer sleep delays the end of the block of `connect`; a shorter one costs more turns.
                    await asyncio.sleep(0.01)


@contextlib.contextmanager
def _lease_lost_as_unavailable() -> Iterator[None]:
    """Raise Unavailable if the block raises LeaseLost, because the presence ended during a call."""
    try:
        yield
    except LeaseLost as error:
        raise Unavailable(
            "the connection to Redis was lost, and it is not known whether the request was done; retry after 1 s",
            retry_after=1,
        ) from error


def _error_without_presence(error: BaseException) -> MeshError:
    """Return the error for calls after a presence has ended: Unavailable if a new one may succeed, else SetupError."""
    # The group comes from the TaskGroup of a presence. The first error has ended the presence; others followed from it.
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    # The cause says why Redis could not be reached; LeaseLost does not.
    if isinstance(error, LeaseLost) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, MeshError):
        return error if isinstance(error, SetupError) else Unavailable(error.detail, retry_after=1)
    return server.to_mesh_error(error)


@contextlib.asynccontextmanager
async def connect(
    url: str | None = None,
    *,
    settings: MeshSettings | None = None,
    connections: Connections | None = None,
) -> AsyncIterator[Client]:
    """Become a client of the mesh whose Redis is at `url`, or at the address that the environment names.

    This does not wait for Redis: while Redis cannot be reached, calls raise Unavailable. Raises SetupError if the mesh
    cannot use the server, if another mesh uses it, or if it refuses the credentials.
    """
    tracing.activate()
    settings = given_or_environment(settings, url)
    client = Client(settings, connections or Connections(settings.redis))
    run_task = asyncio.create_task(client.run(), name="mesh-client")
    try:
        await client.begun()
        yield client
        await client.leave()
    finally:
        run_task.cancel()
        await asyncio.wait([run_task])
        client.close()
