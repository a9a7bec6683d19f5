"""What the live page shows, read from Redis in a few commands that are sent at once.

    books         books.lua, at one moment
    places        one for each database: the roster, the missing databases, and PTTL of each lease
    streams       XINFO STREAM, GROUPS and CONSUMERS of each request stream, and its oldest entry
    dead letters  XLEN, and look.lua of `mesh.dead`: the newest of the last hour
    paused        HGETALL of the operations that are paused

The cost of a command does not grow with the number of requests, because each reads a fixed number of entries.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from mesh import Member, Mesh, Missing, keys
from mesh.control import Control, PausedOperation
from mesh.dead import DeadLetter, DeadLetters

#: The most rates that are kept for each number. With one look per second these are the rates of the last minute.
KEPT_RATES = 60
#: A longer gap between two looks of this page ends the history, because the rates of the gap are not known. A smaller
#: number would end it whenever a few looks are late.
LONGEST_GAP_MS = 5000
#: The most dead letters of the last hour that a look reads each second. If it reads as many, the page says
#: "50 or more".
MOST_DEAD_READ = 50
HOUR_MS = 3_600_000

#: By the name of a number: its rates per second in the last minute, oldest first.
Rates = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class DatabaseFigures:
    """One database and the replica that holds it. A free database has no replica."""

    database: int
    #: free, starting, ready, draining, left, lost or missing. Left: the replica has released the lease. Lost: the lease
    #: ended without a release, and the roster row still exists. Missing: no replica holds the database, and it has data
    #: or its replica is expected back.
    state: str
    #: the roster row
    member: Member | None = None
    #: how long the lease still lasts; 0 without a lease
    lease_ms: int = 0
    #: requests that the replica works on
    in_hand: int = 0
    #: only in the state missing: whether the database has data, and whose replica is expected back
    missing: Missing | None = None

    @property
    def cls(self) -> str:
        """The class of the database's replica, or of the one that is expected back; "" if there is neither."""
        if self.member is not None:
            return self.member.cls
        return self.missing.cls if self.missing else ""


@dataclass(frozen=True, slots=True)
class ConsumerFigures:
    """One replica as a reader of a stream. `pending` counts the entries that it works on.

    `idle_ms` is the time since it last tried to read or claim entries of the stream.
    """

    replica: str
    pending: int
    idle_ms: int


@dataclass(frozen=True, slots=True)
class StreamFigures:
    """One request stream. `oldest_ms` is the age of its oldest entry; None if the stream is empty.

    `length` counts its entries, `pending` those that replicas work on, and `added` all that were ever added. `name` is
    the address: a class, or a database such as "db3".
    """

    name: str
    length: int
    pending: int
    added: int
    oldest_ms: int | None
    consumers: Sequence[ConsumerFigures]

    @property
    def waiting(self) -> int:
        """How many entries no replica works on yet. They are in flight, and not waiting as the glossary says it."""
        return max(0, self.length - self.pending)


@dataclass(frozen=True, slots=True)
class Figures:
    """The mesh at one moment; `at_ms` is Redis's clock. Rates are per second, oldest first.

    `places` has all databases in order. `dead` is the number of all dead letters. `recent_dead` has the newest letters
    of the last hour, without bodies.
    """

    at_ms: int
    books: Mapping[str, int]
    places: Sequence[DatabaseFigures]
    streams: Sequence[StreamFigures]
    dead: int
    recent_dead: Sequence[DeadLetter]
    paused: Sequence[PausedOperation]
    rates: Rates


class FiguresReader:
    """Reads figures. For numbers that only grow, it also keeps the rates of the last minute."""

    def __init__(self, replica: Mesh) -> None:
        self._replica = replica
        self._stream_names = [
            name.removeprefix(keys.REQUESTS)
            for name in keys.request_streams(replica.settings.classes, replica.settings.databases)
        ]
        self._letters = DeadLetters(replica.shared, replica.settings.stream_bound)
        self._control = Control(replica.shared, replica.settings)
        self._history = History()

    async def read(self) -> Figures:
        """Read all figures now. Raises RedisError, MeshError."""
        replica = self._replica
        # An id without a sequence number, such as this one, counts as the first one of its millisecond.
        hour_ago_id = str(replica.now_ms() - HOUR_MS)
        books, members, missing, pipeline_answers, recent_dead, paused = await asyncio.gather(
            replica.books(),
            replica.roster(),
            replica.missing(),
            self._ask_redis(),
            self._letters.look(MOST_DEAD_READ, oldest=hour_ago_id, body=0),  # body=0: without the bodies
            self._control.paused(),
        )
        at_ms = pipeline_answers.pop_time_ms()
        (dead_count,) = pipeline_answers.pop(1)
        lease_times_ms = pipeline_answers.pop(self._replica.settings.databases)
        # `_ask_redis` sends four commands for each stream.
        streams = [_stream_figures(name, at_ms, *pipeline_answers.pop(4)) for name in self._stream_names]
        growing_numbers = {**books, **{f"stream {stream.name}": stream.added for stream in streams}}
        return Figures(
            at_ms=at_ms,
            books=books,
            places=_all_database_figures(members, missing, lease_times_ms, streams),
            streams=streams,
            dead=dead_count,
            recent_dead=recent_dead,
            paused=paused,
            rates=self._history.add(at_ms, growing_numbers),
        )

    async def _ask_redis(self) -> _PipelineAnswers:
        # `read` takes the answers in the order of these commands.
        pipeline = self._replica.shared.pipeline(transaction=False)
        pipeline.time()
        pipeline.xlen(keys.DEAD)
        for database in range(self._replica.settings.databases):
            pipeline.pttl(keys.lease(database))
        for name in self._stream_names:  # four answers for each stream
            stream = keys.REQUESTS + name
            pipeline.xinfo_stream(stream)
            pipeline.xinfo_groups(stream)
            pipeline.xinfo_consumers(stream, keys.GROUP)
            pipeline.xrange(stream, count=1)
        return _PipelineAnswers(await pipeline.execute(raise_on_error=False))


