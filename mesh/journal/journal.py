"""A replicated log: one stream to which each replica appends, and which all read in the same order and restore from.

Each entry has the identity of the log and a number; the numbers have no gaps. The stream id of an entry is its time.
The newest entry tells the identity and the length of the log. So no second key is needed, which could be lost while the
stream stays.

    position    of an entry: identity of its log, number and stream id. It says how far a reader or a snapshot has come.
    founding    the first entry of the log. With number 1 the log begins with an empty state. With number 2 it begins
                with the state of its founder, which stands for entry 1 and is in a snapshot only.
    gap         the last entry that a reader has read is gone, or a later number is missing: the reader restores
    replaced    the entries in the stream belong to another log: the reader restores

    async with log.follow(position) as tail:
        while True:
            for entry in await tail.read():
                ...

A log is never trimmed by length or age: entries are deleted only if a durable snapshot (`mesh.journal.snapshots`) has
their effect.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from mesh.errors import MeshError
from mesh.journal.position import SEQUENCE_BITS, START_ID, Position, Snapshot
from mesh.wire.script import Script

#: VIEW reads both ends of a log, and entries. FOUND writes the first entry of a new log (a verb, as in "founder").
#: APPEND writes a later entry, and TRIM deletes the entries that a snapshot contains.
VIEW = Script.beside(__file__, "view.lua")
FOUND = Script.beside(__file__, "found.lua")
APPEND = Script.beside(__file__, "append.lua")
TRIM = Script.beside(__file__, "trim.lua")

#: The operation of the first entry of a log.
FOUNDED = "founded"
#: The most entries in one answer of Redis. More entries would keep the server busy for longer; fewer cost more trips.
MOST_ENTRIES = 256
#: How long a reader waits for new entries before it checks that the log is still the same. A lost or replaced log is
#: noticed within this time even if nobody appends. A shorter time costs Redis more reads.
BLOCK_MS = 500


class LogError(MeshError):
    """The log does not continue what this reader has read; the reader must restore."""

    code: ClassVar[str] = "log"


class NoLog(LogError):
    """There is no log."""

    code: ClassVar[str] = "log-missing"


class Gap(LogError):
    """Entries that this reader has not read are gone; the reader must restore.

    This error also says that the log ends before an entry that this reader has read.
    """

    code: ClassVar[str] = "log-gap"


class Replaced(LogError):
    """Another log has taken the place of the one that this reader follows."""

    code: ClassVar[str] = "log-replaced"


class UnreadableLog(LogError):
    """The stream of the log has an entry that is not an entry of a log."""

    code: ClassVar[str] = "log-unreadable"


class Late(MeshError):  # no LogError: the reader need not restore
    """The append reached Redis after its time limit; nothing was appended."""

    code: ClassVar[str] = "log-late"


#: The reason for which append.lua refuses -> the error of the caller.
_ERROR_OF_REFUSAL: dict[str, type[MeshError]] = {"missing": NoLog, "replaced": Replaced, "rewound": Gap, "late": Late}


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a log."""

    position: Position
    op: str
    #: the replica that appended the entry
    writer: str
    #: the name that this replica gave the entry
    write: str
    #: the content as a JSON text, as it was appended
    body: str

    def content(self) -> Any:
        """Parse the body. Raises ValueError if it is not JSON."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class View:
    """The oldest and the newest entry of a log at one moment."""

    oldest: Entry
    newest: Entry

    @property
    def log(self) -> str:
        """The identity of the log."""
        return self.newest.position.log

    @property
    def whole(self) -> bool:
        """Whether the log began with an empty state and still has all entries: a reader needs no snapshot."""
        return self.oldest.position.number == 1

    @property
    def just_founded(self) -> bool:
        """Whether the founding is the only entry."""
        return self.newest.op == FOUNDED


def new_identity() -> str:
    """Return an identity that no other log has: 64 random bits, so that no two are equal, as 16 characters."""
    return secrets.token_hex(8)


class Log:
    """One replicated log. Commands that do not block go over `redis`; `connect` opens the client of the reader.

    Both clients must decode responses. Errors of redis-py are raised as they are. If the answer to an append is lost,
    the entry may be in the log. There its writer finds it by the name that it gave the entry, `write`.
    """

    def __init__(self, redis: Redis, connect: Callable[[], Redis], key: str, *, writer: str) -> None:
        self._redis = redis
        self._connect = connect
        self._reader_client: Redis | None = None
        #: how far Redis's clock is ahead of the clock of the event loop; None before the first answer
        self._clock_ahead_ms: float | None = None
        self.key = key
        self.writer = writer

    async def view(self) -> View | None:
        """Return both ends of the log, or None if there is no log. Raises UnreadableLog."""
        view, _ = await self._look(self._redis, START_ID, 1)
        return view

    async def holds(self, position: Position) -> bool:
        """Return whether a reader can go on from this position: its entry is still in the log, so all later ones are.

        `trim` deletes only from the oldest entry on.
        """
        view, entries = await self._look(self._redis, position.id, 1)
        try:
            check_continuity(view, entries, position)
        except LogError:
            return False
        return True

    async def found(
        self, *, body: Mapping[str, Any], after: Position | None = None, instead_of: Position | None = None
    ) -> Position | None:
        """Found a log and return the position of its first entry, or None if there is a log already.

        `after` is the position of the founder's state: the new log begins with that state. The new log may replace an
        earlier one that still ends at the position `instead_of`, because the founder's state has all its changes.
        """
        identity = new_identity()
        number = 1 if after is None else 2  # a founder with a state founds with number 2, see the top of this module
        # one ms above the last entry that the founder knows
        least_ms = 0 if after is None else (after.stamp >> SEQUENCE_BITS) + 1
        text = json.dumps(body, ensure_ascii=False)
        end_of_former = ("", "") if instead_of is None else (instead_of.log, instead_of.number)
        answer = await self._run(FOUND, identity, number, least_ms, self.writer, text, *end_of_former)
        return Position(identity, number, answer[0]) if answer else None  # found.lua answers {id of the entry}, or {}

    async def append(
        self, op: str, body: Any, *, reader_at: Position, write: str, floor: int = 0, within_ms: int = 0
    ) -> Position:
        """Append an entry and return its position.

        `reader_at` is the position up to which the writer has read. The id of the entry will be above `floor`, a stream
        id as one integer (`Position.stamp`): an entry that copies older ones must be newer than they are. With
        `within_ms`, Redis refuses an append that arrives more than `within_ms` after this call. So the command appends
        nothing after its sender has given up. Raises NoLog, Replaced, Gap (the writer has read entries that the log
        does not have), Late, and redis-py's errors.
        """
        # the first ms after the stream id `floor`
        least_ms = (floor >> SEQUENCE_BITS) + 1 if floor else 0
        append_until_ms = await self._to_redis_time(within_ms)
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))  # without blanks: there are many entries
        answer = await self._run(
            APPEND, reader_at.log, reader_at.number, least_ms, append_until_ms, op, self.writer, write, text
        )
        # {now in ms, reason}, or {now in ms, "done", id, number}
        self._note_clock(answer[0])
        if answer[1] != "done":
            raise _ERROR_OF_REFUSAL[answer[1]]()
        return Position(reader_at.log, int(answer[3]), answer[2])

    async def trim(self, snapshot: Snapshot) -> int:
        """Delete the entries before the position of a durable snapshot; return how many there were.

        Delete none if the snapshot is of another log, or if this log does not have the entry at the position.
        """
        position = snapshot.position
        return int(await self._run(TRIM, position.log, position.number, position.id))

    @contextlib.asynccontextmanager
    async def follow(self, position: Position) -> AsyncIterator[Tail]:
        """Open a reader that begins after `position`. Open only one at a time: all use the same connection."""
        if self._reader_client is None:
            self._reader_client = self._connect()
        try:
            yield Tail(self, self._reader_client, position)
        finally:
            # The answer to a cancelled read may still come, and must not reach the next reader. So the connection is
            # closed. An error of closing must not hide the error or the cancellation that ended this reader.
            with contextlib.suppress(RedisError, OSError):
                await self._reader_client.connection_pool.disconnect()

    async def close(self) -> None:
        """Close the client of the reader."""
        if self._reader_client is not None:
            await self._reader_client.aclose()

    def now_ms(self) -> int | None:
        """Return the estimated time on Redis's clock (ms), or None before Redis's first answer to a read or an append.

        Each such answer corrects the estimate.
        """
        if self._clock_ahead_ms is None:
            return None
        return round(_loop_ms() + self._clock_ahead_ms)

    async def _to_redis_time(self, within_ms: int) -> int:
        """Return the time on Redis's clock (ms) that is `within_ms` from now. 0 stays 0: it means no limit."""
        if not within_ms:
            return 0
        if self._clock_ahead_ms is None:
            await self.view()  # its answer has the time of Redis
        return cast(int, self.now_ms()) + within_ms  # not None after an answer

    def _note_clock(self, now_ms: Any) -> None:
        self._clock_ahead_ms = int(now_ms) - _loop_ms()

    async def _look(self, redis: Redis, from_id: str, most_entries: int) -> tuple[View | None, list[Entry]]:
        """Return both ends of the log, and its entries from the id `from_id` on, this one included."""
        now_ms, oldest, newest, entries = await self._run(VIEW, from_id, most_entries, redis=redis)
        self._note_clock(now_ms)
        if not newest:
            return None, []
        return View(read_entry(oldest), read_entry(newest)), [read_entry(raw_entry) for raw_entry in entries]

    async def _run(self, script: Script, *args: Any, redis: Redis | None = None) -> Any:
        return await script.run(redis or self._redis, [self.key], *args)


