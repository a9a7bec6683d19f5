"""The engine alone: factors random 64-bit numbers for so many seconds and prints how many a second.

python -m bench.engine SECONDS
"""

from __future__ import annotations

import random
import sys
import time

from quart_app.values.factorise import factorise


def rate(seconds: float) -> float:
    """Numbers a second; the numbers are drawn beforehand, as a request brings them."""
    numbers = [random.randrange(1 << 63, 1 << 64) for _ in range(10_000)]
    done, begun = 0, time.perf_counter()
    while (now := time.perf_counter()) < begun + seconds:
        for number in numbers[:1000]:
            factorise(number)
        numbers = numbers[1000:] + numbers[:1000]
        done += 1000
    return done / (now - begun)


if __name__ == "__main__":
    factorise(1 << 63)
    print(rate(float(sys.argv[1])))
