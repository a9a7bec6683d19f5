"""A replicated log: one stream that every replica appends to, reads in the same order, and restores from.

Each entry carries the log's identity and a gap-free number, and its stream id is the clock. There is nothing
beside the stream: its newest entry says which log it is and how far it goes, so no part of it is lost alone.

    position    identity, number, stream id: how far a reader has come; a snapshot stands at one, too
    founding    the log's first entry. Number 1: the log begins empty. Number 2: it begins with the founder's
                state, which stands where number 1 would be, and only a snapshot holds it.
    gap         the entry a reader stands at is gone, or a number after it is missing: restore, never skip
    replaced    the entries belong to another log: restore, too

    async with log.follow(position) as tail:
        while True:
            for entry in await tail.read():
                ...

A log may be trimmed behind a durable snapshot only (`mesh.journal.snapshots`), never by length or age.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from mesh.errors import MeshError
from mesh.wire.script import Script

if TYPE_CHECKING:
    from mesh.journal.snapshots import Snapshot

VIEW = Script.beside(__file__, "view.lua")
FOUND = Script.beside(__file__, "found.lua")
APPEND = Script.beside(__file__, "append.lua")
TRIM = Script.beside(__file__, "trim.lua")

#: The operation of the entry that a log begins with.
FOUNDED = "founded"
#: Most entries in one answer.
MOST = 256
#: How long a reader waits for news before it checks that the log is still the same: the time within which a
#: lost or replaced log is noticed while nobody writes.
BLOCK_MS = 500
START_ID = "0-0"
SEQUENCE_BITS = 16


class LogError(MeshError):
    """The log is not what this reader has read so far; it must restore."""

    code: ClassVar[str] = "log"


class NoLog(LogError):
    """There is no log."""

    code: ClassVar[str] = "log-missing"


class Gap(LogError):
    """Entries that this reader has not read are gone."""

    code: ClassVar[str] = "log-gap"


class Replaced(LogError):
    """Another log has taken this one's place."""

    code: ClassVar[str] = "log-replaced"


class Unreadable(LogError):
    """What stands in the log's key is not a log of ours."""

    code: ClassVar[str] = "log-unreadable"


class Late(MeshError):
    """The append came after its time; nothing was appended."""

    code: ClassVar[str] = "log-late"


_REFUSALS: dict[str, type[MeshError]] = {"missing": NoLog, "replaced": Replaced, "rewound": Gap, "late": Late}


def pack_id(stream_id: str) -> int:
    """A stream id of a log as one integer below 2**63, in the same order. Raises ValueError."""
    ms, _, sequence = stream_id.partition("-")
    high, low = int(ms), int(sequence)
    if not (0 <= high < 1 << 63 - SEQUENCE_BITS and 0 <= low < 1 << SEQUENCE_BITS):
        raise ValueError(f"{stream_id[:50]} is not the id of a log's entry")
    return high << SEQUENCE_BITS | low


def unpack_id(stamp: int) -> str:
    """The stream id that `pack_id` packed."""
    return f"{stamp >> SEQUENCE_BITS}-{stamp & (1 << SEQUENCE_BITS) - 1}"


@dataclass(frozen=True, slots=True)
class Position:
    """How far a reader has come: everything up to and with this entry."""

    log: str
    number: int
    id: str

    @property
    def stamp(self) -> int:
        """The id as one integer."""
        return pack_id(self.id)

    @classmethod
    def start(cls, log: str) -> Position:
        """Before the first entry of a log that begins empty."""
        return cls(log, 0, START_ID)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a log."""

    position: Position
    op: str
    #: who appended it, and that writer's own name for it
    writer: str
    write: str
    #: the JSON text, as it was appended
    body: str

    def content(self) -> Any:
        """The body's value. Raises ValueError where it is not JSON."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class View:
    """A log's two ends at one moment."""

    oldest: Entry
    newest: Entry

    @property
    def log(self) -> str:
        """The log's identity."""
        return self.newest.position.log

    @property
    def whole(self) -> bool:
        """Whether every entry since an empty beginning is still there."""
        return self.oldest.position.number == 1

    @property
    def just_founded(self) -> bool:
        """Whether nothing was appended since the founding."""
        return self.newest.op == FOUNDED


