"""Redis clients, their time-outs and retries, in one place.

`Connections` makes clients. `Link` is the one connection over which a replica says everything that does not block:
whatever was asked for during one turn of the event loop leaves in one round trip.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import hiredis
from pydantic import SecretStr
from redis import exceptions as redis_errors
from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff

from mesh.errors import Busy, LeaseLost, MeshError, Unavailable
from mesh.settings import RedisSettings
from mesh.wire.codec import decode
from mesh.wire.connection import Line, pack
from mesh.wire.failures import PASSING, Meaning, classify, is_fenced, is_passing
from mesh.wire.script import Script

T = TypeVar("T", bound=Iterable[Any])

#: Connections of the client that services share; more than this many commands at once wait for one.
SHARED_CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class Credentials:
    """A Redis user."""

    username: str
    password: str | None = field(repr=False)


class QuickConnection(Connection):
    """A connection that packs commands in C; redis-py's asyncio connections do so in Python."""

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        return [b"".join(map(_packed, commands))]


def _packed(command: Iterable[Any]) -> bytes:
    """Return the bytes of one command. redis-py names some in two words, such as "XINFO STREAM"."""
    name, *words = command
    packed: bytes = hiredis.pack_command((*name.split(), *words))
    return packed


class _Pool(BlockingConnectionPool):
    """Connections of one client. Who finds none free waits, and is told Busy when the wait is over.

    redis-py raises the error of a network that is away, which nobody expects while the server answers.
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
    """The same for connections to the master that the sentinels name."""


class _Asked(Redis):
    """A sentinel. redis-py's errors name each that they asked, by all its options; host and port are enough."""

    def __repr__(self) -> str:
        options = self.connection_pool.connection_kwargs
        return f"{options['host']}:{options['port']}"


class _HeedsCancellation:
    """Mixed into redis-py's connections, so that a cancellation which comes while they send is not forgotten.

    They send within `asyncio.wait_for`, and that of Python 3.11 drops a cancellation which comes together with the
    end of what it waits for. The task goes on, and whoever cancelled it waits for ever.

    A connection that was reset since it was last used is a ConnectionError here: uvloop calls it a RuntimeError, which
    nobody would take for a network that is away.
    """

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        task = asyncio.current_task()
        before = 0 if task is None else task.cancelling()
        try:
            await super().send_packed_command(command, check_health)  # type: ignore[misc]
        except RuntimeError as error:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise redis_errors.ConnectionError("the connection to Redis was reset") from error
        if task is not None and task.cancelling() > before:
            # The answer is on its way; nobody must take it for that of another command.
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise asyncio.CancelledError


def heeding_cancellation(client: Redis) -> Redis:
    """The client, with connections that do not forget a cancellation."""
    pool = client.connection_pool
    made = pool.connection_class
    pool.connection_class = type(f"Heeding{made.__name__}", (_HeedsCancellation, made), {})
    return client


def _login(username: str, password: SecretStr | None) -> dict[str, Any]:
    """What redis-py is told of us; without a password nothing is said."""
    return {} if password is None else {"username": username, "password": password.get_secret_value()}


