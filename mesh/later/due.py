"""When a request for later is due, and the ticket with which its sender can cancel it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from mesh.errors import UsageError

_ONE_MS = timedelta(milliseconds=1)
#: Longest delay: a hundred years. Lua and a sorted set hold the ms of such a moment exactly. `at=` may name a later
#: moment: its bound is far below 2**53 ms, up to which they are exact.
LONGEST_DELAY = timedelta(days=36500)


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request that was sent without waiting for its reply. `mesh.cancel(ticket)` takes it back."""

    op: str
    #: the name of the request, not an idempotency key
    key: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass(frozen=True, slots=True)
class Due:
    """A moment on Redis's clock as scripts read it: "<ms>" of Unix time, or "+<ms>" from the run of the script on."""

    word: str

    def moment_ms(self, now_ms: int) -> int:
        """Return the moment in ms of Unix time, if the script that reads the word runs at `now_ms`."""
        return now_ms + int(self.word[1:]) if self.word[0] == "+" else int(self.word)

    @classmethod
    def of(cls, after: timedelta | None, at: datetime | None) -> Due | None:
        """Return when a request is due; None for now. Raises UsageError."""
        if after is not None and at is not None:
            raise UsageError("a request is sent after=… or at=…, not both")
        if after is not None:
            if not isinstance(after, timedelta) or not timedelta(0) <= after <= LONGEST_DELAY:
                raise UsageError(f"after= is a timedelta such as timedelta(minutes=5), not {after!r:.100}")
            return cls(f"+{after // _ONE_MS}") if after else None
        if at is None:
            return None
        if not isinstance(at, datetime) or at.tzinfo is None:
            raise UsageError(f"at= is a datetime with a time zone such as datetime.now(UTC), not {at!r:.100}")
        at_ms = int(at.timestamp() * 1000)
        # 2**47 ms are in the year 6429. Lua calculates exactly with such numbers.
        if not 0 <= at_ms <= 2**47:
            raise UsageError(f"at= is a moment between 1970 and 6429, not {at!r:.100}")
        return cls(str(at_ms))