class Tail:
    """Reads a log from a position on. Only one task may use a tail."""

    def __init__(self, log: Log, reader_client: Redis, position: Position) -> None:
        self._log = log
        self._reader_client = reader_client
        self.position = position
        #: whether the last read has reached the newest entry
        self.at_end = False

    async def read(self) -> list[Entry]:
        """Return the next entries, or an empty list if none came within BLOCK_MS and the log is still the same.

        Raises NoLog, Gap, Replaced, UnreadableLog, and redis-py's errors. After an error, do not use the tail again.
        """
        entries = await self._read_new() if self.at_end else []
        if not entries:
            entries = await self._read_and_check()
        check_numbers(entries, self.position)
        if entries:
            self.position = entries[-1].position
        return entries

    async def _read_new(self) -> list[Entry]:
        """Wait for new entries, for at most BLOCK_MS, without a check of the log."""
        reply = await self._reader_client.xread({self._log.key: self.position.id}, count=MOST_ENTRIES, block=BLOCK_MS)
        # The entries by stream: a dict under RESP3, pairs under RESP2.
        entry_lists = list(reply.values()) if isinstance(reply, dict) else [pair[1] for pair in reply or []]
        entries = [read_entry(raw_entry) for raw_entries in entry_lists for raw_entry in _without_wrapping(raw_entries)]
        self.at_end = len(entries) < MOST_ENTRIES
        return entries

    async def _read_and_check(self) -> list[Entry]:
        """Read without waiting, and check the log: a blocked XREAD does not notice that the stream was trimmed."""
        view, entries = await self._log._look(self._reader_client, self.position.id, MOST_ENTRIES)
        following = check_continuity(view, entries, self.position)
        last = following[-1].position if following else self.position
        self.at_end = view is not None and last.number == view.newest.position.number
        return following


