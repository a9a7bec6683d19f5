"""Finds a state from which a replica can follow the log, or founds a log if there is none.

A replica takes the first of these states that is valid and that the log continues:

    1. the backup of a peer, ready ones first: it leaves few entries to apply
    2. the empty state, when no entry was ever trimmed from the log (such a log is short if snapshots can be written)
    3. the newest good snapshot on disk

When the log is lost (Redis was emptied or replaced), the first surviving replica founds a new log. The new log begins
with the state of this replica. If it has none, the log begins with a state from another replica or from its disk.

If the founder dies, the only copy of that state may be lost. So a survivor that finds no state of the new log waits for
`founder_patience_s`, and while any other replica has its grades ready or is expected back. Then it founds the log
again, with its own state and all changes that were appended to the log. The wait doubles with each log for which no
state was found, because on a busy machine a founder may need longer to give its state. Survivors that replaced each
other's logs too early would never be ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from mesh.journal import FOUNDED, Entry, Log, Position, View
from quart_app.grades import entries
from quart_app.grades.backup import BadBackup, Header
from quart_app.grades.carry_over import CarryOver
from quart_app.grades.known_state import KnownState, union
from quart_app.grades.metrics import GradesMetrics
from quart_app.grades.settings import GradesSettings
from quart_app.grades.snapshot_keeper import SnapshotKeeper
from quart_app.grades.sources import Source, first_good
from quart_app.grades.storage import Storage

log = structlog.get_logger(__name__)

#: How many times `founder_patience_s` is doubled at most. With more doublings, a mesh whose founders keep dying waits
#: longer; with fewer, a slow founder has less time.
MOST_DOUBLINGS = 7

#: Returns the replicas that may give a backup; the service calls `sources.peer_sources`.
FindPeers = Callable[[], Awaitable[Sequence[Source]]]


@dataclass(frozen=True, slots=True)
class Restored:
    """A state from which the replica can follow the log."""

    state: KnownState
    #: the next snapshot is due `snapshot_every` entries after the entry of this number
    counted_from: int
    #: whether a snapshot must be written at once, because perhaps no disk has this state
    must_save: bool = False


class Restorer:
    """Searches for a state for one replica."""

    def __init__(
        self, settings: GradesSettings, metrics: GradesMetrics, keeper: SnapshotKeeper, carry_over: CarryOver
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._keeper = keeper
        self._carry_over = carry_over
        #: the log for which no state was found, and the time (`time.monotonic()`) from which it may be founded again
        self._stateless_log: tuple[str, float] | None = None
        #: for how many logs no state was found since the grades were last ready
        self._stateless_log_count = 0

    @property
    def explanation(self) -> str:
        """Why no state was found, or ""."""
        return (
            ""
            if self._stateless_log is None
            else f"no peer and no snapshot has a state of the log {self._stateless_log[0]}"
        )

    def reset_patience(self) -> None:
        """Give the next founder `founder_patience_s` without doubling. Called when the grades are ready."""
        self._stateless_log_count = 0

    async def restore(self, grades_log: Log, find_peers: FindPeers) -> Restored | None:
        """Try once to find a state; return None if there is none now. Raises LogError and the errors of Redis."""
        log_ends = await grades_log.view()
        if log_ends is None:
            base = self._carry_over.lost_log_state or await self._any_state(find_peers)
            restored = await self._begin_log(grades_log, base)
        else:
            restored = await self._find_state_for(grades_log, log_ends, find_peers)
        if restored is not None:
            self._stateless_log = None
        return restored

    async def _begin_log(self, grades_log: Log, base: KnownState | None) -> Restored | None:
        """Found a log that begins with the state `base`. Return None if another replica was faster."""
        continues = base.lineage if base else ()
        # `found` writes the first entry of the log. `entries.Founding` reads the body of this entry.
        position = await grades_log.found(body={"continues": continues}, after=base.position if base else None)
        if position is None:
            return None
        log.warning("log founded", log=position.log, continues=continues)
        self._carry_over.note_base(base)
        state = KnownState(base.storage if base else Storage(), position, continues)
        # The new log has no snapshot yet, so all its entries count until the first one is due.
        return Restored(state, 0, must_save=base is not None)

    async def _begin_log_again(self, grades_log: Log, log_ends: View, base: KnownState) -> Restored | None:
        """Replace the log by one that begins with the state `base` and all changes of the log.

        Return None if something was appended meanwhile, or another replica was faster. `base` is unchanged then.
        """
        merged_state = KnownState(base.storage.copy(), base.position, base.continues)
        end_position = await _apply_whole_log(merged_state, grades_log, log_ends)
        if end_position.stamp > merged_state.position.stamp:
            # No change of a state may be later than its position. It stays a position of the earlier log.
            merged_state.position = replace(merged_state.position, id=end_position.id)
        # From the founding on, the changes of the log are in no log. So they are written to disk. If this replica dies
        # before it has saved the state of the new log, a later start carries them over. A log just founded has none.
        if not log_ends.just_founded and not await self._keeper.save_orphan(merged_state, grades_log):
            return None
        continues = union(merged_state.lineage, (log_ends.log,))
        position = await grades_log.found(
            body={"continues": continues}, after=merged_state.position, instead_of=end_position
        )
        if position is None:
            return None
        # No await from here until `Replication` has the new state. So a replica that leaves meanwhile still has the
        # state of the lost log, or already the new one, and saves it.
        log.warning("log founded again", log=position.log, instead_of=log_ends.log, continues=continues)
        self._carry_over.note_base(base)
        # 0, as in `_begin_log`: the new log has no snapshot yet.
        return Restored(KnownState(merged_state.storage, position, continues), 0, must_save=True)

    async def _any_state(self, find_peers: FindPeers) -> KnownState | None:
        """Return a state of any log, to found a log on."""
        return await self._first_accepted([*await find_peers(), *await self._keeper.sources()], _accept_all)

    async def _find_state_for(self, grades_log: Log, log_ends: View, find_peers: FindPeers) -> Restored | None:
        """Find a state from which this replica can follow the present log. Return None if there is none now."""
        lost_log_state = self._carry_over.lost_log_state
        if lost_log_state is not None and log_ends.whole and log_ends.just_founded:
            # This log began with the empty state, and has no entry but its founding. So no grade is lost when a log
            # that begins with the state of this replica takes its place.
            return await self._begin_log_again(grades_log, log_ends, lost_log_state)

        async def must_be_continued(header: Header) -> None:
            if not await grades_log.holds(header.position):
                raise BadBackup(f"the log does not continue from entry {header.number} of the log {header.log}")

        state = await self._first_accepted(await find_peers(), must_be_continued)
        if state is None and log_ends.whole:
            # Every entry is still in the log, so the replica can apply the log from the first entry on.
            state = KnownState(Storage(), Position.start(log_ends.log))
        if state is None:
            state = await self._first_accepted(await self._keeper.sources(log_ends.log), must_be_continued)
        if state is None:
            return await self._replace_log(grades_log, log_ends, find_peers)
        # The next snapshot is counted from the newest one of this log, or else from the oldest entry of the log.
        return Restored(state, await self._keeper.newest_number(log_ends.log, log_ends.oldest.position.number))

    async def _replace_log(self, grades_log: Log, log_ends: View, find_peers: FindPeers) -> Restored | None:
        """Found the log again, because nobody has a state of it. Return None if it must not be replaced now.

        A log is not replaced while its founder may still need time, or while another replica has its grades ready or is
        expected back. Nor is a log replaced that was trimmed: its state is in a snapshot then, perhaps on the disk of a
        replica that is away.
        """
        now_s = time.monotonic()
        if self._stateless_log is None or self._stateless_log[0] != log_ends.log:
            patience_s = self._settings.founder_patience_s * 2 ** min(self._stateless_log_count, MOST_DOUBLINGS)
            # Random, so that several survivors do not replace the log at the same moment.
            self._stateless_log = (log_ends.log, now_s + patience_s * random.uniform(1, 1.5))
            self._stateless_log_count += 1
            log.error("no peer and no snapshot has a state of the log", log=log_ends.log)
        if log_ends.oldest.op != FOUNDED or now_s < self._stateless_log[1]:
            return None
        if any(source.blocks_founding for source in await find_peers()):
            return None
        base = self._carry_over.lost_log_state or await self._any_state(find_peers)
        if base is None:
            return None
        self._stateless_log = None  # if the log is not replaced now, this replica waits again before it tries again
        return await self._begin_log_again(grades_log, log_ends, base)

    async def _first_accepted(
        self, sources: Sequence[Source], accept: Callable[[Header], Awaitable[None]]
    ) -> KnownState | None:
        return await first_good(sources, self._settings, self._metrics, accept)


async def _apply_whole_log(state: KnownState, grades_log: Log, log_ends: View) -> Position:
    """Apply all entries of a log to a state of an earlier log, and return the position of the last one.

    Call it only for a log of which no entry was deleted. The position of the state stays. Nobody else has this state
    yet, so threads may change it.
    """
    # `follow` begins after this first entry.
    await asyncio.to_thread(_apply_all, state, [log_ends.oldest])
    async with grades_log.follow(log_ends.oldest.position) as tail:
        while not tail.at_end:
            await asyncio.to_thread(_apply_all, state, await tail.read())
        return tail.position


def _apply_all(state: KnownState, batch: Sequence[Entry]) -> None:
    for entry in batch:
        # Every replica skips an unreadable entry.
        with contextlib.suppress(entries.UnreadableEntry):
            state.apply(entry)


async def _accept_all(header: Header) -> None:
    """Accept a state of any log."""
