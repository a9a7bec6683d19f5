"""The expected work of a schedule of elliptic curves until it finds a factor, from Dickman's function.

    python -m bench.curves

The i-th curve has B1 = a·i and B2 = m·B1. The table compares each schedule with the best fixed bound for each size of
factor, although the size is unknown beforehand, and with FLINT's own table, as `factor` uses it. The unit is one step
of the first stage; the second stage costs what we measured for FLINT.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cache

from bench.report import table
from quart_app.values import curves

SIZES = (30, 40, 48, 53, 58, 65, 73, 81)
STEPS = 400
#: because of the torsion of the curves, a group's order is about as smooth as a number this many times smaller
TORSION = 23
#: work of the first stage, and of the second for each multiple of B1, in steps
FIRST, SECOND = 1.3, 0.0165

#: the levels of FLINT's `factor` for a 100-digit number: (B1, curves)
FLINT = ((25, 8), (67, 13), (207, 15), (610, 18), (1800, 20), (5300, 22), (12000, 33), (16500, 72), (26000, 117),
         (50000, 161), (80000, 205), (190000, 255))  # fmt: skip

Curve = tuple[int, int]


@cache
def dickman() -> list[float]:
    """Return rho(u) at u = i / STEPS: the probability that the largest prime of N is below N^(1/u)."""
    values = [1.0] * (25 * STEPS + 1)
    for i in range(STEPS + 1, len(values)):
        before, here = values[i - 1 - STEPS] / (i - 1), values[i - STEPS] / i
        values[i] = max(0.0, values[i - 1] - (before + here) / 2)
    return values


def rho(u: float) -> float:
    return 1.0 if u <= 1 else dickman()[min(int(u * STEPS), 25 * STEPS)]


@cache
def chance(bits: int, bound: int, multiple: int) -> float:
    """Return the probability that one curve finds a factor: its order has no prime above B1, except one up to B2."""
    size, first = bits * math.log(2) - math.log(TORSION), math.log(bound)
    width = math.log(multiple) / 40
    middles = [first + width * (k + 0.5) for k in range(40)]
    return max(1e-12, rho(size / first) + sum(rho((size - at) / first) * width / at for at in middles))


def work(bound: int, multiple: int) -> float:
    return bound * (FIRST + SECOND * multiple * min(1.0, 11.5 / math.log(bound * multiple)))


def expected(schedule: Iterable[Curve], bits: int) -> float:
    """Return the expected work until a curve of the schedule finds a factor of this size."""
    missing, total = 1.0, 0.0
    for bound, multiple in schedule:
        total += missing * work(bound, multiple)
        missing *= 1 - chance(bits, bound, multiple)
        if missing < 1e-4:
            return total
    return math.inf


def ramp(step: int, multiple: int) -> Iterator[Curve]:
    """Yield B1 = step·i without end."""
    return ((max(50, step * i), multiple) for i in range(1, 1_000_000))


def flint() -> Iterator[Curve]:
    return ((bound, 100) for bound, count in FLINT for _ in range(count))


def best_fixed(bits: int) -> float:
    bounds = [int(100 * 1.4**k) for k in range(22)]
    return min(work(b, m) / chance(bits, b, m) for b in bounds for m in (25, 50, 100, 200))


def main() -> None:
    parameters = [(curves.B1_STEP, curves.B2_RATIO), (25, 50), (100, 50), (50, 25), (50, 100)]
    rows = [
        [f"B1 = {step}·i, B2 = {m}·B1", *(f"{expected(ramp(step, m), b) / best_fixed(b):.2f}" for b in SIZES)]
        for step, m in parameters
    ]
    rows.append(["FLINT's levels", *(f"{expected(flint(), bits) / best_fixed(bits):.2f}" for bits in SIZES)])
    print(table(["work over the best fixed bound", *(f"{bits} bits" for bits in SIZES)], rows))


if __name__ == "__main__":
    main()