class _PipelineAnswers:
    """The answers of a pipeline, taken in order. A stream or group that does not exist yet counts as empty."""

    def __init__(self, answers: Sequence[Any]) -> None:
        self._answers = deque(answers)

    def pop(self, count: int) -> list[Any]:
        """Take the next `count` answers. Raises the error of one of them, unless its stream or group does not exist."""
        popped = [self._answers.popleft() for _ in range(count)]
        for answer in popped:
            if isinstance(answer, Exception) and not _is_absent(answer):
                raise answer
        return [[] if isinstance(answer, Exception) else answer for answer in popped]

    def pop_time_ms(self) -> int:
        """Take the answer to TIME, in ms."""
        ((seconds, microseconds),) = self.pop(1)
        return int(seconds) * 1000 + int(microseconds) // 1000


def _is_absent(error: Exception) -> bool:
    return isinstance(error, ResponseError) and ("no such key" in str(error) or "NOGROUP" in str(error))


def _stream_figures(name: str, at_ms: int, stream_info: Any, groups: Any, consumers: Any, oldest: Any) -> StreamFigures:
    """Return the figures of a stream, from the four answers of Redis about it. An absent stream has empty answers."""
    return StreamFigures(
        name=name,
        length=stream_info["length"] if stream_info else 0,
        pending=groups[0]["pending"] if groups else 0,
        added=stream_info["entries-added"] if stream_info else 0,
        oldest_ms=max(0, at_ms - moment_of(oldest[0][0])) if oldest else None,
        consumers=[ConsumerFigures(consumer["name"], consumer["pending"], consumer["idle"]) for consumer in consumers],
    )


def _all_database_figures(
    members: Sequence[Member],
    missing: Sequence[Missing],
    lease_times_ms: Sequence[int],
    streams: Sequence[StreamFigures],
) -> list[DatabaseFigures]:
    """Return the figures of all databases. `lease_times_ms` has, by database, how long its lease still lasts (ms)."""
    # A consumer of a stream has the name of its replica.
    in_hand: dict[str, int] = defaultdict(int)
    for stream in streams:
        for consumer in stream.consumers:
            in_hand[consumer.replica] += consumer.pending
    member_at = {member.database: member for member in members}
    missing_at = {missing_database.database: missing_database for missing_database in missing}
    return [
        DatabaseFigures(database, _state_of(member), member, max(0, lease_ms), in_hand[member.replica])
        if (member := member_at.get(database))
        else DatabaseFigures(
            database, "missing" if database in missing_at else "free", missing=missing_at.get(database)
        )
        for database, lease_ms in enumerate(lease_times_ms)
    ]


def _state_of(member: Member) -> str:
    return member.state if member.leased or member.state == "left" else "lost"


def moment_of(id: str) -> int:
    """Return when a stream entry was added, in ms of Redis's clock."""
    return int(id.partition("-")[0])


class History:
    """The rates at which numbers grow, computed from their values at each look."""

    def __init__(self) -> None:
        self._last_values: Mapping[str, int] = {}
        self._last_at_ms = 0
        self._rates: dict[str, deque[float]] = {}

    def add(self, at_ms: int, values: Mapping[str, int]) -> Rates:
        """Add the values of a moment. Return the rates per second of each number in the last minute, oldest first."""
        gap_ms = at_ms - self._last_at_ms
        if not 0 < gap_ms <= LONGEST_GAP_MS:
            self._rates.clear()
        else:
            # A number that falls, such as that of the requests in flight, has the rate 0.
            for name in values.keys() & self._last_values.keys():
                rate = max(0, values[name] - self._last_values[name]) * 1000 / gap_ms
                self._rates.setdefault(name, deque(maxlen=KEPT_RATES)).append(round(rate, 1))
        self._last_values, self._last_at_ms = values, at_ms
        return {name: list(rates) for name, rates in self._rates.items()}
