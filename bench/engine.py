"""The engine alone: factors random 64-bit numbers for some seconds, and prints numbers a second and us of each.

python -m bench.engine SECONDS
"""

from __future__ import annotations

import random
import sys
import time

from quart_app.values.factorise import factorise


def run(seconds: float) -> tuple[float, float]:
    """Return numbers a second and processor time of one, in us; drawing the numbers is not counted."""
    numbers = [random.randrange(1 << 63, 1 << 64) for _ in range(10_000)]
    done, begun, spent = 0, time.perf_counter(), time.process_time()
    while (now := time.perf_counter()) < begun + seconds:
        for number in numbers[:1000]:
            factorise(number)
        numbers = numbers[1000:] + numbers[:1000]
        done += 1000
    return done / (now - begun), 1e6 * (time.process_time() - spent) / done


if __name__ == "__main__":
    factorise(1 << 63)
    print(*run(float(sys.argv[1])))
