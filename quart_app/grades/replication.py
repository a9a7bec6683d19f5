"""Keeps the grades of one replica: restores the records at the start and after a gap, and applies the log of changes.

    closed --> restoring --> ready --> closed
                  ^            |
                  +- the log or some of its entries are gone, or another log has taken its place

`restoring` finds a state from which the replica can follow the log. The replica then applies the log up to its end. If
the replica or its disk has a state of an earlier log, the replica appends the changes in it that the present log lacks
(`carry_over`). It is ready when it has applied these entries, too.

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
from quart_app.grades.known_state import KnownState
from quart_app.grades.metrics import GradesMetrics
from quart_app.grades.models import GradeUpdate, UserGrade
from quart_app.grades.pending_sets import PendingSets
from quart_app.grades.restoring import FindPeers, Restorer
from quart_app.grades.settings import GradesSettings
from quart_app.grades.snapshot_keeper import SnapshotKeeper
from quart_app.grades.sources import Source
from quart_app.grades.storage import FrozenRecords

log = structlog.get_logger(__name__)

#: Pause between two attempts to find a state or to reach Redis, in seconds. A shorter pause would make more work for
#: Redis and the other replicas while no state can be restored. After a longer one, the grades are ready later.
RETRY_S = 0.25
#: Longest time in seconds for which applying entries holds the event loop. With a longer time, other tasks wait longer;
#: with a shorter one, applying needs more turns of the event loop.
APPLY_SLICE_S = 0.01
#: How long, in seconds, a leaving replica waits for Redis to say whether the log continues from the replica's state. A
#: longer wait delays the drain; after a shorter one, the state is saved more often without need.
LOG_CHECK_TIMEOUT_S = 1.0


class GradesStage(Enum):
    """A stage in the life cycle of a replica's grades, as in the drawing above. The grades are in a `KnownState`."""

    CLOSED = "closed"
    RESTORING = "restoring"
    READY = "ready"


#: The stages to which each stage may change.
MOVES = {
    GradesStage.CLOSED: {GradesStage.RESTORING},
    GradesStage.RESTORING: {GradesStage.READY, GradesStage.CLOSED},
    GradesStage.READY: {GradesStage.RESTORING, GradesStage.CLOSED},
}


