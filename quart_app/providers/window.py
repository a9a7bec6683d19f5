"""What the free provider allows: so many requests, then none for a while. Pure; the time is passed in.

    open ──the last allowed request──> blocked ──block_s later──> open, counting from none

A request while it is blocked is refused and neither counts nor makes the block longer. A count that is not full is
never forgotten, however long nothing comes: that is the strictest reading of the task.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Window:
    """The free provider's memory. All times are seconds of any clock that never goes back."""

    limit: int
    block_s: float
    taken: int = 0
    blocked_until: float = 0.0

    def take(self, now: float) -> float | None:
        """Count a request. None: it is taken; else for how many seconds the provider still blocks."""
        if now < self.blocked_until:
            return self.blocked_until - now
        if self.taken == self.limit:
            self.taken = 0
        self.taken += 1
        if self.taken == self.limit:
            self.blocked_until = now + self.block_s
        return None
