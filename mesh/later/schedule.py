"""When an operation runs by itself: a cron expression in a time zone, and what happens to ticks that were missed."""

from __future__ import annotations

import json
import zoneinfo
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from cronsim import CronSim, CronSimError

from mesh.errors import UsageError

#: A tick that no replica has sent for this long counts as missed, even if the next tick is not due yet. After a shorter
#: time the tick may only be late, such as while the replicas restart.
LATE_MS = 60_000
#: Missed ticks are counted up to this number, because each costs the event loop some microseconds. So `Tick.missed` is
#: never higher, even after a longer absence.
MOST_COUNTED = 1000


class MissedPolicy(StrEnum):
    """What becomes of the ticks that passed while no replica was live."""

    #: one run for all of these ticks together
    ONCE = "once"
    #: no run
    SKIP = "skip"
    #: one run for each tick, one after the other
    ALL = "all"


def missed_policy_of(word: str) -> MissedPolicy:
    """Return the MissedPolicy with this value. Raises UsageError."""
    try:
        return MissedPolicy(word)
    except ValueError as error:
        raise UsageError(f"missed= is one of {', '.join(MissedPolicy)}, not {word!r:.100}") from error


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
    missed_count: int
    #: the next tick that gets a run of its own, in ms of Unix time
    following_ms: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """When an operation runs by itself: what the arguments of `Operations.every` say.

    `cron` has five fields (or six, with seconds first), as Debian's cron reads them, in the time zone `tz`. With `each`
    a tick goes to every live database, else to one replica. `missed` says what becomes of missed ticks; it is no number
    as `Tick.missed` is. Without `overlap` a tick is left out while a request of the one before has not ended. Raises
    UsageError.
    """

    cron: str
    tz: str = "UTC"
    each: bool = False
    missed: MissedPolicy = MissedPolicy.ONCE
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
        """All fields as JSON: two schedules are the same if these texts are the same."""
        return json.dumps([self.cron, self.tz, self.each, self.missed, self.overlap])

    def first_after(self, at_ms: int) -> int:
        """Return the first tick after a moment, both in ms of Unix time."""
        moment = datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(zoneinfo.ZoneInfo(self.tz))
        return int(next(CronSim(self.cron, moment)).timestamp() * 1000)

    def plan(self, due_ms: int, now_ms: int) -> Plan:
        """Decide what to do about the tick that was due at `due_ms`. Times are in ms of Unix time."""
        following_ms = self.first_after(due_ms)
        # The following tick may have passed, too. It is then due at once, and gets a run of its own.
        if self.missed is MissedPolicy.ALL:
            return Plan(True, 0, following_ms)  # sent, and it stands for no other tick
        missed_count = 0
        # For ONCE and SKIP: count the ticks that have passed, and find the first that has not.
        while following_ms <= now_ms and missed_count < MOST_COUNTED:
            missed_count += 1
            following_ms = self.first_after(following_ms)
        # The count has reached its bound: leave out the ticks that are not counted.
        if following_ms <= now_ms:
            following_ms = self.first_after(now_ms)
        # Only a tick that is on time, or a little late, has not been missed.
        if self.missed is MissedPolicy.SKIP and (missed_count or now_ms - due_ms > LATE_MS):
            return Plan(False, missed_count, following_ms)
        return Plan(True, missed_count, following_ms)