class Connections:
    """Makes clients for the one Redis, as one user. Nothing is retried behind our back."""

    def __init__(self, settings: RedisSettings, credentials: Credentials | None = None) -> None:
        self.settings = settings
        self._credentials = credentials

    def as_user(self, credentials: Credentials) -> Connections:
        """The same server as another user."""
        return type(self)(self.settings, credentials)

    @property
    def bus(self) -> int:
        """The number of the bus database."""
        return self.settings.bus

    def client(self, name: str, *, db: int | None = None, block_ms: int = 0, shared: bool = False) -> Redis:
        """A client with one connection (or, `shared`, a small pool that waits for a free one).

        `block_ms` is how long its commands may block; its socket waits a little longer, and never for ever.
        """
        timeout_s = (self.settings.timeout_ms + block_ms) / 1000
        connections = SHARED_CONNECTIONS if shared else 1
        return self._open(name, self.bus if db is None else db, connections, timeout_s, socket_timeout_s=timeout_s)

    def line(self, name: str, *, block_ms: int = 0) -> Line:
        """One connection to the bus database, for what is said all the time."""
        timeout_s = (self.settings.timeout_ms + block_ms) / 1000
        return Line(self._open(name, self.bus, 1, timeout_s, socket_timeout_s=None), timeout_s)

    def _open(self, name: str, db: int, connections: int, timeout_s: float, *, socket_timeout_s: float | None) -> Redis:
        settings = self.settings
        options: dict[str, Any] = {
            **self._server(),
            "db": db,
            "max_connections": connections,
            "timeout": timeout_s,  # of the wait for a free one, in pools that wait: plain ones raise
            "socket_timeout": socket_timeout_s,
            "socket_connect_timeout": settings.connect_timeout_ms / 1000,
            "socket_keepalive": True,
            "retry": Retry(NoBackoff(), 0),  # what may be repeated is for the caller to know
            "decode_responses": True,
            "protocol": 2,
            "client_name": name,
        }
        if settings.sentinels:
            return self._sentinel_client(options)
        options.setdefault("connection_class", QuickConnection)
        return heeding_cancellation(Redis.from_pool(_Pool(**options)))

    def _server(self) -> dict[str, Any]:
        """Where the server is and who we are there, in redis-py's words. The address goes before the other settings,
        the user of an epoch before both."""
        settings = self.settings
        named: dict[str, Any] = {"host": settings.host, "port": settings.port}
        if settings.url is not None:
            named = dict(parse_url(settings.url.get_secret_value()))
        if self._credentials is not None:
            return named | {"username": self._credentials.username, "password": self._credentials.password}
        return named if "password" in named else _login(settings.username, settings.password) | named

    def _sentinel_client(self, options: dict[str, Any]) -> Redis:
        settings = self.settings
        # Whoever speaks TLS with the servers does with the sentinels.
        options["ssl"] = options.pop("connection_class", None) is SSLConnection
        tls = {name: value for name, value in options.items() if name.startswith("ssl")}
        asked = {
            "socket_timeout": 0.5,
            "socket_connect_timeout": 0.5,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
            **_login(settings.sentinel_username, settings.sentinel_password),
            **tls,
        }
        sentinel = Sentinel([])
        sentinel.sentinels = [_Asked(host=host, port=port, **asked) for host, port in settings.sentinel_addresses]
        client: Redis = sentinel.master_for(
            settings.sentinel_master, redis_class=Redis, connection_pool_class=_SentinelPool, **options
        )
        return heeding_cancellation(client)


class Waiter(Protocol):
    """Who is told what came of it, once: a future, or whoever needs none."""

    def done(self) -> bool: ...

    def set_result(self, result: Any, /) -> None: ...

    def set_exception(self, error: BaseException, /) -> None: ...


def _fail(asked: Iterable[tuple[Any, Waiter]], error: BaseException) -> None:
    for _, waiter in asked:
        if not waiter.done():
            waiter.set_exception(error)


#: Words of 128 characters and more count for several in the bound of a round trip, which is one of bytes, too.
WORD_BITS = 7


def _weight(words: Iterable[Any]) -> int:
    """Return how many words these count for in a round trip: long ones for several."""
    count = size = 0
    for word in words:
        count += 1
        if word.__class__ is str:
            size += len(word)
    return count + (size >> WORD_BITS)


class Batch(Generic[T]):
    """Collects what is asked during one turn of the loop; `take` hands it over."""

    def __init__(self, bound: int = 20_000) -> None:
        self._bound = bound
        self._items: deque[tuple[T, Waiter]] = deque()
        self._weights: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: T, waiter: Waiter) -> None:
        """Append an item. Raises Busy beyond the bound."""
        if len(self._items) >= self._bound:
            raise Busy("too much waits to be sent to Redis", retry_after=1)
        self._items.append((item, waiter))
        self._weights.append(_weight(item))

    def take(self, most_words: int) -> list[tuple[T, Waiter]]:
        """Hand over the oldest items, up to this many words together, yet one at least."""
        taken: list[tuple[T, Waiter]] = []
        left = most_words
        while self._items and (not taken or self._weights[0] <= left):
            taken.append(self._items.popleft())
            left -= self._weights.popleft()
        return taken

    def put_back(self, taken: list[tuple[T, Waiter]]) -> None:
        """Put items that were taken before all others again."""
        self._items.extendleft(reversed(taken))
        self._weights.extendleft(_weight(item) for item, _ in reversed(taken))

    def fail(self, error: BaseException) -> None:
        """Fail every item that waits: nothing will be sent."""
        failed, self._items, self._weights = self._items, deque(), deque()
        _fail(failed, error)


