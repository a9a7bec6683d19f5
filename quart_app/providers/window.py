"""The window of the free provider: a number of requests, then none for a while. Pure; the time is passed in.

    open ──the last allowed request──> blocked ──block_s later──> open, with a count of 0

A request during a block is refused. It is not counted, and does not extend the block. A count below the limit never
expires; this is the strictest reading of the task.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Window:
    """The state of the window. All times are seconds of a monotonic clock."""

    limit: int
    block_s: float
    #: how many requests were accepted since the start or the last block; `limit` during a block and just after it
    taken: int = 0
    blocked_until_s: float = 0.0

    def take(self, now_s: float) -> float | None:
        """Count a request. Return None if it is accepted, else the seconds until the block ends."""
        if now_s < self.blocked_until_s:
            return self.blocked_until_s - now_s
        # The count is full, and its block is over.
        if self.taken == self.limit:
            self.taken = 0
        self.taken += 1
        if self.taken == self.limit:
            self.blocked_until_s = now_s + self.block_s
        return None