class Replication:
    """The grades of one replica. They follow a log while a block of `following` runs, and stay in memory after it."""

    def __init__(self, settings: GradesSettings, metrics: GradesMetrics) -> None:
        self._metrics = metrics
        #: the changes that this replica has appended and not applied yet
        self.pending_sets = PendingSets(settings)
        self.keeper = SnapshotKeeper(settings, metrics)
        self._carry_over = CarryOver(settings, metrics, self.keeper)
        self._restorer = Restorer(settings, metrics, self.keeper, self._carry_over)
        self._log_or_none: Log | None = None
        self._find_peers: FindPeers = _no_peers
        #: the grades and their position in the log; None until a state is found
        self._state: KnownState | None = None
        #: the replica is ready when it has applied the entry of this number: the last one that it carried over. None
        #: before it carries over
        self._ready_at_number: int | None = None
        #: whether the last read of the log succeeded
        self._reachable = False
        #: whether the block of `following` has ended; then `_restore_and_follow` must not begin again
        self._ending = False
        #: set while `stage` is READY
        self._ready = asyncio.Event()
        self.stage = GradesStage.CLOSED
        #: why the grades are not ready; "" when they are
        self.explanation = "the grades are not open yet"
        self._register_gauges()

    @property
    def number(self) -> int | None:
        """The number of the last entry that is applied, for the roster row; None while the grades are not ready."""
        return self._state.position.number if self._state is not None and self.stage is GradesStage.READY else None

    # What the routes use

    def get(self, user_id: str) -> UserGrade | None:
        """Return a user's grade after the last entry that this replica applied. Raises Unavailable while restoring."""
        return self._require_state().storage.get(user_id)

    async def set(self, update: GradeUpdate) -> UserGrade:
        """Append a change to the log, wait until this replica has applied it, and return the merged record.

        Raises Unavailable. If the grades are being restored or the log cannot be reached, nothing was changed. If the
        log did not confirm the change in time, the change may still be applied later.
        """
        reader_at = self._require_state().position
        if not self._reachable:
            raise Unavailable("the log cannot be reached; nothing was changed, retry after 1 s", retry_after=1)
        return await self.pending_sets.set(update, self._present_log, reader_at)

    def header_and_records(self) -> tuple[Header, FrozenRecords]:
        """Return a backup of this moment: its header, and its records. Raises Unavailable while restoring."""
        return self._require_state().header_and_records(self._present_log.now_ms())

    # Restoring and following the log

    @contextlib.asynccontextmanager
    async def following(self, grades_log: Log, find_peers: FindPeers) -> AsyncIterator[None]:
        """Follow a log while the block lasts. The block begins when the state is restored up to the end of the log."""
        self._log_or_none, self._find_peers, self._ending = grades_log, find_peers, False
        self._move(GradesStage.RESTORING, "the grades are being restored")
        await self.keeper.check_disk()
        try:
            async with asyncio.TaskGroup() as tasks:
                follow_task = tasks.create_task(self._restore_and_follow(tasks), name="grades-follow")
                try:
                    await self._ready.wait()
                    yield
                finally:
                    self._ending = True
                    follow_task.cancel()
                    self.keeper.cancel()
        finally:
            self._move(GradesStage.CLOSED, "the grades are closed")
            await self._save_orphans()
            await grades_log.close()

    async def _restore_and_follow(self, tasks: asyncio.TaskGroup) -> None:
        # Not `while True`: a client library that is cancelled may raise another error in place of the cancellation.
        # The error is caught below, and the loop would then never end.
        while not self._ending:
            try:
                await self._restore()
                await self._follow(tasks)
            except LogError as error:
                # `_reachable` stays as it is: Redis has answered, and while restoring `set` refuses changes anyway.
                log.warning("log lost or replaced; restoring", reason=str(error))
                self._move(GradesStage.RESTORING, f"the grades are being restored: {error}")
                state, self._state, self._ready_at_number = self._state, None, None
                await self._carry_over.put_aside(state)
            except (RedisError, MeshError, OSError) as error:
                self._reachable = False
                log.warning("log cannot be followed", reason=str(error))
            # Random, so that the replicas do not all come back to Redis at the same moment.
            await asyncio.sleep(RETRY_S * (0.5 + random.random()))

    def _move(self, new_stage: GradesStage, explanation: str = "") -> None:
        # Between two attempts to restore, only the explanation changes.
        if new_stage is self.stage:
            self.explanation = explanation
            return
        if new_stage not in MOVES[self.stage]:
            raise RuntimeError(f"the grades cannot go from {self.stage.value} to {new_stage.value}")
        self.stage, self.explanation = new_stage, explanation
        (self._ready.set if new_stage is GradesStage.READY else self._ready.clear)()

    def _require_state(self) -> KnownState:
        """Return the grades and their position. Raises Unavailable unless they are ready."""
        if self.stage is not GradesStage.READY or self._state is None:
            raise Unavailable(self.explanation, retry_after=1)
        return self._state

    async def _restore(self) -> None:
        while self._state is None:
            restored = await self._restorer.restore(self._present_log, self._find_peers)
            if restored is None:
                if self._restorer.explanation:
                    self._move(GradesStage.RESTORING, self._restorer.explanation)
                await asyncio.sleep(RETRY_S)
                continue
            # The whole state was verified before this assignment, so no part of a bad backup is ever served.
            self._state, self._ready_at_number = restored.state, None
            self.keeper.counted_from = restored.counted_from
            # `_apply` never sees the entries that the restored state contains, so their changes are answered here.
            self.pending_sets.confirm_up_to(restored.state)
            if restored.must_save:
                # An empty set, so that no carried-over file is deleted: this state may lack the content of that file.
                await self.keeper.save(restored.state, self._present_log, set())

    async def _follow(self, tasks: asyncio.TaskGroup) -> None:
        state = self._state
        assert state is not None  # `_restore` ends only with a state
        async with self._present_log.follow(state.position) as tail:
            while True:
                await self._apply(state, await tail.read())
                self._reachable = True
                if tail.at_end and self.stage is not GradesStage.READY:
                    await self._finish_restoring(state)
                if self.stage is GradesStage.READY and self.keeper.is_due(state.position):
                    self.keeper.start(tasks, self._require_state, self._present_log, self._carry_over.carried_files)

    async def _apply(self, state: KnownState, log_entries: Sequence[Entry]) -> None:
        """Apply entries. No await stands between the records and their position, so other tasks see them agree."""
        yield_at = time.perf_counter() + APPLY_SLICE_S
        for entry in log_entries:
            try:
                state.apply(entry)
            except entries.UnreadableEntry as error:
                self._metrics.unreadable.inc()
                log.error("unreadable entry skipped", reason=str(error))
            state.position = entry.position
            self._metrics.applied.inc()
            if entry.writer == self._present_log.writer:
                # `entry.write` is the name that this replica gave to the change when it appended the change.
                self.pending_sets.confirm(entry.write, state.storage)
            if time.perf_counter() > yield_at:
                await asyncio.sleep(0)  # lets other tasks run
                yield_at = time.perf_counter() + APPLY_SLICE_S

    async def _finish_restoring(self, state: KnownState) -> None:
        """Append what earlier states have and the log lacks. Become ready once these entries are applied.

        Called after each read that reached the end of the log, until the replica is ready.
        """
        if self._ready_at_number is None:
            self._ready_at_number = await self._carry_over.carry(state, self._present_log)
        if state.position.number >= self._ready_at_number:
            self._move(GradesStage.READY)
            self._restorer.reset_patience()
            log.info("grades ready", log=state.position.log, number=state.position.number, count=state.storage.count)

    async def _save_orphans(self) -> None:
        """Write each state of this replica to disk if the log does not continue from it (an orphan).

        Perhaps no other replica has such a state. `_state` is the state of the grades now. `lost_log_state` comes from
        a lost log, and is not carried over into the present log yet.
        """
        for state in (self._state, self._carry_over.lost_log_state):
            if state is not None and state.storage.count and not await self._log_continues_from(state):
                await self.keeper.save_orphan(state, self._present_log)

    async def _log_continues_from(self, state: KnownState) -> bool:
        # Without an answer the result is False, so the state is saved. A TimeoutError is an OSError.
        try:
            async with asyncio.timeout(LOG_CHECK_TIMEOUT_S):
                return await self._present_log.holds(state.position)
        except (RedisError, MeshError, OSError):
            return False

    @property
    def _present_log(self) -> Log:
        """The log that the block of `following` follows. Raises Unavailable before the first such block."""
        if self._log_or_none is None:
            raise Unavailable(self.explanation, retry_after=1)
        return self._log_or_none

    def _register_gauges(self) -> None:
        metrics = self._metrics
        metrics.watch("ready", "1 while grades are served", lambda: self.stage is GradesStage.READY)
        metrics.watch("records", "users with a grade", lambda: self._state.storage.count if self._state else 0)
        metrics.watch(
            "log_number", "number of the last entry applied", lambda: self._state.position.number if self._state else 0
        )
        metrics.watch("sets_waiting", "changes that wait for their entry", lambda: len(self.pending_sets))


async def _no_peers() -> Sequence[Source]:
    return ()
