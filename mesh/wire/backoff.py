"""The backoff between attempts. Its pauses have nothing to do with the pause of an operation."""

from __future__ import annotations

import random
from collections.abc import Iterator


def pauses(least: float = 0.1, most: float = 5.0) -> Iterator[float]:
    """Yield pauses in seconds that double from `least` to `most`, without end.

    Each is shortened at random, by up to a half, so that replicas do not retry at the same moments. Shorter pauses load
    a server that is in trouble; longer ones delay the first attempt after its return.
    """
    pause = least
    while True:
        yield pause * random.uniform(0.5, 1.0)
        pause = min(2 * pause, most)
