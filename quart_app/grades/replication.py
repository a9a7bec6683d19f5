"""One replica's part in the grades: its state follows the log, and comes back whenever it lost the way.

    closed --> restoring --> ready --> closed
                  ^            |
                  +- gap, other log

Restoring, a replica looks for a state that the log goes on from: a ready peer's backup; the stream, if
nothing was ever trimmed from it; the newest good snapshot on disk. It reads on to the log's end, and is
ready there.

If the log itself is lost (an emptied or new server) nobody forgets. The first survivor, by what it has in
memory or on disk, founds a log that continues the lost one; its state is that log's beginning. Every other
one takes the founder's state and carries over, through the new log, what it knew beyond that, each field
with its own stamp. States of a log that the present one does not continue are never mixed in, unless this
very process followed the one and then met the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

import structlog
from redis.exceptions import RedisError, ResponseError

from mesh import MeshError, Unavailable
from mesh.journal.journal import Entry, Log, LogError, View
from mesh.journal.position import Position, Snapshot
from mesh.journal.snapshots import KEPT, Snapshots
from quart_app.grades import backup, entries
from quart_app.grades.backup import BadBackup, Header
from quart_app.grades.metrics import Metrics
from quart_app.grades.models import GradeUpdate, UserGrade
from quart_app.grades.settings import GradesSettings
from quart_app.grades.sources import FAILURES, File, Source, load
from quart_app.grades.storage import Frozen, Storage, difference

log = structlog.get_logger(__name__)

#: Between two tries to find a state, or to reach the server.
RETRY_S = 0.25
#: Longest time the event loop is held by applying entries.
APPLY_S = 0.01
#: Longest time for the snapshot that a leaving replica writes when the log cannot vouch for what it knows.
FAREWELL_S = 30
#: Shards compared in one step of a thread.
SHARDS_PER_STEP = 64
#: Ancestors a log remembers.
LINEAGE_MAX = 32

Roster = Callable[[], Awaitable[Sequence[Source]]]


class State(Enum):
    CLOSED = "closed"
    RESTORING = "restoring"
    READY = "ready"


MOVES = {
    State.CLOSED: {State.RESTORING},
    State.RESTORING: {State.READY, State.CLOSED},
    State.READY: {State.RESTORING, State.CLOSED},
}


@dataclass(slots=True)
class Held:
    """A state: records, the log entry they stand at, and the logs whose end that log continues."""

    storage: Storage
    position: Position
    continues: tuple[str, ...] = ()

    @property
    def lineage(self) -> tuple[str, ...]:
        """All logs of which something is in here."""
        return _union(self.continues, (self.position.log,))


@dataclass(slots=True)
class Waiting:
    """A change on its way through the log."""

    user_id: str
    answer: asyncio.Future[UserGrade]
    position: Position | None = None


class Replication:
    """The grades of one replica. `following` gives it a life; between two lives it keeps what it knows."""

    def __init__(self, settings: GradesSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._snapshots = Snapshots(settings.snapshot_dir, backup.SUFFIX)
        self._log: Log | None = None
        self._peers: Roster = _nobody
        self._held: Held | None = None
        #: what this process knew before it lost the way
        self._before: Held | None = None
        #: where everything carried over will have been applied; None until it was carried
        self._settled_at: int | None = None
        self._stuck: tuple[str, float] | None = None
        #: states that the present log holds already, as its beginning or carried over
        self._inherited: set[Position] = set()
        #: snapshots whose content went into the present log; removed once that is in a snapshot, too
        self._carried_files: set[Path] = set()
        #: the entry from which on the next snapshot is counted
        self._snapshot_from = 0
        self._snapshot_task: asyncio.Task[None] | None = None
        self._waiting: dict[str, Waiting] = {}
        self._reachable = False
        self._ending = False
        self._ready = asyncio.Event()
        self.state = State.CLOSED
        self.explanation = "the grades are not open yet"
        self._watch()

    # What it offers

    def get(self, user_id: str) -> UserGrade | None:
        """A user's grade, as far as the log is applied here. Raises Unavailable while restoring."""
        return self._current().storage.get(user_id)

    async def set(self, update: GradeUpdate) -> UserGrade:
        """Append a change, wait until it is applied here, and the merged record.

        Raises Unavailable: while restoring or with the stream down nothing was changed; what the log did not
        confirm in time may show up later.
        """
        reader_at = self._current().position
        if not self._reachable:
            raise Unavailable("the log cannot be reached; nothing was changed", retry_after=1)
        if len(self._waiting) >= self._settings.set_in_flight:
            raise Unavailable("too many changes are under way; nothing was changed", retry_after=1)
        write = secrets.token_hex(8)
        waiting = self._waiting[write] = Waiting(update.user_id, asyncio.get_running_loop().create_future())
        try:
            async with asyncio.timeout(self._settings.set_timeout_ms / 1000):
                await self._append(update, write, waiting, reader_at)
                return await waiting.answer
        except TimeoutError as error:
            raise _unconfirmed(waiting.position) from error
        finally:
            del self._waiting[write]

    def describe(self) -> tuple[Header, Frozen]:
        """The state of this moment, and what a backup of it begins with. Raises Unavailable while
        restoring."""
        return self._describe(self._current())

    # Its life

    @contextlib.asynccontextmanager
    async def following(self, grades_log: Log, peers: Roster) -> AsyncIterator[None]:
        """Follow a log; entered once the state is restored and the log's end was reached."""
        self._log, self._peers, self._ending = grades_log, peers, False
        self._move(State.RESTORING, "the grades are being restored")
        await self._check_disk()
        try:
            async with asyncio.TaskGroup() as tasks:
                following = tasks.create_task(self._run(tasks), name="grades-follow")
                try:
                    await self._ready.wait()
                    yield
                finally:
                    self._ending = True
                    following.cancel()
                    self._cancel_snapshot()
        finally:
            self._move(State.CLOSED, "the grades are closed")
            await self._farewell()
            await grades_log.close()

    async def _check_disk(self) -> None:
        """Say at once what the first snapshot would meet; without a disk there are still the peers."""
        try:
            await self._snapshots.check()
        except OSError as error:
            self._metrics.snapshots.labels("failed").inc()
            log.error("no snapshot can be written", folder=str(self._snapshots.folder), reason=str(error))

    async def _run(self, tasks: asyncio.TaskGroup) -> None:
        # Not `while True`: an error on the way out of a client library may take the place of our cancellation.
        while not self._ending:
            try:
                await self._restore()
                await self._follow(tasks)
            except LogError as error:
                log.warning("the grades' log is not what was followed so far; restoring", reason=str(error))
                self._move(State.RESTORING, f"the grades are being restored: {error}")
                await self._distrust()
            except (RedisError, MeshError, OSError) as error:
                self._reachable = False
                log.warning("the grades' log cannot be followed just now", reason=str(error))
            await asyncio.sleep(RETRY_S * (0.5 + random.random()))

    def _move(self, to: State, explanation: str = "") -> None:
        if to is self.state:
            self.explanation = explanation
            return
        if to not in MOVES[self.state]:
            raise RuntimeError(f"the grades cannot go from {self.state.value} to {to.value}")
        self.state, self.explanation = to, explanation
        (self._ready.set if to is State.READY else self._ready.clear)()

    def _current(self) -> Held:
        if self.state is not State.READY or self._held is None:
            raise Unavailable(self.explanation, retry_after=1)
        return self._held

    async def _distrust(self) -> None:
        """Put aside what we hold: the log does not go on from it."""
        held, self._held, self._settled_at = self._held, None, None
        if held is None or held.position.number == 0:
            return
        if self._before is None:
            self._before = held
        else:
            self._before = await asyncio.to_thread(_join, self._before, held)

    # Restoring

    async def _restore(self) -> None:
        while self._held is None:
            view = await self._the_log.view()
            restored = await (self._begin() if view is None else self._take_up(view))
            if not restored:
                await asyncio.sleep(RETRY_S)

    async def _begin(self) -> bool:
        """There is no log: found one, on what we know or can still learn. False where another was faster."""
        return await self._found(self._before or await self._any_state())

    async def _found(self, base: Held | None, instead_of: str = "") -> bool:
        continues = base.lineage if base else ()
        if instead_of:
            continues = _union(continues, (instead_of,))
        position = await self._the_log.found(
            body={"continues": continues}, after=base.position if base else None, instead_of=instead_of
        )
        if position is None:
            return False
        log.warning("the grades' log was founded", log=position.log, continues=continues)
        self._inherited = {base.position} if base else set()
        self._before = None
        self._adopt(Held(base.storage if base else Storage(), position, continues), 0)
        if base is not None:
            # From here on this state exists nowhere else than in the memory of survivors.
            await self._save_snapshot()
        return True

    async def _any_state(self) -> Held | None:
        """A state that a log can be founded on, where none is."""
        return await self._first_good([*await self._peers(), *await self._files()], _anything)

    async def _take_up(self, view: View) -> bool:
        """There is a log: take over a state that it goes on from. False where none can be had now."""
        if self._before is not None and view.whole and view.just_founded:
            # Its founder knew nothing and nobody has written yet: ours is the better beginning.
            return await self._found(self._before, view.log)
        held = await self._first_good(await self._peers(), self._must_be_held)
        if held is None and view.whole:
            held = Held(Storage(), Position.start(view.log))
        if held is None:
            held = await self._first_good(await self._files(view.log), self._must_be_held)
        if held is None:
            return await self._found_again(view)
        numbers = [snapshot.position.number for snapshot in await self._snapshots.durable(view.log)]
        self._adopt(held, max(numbers, default=view.oldest.position.number))
        return True

    async def _found_again(self, view: View) -> bool:
        """Nobody has the state that this log began with: if nothing was written since, begin anew with
        ours."""
        now = time.monotonic()
        if self._stuck is None or self._stuck[0] != view.log:
            self._stuck = (view.log, now)
            log.error("no state of the grades' log can be had, neither from peers nor from disk", log=view.log)
        self._move(State.RESTORING, f"no state of the log {view.log} can be had, from peers or from disk")
        if not view.just_founded or now - self._stuck[1] < self._settings.founder_patience_s:
            return False
        base = self._before or await self._any_state()
        return base is not None and await self._found(base, view.log)

    async def _first_good(self, sources: Sequence[Source], accept: Callable[[Header], Awaitable[None]]) -> Held | None:
        for source in sources:
            try:
                header, storage = await load(source, self._settings, accept)
            except FAILURES as error:
                refused = isinstance(error, BadBackup)
                self._metrics.restores.labels(source.kind, "refused" if refused else "unavailable").inc()
                say = log.error if refused else log.debug
                say("no state from here", source=source.name, reason=str(error) or type(error).__name__)
                continue
            self._metrics.restores.labels(source.kind, "done").inc()
            log.info("grades restored", source=source.name, records=header.count, number=header.number)
            return Held(storage, header.position, header.continues)
        return None

    async def _must_be_held(self, header: Header) -> None:
        if not await self._the_log.holds(header.position):
            raise BadBackup(f"the log does not go on from {header.log} entry {header.number}")

    async def _files(self, of: str | None = None) -> list[Source]:
        return [File(snapshot.path) for snapshot in await self._snapshots.durable(of)]

    def _adopt(self, held: Held, snapshot_from: int) -> None:
        """The one atomic swap: from here on this is the state."""
        self._held = held
        self._snapshot_from = snapshot_from
        self._settled_at = None
        self._stuck = None
        for waiting in self._waiting.values():
            at = waiting.position
            if at is not None and at.log == held.position.log and at.number <= held.position.number:
                self._answer(waiting, held.storage)

    # Following

    async def _follow(self, tasks: asyncio.TaskGroup) -> None:
        held = self._held
        assert held is not None
        async with self._the_log.follow(held.position) as tail:
            while True:
                await self._apply(held, await tail.read())
                self._reachable = True
                if tail.at_end and self.state is not State.READY:
                    await self._settle(held)
                if self._snapshot_is_due(held):
                    self._snapshot_task = tasks.create_task(self._keep_snapshot(), name="grades-snapshot")

    async def _apply(self, held: Held, batch: Sequence[Entry]) -> None:
        """Apply entries; position and records move together, so any moment in between is a true one."""
        until = time.perf_counter() + APPLY_S
        for entry in batch:
            try:
                self._apply_one(held, entries.effect(entry))
            except entries.UnreadableEntry as error:
                self._metrics.unreadable.inc()
                log.error("an entry of the grades' log was passed over", reason=str(error))
            held.position = entry.position
            self._metrics.applied.inc()
            if entry.writer == self._the_log.writer and (waiting := self._waiting.get(entry.write)):
                self._answer(waiting, held.storage)
            if time.perf_counter() > until:
                await asyncio.sleep(0)
                until = time.perf_counter() + APPLY_S

    @staticmethod
    def _apply_one(held: Held, effect: entries.Effect) -> None:
        for user_id, changes in effect.changes:
            held.storage.merge(user_id, changes)
        if effect.continues:
            held.continues = _union(held.continues, effect.continues)

    @staticmethod
    def _answer(waiting: Waiting, storage: Storage) -> None:
        grade = storage.get(waiting.user_id)
        if grade is not None and not waiting.answer.done():
            waiting.answer.set_result(grade)

    async def _settle(self, held: Held) -> None:
        """At the log's end: first give it what we knew before, then be ready."""
        if self._settled_at is None:
            self._settled_at = await self._carry_over(held)
        if held.position.number >= self._settled_at:
            self._move(State.READY)
            log.info("grades ready", log=held.position.log, number=held.position.number, count=held.storage.count)

    # Carrying over from a log that was lost

    async def _carry_over(self, held: Held) -> int:
        """Append what earlier states have beyond this one; the number of the last entry that took."""
        last = held.position
        if self._before is not None:
            before = self._before
            last = await self._carry(before, held, last)
            self._inherited.add(before.position)
            self._before = None
            await asyncio.to_thread(before.storage.forget)
        for snapshot in await self._stray_snapshots():
            if snapshot.position not in self._inherited:
                stray = await self._first_good([File(snapshot.path)], self._must_be_kin)
                if stray is None:
                    continue
                last = await self._carry(stray, held, last)
                await asyncio.to_thread(stray.storage.forget)
            self._carried_files.add(snapshot.path)
        return last.number

    async def _carry(self, before: Held, held: Held, last: Position) -> Position:
        of, ours, theirs = before.position, before.storage.snapshot(), held.storage.snapshot()
        shards = difference(ours, theirs)
        while step := await asyncio.to_thread(lambda: list(itertools.islice(shards, SHARDS_PER_STEP))):
            found = itertools.chain.from_iterable(step)
            for body in entries.carry_bodies(of.log, found):
                write = secrets.token_hex(8)
                last = await self._the_log.append(
                    entries.CARRY, body, reader_at=held.position, write=write, floor=of.stamp
                )
                self._metrics.carried.inc(len(body["records"]))
        return last

    async def _stray_snapshots(self) -> list[Snapshot]:
        """Files that the log does not go on from: of logs before it, of a past that it lost, or of
        strangers."""
        return [
            snapshot for snapshot in await self._snapshots.durable() if not await self._the_log.holds(snapshot.position)
        ]

    async def _must_be_kin(self, header: Header) -> None:
        assert self._held is not None
        if header.log not in self._held.lineage and not header.orphaned:
            raise BadBackup(f"the log {header.log} is not one that the present log continues; the file is left alone")

    # Snapshots

    def _snapshot_is_due(self, held: Held) -> bool:
        if self.state is not State.READY or (self._snapshot_task and not self._snapshot_task.done()):
            return False
        return held.position.number - self._snapshot_from >= self._settings.snapshot_every

    async def _keep_snapshot(self) -> None:
        """Have a new snapshot, ours or that of a neighbour on the same disk, and trim the log behind an old
        one."""
        try:
            async with self._snapshots.turn():
                position = self._current().position
                known = await self._snapshots.durable(position.log)
                newest = max((snapshot.position.number for snapshot in known), default=0)
                if position.number - newest < self._settings.snapshot_every:
                    self._snapshot_from = newest
                else:
                    await self._save_snapshot()
        except (RedisError, MeshError, OSError) as error:
            log.warning("no snapshot now", reason=str(error))

    async def _save_snapshot(self) -> None:
        """Write a snapshot and trim the log behind the one before. Where the disk refuses, the log is not
        trimmed."""
        held = self._held
        assert held is not None
        header, frozen = self._describe(held)
        self._snapshot_from = header.number
        carried = self._carried_files if self.state is State.READY else set()
        try:
            await self._snapshots.save(header.position, stream(header, frozen))
            for path in carried:
                path.unlink(missing_ok=True)
            carried.clear()
            kept = await self._snapshots.prune(header.log)
        except OSError as error:
            self._metrics.snapshots.labels("failed").inc()
            log.error("no snapshot could be written; the log is not trimmed", reason=str(error))
            return
        self._metrics.snapshots.labels("done").inc()
        if len(kept) == KEPT:
            await self._the_log.trim(kept[-1])

    async def _farewell(self) -> None:
        """Leave snapshots behind if the log may be lost: we may be the last who know."""
        for held in (self._held, self._before):
            if held is None or not held.storage.count or await self._log_vouches(held.position):
                continue
            header, frozen = self._describe(held, orphaned=True)
            try:
                async with asyncio.timeout(FAREWELL_S):
                    await self._snapshots.save(header.position, stream(header, frozen))
                log.warning("the log could not be found; what it said is on disk now", number=header.number)
            except (OSError, TimeoutError) as error:
                log.error("no snapshot could be written before leaving", reason=str(error))

    async def _log_vouches(self, position: Position) -> bool:
        try:
            async with asyncio.timeout(1):
                return await self._the_log.holds(position)
        except (RedisError, MeshError, OSError):
            return False

    def _cancel_snapshot(self) -> None:
        if self._snapshot_task is not None:
            self._snapshot_task.cancel()

    # Helpers

    @property
    def _the_log(self) -> Log:
        if self._log is None:
            raise Unavailable(self.explanation, retry_after=1)
        return self._log

    async def _append(self, update: GradeUpdate, write: str, waiting: Waiting, reader_at: Position) -> None:
        """Append a change. Raises Unavailable where it is certain that it was not."""
        body, within_ms = entries.set_body(update), self._settings.set_timeout_ms
        try:
            waiting.position = await self._the_log.append(
                entries.SET, body, reader_at=reader_at, write=write, within_ms=within_ms
            )
        except (MeshError, ResponseError) as error:
            raise Unavailable(f"nothing was changed: {error}", retry_after=1) from error
        except (RedisError, OSError) as error:
            # It may have been done before the connection broke: whoever reads the log will know.
            log.warning("an append was not answered", reason=str(error))

    def _describe(self, held: Held, *, orphaned: bool = False) -> tuple[Header, Frozen]:
        now_ms = self._the_log.now_ms()
        if now_ms is None:
            now_ms = held.position.stamp >> 16
        frozen = held.storage.snapshot()
        header = backup.describe(frozen, held.position, held.continues, now_ms)
        return replace(header, orphaned=orphaned), frozen

    def _watch(self) -> None:
        metrics = self._metrics
        metrics.watch("ready", "1 while grades are served", lambda: self.state is State.READY)
        metrics.watch("records", "users with a grade", lambda: self._held.storage.count if self._held else 0)
        metrics.watch("log_number", "last log entry applied", lambda: self._held.position.number if self._held else 0)
        metrics.watch("sets_waiting", "changes on their way through the log", lambda: len(self._waiting))


async def stream(header: Header, state: Frozen) -> AsyncGenerator[bytes, None]:
    """A backup of a state, made in steps beside the event loop. It uses the state up."""
    chunks = backup.write(header, state)
    try:
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            if chunk:
                yield chunk
    finally:
        await asyncio.to_thread(state.forget)


def _unconfirmed(position: Position | None) -> Unavailable:
    if position is not None:
        return Unavailable("the change is recorded, but this replica has not come to it in time", recorded=position.id)
    return Unavailable("the log did not confirm the change in time; setting the same again is safe", retry_after=1)


def _union(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*first, *second)))[-LINEAGE_MAX:]


def _join(first: Held, second: Held) -> Held:
    """Both states in one, at the later position."""
    older, newer = sorted((first, second), key=lambda held: held.position.stamp)
    for shard in older.storage.snapshot().shards:
        for user_id, record in shard.items():
            newer.storage.add(user_id, record)
    older.storage.forget()
    return Held(newer.storage, newer.position, _union(older.lineage, newer.continues))


async def _nobody() -> Sequence[Source]:
    return ()


async def _anything(_: Header) -> None:
    return None
