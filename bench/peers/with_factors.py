"""Factors the numbers of each JSON line on stdin with one library, in one thread; prints the CPU time of each block.

    python with_factors.py LIBRARY    LIBRARY: ours, flint, pari, sympy, primefac

Each adapter returns a list of ints in ascending order, with multiplicity.
"""

from __future__ import annotations

import gc
import json
import math
import sys
import time
from collections.abc import Callable

#: numbers that are timed together: few, so that a disturbance spoils little
BLOCK = 20

Factorise = Callable[[int], list[int]]


def ours() -> Factorise:
    from quart_app.values.factorise import factorise, load_pari

    load_pari()
    return factorise


def flint() -> Factorise:
    from flint import fmpz

    return lambda number: sorted([int(prime) for prime, times in fmpz(number).factor() for _ in range(times)])


def pari() -> Factorise:
    from cypari import pari as library

    library.allocatemem(1 << 26, 1 << 30, silent=True)

    def factorise(number: int) -> list[int]:
        primes, times = library(number).factor()
        return [int(prime) for prime, count in zip(primes, times, strict=True) for _ in range(int(count))]

    return factorise


def sympy() -> Factorise:
    from sympy import factorint
    from sympy.ntheory.factor_ import factor_cache

    # sympy caches factorisations, and would answer every pass but the first from its cache.
    factor_cache.maxsize = 1
    return lambda number: sorted([int(prime) for prime, times in factorint(number).items() for _ in range(times)])


def primefac() -> Factorise:
    from primefac import primefac as library

    return lambda number: sorted(map(int, library(number)))


ADAPTERS = {adapter.__name__: adapter for adapter in (ours, flint, pari, sympy, primefac)}


def quickest(factorise: Factorise, numbers: list[int], passes: int) -> tuple[list[float], list[list[int]]]:
    """Return the CPU seconds of the quickest pass of each block, and the factors."""
    blocks = [numbers[first : first + BLOCK] for first in range(0, len(numbers), BLOCK)]
    seconds = [math.inf] * len(blocks)
    found: list[list[int]] = []
    for _ in range(passes):
        found = []
        for place, block in enumerate(blocks):
            begun = time.thread_time()
            factors = [factorise(number) for number in block]
            seconds[place] = min(seconds[place], time.thread_time() - begun)
            found += factors
    return seconds, found


def main() -> None:
    factorise = ADAPTERS[sys.argv[1]]()
    factorise(2**31 - 1)
    gc.disable()  # as timeit does: no contender pays for the collection of what another has left
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        seconds, found = quickest(factorise, [int(number) for number in asked["numbers"]], asked["passes"])
        print(json.dumps({"seconds": seconds, "factors": found}), flush=True)


if __name__ == "__main__":
    main()
