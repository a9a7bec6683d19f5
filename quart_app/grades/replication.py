"""Keeps the grades of one replica: applies the log of all changes, and restores the state when the log was lost.

    closed --> restoring --> ready --> closed
                  ^            |
                  +- gap, other log

`restoring` finds a state from which the replica can follow the log. The replica then applies the log up to its end. It
appends what it knew before and the log lacks (`carry_over`), and is ready when it has applied these entries, too.
A change is appended to the log, and each replica applies the change when it reads the log (`pending_sets`). Snapshots
on disk make it possible to trim the log (`snapshot_keeper`).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Sequence
from enum import Enum

import structlog
from redis.exceptions import RedisError

from mesh import MeshError, Unavailable
from mesh.journal import Entry, Log, LogError
from quart_app.grades import entries
from quart_app.grades.backup import Header
from quart_app.grades.carry_over import CarryOver
from quart_app.grades.known_state import KnownState, union
from quart_app.grades.metrics import GradesMetrics
from quart_app.grades.models import GradeUpdate, UserGrade
from quart_app.grades.pending_sets import PendingSets
from quart_app.grades.restoring import Peers, Restorer
from quart_app.grades.settings import GradesSettings
from quart_app.grades.snapshot_keeper import SnapshotKeeper
from quart_app.grades.sources import Source
from quart_app.grades.storage import Frozen

log = structlog.get_logger(__name__)

#: Pause between two attempts to find a state or to reach Redis, in seconds.
RETRY_S = 0.25
#: Longest time in seconds that applying entries holds the event loop.
APPLY_S = 0.01
#: Longest time in seconds that a leaving replica waits for Redis to say whether the log still continues from its state.
HOLDS_S = 1.0


class State(Enum):
    """Where a replica is in the drawing above."""

    CLOSED = "closed"
    RESTORING = "restoring"
    READY = "ready"


MOVES = {
    State.CLOSED: {State.RESTORING},
    State.RESTORING: {State.READY, State.CLOSED},
    State.READY: {State.RESTORING, State.CLOSED},
}


class Replication:
    """The grades of one replica. Inside a block of `following` they follow a log. Their state outlives the block."""

    def __init__(self, settings: GradesSettings, metrics: GradesMetrics) -> None:
        self._metrics = metrics
        self.sets = PendingSets(settings)
        self.keeper = SnapshotKeeper(settings, metrics)
        self._carry_over = CarryOver(settings, metrics, self.keeper)
        self._restorer = Restorer(settings, metrics, self.keeper, self._carry_over)
        self._log: Log | None = None
        self._peers: Peers = _no_peers
        self._known: KnownState | None = None
        #: number of the last entry that was carried over, after which the replica is ready; None before carrying over
        self._complete_at: int | None = None
        self._reachable = False
        self._ending = False
        self._ready = asyncio.Event()
        self.state = State.CLOSED
        #: why the grades are not ready; "" when they are
        self.explanation = "the grades are not open yet"
        self._watch()

    @property
    def number(self) -> int | None:
        """Return the number of the last entry that is applied; None while the grades are not ready."""
        return self._known.position.number if self._known is not None and self.state is State.READY else None

    # What the routes use

    def get(self, user_id: str) -> UserGrade | None:
        """Return a user's grade after the last entry that this replica applied. Raises Unavailable while restoring."""
        return self._current().storage.get(user_id)

    async def set(self, update: GradeUpdate) -> UserGrade:
        """Append a change to the log, wait until this replica has applied it, and return the merged record.

        Raises Unavailable. If the grades are being restored or the log cannot be reached, nothing was changed. If the
        log did not confirm the change in time, the change may still be applied later.
        """
        reader_at = self._current().position
        if not self._reachable:
            raise Unavailable("the log cannot be reached; nothing was changed, retry after 1 s", retry_after=1)
        return await self.sets.set(update, self._the_log, reader_at)

    def describe(self) -> tuple[Header, Frozen]:
        """Return the header of a backup and the records of this moment. Raises Unavailable while restoring."""
        return self._current().describe(self._the_log.now_ms())

    # Restoring and following the log

    @contextlib.asynccontextmanager
    async def following(self, grades_log: Log, peers: Peers) -> AsyncIterator[None]:
        """Follow a log while the block lasts. The block begins when the state is restored up to the end of the log."""
        self._log, self._peers, self._ending = grades_log, peers, False
        self._move(State.RESTORING, "the grades are being restored")
        await self.keeper.check_disk()
        try:
            async with asyncio.TaskGroup() as tasks:
                following = tasks.create_task(self._run(tasks), name="grades-follow")
                try:
                    await self._ready.wait()
                    yield
                finally:
                    self._ending = True
                    following.cancel()
                    self.keeper.cancel()
        finally:
            self._move(State.CLOSED, "the grades are closed")
            await self._save_what_the_log_lacks()
            await grades_log.close()

    async def _run(self, tasks: asyncio.TaskGroup) -> None:
        # Not `while True`: a client library that is cancelled may raise another error in place of the cancellation.
        # The error is caught below, and the loop would then never end.
        while not self._ending:
            try:
                await self._restore()
                await self._follow(tasks)
            except LogError as error:
                log.warning("log lost or replaced; restoring", reason=str(error))
                self._move(State.RESTORING, f"the grades are being restored: {error}")
                known, self._known, self._complete_at = self._known, None, None
                await self._carry_over.put_aside(known)
            except (RedisError, MeshError, OSError) as error:
                self._reachable = False
                log.warning("log cannot be followed", reason=str(error))
            await asyncio.sleep(RETRY_S * (0.5 + random.random()))

    def _move(self, to: State, explanation: str = "") -> None:
        if to is self.state:
            self.explanation = explanation
            return
        if to not in MOVES[self.state]:
            raise RuntimeError(f"the grades cannot go from {self.state.value} to {to.value}")
        self.state, self.explanation = to, explanation
        (self._ready.set if to is State.READY else self._ready.clear)()

    def _current(self) -> KnownState:
        if self.state is not State.READY or self._known is None:
            raise Unavailable(self.explanation, retry_after=1)
        return self._known

    async def _restore(self) -> None:
        while self._known is None:
            restored = await self._restorer.restore(self._the_log, self._peers)
            if restored is None:
                if self._restorer.explanation:
                    self._move(State.RESTORING, self._restorer.explanation)
                await asyncio.sleep(RETRY_S)
                continue
            # The whole state was verified before this assignment, so no part of a bad backup is ever served.
            self._known, self._complete_at = restored.known, None
            self.keeper.counted_from = restored.snapshot_from
            self.sets.confirm_up_to(restored.known)
            if restored.must_save:
                await self.keeper.save(restored.known, self._the_log, set())

    async def _follow(self, tasks: asyncio.TaskGroup) -> None:
        known = self._known
        assert known is not None
        async with self._the_log.follow(known.position) as tail:
            while True:
                await self._apply(known, await tail.read())
                self._reachable = True
                if tail.at_end and self.state is not State.READY:
                    await self._complete(known)
                if self.state is State.READY and self.keeper.is_due(known.position):
                    self.keeper.start(tasks, self._current, self._the_log, self._carry_over.carried_files)

    async def _apply(self, known: KnownState, batch: Sequence[Entry]) -> None:
        """Apply entries. Position and records change together, so other tasks always see a consistent state."""
        until = time.perf_counter() + APPLY_S
        for entry in batch:
            try:
                _apply_one(known, entries.effect(entry))
            except entries.UnreadableEntry as error:
                self._metrics.unreadable.inc()
                log.error("unreadable entry skipped", reason=str(error))
            known.position = entry.position
            self._metrics.applied.inc()
            if entry.writer == self._the_log.writer:
                self.sets.confirm(entry.write, known.storage)
            if time.perf_counter() > until:
                await asyncio.sleep(0)
                until = time.perf_counter() + APPLY_S

    async def _complete(self, known: KnownState) -> None:
        """Append what was known before and the log lacks. Become ready once the appended entries are applied.

        Called while this replica is at the end of the log.
        """
        if self._complete_at is None:
            self._complete_at = await self._carry_over.carry(known, self._the_log)
        if known.position.number >= self._complete_at:
            self._move(State.READY)
            self._restorer.succeeded()
            log.info("grades ready", log=known.position.log, number=known.position.number, count=known.storage.count)

    async def _save_what_the_log_lacks(self) -> None:
        """Write a state of this replica to disk if the log no longer continues from it.

        Perhaps no other replica has this state.
        """
        for known in (self._known, self._carry_over.before):
            if known is not None and known.storage.count and not await self._log_holds(known):
                await self.keeper.save_orphan(known, self._the_log)

    async def _log_holds(self, known: KnownState) -> bool:
        try:
            async with asyncio.timeout(HOLDS_S):
                return await self._the_log.holds(known.position)
        except (RedisError, MeshError, OSError):
            return False

    @property
    def _the_log(self) -> Log:
        if self._log is None:
            raise Unavailable(self.explanation, retry_after=1)
        return self._log

    def _watch(self) -> None:
        metrics = self._metrics
        metrics.watch("ready", "1 while grades are served", lambda: self.state is State.READY)
        metrics.watch("records", "users with a grade", lambda: self._known.storage.count if self._known else 0)
        metrics.watch(
            "log_number", "number of the last entry applied", lambda: self._known.position.number if self._known else 0
        )
        metrics.watch("sets_waiting", "changes that wait for their entry", lambda: len(self.sets))


def _apply_one(known: KnownState, effect: entries.Effect) -> None:
    for user_id, changes in effect.changes:
        known.storage.merge(user_id, changes)
    if effect.continues:
        known.continues = union(known.continues, effect.continues)


async def _no_peers() -> Sequence[Source]:
    return ()
