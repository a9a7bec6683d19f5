"""A slice of curves that leaves a line about itself. It runs in the worker processes of the pool."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from quart_app.values import child, curves
from quart_app.values.child import Slice
from quart_app.values.factorise import Factoring

#: Names the file of the lines. Worker processes inherit it.
FILE = "BENCH_SLICES"


@dataclass(frozen=True, slots=True)
class Done:
    """One slice: when it began and ended, its processor time, and the sum of the bounds of its curves."""

    begun_s: float
    ended_s: float
    cpu_s: float
    work: float


def advance(factoring: Factoring, seconds_left: float, sieve_bits: int) -> Slice:
    """Do what `child.advance` does, and write down what it took."""
    begun_s, cpu_s = time.monotonic(), time.process_time()
    reached = child.advance(factoring, seconds_left, sieve_bits)
    first, last = factoring.composites[0].curves, reached[0].composites[0].curves
    work = sum(map(curves.b1_bound, range(first + 1, last + 1)))
    with Path(os.environ[FILE]).open("a") as lines:
        lines.write(f"{begun_s} {time.monotonic()} {time.process_time() - cpu_s} {work}\n")
    return reached


def read(path: Path) -> list[Done]:
    """Return all slices of a file."""
    return [Done(*map(float, line.split())) for line in path.read_text().splitlines()]
