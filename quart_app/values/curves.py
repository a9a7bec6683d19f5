"""Elliptic curves (Lenstra's method), one at a time, by FLINT. They find small factors of numbers of any size.

python-flint offers curves only through `factor_smooth`. That function starts from the same seed at each call, so a
second call repeats the curves of the first. It also proves that each factor is prime, and returns only after its last
curve. FLINT's C function `fmpz_factor_ecm` can run one curve, with any bounds and any seed. This module calls it
directly, in the library that python-flint's wheel contains. So each factor is known as soon as its curve has found it,
even just before a deadline.

A curve has two stages, with the bounds B1 and B2: higher bounds find larger factors, and take longer. The bounds need
no table: the i-th curve has B1 = 50·i and B2 = 50·B1. The expected work to find a factor of 12 to 25 digits is at
most a tenth more than with the best fixed bound for that size. With FLINT's own table, the work is a fifth to two
fifths more. `bench/curves.py` computes these figures from Dickman's function and the cost of FLINT's two
stages.

GMP-ECM runs a curve two to three times faster. We do not use it: the only wheel that contains it brings a large part of
a computer algebra system.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import secrets
from functools import cache
from importlib import metadata

#: The order of a curve's group depends on the prime factor. The curve finds the factor if this order is a product of
#: primes up to B1, and of at most one larger prime, up to B2. The i-th curve has B1 = i · B1_STEP and B2 = B1 ·
#: B2_RATIO.
B1_STEP = 50
B2_RATIO = 50

#: The least B1. A curve with a smaller B1 would take as long, because most of its time goes into its set-up.
_LEAST_B1 = 60

#: Memory for FLINT's random state (`flint_rand_t`). It takes 24 bytes in FLINT 3, and may take more in a later release.
_RANDOM_STATE_BYTES = 512


def b1_bound(index: int) -> int:
    """Return the bound B1 of the curve with this index, counted from 1."""
    return max(_LEAST_B1, B1_STEP * index)


def run_curve(number: int, index: int) -> int | None:
    """Run the curve with this index (see `b1_bound`) on a composite number. Return a proper divisor, or None.

    A proper divisor is neither 1 nor the number. It may be composite.
    """
    flint = _library()
    b1 = b1_bound(index)
    with _Integer(flint, number) as composite, _Integer(flint, 0) as divisor:
        has_divisor = flint.fmpz_factor_ecm(
            divisor.reference, 1, b1, B2_RATIO * b1, _random_state(), composite.reference
        )
        value = divisor.value() if has_divisor else 0
    # Check what the C function has returned: only a proper divisor counts.
    return value if 1 < value < number and number % value == 0 else None


class _Integer:
    """An integer in FLINT's memory; the end of the `with` block frees it."""

    def __init__(self, flint: ctypes.CDLL, value: int) -> None:
        self._flint = flint
        #: FLINT's type `fmpz`: one machine word, which holds a small integer or points to a large one
        self._fmpz = ctypes.c_long(0)
        self.reference = ctypes.byref(self._fmpz)
        flint.fmpz_set_str(self.reference, b"%x" % value, 16)

    def __enter__(self) -> _Integer:
        return self

    def __exit__(self, *_: object) -> None:
        self._flint.fmpz_clear(self.reference)

    def value(self) -> int:
        # The text has a sign and a final zero byte in addition to its digits.
        buffer = ctypes.create_string_buffer(self._flint.fmpz_sizeinbase(self.reference, 16) + 2)
        self._flint.fmpz_get_str(buffer, 16, self.reference)
        return int(buffer.value, 16)


@cache
def _library() -> ctypes.CDLL:
    """Return FLINT's library: the copy in python-flint's wheel, which is loaded already, or else that of the system."""
    flint = ctypes.CDLL(_bundled() or ctypes.util.find_library("flint") or "libflint.so")
    flint.fmpz_factor_ecm.argtypes = [
        ctypes.c_void_p,  # the divisor found
        ctypes.c_ulong,  # number of curves
        ctypes.c_ulong,  # B1
        ctypes.c_ulong,  # B2
        ctypes.c_void_p,  # random state
        ctypes.c_void_p,  # the number
    ]
    flint.fmpz_sizeinbase.restype = ctypes.c_size_t
    return flint


def _bundled() -> str | None:
    """Return the path of the library in python-flint's wheel; None if python-flint was installed without one."""
    files = metadata.files("python-flint") or []
    return next((str(file.locate()) for file in files if file.name.startswith("libflint")), None)


@cache
def _random_state() -> ctypes.Array[ctypes.c_char]:
    """Return the random state of this process. Its seed is random, so each process runs other curves on a number."""
    flint = _library()
    state = ctypes.create_string_buffer(_RANDOM_STATE_BYTES)
    flint.flint_rand_init(state)
    flint.flint_rand_set_seed(state, ctypes.c_ulong(secrets.randbits(64)), ctypes.c_ulong(secrets.randbits(64)))
    return state
