"""New tries of requests whose handler failed. Until the next try a request waits in Redis, and holds no worker."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from mesh import keys
from mesh.errors import UsageError
from mesh.later.options import OPTIONS
from mesh.wire.link import Link
from mesh.wire.script import Script

#: Moves a request from its stream to `mesh:later`, where it waits for its next try, or is handed on.
DEFER = Script.beside(__file__, "defer.lua", "taken.lua", *OPTIONS)

#: Characters of the last error that are kept with a request that waits for its next try: people can read them there.
#: More take more memory of Redis for each such request.
MOST_ERROR_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Retry:
    """How often, and after which pauses, a request is tried again when its handler raises one of `on`.

    The pause after the n-th try is `first` times `factor` to the power of n - 1, at most `longest`. It is multiplied by
    a random number between 1 - `jitter` and 1, so that requests that failed together do not return together. `most` is
    the number of all tries, the first included. A handler that raises a MeshError refuses the request: this is an
    answer, and no reason for another try. The death of a replica and a conflict do not count as tries. Raises
    UsageError.
    """

    most: int = 3
    first: timedelta = timedelta(seconds=1)
    factor: float = 2.0
    longest: timedelta = timedelta(hours=1)
    jitter: float = 0.1
    on: type[Exception] | tuple[type[Exception], ...] = Exception

    def __post_init__(self) -> None:
        classes = self.on if isinstance(self.on, tuple) else (self.on,)
        if not classes or not all(isinstance(each, type) and issubclass(each, Exception) for each in classes):
            raise UsageError(f"Retry(on=) names classes of exceptions, not {self.on!r:.100}")
        if not isinstance(self.most, int) or self.most < 1:
            raise UsageError(f"Retry(most=) is a number of tries such as 5, not {self.most!r:.100}")
        if not all(isinstance(each, timedelta) and each > timedelta(0) for each in (self.first, self.longest)):
            raise UsageError("Retry(first=, longest=) are times such as timedelta(seconds=1)")
        if not (self.factor >= 1 and 0 <= self.jitter <= 1):
            raise UsageError("Retry(factor=) is at least 1, and Retry(jitter=) between 0 and 1")

    def pause_ms(self, tries: int, chance: Callable[[], float] = random.random) -> int | None:
        """Return the pause after this number of tries, in ms; None if there is no further try.

        `chance` returns a random number from 0 to 1.
        """
        if tries >= self.most:
            return None
        longest_s = self.longest.total_seconds()
        try:
            unreduced_s = min(self.first.total_seconds() * self.factor ** (tries - 1), longest_s)
        except OverflowError:  # the power is too large for a float
            unreduced_s = longest_s
        # A `jitter` of 1 must not make the pause 0.
        return max(1, round(1000 * unreduced_s * (1 - self.jitter * chance())))


async def defer(link: Link, stream: str, id: str, consumer: str, pause_ms: int, failed_tries: int, reason: str) -> int:
    """Let a request wait off its stream, for its next try or because it is handed on.

    Return when it is due (ms), or 0 if another consumer has the request.
    """
    words = (id, consumer, pause_ms, failed_tries, reason[:MOST_ERROR_CHARACTERS])
    return int(await link.script(DEFER, [stream, keys.LATER], *words))