#: Most words of one kind in one round trip: a script must not hold the server for longer than about 10 ms.
MOST_WORDS = 20_000
RETRY_S = 0.05


class Link:
    """Everything a replica says to Redis that does not block, over one connection, one trip at a time.

    Reads, submissions and commits asked for while a trip is under way share the next one. A trip that failed on the
    way is made again: reads change nothing, and what was submitted and committed carries the trip's number, by which
    the server knows what it has done already. `trusted` says whether the lease still holds; without it nothing is sent.
    `submit` and `commit` are the words that run these scripts, before the trip's number and what goes with it.
    """

    def __init__(
        self,
        line: Line,
        *,
        bus: int,
        database: int,
        trusted: Callable[[], bool],
        submit: tuple[Any, ...],
        commit: tuple[Any, ...],
        scripts: Sequence[Script],
    ) -> None:
        self._line = line
        self._bus = bus
        self._database = database
        self._trusted = trusted
        self._submit = submit
        self._commit = commit
        self._scripts = scripts
        self._shared: Batch[tuple[Any, ...]] = Batch()
        self._own: Batch[tuple[Any, ...]] = Batch()
        self._submissions: Batch[Any] = Batch()
        self._commits: Batch[Any] = Batch()
        self._batches: tuple[Batch[Any], ...] = (self._shared, self._own, self._submissions, self._commits)
        self._wake = asyncio.Event()
        self._number = 0
        self._most_words = MOST_WORDS
        self._down = False
        self._closed: MeshError | None = None
        self.trips = 0

    def _ask(self, batch: Batch[Any], item: Any) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._put(batch, item, future)
        return future

    def _put(self, batch: Batch[Any], item: Any, waiter: Waiter) -> None:
        self._check_open()
        batch.add(item, waiter)
        self._wake.set()

    def shared(self, *command: Any) -> Awaitable[Any]:
        """Say a command in the bus database."""
        return self._ask(self._shared, command)

    def own(self, *command: Any) -> Awaitable[Any]:
        """Say a command in the leased database."""
        return self._ask(self._own, command)

    def script(self, script: Script, keys: Sequence[str], *args: Any, own: bool = False) -> Awaitable[Any]:
        """Run a script in the bus database, or the leased one."""
        command = ("EVALSHA", script.sha, len(keys), *keys, *args)
        return self._ask(self._own if own else self._shared, command)

    def submit(self, group: Any, waiter: Waiter) -> None:
        """Submit a group of requests. Raises Unavailable at once while Redis is known to be away."""
        if self._down:
            raise Unavailable("Redis cannot be reached just now", retry_after=1)
        self._put(self._submissions, group, waiter)

    def commit(self, transaction: Any, waiter: Waiter, *, first: bool = False) -> None:
        """Commit a transaction; the waiter receives the script's word. `first`: before all others of the next trip."""
        if first:
            self._check_open()
            self._commits.put_back([(transaction, waiter)])
            self._wake.set()
        else:
            self._put(self._commits, transaction, waiter)

    def _check_open(self) -> None:
        if self._closed is not None:
            raise self._closed

    @property
    def closed(self) -> bool:
        """Whether the link has ended, and with it the membership."""
        return self._closed is not None

    @property
    def down(self) -> bool:
        """Whether the last trip failed on its way."""
        return self._down

    async def run(self) -> None:
        """Make trips until cancelled. Raises LeaseLost."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while any(self._batches):
                    await self._trip()
        except LeaseLost as error:
            self.close(error)
            raise
        finally:
            self.close(Unavailable("this replica is leaving the mesh"))

    def close(self, error: MeshError) -> None:
        """Fail whatever waits, and whatever is asked from now on."""
        if self._closed is None:
            self._closed = error
        for batch in self._batches:
            batch.fail(error)

    async def _trip(self) -> None:
        taken = self._take()
        self._number += 1
        try:
            answers = await self._send(self._commands(*taken))
        except redis_errors.DataError:
            self._sort_out(taken)
        except redis_errors.RedisError as error:
            _fail(itertools.chain(*taken), error)
        except BaseException as error:
            gone = error if isinstance(error, MeshError) else Unavailable("the connection to Redis was closed")
            _fail(itertools.chain(*taken), gone)
            raise
        else:
            self._most_words = min(MOST_WORDS, 2 * self._most_words + 1)
            self._hand_out(answers, *taken)

    def _take(self) -> list[list[tuple[Any, Waiter]]]:
        """The items of the next trip, by batch: `most_words` of each kind, or one item alone where that is 0."""
        taken: list[list[tuple[Any, Waiter]]] = []
        for batch in self._batches:
            alone = not self._most_words and any(taken)
            taken.append([] if alone else batch.take(self._most_words))
        return taken

    def _sort_out(self, taken: Sequence[list[tuple[Any, Waiter]]]) -> None:
        """Fail the items that cannot be sent by themselves, and requeue the rest.

        Where each can, they are too large together, and the next trip takes half as many.
        """
        all_sendable = True
        for batch, asked in zip(self._batches, taken, strict=True):
            sendable = []
            for item, waiter in asked:
                try:
                    pack([tuple(item)])
                except redis_errors.DataError as error:
                    _fail([(item, waiter)], error)
                    all_sendable = False
                else:
                    sendable.append((item, waiter))
            batch.put_back(sendable)
        if all_sendable:
            words = max(sum(len(item) for item, _ in asked) for asked in taken)
            self._most_words = min(self._most_words, words) // 2

    def _commands(
        self, reads: list[Any], own: list[Any], submissions: list[Any], commits: list[Any]
    ) -> list[tuple[Any, ...]]:
        commands = []
        # Commits first: what they send and answer is on its way while the rest is still read.
        if commits:
            commands.append(self._numbered(self._commit, commits))
        if submissions:
            commands.append(self._numbered(self._submit, submissions))
        commands.extend(item for item, _ in reads)
        if own:
            commands.append(("SELECT", self._database))
            commands.extend(item for item, _ in own)
            commands.append(("SELECT", self._bus))
        return commands

    def _numbered(self, script: tuple[Any, ...], items: list[tuple[Any, Waiter]]) -> tuple[Any, ...]:
        return (*script, self._number, *itertools.chain.from_iterable([item for item, _ in items]))

    def _hand_out(
        self, answers: list[Any], reads: list[Any], own: list[Any], submissions: list[Any], commits: list[Any]
    ) -> None:
        at = iter(answers)
        for asked in (commits, submissions):
            if asked:
                self._hand_out_each(next(at), asked)
        for _, waiter in reads:
            _resolve(waiter, next(at))
        if own:
            next(at)
            for _, waiter in own:
                _resolve(waiter, next(at))

    @staticmethod
    def _hand_out_each(answer: Any, asked: list[Any]) -> None:
        if isinstance(answer, str):
            for (_, waiter), each in zip(asked, decode(answer), strict=True):
                _resolve(waiter, each)
        else:
            for _, waiter in asked:
                _resolve(waiter, answer)

    async def _send(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """One round trip, made until it arrives. Raises LeaseLost."""
        while True:
            if not self._trusted():
                raise LeaseLost()
            self.trips += 1
            try:
                answers = await self._line.say(commands)
            except redis_errors.RedisError as error:
                if is_fenced(error):
                    raise LeaseLost("the Redis user of this lease is gone") from error
                if not is_passing(error):
                    raise
            except OSError:
                pass
            else:
                again = self._must_repeat(answers)
                if not again:
                    self._down = False
                    return answers
                if again == "scripts":
                    await self._load_scripts()
                    continue
            self._down = True
            await asyncio.sleep(RETRY_S)

    @staticmethod
    def _must_repeat(answers: list[Any]) -> str:
        """Why a trip that came back must be made again, or "". Raises LeaseLost."""
        why = ""
        for answer in answers:
            if not isinstance(answer, Exception):
                continue
            match classify(answer):
                case Meaning.FENCED:
                    raise LeaseLost(
                        "the lease is over: its Redis user was deleted, or another replica has it"
                    ) from answer
                case Meaning.SCRIPT:
                    return "scripts"
                case Meaning.PASSING:
                    why = "passing"
        return why

    async def _load_scripts(self) -> None:
        with contextlib.suppress(*PASSING):
            await self._line.say([("SCRIPT", "LOAD", script.source) for script in self._scripts])


def _resolve(waiter: Waiter, answer: Any) -> None:
    if waiter.done():
        return
    if not isinstance(answer, BaseException):
        waiter.set_result(answer)
    elif classify(answer) is Meaning.FULL:
        waiter.set_exception(Busy("Redis is out of memory", retry_after=5))
    else:
        waiter.set_exception(answer)
