"""Reconstructs the history of the shared allowance from the commands that Redis received (MONITOR).

Each script runs at one moment, and MONITOR shows its writes after it. From these, this module finds which slots were
granted, which were never settled, and when the allowance was closed, all in milliseconds of the server's clock. It asks
no replica.
"""

from __future__ import annotations

import bisect
import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.server import Server

ALLOWANCE, HELD = "shared:messages:free:allowance", "shared:messages:free:held"
LINE = re.compile(r"\+(\d+)\.(\d{3})\d* \[\d+ (\S+)\] (.*)")
WORD = re.compile(r'"((?:[^"\\]|\\.)*)"')
NEVER = 1 << 62


@dataclass
class Window:
    """The time from one opening of the allowance to the next."""

    opened_ms: int
    #: reservation -> its outcome; "" when no replica settled it
    slots: dict[str, str] = field(default_factory=dict)
    #: whether the provider refused a request that the count allowed
    refused: bool = False

    @property
    def used(self) -> int:
        """Slots taken from the allowance, without those of requests that provably never left."""
        return sum(outcome != "unsent" for outcome in self.slots.values())

    @property
    def unanswered(self) -> int:
        return sum(outcome == "" for outcome in self.slots.values())


@dataclass
class Spell:
    """A time in which the allowance was closed: from `begin_ms` until just before `end_ms`."""

    begin_ms: int
    end_ms: int


class History:
    """Replays the writes of the scripts."""

    def __init__(self, limit: int, block_ms: int) -> None:
        self._limit, self._block_ms = limit, block_ms
        self._held: dict[str, int] = {}
        self._hold_ms = 0
        self.windows: list[Window] = []
        self.spells: list[Spell] = []
        self._open = True

    def read(self, text: str) -> History:
        """Replay a whole record and return the history."""
        for at_ms, script, writes in _scripts(text):
            self._step(at_ms, script, writes)
        return self

    def closed_at(self, ms: int) -> bool:
        """Return whether the allowance was closed at that moment."""
        found = bisect.bisect_right(self.spells, ms, key=lambda spell: spell.begin_ms)
        return found > 0 and ms < self.spells[found - 1].end_ms

    def window_of(self, ms: float) -> int:
        """Return the index of the window that contains that moment."""
        return bisect.bisect_right(self.windows, ms, key=lambda window: window.opened_ms) - 1

    def _step(self, at_ms: int, script: list[str], writes: list[list[str]]) -> None:
        # EVALSHA, hash, 2, both keys, limit, block, hold, then what is each script's own
        self._hold_ms, own = int(script[7]), script[8:]
        if len(own) == 3 and own[1] == "refused":
            at_ms = self._refused(at_ms, own, writes)
        granted = [write for write in writes if write[:2] == ["ZADD", HELD] and len(own) == 1]
        if granted:
            at_ms = int(granted[0][2]) - self._hold_ms
        if not self.windows or any(write[:2] == ["ZREMRANGEBYSCORE", HELD] for write in writes):
            self.windows.append(Window(at_ms))
            self._held = {id: send_by for id, send_by in self._held.items() if send_by > at_ms}
        for write in writes:
            self._note(at_ms, own, write)

    def _refused(self, at_ms: int, own: list[str], writes: list[list[str]]) -> int:
        self.windows[-1].refused = True
        stored = [write for write in writes if write[:2] == ["HSET", ALLOWANCE]]
        return min(at_ms, int(stored[0][stored[0].index("blocked_until_ms") + 1]) - int(own[2]))

    def _note(self, at_ms: int, own: list[str], write: list[str]) -> None:
        match write:
            case ["ZADD", key, send_by, id] if key == HELD:
                self._held[id] = int(send_by)
                self.windows[-1].slots[id] = own[1] if len(own) == 3 else ""
            case ["ZREM", key, id] if key == HELD:
                self._held.pop(id, None)
                if id in self.windows[-1].slots:
                    self.windows[-1].slots[id] = own[1]
            case ["HSET", key, *fields] if key == ALLOWANCE:
                stored = dict(zip(fields[::2], map(int, fields[1::2]), strict=True))
                self._stored(at_ms, stored["taken"], stored["seen_ms"], stored["blocked_until_ms"])

    def _stored(self, at_ms: int, taken: int, seen_ms: int, blocked_until_ms: int) -> None:
        opens = self._open
        self._open = taken < self._limit and not blocked_until_ms
        if opens and not self._open:
            self.spells.append(Spell(at_ms, NEVER))
        if not self._open:
            last = max([seen_ms, *self._held.values()])
            self.spells[-1].end_ms = blocked_until_ms or last + self._block_ms
        elif not opens:
            self.spells[-1].end_ms = min(self.spells[-1].end_ms, at_ms)


def _scripts(text: str) -> Iterator[tuple[int, list[str], list[list[str]]]]:
    """Yield each script of the allowance: the time it ran, its words, and its writes."""
    script: list[str] = []
    at_ms, writes = 0, []
    for line in text.split("\r\n"):
        found = LINE.match(line)
        if found is None:
            continue
        words = WORD.findall(found[4])
        if found[3] == "lua":
            writes.append([words[0].upper(), *words[1:]])
            continue
        if script:
            yield at_ms, script, writes
        ours = words[0].upper() in ("EVALSHA", "EVAL") and words[3:4] == [ALLOWANCE]
        script, writes, at_ms = words if ours else [], [], int(found[1] + found[2])
    if script:
        yield at_ms, script, writes


class Record:
    """The growing output of MONITOR."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._parts: list[bytes] = []
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def history(self, server: Server, limit: int, block_ms: int) -> History:
        """Return the history until now. Raises AssertionError when MONITOR lags by more than 30 s."""
        mark = f"mark-{time.monotonic_ns()}"
        with server.redis() as redis:
            redis.echo(mark)
        until = time.monotonic() + 30
        while mark.encode() not in b"".join(self._parts[-3:]):
            assert time.monotonic() < until, "the server's record does not come"
            time.sleep(0.01)
        return History(limit, block_ms).read(b"".join(self._parts).decode("utf-8", "replace"))

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while part := self._connection.recv(1 << 16):
                self._parts.append(part)


@contextlib.contextmanager
def recorded(server: Server) -> Iterator[Record]:
    """Record the commands of a server while the block lasts."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=None) as connection:
        connection.sendall(b"MONITOR\r\n")
        yield Record(connection)
        connection.shutdown(socket.SHUT_RDWR)