def check_continuity(view: View | None, entries: Sequence[Entry], position: Position) -> list[Entry]:
    """Return the entries after a position; `entries` must begin at the position. Raises NoLog, Replaced, Gap."""
    if view is None:
        raise NoLog()
    if view.log != position.log:
        raise Replaced(f"the log is {view.log} now, not {position.log}")
    if position.number == 0:  # A reader without a state needs all entries. No entry is at this position.
        if not view.whole:
            raise Gap(f"the log begins at {view.oldest.position.number}, not at 1")
        return list(entries)
    if not entries or entries[0].position != position:
        oldest = view.oldest.position.number
        raise Gap(f"entry {position.number} ({position.id}) is gone; the log begins at {oldest}")
    return list(entries[1:])


def check_numbers(entries: Sequence[Entry], position: Position) -> None:
    """Raise Replaced or Gap unless the entries are the next ones of the position's log, and no number is missing."""
    for number, entry in enumerate(entries, position.number + 1):
        if entry.position.log != position.log:
            raise Replaced(f"entry {entry.position.id} is of {entry.position.log}, not of {position.log}")
        if entry.position.number != number:
            raise Gap(f"entry {number} is missing before {entry.position.id}")


def read_entry(raw: Sequence[Any]) -> Entry:
    """Return the entry that Redis sent as an id and its fields. Raises UnreadableLog."""
    stream_id, fields = raw
    if not isinstance(fields, dict):
        fields = dict(zip(fields[::2], fields[1::2], strict=True))
    try:
        position = Position(fields["log"], int(fields["number"]), stream_id)
        return Entry(position, fields["op"], fields["from"], fields["write"], fields["body"])
    except (KeyError, ValueError) as error:
        raise UnreadableLog(f"entry {stream_id} is not an entry of a log; remove it with XDEL to go on") from error


def _without_wrapping(entries: Any) -> Any:
    """Remove the list that redis-py puts around the entries of a stream under RESP3."""
    is_wrapped = (
        bool(entries) and isinstance(entries[0], list) and bool(entries[0]) and isinstance(entries[0][0], tuple)
    )
    return entries[0] if is_wrapped else entries


def _loop_ms() -> float:
    # No step of the machine's clock changes it.
    return asyncio.get_running_loop().time() * 1000
