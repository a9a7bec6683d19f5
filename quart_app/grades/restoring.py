"""Finds a state from which a replica can follow the log, or founds a log if there is none.

A replica takes the first of these states that is valid and that the log continues:

    1. the backup of a peer, ready ones first
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

#: How many times `founder_patience_s` is doubled at most.
MOST_DOUBLINGS = 7

#: Returns the replicas that may give a backup; `sources.peers` in the service.
Peers = Callable[[], Awaitable[Sequence[Source]]]


@dataclass(frozen=True, slots=True)
class Restored:
    """A state from which the replica can follow the log."""

    known: KnownState
    #: the next snapshot is due `snapshot_every` entries after the entry of this number
    snapshot_from: int
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
        #: number of logs for which no state was found since the grades were last ready
        self._fruitless_logs = 0

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
        self._fruitless_logs = 0

    async def restore(self, grades_log: Log, peers: Peers) -> Restored | None:
        """Try once to find a state; return None if there is none now. Raises LogError and the errors of Redis."""
        view = await grades_log.view()
        if view is None:
            base = self._carry_over.lost_log_state or await self._any_state(peers)
            restored = await self._begin_log(grades_log, base)
        else:
            restored = await self._find_state_for(grades_log, view, peers)
        if restored is not None:
            self._stateless_log = None
        return restored

    async def _begin_log(self, grades_log: Log, base: KnownState | None) -> Restored | None:
        """Found a log that begins with the state `base`. Return None if another replica was faster."""
        continues = base.lineage if base else ()
        # This writes the first entry of the log. Its body is what `entries.Founding` reads.
        position = await grades_log.found(body={"continues": continues}, after=base.position if base else None)
        if position is None:
            return None
        log.warning("log founded", log=position.log, continues=continues)
        self._carry_over.note_base(base)
        known = KnownState(base.storage if base else Storage(), position, continues)
        # The new log has no snapshot yet, so all its entries count until the first one is due.
        return Restored(known, 0, must_save=base is not None)

    async def _begin_log_again(self, grades_log: Log, view: View, base: KnownState) -> Restored | None:
        """Replace the log by one that begins with the state `base` and all changes of the log.

        Return None if something was appended meanwhile, or another replica was faster. `base` is unchanged then.
        """
        whole = KnownState(base.storage.copy(), base.position, base.continues)
        end = await _apply_whole_log(whole, grades_log, view)
        if end.stamp > whole.position.stamp:
            # No change of a state may be later than its position. It stays a position of the earlier log.
            whole.position = replace(whole.position, id=end.id)
        # From the founding on, the changes of the log are in no log. If this replica dies before it has saved the state
        # of the new log, they are on its disk: a later start carries them over.
        if not view.just_founded and not await self._keeper.save_orphan(whole, grades_log):
            return None
        continues = union(whole.lineage, (view.log,))
        position = await grades_log.found(body={"continues": continues}, after=whole.position, instead_of=end)
        if position is None:
            return None
        # From here on without a pause, so that a replica that leaves has either state.
        log.warning("log founded again", log=position.log, instead_of=view.log, continues=continues)
        self._carry_over.note_base(base)
        # 0, as in `_begin_log`: the new log has no snapshot yet.
        return Restored(KnownState(whole.storage, position, continues), 0, must_save=True)

    async def _any_state(self, peers: Peers) -> KnownState | None:
        """Return a state of any log, to found a log on."""
        return await self._first_accepted([*await peers(), *await self._keeper.sources()], _accept_all)

    async def _find_state_for(self, grades_log: Log, view: View, peers: Peers) -> Restored | None:
        """Find a state from which this replica can follow the present log. Return None if there is none now."""
        lost_log_state = self._carry_over.lost_log_state
        if lost_log_state is not None and view.whole and view.just_founded:
            # This log began with the empty state, and has no entry but its founding. So no grade is lost when a log
            # that begins with the state of this replica takes its place.
            return await self._begin_log_again(grades_log, view, lost_log_state)

        async def must_be_continued(header: Header) -> None:
            if not await grades_log.holds(header.position):
                raise BadBackup(f"the log does not continue from entry {header.number} of the log {header.log}")

        known = await self._first_accepted(await peers(), must_be_continued)
        if known is None and view.whole:
            # Every entry is still in the log, so the replica can apply the log from the first entry on.
            known = KnownState(Storage(), Position.start(view.log))
        if known is None:
            known = await self._first_accepted(await self._keeper.sources(view.log), must_be_continued)
        if known is None:
            return await self._replace_log(grades_log, view, peers)
        # The next snapshot is counted from the newest one of this log, or else from the oldest entry of the log.
        return Restored(known, await self._keeper.newest_number(view.log, view.oldest.position.number))

    async def _replace_log(self, grades_log: Log, view: View, peers: Peers) -> Restored | None:
        """Found the log again, because nobody has a state of it. Return None if it must not be replaced now.

        A log is not replaced while its founder may still need time, or while another replica has its grades ready. Nor
        is a log replaced that was trimmed: its state is in a snapshot then, perhaps on the disk of a replica that is
        away.
        """
        now_s = time.monotonic()
        if self._stateless_log is None or self._stateless_log[0] != view.log:
            patience_s = self._settings.founder_patience_s * 2 ** min(self._fruitless_logs, MOST_DOUBLINGS)
            # Random, so that several survivors do not replace the log at the same moment.
            self._stateless_log = (view.log, now_s + patience_s * random.uniform(1, 1.5))
            self._fruitless_logs += 1
            log.error("no peer and no snapshot has a state of the log", log=view.log)
        if view.oldest.op != FOUNDED or now_s < self._stateless_log[1]:
            return None
        if any(source.is_ready for source in await peers()):
            return None
        base = self._carry_over.lost_log_state or await self._any_state(peers)
        if base is None:
            return None
        self._stateless_log = None  # if the log is not replaced now, this replica waits again before it tries again
        return await self._begin_log_again(grades_log, view, base)

    async def _first_accepted(
        self, sources: Sequence[Source], accept: Callable[[Header], Awaitable[None]]
    ) -> KnownState | None:
        return await first_good(sources, self._settings, self._metrics, accept)


async def _apply_whole_log(known: KnownState, grades_log: Log, view: View) -> Position:
    """Apply all entries of a log to a state of an earlier log, and return the position of the last one.

    No entry of the log may be deleted. The position of the state stays.
    """
    await asyncio.to_thread(_apply_all, known, [view.oldest])
    async with grades_log.follow(view.oldest.position) as tail:
        while not tail.at_end:
            await asyncio.to_thread(_apply_all, known, await tail.read())
        return tail.position


def _apply_all(known: KnownState, batch: Sequence[Entry]) -> None:
    for entry in batch:
        # Every replica skips an unreadable entry.
        with contextlib.suppress(entries.UnreadableEntry):
            known.apply(entry)


async def _accept_all(header: Header) -> None:
    """Accept a state of any log."""
