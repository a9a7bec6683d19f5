"""What a factorisation will cost, from the size of what is left after the cheap steps.

The figures are medians of one thread of a 2020s server core; `python -m bench factorise` prints them beside what it
measured. They need to be right within a factor of two: they decide when curves are no longer worth their time, which
processes a number goes to, whether it can end before its deadline, and what `Retry-After` says.
"""

from __future__ import annotations

import math
from bisect import bisect_right

from quart_app.values import curves

#: (bits, seconds) of the quadratic sieve on a product of two primes of equal size
SIEVE = (
    (64, 0.0003),
    (80, 0.0005),
    (100, 0.0016),
    (116, 0.0045),
    (133, 0.016),
    (149, 0.055),
    (166, 0.19),
    (183, 0.70),
    (199, 2.7),
    (216, 8.0),
    (232, 22.0),
    (249, 80.0),
    (266, 205.0),
    (299, 1800.0),
)

#: (bits, seconds) of a curve for each unit of its bound B1
CURVE = ((64, 1.2e-6), (133, 1.6e-6), (200, 1.9e-6), (333, 2.7e-6), (500, 4.0e-6), (666, 5.6e-6), (1000, 1.1e-5))

#: share of the sieve's time that curves may take before it: the price of a number without a small factor
CURVES_SHARE = 0.12


def sieve_seconds(bits: int) -> float:
    """Expected time of the sieve on a composite of this size."""
    return _interpolated(SIEVE, bits)


def curve_seconds(bits: int, index: int) -> float:
    """Expected time of the curve with this index on a composite of this size."""
    return _interpolated(CURVE, bits) * curves.bound(index)


def curves_worth(bits: int) -> int:
    """How many curves to run before the sieve.

    The bound of the i-th curve is a·i, so k of them cost about a·k²/2 units.
    """
    units = CURVES_SHARE * sieve_seconds(bits) / _interpolated(CURVE, bits)
    return int(math.sqrt(2 * units / curves.FIRST_STAGE))


def _interpolated(points: tuple[tuple[int, float], ...], bits: int) -> float:
    """The value at `bits` on straight lines through the points' logarithms, continued at both ends."""
    right = min(max(bisect_right(points, bits, key=lambda point: point[0]), 1), len(points) - 1)
    (low_bits, low), (high_bits, high) = points[right - 1], points[right]
    share = (bits - low_bits) / (high_bits - low_bits)
    return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
