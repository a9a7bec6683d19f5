"""The audit log: security events in the process's log and on the stream `mesh:audit`.

    XADD mesh:audit MAXLEN ~ 10000 * event <phrase> user <id> actor <id> source <address> …

The id of an entry is its time. The stream keeps the last events for a look with `redis-cli XREVRANGE mesh:audit + -`.
The lasting record is the logs of the processes: a flood of failed logins may push older events out of the stream, but
not out of the logs. No password, token or cookie is ever an argument here.
"""

from __future__ import annotations

import time

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mesh import keys

log = structlog.get_logger("audit")

#: The most entries that one replica adds to the stream within a second; further events are only logged. So a flood of
#: events costs Redis no more than this number of writes per second and replica. A smaller number would keep more
#: events out of the stream.
MAX_PER_SECOND = 100


def entry_words(event: str, **facts: str | None) -> list[str]:
    """Return the words of one stream entry; facts that are None are left out."""
    fields = {"event": event, **{name: fact for name, fact in facts.items() if fact is not None}}
    return [word for field in fields.items() for word in field]


def say(event: str, **facts: str | None) -> None:
    """Only log an event; `record` or a script adds it to the stream. A failure, lock or refusal is a warning.

    The last word of the phrase `event` tells which of them it is.
    """
    write_line = log.warning if event.endswith(("failed", "locked", "refused")) else log.info
    write_line(event, **{name: fact for name, fact in facts.items() if fact is not None})


class Audit:
    """Writes security events of one replica."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._current_second = 0
        #: how many entries `record` was asked to write in the current second, also those beyond MAX_PER_SECOND
        self._asked_in_second = 0

    async def record(self, event: str, **facts: str | None) -> None:
        """Log an event and add it to the stream. If the stream cannot be written, log that, and fail no request."""
        say(event, **facts)
        if not self._may_write():
            return
        try:
            words = entry_words(event, **facts)
            await self._redis.execute_command("XADD", keys.AUDIT, "MAXLEN", "~", keys.AUDIT_KEPT, "*", *words)
        except (RedisError, OSError) as error:
            # The log's own field `event` has the phrase of this line.
            log.warning("audit entry not written", security_event=event, error=type(error).__name__)

    def _may_write(self) -> bool:
        """Count an entry of this second; return whether it may go to the stream. Entries by scripts are not counted."""
        now_s = int(time.monotonic())
        if now_s != self._current_second:
            self._current_second, self._asked_in_second = now_s, 0
        self._asked_in_second += 1
        return self._asked_in_second <= MAX_PER_SECOND