def new_identity() -> str:
    """An identity that no other log has."""
    return secrets.token_hex(8)


class Log:
    """One replicated log. Short commands go over `redis`; every reader has a connection of its own
    (`connect`).

    Both must decode responses. Errors of Redis pass as they are: an append that failed on its way may have
    been done, and is recognised by its `write` when it is read.
    """

    def __init__(self, redis: Redis, connect: Callable[[], Redis], key: str, *, writer: str) -> None:
        self._redis = redis
        self._connect = connect
        self._reader: Redis | None = None
        self._clock_ahead_ms: float | None = None
        self.key = key
        self.writer = writer

    async def view(self) -> View | None:
        """The log's ends, or None where there is no log. Raises Unreadable."""
        view, _ = await self._look(self._redis, START_ID, 1)
        return view

    async def holds(self, position: Position) -> bool:
        """Whether the log is this position's and every entry after it is still there."""
        view, entries = await self._look(self._redis, position.id, 1)
        try:
            check_continuity(view, entries, position)
        except LogError:
            return False
        return True

    async def found(
        self, *, body: Mapping[str, Any], after: Position | None = None, instead_of: str = ""
    ) -> Position | None:
        """Begin a log where there is none: the position of its first entry, or None where there is one
        already.

        `after`, the position of the founder's state, makes it a log that begins with that state. `instead_of`
        names a log that may be replaced if nothing was appended to it since its founding.
        """
        identity = new_identity()
        number = 1 if after is None else 2
        floor_ms = 0 if after is None else (after.stamp >> SEQUENCE_BITS) + 1
        text = json.dumps(body, ensure_ascii=False)
        answer = await self._run(FOUND, identity, number, floor_ms, self.writer, text, instead_of)
        return Position(identity, number, answer[0]) if answer else None

    async def append(
        self, op: str, body: Any, *, reader_at: Position, write: str, floor: int = 0, within_ms: int = 0
    ) -> Position:
        """Append an entry, and its position.

        `reader_at` is how far the writer has read, `floor` a packed id that the entry's shall be above. With
        `within_ms` it is refused by the server's clock when it arrives later than that: nothing is appended
        by a command that was still under way when its sender gave up.
        Raises NoLog, Replaced, Gap (the log is behind its writer), Late, and Redis' own errors.
        """
        floor_ms = (floor >> SEQUENCE_BITS) + 1 if floor else 0
        not_after = await self._not_after(within_ms)
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        answer = await self._run(
            APPEND, reader_at.log, reader_at.number, floor_ms, not_after, op, self.writer, write, text
        )
        self._note_clock(answer[0])
        if answer[1] != "done":
            raise _REFUSALS[answer[1]]()
        return Position(reader_at.log, int(answer[3]), answer[2])

    async def trim(self, snapshot: Snapshot) -> int:
        """Forget what stands before a durable snapshot's own entry; how many entries that were.

        A snapshot of another log, or of a history that this one has not had, changes nothing.
        """
        position = snapshot.position
        return int(await self._run(TRIM, position.log, position.number, position.id))

    @contextlib.asynccontextmanager
    async def follow(self, position: Position) -> AsyncIterator[Tail]:
        """A reader that stands at `position`; one at a time, for its connection is its own."""
        if self._reader is None:
            self._reader = self._connect()
        try:
            yield Tail(self, self._reader, position)
        finally:
            # Whatever was left on the way (a cancelled read, half an answer) must not meet the next reader. An
            # error of closing must not take the place of the one, or of the cancellation, that we leave with.
            with contextlib.suppress(RedisError, OSError):
                await self._reader.connection_pool.disconnect()

    async def close(self) -> None:
        """Close the reader's connection."""
        if self._reader is not None:
            await self._reader.aclose()

    def now_ms(self) -> int | None:
        """The server's clock, as far as it is known here without asking."""
        if self._clock_ahead_ms is None:
            return None
        return round(_loop_ms() + self._clock_ahead_ms)

    async def _not_after(self, within_ms: int) -> int:
        if not within_ms:
            return 0
        if self._clock_ahead_ms is None:
            await self.view()
        return cast(int, self.now_ms()) + within_ms

    def _note_clock(self, now_ms: Any) -> None:
        self._clock_ahead_ms = int(now_ms) - _loop_ms()

    async def _look(self, redis: Redis, from_id: str, most: int) -> tuple[View | None, list[Entry]]:
        now, oldest, newest, entries = await self._run(VIEW, from_id, most, redis=redis)
        self._note_clock(now)
        if not newest:
            return None, []
        return View(read_entry(oldest), read_entry(newest)), [read_entry(raw) for raw in entries]

    async def _run(self, script: Script, *args: Any, redis: Redis | None = None) -> Any:
        client = redis or self._redis
        try:
            return await cast(Any, client.evalsha(script.sha, 1, self.key, *args))
        except NoScriptError:
            return await cast(Any, client.eval(script.source, 1, self.key, *args))


