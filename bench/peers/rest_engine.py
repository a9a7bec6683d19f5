"""What the REST peers share: the engine, and how results are stored. Items are pairs of value and ttl."""

from __future__ import annotations

import json
import os
from typing import Any

from flint import fmpz

REDIS_URL = os.environ["BENCH_REDIS_URL"]
Items = list[tuple[int, int]]


def factors(items: Items) -> list[list[int]]:
    """Return the prime factors of each value, ascending, with multiplicity."""
    return [sorted(int(prime) for prime, times in fmpz(value).factor() for _ in range(times)) for value, _ in items]


def store(pipeline: Any, items: Items, found: list[list[int]]) -> Any:
    """Put the results into a pipeline of a Redis client, each with its time to live, and run it."""
    for (value, ttl), primes in zip(items, found, strict=True):
        pipeline.set(f"value:{value}", json.dumps(primes), ex=ttl)
    return pipeline.execute()
