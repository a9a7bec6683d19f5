"""Estimates how long a factorisation will take, from the sizes of the composites that the cheap steps leave.

The figures are medians for one thread of a server core of the 2020s; `python -m bench factorise` prints them beside its
own measurements. The figures must be right within a factor of two. They decide when to stop running curves, which lane
a number goes to, whether a sieve can end before the deadline, and what `Retry-After` says.
"""

from __future__ import annotations

import math
from bisect import bisect_right

from quart_app.values import curves

#: (bits, seconds): how long the quadratic sieve takes for a product of two primes of equal size.
SIEVE_TIMES = (
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

#: (bits, seconds): how long a curve takes for each unit of its bound B1 (see `curves`).
UNIT_TIMES = ((64, 1.2e-6), (133, 1.6e-6), (200, 1.9e-6), (333, 2.7e-6), (500, 4.0e-6), (666, 5.6e-6), (1000, 1.1e-5))

#: How long curves may run before the sieve, as a share of the sieve's time. More curves find more of the small factors,
#: which saves the sieve. If the number has no small factor, the factorisation takes that much longer.
CURVES_SHARE = 0.12


def sieve_seconds(bits: int) -> float:
    """Return the expected time of the sieve for a composite of this size."""
    return _interpolated(SIEVE_TIMES, bits)


def curve_seconds(bits: int, index: int) -> float:
    """Return the expected time of the curve with this index for a composite of this size."""
    return _interpolated(UNIT_TIMES, bits) * curves.b1_bound(index)


def curve_count_before_sieve(bits: int) -> int:
    """Return how many curves to run on a composite of this size before the sieve.

    The i-th curve has B1 = a·i (a is B1_STEP), and takes B1 units of the table UNIT_TIMES. So k curves take
    a + 2a + … + ka, about a·k²/2 units.
    """
    units = CURVES_SHARE * sieve_seconds(bits) / _interpolated(UNIT_TIMES, bits)
    return int(math.sqrt(2 * units / curves.B1_STEP))


def _interpolated(points: tuple[tuple[int, float], ...], bits: int) -> float:
    """Return the seconds at `bits`, interpolated between the logarithms of the seconds; extrapolated at both ends."""
    upper_index = min(max(bisect_right(points, bits, key=lambda point: point[0]), 1), len(points) - 1)
    (low_bits, low_s), (high_bits, high_s) = points[upper_index - 1], points[upper_index]
    fraction = (bits - low_bits) / (high_bits - low_bits)
    return math.exp(math.log(low_s) + fraction * (math.log(high_s) - math.log(low_s)))