class Tail:
    """Reads a log from a position on. Not to be shared between tasks."""

    def __init__(self, log: Log, connection: Redis, position: Position) -> None:
        self._log = log
        self._connection = connection
        self.position = position
        #: whether nothing stood behind the position when it was last checked
        self.at_end = False

    async def read(self) -> list[Entry]:
        """The next entries; none after BLOCK_MS without news, and then the log was found whole and unchanged.

        Raises NoLog, Gap, Replaced, Unreadable, and Redis' own errors; after any of them the tail is to be
        left.
        """
        entries = await self._wait() if self.at_end else []
        if not entries:
            entries = await self._check()
        check_numbers(entries, self.position)
        if entries:
            self.position = entries[-1].position
        return entries

    async def _wait(self) -> list[Entry]:
        answer = await self._connection.xread({self._log.key: self.position.id}, count=MOST, block=BLOCK_MS)
        streams = list(answer.values()) if isinstance(answer, dict) else [part[1] for part in answer or []]
        entries = [read_entry(raw) for part in streams for raw in _flat(part)]
        self.at_end = len(entries) < MOST
        return entries

    async def _check(self) -> list[Entry]:
        """Look at the log itself: one who waits for news is not told that a stream was deleted or trimmed."""
        view, entries = await self._log._look(self._connection, self.position.id, MOST)
        following = check_continuity(view, entries, self.position)
        last = following[-1].position if following else self.position
        self.at_end = view is not None and last.number == view.newest.position.number
        return following


def check_continuity(view: View | None, entries: Sequence[Entry], position: Position) -> list[Entry]:
    """The entries after a position, which must itself be the first of them. Raises NoLog, Replaced, Gap."""
    if view is None:
        raise NoLog()
    if view.log != position.log:
        raise Replaced(f"the log is {view.log} now, not {position.log}")
    if position.number == 0:
        if not view.whole:
            raise Gap(f"the log begins at {view.oldest.position.number}, not at 1")
        return list(entries)
    if not entries or entries[0].position != position:
        oldest = view.oldest.position.number
        raise Gap(f"entry {position.number} ({position.id}) is gone; the log begins at {oldest}")
    return list(entries[1:])


def check_numbers(entries: Sequence[Entry], position: Position) -> None:
    """Raises Replaced or Gap unless the entries follow the position one by one."""
    for number, entry in enumerate(entries, position.number + 1):
        if entry.position.log != position.log:
            raise Replaced(f"entry {entry.position.id} is of {entry.position.log}, not of {position.log}")
        if entry.position.number != number:
            raise Gap(f"entry {number} is missing before {entry.position.id}")


def read_entry(raw: Sequence[Any]) -> Entry:
    """An entry from the stream's form. Raises Unreadable."""
    stream_id, fields = raw
    if not isinstance(fields, dict):
        fields = dict(zip(fields[::2], fields[1::2], strict=True))
    try:
        position = Position(fields["log"], int(fields["number"]), stream_id)
        return Entry(position, fields["op"], fields["from"], fields["write"], fields["body"])
    except (KeyError, ValueError) as error:
        raise Unreadable(f"entry {stream_id} is not an entry of a log; remove it (XDEL) to go on") from error


def _flat(part: Any) -> Any:
    """Under RESP3 the client wraps a stream's entries once more."""
    wrapped = bool(part) and isinstance(part[0], list) and bool(part[0]) and isinstance(part[0][0], tuple)
    return part[0] if wrapped else part


def _loop_ms() -> float:
    return asyncio.get_running_loop().time() * 1000
