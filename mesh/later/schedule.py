"""When an operation runs by itself: a cron expression in a time zone, and what happens to ticks that were missed."""

from __future__ import annotations

import json
import zoneinfo
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from cronsim import CronSim, CronSimError

from mesh.errors import UsageError

#: A tick that no replica has sent for this long counts as missed, even if the next tick is not due yet.
LATE_MS = 60_000
#: Missed ticks are counted up to this number, because each costs the event loop some microseconds.
MOST_COUNTED = 1000


class Missed(StrEnum):
    """What becomes of the ticks that passed while no replica was live."""

    #: one run for all of these ticks together
    ONCE = "once"
    #: no run
    SKIP = "skip"
    #: one run for each tick, one after the other
    ALL = "all"


def missed_of(word: str) -> Missed:
    """Return the Missed with this value. Raises UsageError."""
    try:
        return Missed(word)
    except ValueError as error:
        raise UsageError(f"missed= is one of {', '.join(Missed)}, not {word!r:.100}") from error


@dataclass(frozen=True)
class Tick:
    """The body of a request that a schedule sends."""

    #: the moment that this run is for, in ms of Unix time
    at: int
    #: the number of ticks after `at` that have passed, too, while no replica was live: this run stands for them as well
    missed: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do about a tick that is due."""

    #: whether to send the tick's request, or to leave it out
    sends: bool
    #: the number of ticks after this one that have passed, too; see `Tick.missed`
    missed: int
    #: the next tick, in ms of Unix time
    following_ms: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """When an operation runs by itself.

    `cron` has five fields (or six, with seconds first), as Debian's cron reads them, in the time zone `tz`. With `each`
    a tick goes to every live database, else to one replica. Without `overlap` a tick is left out while a request of
    the one before is still on its stream. Raises UsageError.
    """

    cron: str
    tz: str = "UTC"
    each: bool = False
    missed: Missed = Missed.ONCE
    overlap: bool = False

    def __post_init__(self) -> None:
        try:
            zone = zoneinfo.ZoneInfo(self.tz)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError) as error:
            raise UsageError(f"there is no time zone {self.tz!r:.100}; write one like Europe/Berlin") from error
        try:
            # Any moment will do: this only checks that the expression can be read, and that some moment fits it.
            next(CronSim(self.cron, datetime(2024, 1, 1, tzinfo=zone)))
        except CronSimError as error:
            raise UsageError(
                f"{self.cron!r:.100} is not a cron expression ({error}); write one like '0 4 * * *'"
            ) from error
        except StopIteration as error:
            raise UsageError(f"no moment fits {self.cron!r:.100}; write one like '0 4 * * *'") from error

    @property
    def definition(self) -> str:
        """Return all fields as JSON: two schedules are the same if these texts are the same."""
        return json.dumps([self.cron, self.tz, self.each, self.missed, self.overlap])

    def after(self, at_ms: int) -> int:
        """Return the first tick after a moment, both in ms of Unix time."""
        moment = datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(zoneinfo.ZoneInfo(self.tz))
        return int(next(CronSim(self.cron, moment)).timestamp() * 1000)

    def plan(self, due_ms: int, now_ms: int) -> Plan:
        """Decide what to do about the tick that was due at `due_ms`. Times are in ms of Unix time."""
        following_ms = self.after(due_ms)
        # The following tick may have passed, too. It is then due at once, and gets a run of its own.
        if self.missed is Missed.ALL:
            return Plan(True, 0, following_ms)
        missed_count = 0
        while following_ms <= now_ms and missed_count < MOST_COUNTED:
            missed_count += 1
            following_ms = self.after(following_ms)
        # The count has reached its bound: leave out the ticks that are not counted.
        if following_ms <= now_ms:
            following_ms = self.after(now_ms)
        if self.missed is Missed.SKIP and (missed_count or now_ms - due_ms > LATE_MS):
            return Plan(False, missed_count, following_ms)
        return Plan(True, missed_count, following_ms)
